
// As pack4.wgsl has it for f16, by the built-in conversion, where that is as exact.

fn pack(v: V) -> vec2<u32> {
    return vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw));
}
