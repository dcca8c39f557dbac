
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

// The i-th vector, if the pair is that of i.
fn one_of(pair: Pair, i: u32) -> Wide {
    return select(first_of(pair), second_of(pair), i % 2u == 1u);
}

fn put_wide(pair: Pair, i: u32, v: Wide) -> Pair {
    return select(Pair(v, second_of(pair)), Pair(first_of(pair), v), i % 2u == 1u);
}
