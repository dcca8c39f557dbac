
// One half of a word, whose other half belongs to another invocation, perhaps of another workgroup:
// only the own bits are flipped where they differ, atomically.

fn unpack(word: u32, i: u32) -> V {
    return widen(word << (16u - i % 2u * 16u));
}

fn difference(word: u32, i: u32, v: V) -> u32 {
    let shift = i % 2u * 16u;
    return (((word >> shift) & 0xffffu) ^ (narrow(v) >> 16u)) << shift;
}
