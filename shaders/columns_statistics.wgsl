
// Partial statistics: mean (relative to the channel's shift) and variance of every column
// in one chunk of rows.
// Grid: tiles of columns × chunks. Reads: x. Writes: scratch, two planes [chunk][column].

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = workgroup_index(workgroup, grid);
    if index >= params.workgroup_count {
        return;
    }
    let strip = strip_of(index, lane);
    if is_outside(strip) {
        return;
    }
    let a = columns_moments(strip, shifts_of(strip));
    let at = strip.chunk * params.width + strip.place * WIDTH;
    for (var i = 0u; i < WIDTH; i = i + 1u) {
        let m = moments_of(a, i);
        store_scratch(at + i, m.mean);
        store_scratch(params.plane + at + i, m.variance);
    }
}
