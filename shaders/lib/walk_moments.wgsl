
// Merges the moments of a strip's rows with what the blocks before have left of its channels.
fn visit(strip: Strip) {
    let at = partials_at(strip);
    let a = strip_moments(strip);
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
