
// Partial sums S₁ = Σdy and S₂ = Σdy·(x−μ) of one chunk of one channel.
// Grid: channels × chunks. Reads: x, dy, saved. Writes: scratch, two planes [chunk][channel].

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
    let s = tree_sums(rows_sums(range, lane, center_of(range.channel)), lane, LANES);
    if lane == 0u {
        let at = range.chunk * params.width + range.channel;
        store_scratch(at, s.dy);
        store_scratch(params.plane + at, s.dyx);
    }
}
