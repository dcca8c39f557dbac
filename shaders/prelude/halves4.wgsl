
// Four halves in two words, the first in the low bits.
fn unpack(words: vec2<u32>) -> V {
    let low = words & vec2<u32>(0xffffu);
    let high = words >> vec2<u32>(16u);
    return widen(U(low.x, high.x, low.y, high.y));
}

fn pack(v: V) -> vec2<u32> {
    let h = narrow(v);
    return vec2<u32>(h.x | (h.y << 16u), h.z | (h.w << 16u));
}
