
// Four values in two words of 64 bits, the first in the low bits.
alias Wide = vec2<u64>;
alias Pair = vec4<u64>;

fn unpack_wide(words: Wide) -> V {
    let low = vec2<u32>(words);
    let high = vec2<u32>(words >> vec2<u32>(32u));
    return bitcast<V>(U(low.x, high.x, low.y, high.y));
}

fn pack_wide(v: V) -> Wide {
    let bits = bitcast<U>(v);
    return Wide(bits.xz) | (Wide(bits.yw) << vec2<u32>(32u));
}

fn first_of(pair: Pair) -> Wide {
    return pair.xy;
}

fn second_of(pair: Pair) -> Wide {
    return pair.zw;
}
