
// IEEE half precision, by its bits: exact on every adapter, which the built-in conversions need not
// be. `U` holds one half per component.

fn widen(h: U) -> V {
    let sign = (h & U(0x8000u)) << U(16u);
    let magnitude = (h & U(0x7fffu)) << U(13u);
    let bias = select(U(0x38000000u), U(0x70000000u), magnitude >= U(0x0f800000u));
    // m·2⁻²⁴ = 2⁻¹⁴·(1 + m/2¹⁰) − 2⁻¹⁴, without a denormal f32.
    let least = V(0.00006103515625);
    let denormal = bitcast<U>(bitcast<V>(magnitude + U(0x38800000u)) - least);
    return bitcast<V>(sign | select(magnitude + bias, denormal, magnitude < U(0x00800000u)));
}

// To the nearest, ties to even; from 65,520 on, infinity; NaN stays NaN.
fn narrow(v: V) -> U {
    let bits = bitcast<U>(v);
    let sign = (bits >> U(16u)) & U(0x8000u);
    let magnitude = bits & U(0x7fffffffu);
    // Half a unit in the last place less one, and one more where the last bit is odd.
    let rounded = magnitude + U(0xfffu) + ((magnitude >> U(13u)) & U(1u));
    let normal = min((rounded - U(0x38000000u)) >> U(13u), U(0x7c00u));
    // A denormal half counts in steps of 2⁻²⁴. The product is exact, and `round` is to even; what is
    // no such half is kept in the range of u32.
    let steps = min(bitcast<V>(magnitude) * 16777216.0, V(1024.0));
    let denormal = U(round(steps));
    let number = select(normal, denormal, magnitude < U(0x38800000u));
    return sign | select(number, U(0x7e00u), magnitude > U(0x7f800000u));
}
