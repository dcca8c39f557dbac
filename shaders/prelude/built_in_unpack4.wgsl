
// As unpack4.wgsl has it for f16, by the built-in conversion, where that is as exact.

fn unpack(words: vec2<u32>) -> V {
    return V(unpack2x16float(words.x), unpack2x16float(words.y));
}
