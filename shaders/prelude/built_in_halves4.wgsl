
// Four halves in two words, the first in the low bits: as halves4.wgsl has them, by the built-in
// conversions.

fn unpack(words: vec2<u32>) -> V {
    return V(unpack2x16float(words.x), unpack2x16float(words.y));
}

fn pack(v: V) -> vec2<u32> {
    return vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw));
}
