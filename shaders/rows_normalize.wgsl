
// y = (x − μ)·i·γ + β with saved statistics (training) or running statistics (inference).
// Grid: channels × chunks. Reads: x, gamma, beta, saved or running_mean and running_var.
// Writes: y.

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
    rows_normalize(range, lane, center_of(range.channel));
}
