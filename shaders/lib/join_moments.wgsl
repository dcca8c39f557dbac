
// Moments of the columns of a workgroup, which columns_join.wgsl joins.

var<workgroup> join_count: array<Count, JOINED>;
var<workgroup> join_mean: array<f32, JOINED>;
var<workgroup> join_variance: array<f32, JOINED>;

fn put_moments(at: u32, m: Moments) {
    join_count[at] = m.count;
    join_mean[at] = m.mean;
    join_variance[at] = m.variance;
}

fn put_partials(strip: Strip, at: u32) {
    let a = strip_moments(strip);
    for (var i = 0u; i < COLUMNS; i = i + 1u) {
        put_moments(at + i, moments_of_column(a, i));
    }
}

fn join_partials(to: u32, other: u32) {
    // A column without rows in this chunk has nothing to add.
    if join_count[other] == Count(0) {
        return;
    }
    let first = Moments(join_count[to], join_mean[to], join_variance[to]);
    put_moments(to, merge(first, Moments(join_count[other], join_mean[other], join_variance[other])));
}

fn keep_partials(at: u32, i: u32) {
    store_scratch(at, join_mean[i]);
    store_scratch(params.plane + at, join_variance[i]);
}
