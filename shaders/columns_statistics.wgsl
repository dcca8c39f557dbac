
// Partial statistics: mean (relative to the channel's shift) and variance of every column, or of a
// strip's columns of one channel, in one chunk of rows.
// Grid: as in columns_walk.wgsl. Reads: x. Writes: scratch, two planes [chunk][column].

fn visit(strip: Strip) {
    let at = partials_at(strip);
    let a = columns_moments(strip, shifts_of(strip));
    for (var i = 0u; i < channels_of(); i = i + 1u) {
        var m = moments_of_channel(strip, a, i);
        if strip.begin > strip.first {
            // What the blocks before have left.
            let count = Count((strip.begin - strip.first) * count_of(strip, i));
            let before = load_scratch(at + i);
            m = merge(Moments(count, before, load_scratch(params.plane + at + i)), m);
        }
        store_scratch(at + i, m.mean);
        store_scratch(params.plane + at + i, m.variance);
    }
}
