
// Adds the sums of `size` lanes in a fixed tree, as in tree_moments.wgsl.

var<workgroup> tree_dy: array<f32, LANES>;
var<workgroup> tree_dyx: array<f32, LANES>;

fn two_sums(lane: u32, distance: u32) -> Sums {
    let other = lane + distance;
    return Sums(tree_dy[lane] + tree_dy[other], tree_dyx[lane] + tree_dyx[other]);
}

fn four_sums(lane: u32, distance: u32) -> Sums {
    let s = two_sums(lane, distance);
    if 2u * distance < LANES {
        return plus_sums(s, two_sums(lane + 2u * distance, distance));
    }
    return s;
}

fn plus_sums(s: Sums, t: Sums) -> Sums {
    return Sums(s.dy + t.dy, s.dyx + t.dyx);
}

// Of eight lanes, or as many as there are.
fn add_eight(own: Sums, lane: u32, distance: u32, apart: u32) -> Sums {
    tree_dy[lane] = own.dy;
    tree_dyx[lane] = own.dyx;
    workgroupBarrier();
    let first = first_of_eight(lane, distance, apart);
    let s = four_sums(first, distance);
    if 4u * distance < LANES {
        return plus_sums(s, four_sums(first + 4u * distance, distance));
    }
    return s;
}

fn tree_sums(own: Sums, lane: u32, size: u32) -> Sums {
    let apart = LANES / size;
    if size == 1u {
        return own;
    }
    var s = add_eight(own, lane, apart, apart);
    if 8u * apart < LANES {
        for (var distance = 8u * apart; distance < LANES; distance = distance * 8u) {
            // Until all have read the level before.
            workgroupBarrier();
            s = add_eight(s, lane, distance, apart);
        }
    }
    return s;
}
