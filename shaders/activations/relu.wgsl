
// max(v, 0) that keeps NaN. By the bits of negative numbers, as a comparison may become a maximum,
// which takes NaN for 0.
fn activate(v: V) -> V {
    return select(v, V(0.0), (bitcast<U>(v) - U(0x80000001u)) <= U(0x7f7fffffu));
}

fn is_open(v: V) -> B {
    return v > V(0.0);
}

fn gate(dy: V, open: B) -> V {
    return select(V(0.0), dy, open);
}

fn backpropagate(dy: V, v: V) -> V {
    return gate(dy, is_open(v));
}
