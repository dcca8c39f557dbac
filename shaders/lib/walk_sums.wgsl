
// Adds the sums of a strip's rows to what the blocks before have left of its channels.
fn visit(strip: Strip) {
    let s = strip_sums(strip);
    let at = partials_at(strip);
    for (var i = 0u; i < channels_of(); i = i + 1u) {
        var before = vec2<f32>(0.0);
        if strip.begin > strip.first {
            before = vec2<f32>(load_scratch(at + i), load_scratch(params.plane + at + i));
        }
        store_scratch(at + i, before.x + sum_of_channel(strip, s.dy, i));
        store_scratch(params.plane + at + i, before.y + sum_of_channel(strip, s.dyx, i));
    }
}
