
// One dispatch that keeps a channel: what a lane loads in the first pass stays in its registers for the
// second one. These are whole strides that all lanes have, up to HELD, and what is left, which is no more
// than one stride. A line with # stands for HELD lines, in which it is 0, 1, 2, …: a loop might not be
// unrolled, and its values then not be in registers.

var<private> held_x: array<Four, HELD + 1u>;

fn held_from(range: Range, lane: u32) -> Walk {
    return walk_from(range.channel, first_step(range, lane));
}

fn whole_strides(range: Range) -> u32 {
    return (range.end - 1u) / (4u * LANES);
}

// Where what is left lies, and what there is of it: all, or the first few, or nothing.
struct Left {
    at: Places,
    has: vec4<bool>,
}

fn left_of(range: Range, lane: u32, w: Walk, by: Pace) -> Left {
    let step = first_step(range, lane) + whole_strides(range) * 4u * LANES;
    let ahead = vec4<u32>(0u, 1u, 2u, 3u) / PAIR * (PAIR * LANES);
    return Left(stride_from(w, by).at, vec4<u32>(step) + ahead < vec4<u32>(range.end));
}
