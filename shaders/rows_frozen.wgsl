
// dx = dy·γ·i with running statistics, and on the way the partial sums S₁ = Σdy and
// S₂ = Σdy·(x−running_mean) of one chunk of one channel.
// Grid: channels × chunks. Reads: dy, x, gamma, running_mean, running_var.
// Writes: dx, scratch, two planes [chunk][channel].

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
    let mean = V(center.mean);
    let scale = V(load_gamma(range.channel) * center.inv_std);
    var sum_dy = V(0.0);
    var sum_dyx = V(0.0);
    var w = walk_from(range.channel, range.begin + lane);
    for (var step = range.begin + lane; step < range.end; step = step + LANES) {
        let g = load_dy(w.index);
        sum_dy = sum_dy + g;
        sum_dyx = sum_dyx + g * (load_x(w.index) - mean);
        store_dx(w.index, g * scale);
        w = advance(w);
    }
    if HAS_SCRATCH {
        let own = Sums(sum_components(sum_dy), sum_components(sum_dyx));
        let s = tree_sums(own, lane, LANES);
        if lane == 0u {
            let at = range.chunk * params.width + range.channel;
            store_scratch(at, s.dy);
            store_scratch(params.plane + at, s.dyx);
        }
    }
}
