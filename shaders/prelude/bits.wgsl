
// The mask: value e has bit e % 32 of word e / 32; WIDTH bits for the i-th vector.

fn word_of(i: u32) -> u32 {
    return i / (32u / WIDTH);
}

fn bits_at(word: u32, i: u32) -> u32 {
    return (word >> (i % (32u / WIDTH) * WIDTH)) & ((1u << WIDTH) - 1u);
}

// Other invocations own other bits of the word: only the own bits are flipped where they differ,
// atomically.
fn bit_difference(word: u32, i: u32, bits: u32) -> u32 {
    return (bits_at(word, i) ^ bits) << (i % (32u / WIDTH) * WIDTH);
}

// The same of a pair of vectors, of which the i-th is the first.

fn pair_at(word: u32, i: u32) -> u32 {
    return (word >> (i % (32u / WIDTH) * WIDTH)) & ((1u << (2u * WIDTH)) - 1u);
}

fn pair_difference(word: u32, i: u32, bits: u32) -> u32 {
    return (pair_at(word, i) ^ bits) << (i % (32u / WIDTH) * WIDTH);
}
