
// As f16_widen.wgsl has it for one number, by the built-in conversion, where that is as exact.

fn widen(h: U) -> V {
    return unpack2x16float(h >> 16u).x;
}
