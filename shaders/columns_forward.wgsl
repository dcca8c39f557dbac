
// A whole training forward: statistics, saved and running statistics, y.
// Grid: tiles of columns; a column is a channel, and one chunk. Reads: x, gamma, beta, batches.
// Writes: y, saved, running_mean, running_var.

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
    let strip = strip_of(0u, (index * LANES + lane) * PAIR, 0u);
    if is_outside(strip) {
        return;
    }
    let k = shifts_of(strip);
    let a = columns_moments(strip, k);
    var c = no_centers();
    for (var i = 0u; i < COLUMNS; i = i + 1u) {
        let m = moments_of_column(a, i);
        let center = center_from(component_of(k, i), m);
        settle(strip.place * WIDTH + i, center, m);
        c = put_center(strip, c, i, center);
    }
    columns_normalize(strip, c);
}
