
// dx = γ·i·(dy − S₁/n − (x−μ)·i²·S₂/n).
// Grid: tiles of columns × chunks. Reads: x, dy, gamma, saved, scratch (the merged sums).
// Writes: dx.

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
    var s = no_slopes();
    for (var i = 0u; i < WIDTH; i = i + 1u) {
        let channel = channel_of(strip.place * WIDTH + i);
        s = put_slope(s, i, slope_of(channel, get_center(c, i), merged_sums(channel)));
    }
    columns_gradient(strip, c, s);
}
