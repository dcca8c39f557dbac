
// As rows_normalize.wgsl, of a channel that rows_statistics_held.wgsl has kept.
fn rows_normalize(range: Range, lane: u32, center: Center) {
    let affine = affine_of(range.channel, center);
    let by = pace();
    let whole = whole_strides(range);
    var w = held_from(range, lane);
    if #u < whole { w = finish_held(#u, w, by, center, affine); }
    let left = left_of(range, lane, w, by);
    let v = normalized(HELD, center, affine);
    if left.has.w {
        finish_four(left.at, v, load_z_four(left.at));
        return;
    }
    if left.has.x {
        finish(left.at.a, v.a, load_z(left.at.a));
    }
    if left.has.y {
        finish(left.at.b, v.b, load_z(left.at.b));
    }
    if left.has.z {
        finish(left.at.c, v.c, load_z(left.at.c));
    }
}

fn normalized(i: u32, center: Center, affine: Affine) -> Four {
    let x = minus(held_x[i], both(V(center.mean)));
    return scaled(x, both(affine.gain), both(affine.shift));
}

fn finish_held(i: u32, w: Walk, by: Pace, center: Center, affine: Affine) -> Walk {
    let stride = stride_from(w, by);
    finish_four(stride.at, normalized(i, center, affine), load_z_four(stride.at));
    return stride.next;
}
