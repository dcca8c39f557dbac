
// The i-th vector, if the pair is that of i.
fn one_of(pair: Pair, i: u32) -> Wide {
    return select(first_of(pair), second_of(pair), i % 2u == 1u);
}

fn put_wide(pair: Pair, i: u32, v: Wide) -> Pair {
    return select(Pair(v, second_of(pair)), Pair(first_of(pair), v), i % 2u == 1u);
}
