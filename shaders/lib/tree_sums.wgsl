
// Adds the sums of `size` lanes in a fixed tree, as in tree_moments.wgsl.

var<workgroup> tree_dy: array<f32, LANES>;
var<workgroup> tree_dyx: array<f32, LANES>;

fn tree_sums(own: Sums, lane: u32, size: u32) -> Sums {
    var s = own;
    for (var distance = LANES / size; distance < LANES; distance = distance * 2u) {
        tree_dy[lane] = s.dy;
        tree_dyx[lane] = s.dyx;
        workgroupBarrier();
        if lane % (distance * 2u) < LANES / size {
            let other = lane + distance;
            s = Sums(s.dy + tree_dy[other], s.dyx + tree_dyx[other]);
        }
        workgroupBarrier();
    }
    return s;
}

// Gives the first lane's result to all lanes.
fn share_sums(s: Sums, lane: u32) -> Sums {
    if lane == 0u {
        tree_dy[0] = s.dy;
        tree_dyx[0] = s.dyx;
    }
    workgroupBarrier();
    return Sums(tree_dy[0], tree_dyx[0]);
}
