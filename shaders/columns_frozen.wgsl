
// dx = dy·γ·i with running statistics, and on the way the partial sums S₁ = Σdy and
// S₂ = Σdy·(x−running_mean) of every column in one chunk of rows.
// Grid: tiles of columns × chunks. Reads: dy (or dz, where an earlier dispatch kept it), x, z, mask,
// gamma, beta, running_mean, running_var. Writes: dx, dz, scratch, two planes [chunk][column].

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
    let c = centers_of(strip);
    let a = affines_of(strip, c);
    var sum_dy = V(0.0);
    var sum_dyx = V(0.0);
    for (var row = strip.begin; row < strip.end; row = row + 1u) {
        let at = index_of(strip, row);
        let x = load_x(at) - c.mean;
        let g = frozen_incoming(at, x * a.gain + a.shift);
        sum_dy = sum_dy + g;
        sum_dyx = sum_dyx + g * x;
        store_dx(at, g * a.gain);
    }
    let at = strip.chunk * params.width + strip.place * WIDTH;
    for (var i = 0u; i < WIDTH; i = i + 1u) {
        store_scratch(at + i, component(sum_dy, i));
        store_scratch(params.plane + at + i, component(sum_dyx, i));
    }
}
