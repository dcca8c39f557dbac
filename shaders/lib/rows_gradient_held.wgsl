
// As rows_gradient.wgsl, of a channel that rows_reduce_held.wgsl has kept. Positions have no weights.
fn rows_gradient(range: Range, lane: u32, center: Center, slope: Slope) {
    let by = pace();
    let whole = whole_strides(range);
    var w = held_from(range, lane);
    if #u < whole { w = put_gradient(#u, w, by, slope); }
    let left = left_of(range, lane, w, by);
    let dx = held_gradient(HELD, slope);
    if left.has.w {
        store_dx_four(left.at, dx);
        return;
    }
    if left.has.x {
        store_dx(left.at.a, dx.a);
    }
    if left.has.y {
        store_dx(left.at.b, dx.b);
    }
    if left.has.z {
        store_dx(left.at.c, dx.c);
    }
}

fn held_gradient(i: u32, slope: Slope) -> Four {
    let one = V(1.0);
    let slopes = Slopes(
        both(slope.scale),
        both(slope.offset),
        both(slope.factor),
        both(slope.weight),
    );
    return gradients_at(held_g[i], held_x[i], Four(one, one, one, one), slopes);
}

fn put_gradient(i: u32, w: Walk, by: Pace, slope: Slope) -> Walk {
    let stride = stride_from(w, by);
    store_dx_four(stride.at, held_gradient(i, slope));
    return stride.next;
}
