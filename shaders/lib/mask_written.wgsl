
// Other invocations write other bits of the same word: only the own bits are flipped where they
// differ, so the result does not depend on what the word held, nor on the order.
fn store_mask(i: u32, bits: u32) {
    let per_word = 32u / WIDTH;
    let shift = i % per_word * WIDTH;
    let own = (1u << WIDTH) - 1u;
    let old = (atomicLoad(&slot_mask[i / per_word]) >> shift) & own;
    atomicXor(&slot_mask[i / per_word], (old ^ bits) << shift);
}
