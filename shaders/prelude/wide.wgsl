
// Four values in two words of 64 bits, the first in the low bits.
fn unpack_wide(words: vec2<u64>) -> V {
    let low = vec2<u32>(words);
    let high = vec2<u32>(words >> vec2<u32>(32u));
    return bitcast<V>(U(low.x, high.x, low.y, high.y));
}

fn pack_wide(v: V) -> vec2<u64> {
    let bits = bitcast<U>(v);
    return vec2<u64>(bits.xz) | (vec2<u64>(bits.yw) << vec2<u32>(32u));
}
