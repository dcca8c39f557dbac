
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
