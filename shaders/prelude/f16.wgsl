
// IEEE half precision, by its bits: exact on every adapter, which the built-in conversions need not
// be. `U` holds one half per component, in its upper 16 bits.

// What the lower bits hold does not matter.
fn widen(h: U) -> V {
    let magnitude = (h & U(0x7fff0000u)) >> U(3u);
    let biased = magnitude + U(0x38000000u);
    let number = select(biased, biased + U(0x38000000u), magnitude >= U(0x0f800000u));
    // m·2⁻²⁴ = 2⁻¹⁴·(1 + m/2¹⁰) − 2⁻¹⁴, without a denormal f32.
    let least = V(0.00006103515625);
    let denormal = bitcast<U>(bitcast<V>(magnitude + U(0x38800000u)) - least);
    let bits = select(number, denormal, magnitude < U(0x00800000u));
    return bitcast<V>((h & U(0x80000000u)) | bits);
}

// To the nearest, ties to even; from 65,520 on, infinity; NaN stays NaN. The lower bits are 0.
fn narrow(v: V) -> U {
    let bits = bitcast<U>(v);
    let magnitude = bits & U(0x7fffffffu);
    // Half a unit in the last place less one, and one more where the last bit is odd; and the bias.
    let rounded = magnitude + U(0xc8000fffu) + ((magnitude >> U(13u)) & U(1u));
    let normal = min(rounded >> U(13u), U(0x7c00u));
    // A denormal half counts in steps of 2⁻²⁴, which is the last bit of 0.5.
    let denormal = bitcast<U>(bitcast<V>(magnitude) + V(0.5)) - U(0x3f000000u);
    let number = select(normal, denormal, magnitude < U(0x38800000u));
    let half = select(number, U(0x7e00u), magnitude > U(0x7f800000u));
    return (half << U(16u)) | (bits & U(0x80000000u));
}
