
// Four halves in a word of 64 bits, the first in the low bits.
alias Wide = u64;
alias Pair = vec2<u64>;

fn unpack_wide(word: Wide) -> V {
    return unpack(vec2<u32>(u32(word), u32(word >> 32u)));
}

fn pack_wide(v: V) -> Wide {
    let words = pack(v);
    return u64(words.x) | (u64(words.y) << 32u);
}

fn first_of(pair: Pair) -> Wide {
    return pair.x;
}

fn second_of(pair: Pair) -> Wide {
    return pair.y;
}
