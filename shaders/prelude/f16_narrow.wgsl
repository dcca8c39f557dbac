
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
