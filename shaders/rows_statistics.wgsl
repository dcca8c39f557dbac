
// Partial statistics: mean (relative to the channel's shift) and variance of one chunk of
// one channel.
// Grid: channels × chunks. Reads: x. Writes: scratch, two planes [chunk][channel].

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
    let own = rows_moments(range, lane, shift_of(range.channel));
    let m = tree_moments(own, lane, LANES);
    if lane == 0u {
        let at = range.chunk * params.width + range.channel;
        store_scratch(at, m.mean);
        store_scratch(params.plane + at, m.variance);
    }
}
