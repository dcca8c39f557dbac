
// Four halves in a word of 64 bits, the first in the low bits.
fn unpack_wide(word: u64) -> V {
    return unpack(vec2<u32>(u32(word), u32(word >> 32u)));
}

fn pack_wide(v: V) -> u64 {
    let words = pack(v);
    return u64(words.x) | (u64(words.y) << 32u);
}
