
// IEEE half precision by the built-in conversions, where an adapter's are as exact as those of f16.wgsl.
// `U` holds one half per component, in its upper 16 bits. One number at a time; see built_in_halves4.wgsl.

fn widen(h: U) -> V {
    return unpack2x16float(h >> 16u).x;
}

fn narrow(v: V) -> U {
    return pack2x16float(vec2<f32>(v, 0.0)) << 16u;
}
