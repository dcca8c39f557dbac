
// Merges the moments of `size` lanes in a fixed tree, pairs first. Of a whole workgroup they are
// neighbours; else they lie LANES / size apart, so that as many results are merged side by side, each of
// which its first lane gets. `size` is a power of two, the same in all lanes.
// Workgroup memory only, so the bits do not depend on the subgroup size.

var<workgroup> tree_count: array<Count, LANES>;
var<workgroup> tree_mean: array<f32, LANES>;
var<workgroup> tree_variance: array<f32, LANES>;

fn tree_moments(own: Moments, lane: u32, size: u32) -> Moments {
    var m = own;
    for (var distance = LANES / size; distance < LANES; distance = distance * 2u) {
        tree_count[lane] = m.count;
        tree_mean[lane] = m.mean;
        tree_variance[lane] = m.variance;
        workgroupBarrier();
        if lane % (distance * 2u) < LANES / size {
            let other = lane + distance;
            m = merge(m, Moments(tree_count[other], tree_mean[other], tree_variance[other]));
        }
        workgroupBarrier();
    }
    return m;
}

// Gives the first lane's result to all lanes.
fn share_moments(m: Moments, lane: u32) -> Moments {
    if lane == 0u {
        tree_count[0] = m.count;
        tree_mean[0] = m.mean;
        tree_variance[0] = m.variance;
    }
    workgroupBarrier();
    return Moments(tree_count[0], tree_mean[0], tree_variance[0]);
}
