
// bfloat16: the upper half of an f32. `U` holds one per component, in its upper 16 bits.

// What the lower bits hold does not matter.
fn widen(h: U) -> V {
    return bitcast<V>(h & U(0xffff0000u));
}

// To the nearest, ties to even; NaN stays NaN. The lower bits are 0.
fn narrow(v: V) -> U {
    let bits = bitcast<U>(v);
    let rounded = bits + U(0x7fffu) + ((bits >> U(16u)) & U(1u));
    let is_nan = (bits & U(0x7fffffffu)) > U(0x7f800000u);
    return select(rounded, bits | U(0x400000u), is_nan) & U(0xffff0000u);
}
