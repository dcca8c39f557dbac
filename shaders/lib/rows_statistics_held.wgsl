
// As rows_statistics.wgsl, of a channel that is kept. All loads come first, so that they are in flight
// together.
fn rows_moments(range: Range, lane: u32, shift: f32) -> Moments {
    let k = V(shift);
    let by = pace();
    let whole = whole_strides(range);
    var w = held_from(range, lane);
    if #u < whole { w = hold_x(#u, w, by); }
    let left = left_of(range, lane, w, by);
    var v = Four(V(0.0), V(0.0), V(0.0), V(0.0));
    if left.has.x {
        v.a = load_x(left.at.a);
    }
    if left.has.y {
        v.b = load_x(left.at.b);
    }
    if left.has.z {
        v.c = load_x(left.at.c);
    }
    if left.has.w {
        v.d = load_x(left.at.d);
    }
    held_x[HELD] = v;
    var a = accumulator();
    if #u < whole { a = add_held(#u, a, k); }
    if left.has.w {
        return collapse(add_held(HELD, a, k));
    }
    if left.has.x {
        a = add_one(a, v.a - k);
    }
    if left.has.y {
        a = add_one(a, v.b - k);
    }
    if left.has.z {
        a = add_one(a, v.c - k);
    }
    return collapse(a);
}

fn hold_x(i: u32, w: Walk, by: Pace) -> Walk {
    let stride = stride_from(w, by);
    held_x[i] = load_x_four(stride.at);
    return stride.next;
}

fn add_held(i: u32, a: Accumulator, k: V) -> Accumulator {
    let d = minus(held_x[i], both(k));
    return add_four(a, d.a, d.b, d.c, d.d);
}
