
// As rows_reduce.wgsl, of a channel that is kept: x − mean, and the gradient behind the activation, which
// is dz as it is stored, where that is wanted.
var<private> held_g: array<Four, HELD + 1u>;

// Where a lane is, and its sums so far.
struct Summing {
    w: Walk,
    dy: V,
    dyx: V,
}

fn rows_sums(range: Range, lane: u32, center: Center) -> Sums {
    let affine = affine_of(range.channel, center);
    let mean = V(center.mean);
    let by = pace();
    let whole = whole_strides(range);
    var s = Summing(held_from(range, lane), V(0.0), V(0.0));
    if #u < whole { s = hold_gradient(#u, s, by, mean, affine); }
    let left = left_of(range, lane, s.w, by);
    if left.has.w {
        s = hold_gradient(HELD, s, by, mean, affine);
    } else {
        let none = Four(V(0.0), V(0.0), V(0.0), V(0.0));
        var x = none;
        var g = none;
        if left.has.x {
            x.a = load_x(left.at.a) - mean;
            g.a = keep_incoming(left.at.a, x.a * affine.gain + affine.shift);
            s = add_gradient(s, g.a, x.a);
        }
        if left.has.y {
            x.b = load_x(left.at.b) - mean;
            g.b = keep_incoming(left.at.b, x.b * affine.gain + affine.shift);
            s = add_gradient(s, g.b, x.b);
        }
        if left.has.z {
            x.c = load_x(left.at.c) - mean;
            g.c = keep_incoming(left.at.c, x.c * affine.gain + affine.shift);
            s = add_gradient(s, g.c, x.c);
        }
        held_x[HELD] = x;
        held_g[HELD] = as_dz(g);
    }
    let dy = sum_components(s.dy);
    return Sums(dy, sum_components(s.dyx) - center.rest * dy);
}

fn add_gradient(s: Summing, g: V, x: V) -> Summing {
    return Summing(s.w, s.dy + g, s.dyx + times(g, x));
}

fn hold_gradient(i: u32, s: Summing, by: Pace, mean: V, affine: Affine) -> Summing {
    let stride = stride_from(s.w, by);
    let x = minus(load_x_four(stride.at), both(mean));
    let g = keep_incoming_four(stride.at, scaled(x, both(affine.gain), both(affine.shift)));
    held_x[i] = x;
    held_g[i] = as_dz(g);
    let gx = times_four(g, x);
    return Summing(
        stride.next,
        s.dy + ((g.a + g.b) + (g.c + g.d)),
        s.dyx + ((gx.a + gx.b) + (gx.c + gx.d)),
    );
}

fn as_dz(g: Four) -> Four {
    if HAS_DZ {
        return Four(as_stored(g.a), as_stored(g.b), as_stored(g.c), as_stored(g.d));
    }
    return g;
}
