
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
