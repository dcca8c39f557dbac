
// dx = γ·i·(dy − S₁/n − (x−μ)·i²·S₂/n).
// Grid: channels × chunks. Reads: x, dy, gamma, saved, scratch (the merged sums). Writes: dx.

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
    let range = range_of(place_in_order(index));
    let channel = range.channel;
    let center = center_of(channel);
    rows_gradient(range, lane, center, slope_of(channel, center, merged_sums(channel)));
}
