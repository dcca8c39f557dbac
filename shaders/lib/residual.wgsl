
fn plus_residual(v: V, z: V) -> V {
    if HAS_Z {
        return v + z;
    }
    return v;
}

fn plus_residuals(v: Four, z: Four) -> Four {
    return Four(
        plus_residual(v.a, z.a),
        plus_residual(v.b, z.b),
        plus_residual(v.c, z.c),
        plus_residual(v.d, z.d),
    );
}

fn incoming(i: u32, v: V) -> V {
    return gradient_before(i, load_dy(i), load_z(i), v);
}

fn incoming_four(at: Places, v: Four) -> Four {
    return gradients_before(at, load_dy_four(at), load_z_four(at), v);
}

// The gradient of v, kept as dz where dz is wanted.
fn keep_incoming(i: u32, v: V) -> V {
    let g = incoming(i, v);
    store_dz(i, g);
    return g;
}

fn keep_incoming_four(at: Places, v: Four) -> Four {
    let g = incoming_four(at, v);
    store_dz_four(at, g);
    return g;
}

// The same again: from dz where it was kept.
fn incoming_again(i: u32, v: V) -> V {
    if HAS_DZ {
        return load_dz(i);
    }
    return incoming(i, v);
}

fn incoming_again_four(at: Places, v: Four) -> Four {
    if HAS_DZ {
        return load_dz_four(at);
    }
    return incoming_four(at, v);
}

// With frozen statistics: from dz where an earlier dispatch kept it.
fn frozen_incoming(i: u32, v: V) -> V {
    if HAS_DY {
        return keep_incoming(i, v);
    }
    return load_dz(i);
}

fn frozen_incoming_four(at: Places, v: Four) -> Four {
    if HAS_DY {
        return keep_incoming_four(at, v);
    }
    return load_dz_four(at);
}

// Where positions have weights, a gradient of 0 adds nothing, whatever it is multiplied with: padding
// may hold NaN. Told by its bits, as compilers may assume that there is no NaN.
fn unless_nothing(g: V, v: V) -> V {
    if WEIGHTED {
        return select(v, V(0.0), (bitcast<U>(g) & U(0x7fffffffu)) == U(0u));
    }
    return v;
}

fn times(g: V, x: V) -> V {
    return g * unless_nothing(g, x);
}

fn times_four(g: Four, x: Four) -> Four {
    return Four(times(g.a, x.a), times(g.b, x.b), times(g.c, x.c), times(g.d, x.d));
}
