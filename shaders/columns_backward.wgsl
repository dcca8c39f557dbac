
// A whole training backward: dγ, dβ, dx.
// Grid: tiles of columns; a column is a channel, and one chunk. Reads: x, dy, gamma, saved.
// Writes: dx, dgamma, dbeta.

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
    let c = centers_of(strip);
    let sums = columns_sums(strip, c);
    for (var i = 0u; i < COLUMNS; i = i + 1u) {
        let own = Sums(component_of(sums.dy, i), component_of(sums.dyx, i));
        store_parameter_gradients(strip.place * WIDTH + i, component_of(c.inv_std, i), own);
    }
    if HAS_DX {
        columns_gradient(strip, c, slopes_of(strip, c, sums));
    }
}
