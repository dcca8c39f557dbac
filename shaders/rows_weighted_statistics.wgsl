
// Weighted statistics of one chunk of one channel, as a part that merge_parts merges: mean, rest,
// variance, sum of weights. The weights of a channel lie as its vector loads are numbered.
// Grid: channels × chunks. Reads: x, weights. Writes: scratch, [chunk][4][channel].

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
    var a = weighted_accumulator();
    var step = range.begin + lane;
    var w = walk_from(range.channel, step);
    let by = pace();
    for (; step < range.end; step = step + LANES) {
        a = add_weighted(a, load_x(w.index), load_weights(params.weights_base + step));
        w = advance(w, by);
    }
    let k = share_shift(a, lane);
    let m = tree_moments(collapse_weighted(a, k), lane, LANES);
    if lane == 0u {
        let at = range.chunk * 4u * params.width + range.channel;
        keep_part(at, params.width, center_from(k, m), m);
    }
}
