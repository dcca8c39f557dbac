
// Goes down a chunk of rows once, with all columns in one workgroup, and joins what it leaves of rows that
// lie side by side: a chunk has one partial of each column of one row, and not of all of them.
// Grid: chunks.

// Columns of a workgroup, at most: MAX_JOINED in src/plan/builder.rs.
const JOINED: u32 = 1024u;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let chunk = workgroup_index(workgroup, grid);
    if chunk >= params.workgroup_count {
        return;
    }
    let strip = strip_of(chunk, lane * PAIR, chunk * params.chunk);
    if !is_outside(strip) {
        put_partials(strip, lane * COLUMNS);
    }
    workgroupBarrier();
    // The second half of the rows side by side goes to the first, again and again.
    let width = params.width;
    for (var rows = params.row_loads * WIDTH / width; rows > 1u; rows = (rows + 1u) / 2u) {
        let rest = rows / 2u * width;
        let half = (rows + 1u) / 2u * width;
        for (var i = lane; i < rest; i = i + LANES) {
            join_partials(i, half + i);
        }
        workgroupBarrier();
    }
    for (var i = lane; i < width; i = i + LANES) {
        keep_partials(chunk * width + i, i);
    }
}
