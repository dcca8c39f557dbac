
fn plus_residual(v: V, z: V) -> V {
    if HAS_Z {
        return v + z;
    }
    return v;
}

// The gradient of v, kept as dz where dz is wanted.
fn keep_incoming(i: u32, v: V) -> V {
    let g = incoming(i, v);
    store_dz(i, g);
    return g;
}

// The same again: from dz where it was kept.
fn incoming_again(i: u32, v: V) -> V {
    if HAS_DZ {
        return load_dz(i);
    }
    return incoming(i, v);
}

// With frozen statistics: from dz where an earlier dispatch kept it.
fn frozen_incoming(i: u32, v: V) -> V {
    if HAS_DY {
        return keep_incoming(i, v);
    }
    return load_dz(i);
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
