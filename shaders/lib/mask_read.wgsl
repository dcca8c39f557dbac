
// The bits of the i-th vector. Value e has bit e % 32 of word e / 32.
fn load_mask(i: u32) -> u32 {
    let per_word = 32u / WIDTH;
    return slot_mask[i / per_word] >> (i % per_word * WIDTH);
}
