
// bfloat16: the upper half of an f32. `U` holds one per component.

fn widen(h: U) -> V {
    return bitcast<V>(h << U(16u));
}

// To the nearest, ties to even; NaN stays NaN.
fn narrow(v: V) -> U {
    let bits = bitcast<U>(v);
    let rounded = (bits + U(0x7fffu) + ((bits >> U(16u)) & U(1u))) >> U(16u);
    let is_nan = (bits & U(0x7fffffffu)) > U(0x7f800000u);
    return select(rounded, (bits >> U(16u)) | U(0x40u), is_nan);
}
