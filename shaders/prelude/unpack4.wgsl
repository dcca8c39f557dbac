
// Four halves in two words, the first in the low bits.
fn unpack(words: vec2<u32>) -> V {
    let low = words << vec2<u32>(16u);
    return widen(U(low.x, words.x, low.y, words.y));
}
