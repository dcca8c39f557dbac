
// A whole training backward: dγ, dβ, dx.
// Grid: one workgroup per channel, which is one chunk. Reads: x, dy, gamma, saved.
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
    let range = range_of(index);
    let center = center_of(range.channel);
    let s = tree_sums(rows_sums(range, lane, center), lane, LANES);
    if lane == 0u {
        store_parameter_gradients(range.channel, center.inv_std, s);
    }
    if HAS_DX {
        rows_gradient(range, lane, center, slope_of(range.channel, center, s));
    }
}
