
// As f16_narrow.wgsl has it for one number, by the built-in conversion, where that is as exact.

fn narrow(v: V) -> U {
    return pack2x16float(vec2<f32>(v, 0.0)) << 16u;
}
