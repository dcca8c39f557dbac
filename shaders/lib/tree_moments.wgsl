
// Merges the moments of `size` lanes in a fixed tree, pairs first. Of a whole workgroup they are
// neighbours; else they lie LANES / size apart, so that as many results are merged side by side. `size`
// is a power of two, the same in all lanes.
// Workgroup memory only, so the bits do not depend on the subgroup size; three levels of the tree at a
// time, so that there are few barriers. It ends without one.

var<workgroup> tree_count: array<Count, LANES>;
var<workgroup> tree_mean: array<f32, LANES>;
var<workgroup> tree_variance: array<f32, LANES>;

fn put_moments(lane: u32, m: Moments) {
    tree_count[lane] = m.count;
    tree_mean[lane] = m.mean;
    tree_variance[lane] = m.variance;
}

fn moments_at(lane: u32) -> Moments {
    return Moments(tree_count[lane], tree_mean[lane], tree_variance[lane]);
}

fn two_moments(lane: u32, distance: u32) -> Moments {
    return merge(moments_at(lane), moments_at(lane + distance));
}

fn four_moments(lane: u32, distance: u32) -> Moments {
    let m = two_moments(lane, distance);
    if 2u * distance < LANES {
        return merge(m, two_moments(lane + 2u * distance, distance));
    }
    return m;
}

// Of eight lanes, or as many as there are.
fn merge_eight(own: Moments, lane: u32, distance: u32, apart: u32) -> Moments {
    put_moments(lane, own);
    workgroupBarrier();
    let first = first_of_eight(lane, distance, apart);
    let m = four_moments(first, distance);
    if 4u * distance < LANES {
        return merge(m, four_moments(first + 4u * distance, distance));
    }
    return m;
}

// All lanes compute it, so that none has to be told.
fn tree_moments(own: Moments, lane: u32, size: u32) -> Moments {
    let apart = LANES / size;
    if size == 1u {
        return own;
    }
    // Outside of a loop, eight lanes know their places, which lavapipe fetches once for all of them.
    var m = merge_eight(own, lane, apart, apart);
    if 8u * apart < LANES {
        for (var distance = 8u * apart; distance < LANES; distance = distance * 8u) {
            // Until all have read the level before.
            workgroupBarrier();
            m = merge_eight(m, lane, distance, apart);
        }
    }
    return m;
}
