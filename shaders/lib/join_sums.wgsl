
// Sums of the columns of a workgroup, which columns_join.wgsl joins.

var<workgroup> join_dy: array<f32, JOINED>;
var<workgroup> join_dyx: array<f32, JOINED>;

fn put_partials(strip: Strip, at: u32) {
    let s = strip_sums(strip);
    for (var i = 0u; i < COLUMNS; i = i + 1u) {
        join_dy[at + i] = component_of(s.dy, i);
        join_dyx[at + i] = component_of(s.dyx, i);
    }
}

fn join_partials(to: u32, other: u32) {
    join_dy[to] = join_dy[to] + join_dy[other];
    join_dyx[to] = join_dyx[to] + join_dyx[other];
}

fn keep_partials(at: u32, i: u32) {
    store_scratch(at, join_dy[i]);
    store_scratch(params.plane + at, join_dyx[i]);
}
