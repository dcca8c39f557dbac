
struct ColumnSums {
    dy: Both,
    dyx: Both,
}

// Adds to what the blocks before have left of a strip's columns.
fn add_sums(strip: Strip, s: ColumnSums) {
    let at = partials_at(strip);
    for (var i = 0u; i < COLUMNS; i = i + 1u) {
        var before = vec2<f32>(0.0);
        if strip.begin > strip.first {
            before = vec2<f32>(load_scratch(at + i), load_scratch(params.plane + at + i));
        }
        store_scratch(at + i, before.x + component_of(s.dy, i));
        store_scratch(params.plane + at + i, before.y + component_of(s.dyx, i));
    }
}
