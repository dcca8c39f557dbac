
// A whole training forward: statistics, saved and running statistics, y.
// Grid: one workgroup per channel, which is one chunk. Reads: x, gamma, beta, batches.
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
    let range = range_of(index);
    let k = shift_of(range.channel);
    let m = tree_moments(rows_moments(range, lane, k), lane, LANES);
    let center = center_from(k, m);
    if lane == 0u {
        settle(range.channel, center, m);
    }
    if RENORM {
        // All lanes read the r and d that the first has saved.
        storageBarrier();
    }
    rows_normalize(range, lane, center);
}
