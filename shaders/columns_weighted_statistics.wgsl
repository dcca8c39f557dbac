
// Weighted statistics of every column in one chunk of rows, as parts that merge_parts merges: mean,
// rest, variance, sum of weights.
// Grid: tiles of columns × chunks. Reads: x, weights. Writes: scratch, [chunk][4][column].

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
    let chunk = index / params.parts;
    let strip = strip_of(chunk, index % params.parts * LANES + lane, chunk * params.chunk);
    if is_outside(strip) {
        return;
    }
    let places = weight_places(strip);
    var a = weighted_accumulator();
    for (var row = strip.begin; row < strip.end; row = row + 1u) {
        a = add_weighted(a, load_x(index_of(strip, row)), weights_at(places + row_weights(row)));
    }
    let at = strip.chunk * 4u * params.width + strip.place * WIDTH;
    for (var i = 0u; i < WIDTH; i = i + 1u) {
        let m = weighted_moments_of(a, i);
        keep_part(at + i, params.width, center_from(component(a.shift, i), m), m);
    }
}
