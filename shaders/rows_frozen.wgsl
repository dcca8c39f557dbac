
// dx = dy·γ·i with running statistics, and on the way the partial sums S₁ = Σdy and
// S₂ = Σdy·(x−running_mean) of one chunk of one channel.
// Grid: channels × chunks. Reads: dy (or dz, where an earlier dispatch kept it), x, z, mask, gamma,
// beta, running_mean, running_var. Writes: dx, dz, scratch, two planes [chunk][channel].

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
    let affine = affine_of(range.channel, center);
    let gain = affine.gain;
    let shift = affine.shift;
    var sum_dy = V(0.0);
    var sum_dyx = V(0.0);
    var step = first_step(range, lane);
    var w = walk_from(range.channel, step);
    let by = pace();
    for (; has_stride(range, step); step = step + 4u * LANES) {
        let stride = stride_from(w, by);
        let x = minus(load_x_four(stride.at), both(mean));
        let g = frozen_incoming_four(stride.at, scaled(x, both(gain), both(shift)));
        let gx = times_four(g, x);
        sum_dy = sum_dy + ((g.a + g.b) + (g.c + g.d));
        sum_dyx = sum_dyx + ((gx.a + gx.b) + (gx.c + gx.d));
        store_dx_four(stride.at, times_both(g, both(gain)));
        w = stride.next;
    }
    for (; step < range.end; step = step + PAIR * LANES) {
        for (var i = w.index; i < w.index + PAIR; i = i + 1u) {
            let x = load_x(i) - mean;
            let g = frozen_incoming(i, x * gain + shift);
            sum_dy = sum_dy + g;
            sum_dyx = sum_dyx + times(g, x);
            store_dx(i, g * gain);
        }
        w = advance(w, by);
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
