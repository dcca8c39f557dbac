
// Partial statistics: mean (relative to the channel's shift) and variance of every column
// in one chunk of rows.
// Grid: as in columns_walk.wgsl. Reads: x. Writes: scratch, two planes [chunk][column].

fn visit(strip: Strip) {
    let at = partials_at(strip);
    var a = accumulator();
    if strip.begin > strip.first {
        // What the blocks before have left. Where the mean is infinite, so is the total.
        a.count = f32(strip.begin - strip.first);
        for (var i = 0u; i < WIDTH; i = i + 1u) {
            a.mean = put(a.mean, i, load_scratch(at + i));
            a.variance = put(a.variance, i, load_scratch(params.plane + at + i));
        }
        a.total = a.mean;
    }
    a = columns_moments(strip, shifts_of(strip), a);
    for (var i = 0u; i < WIDTH; i = i + 1u) {
        let m = moments_of(a, i);
        store_scratch(at + i, m.mean);
        store_scratch(params.plane + at + i, m.variance);
    }
}
