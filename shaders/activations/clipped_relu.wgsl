
// min(max(v, 0), limit) that keeps NaN: by bits, as in relu.wgsl.
fn activate(v: V) -> V {
    let bits = bitcast<U>(v);
    let low = select(v, V(0.0), (bits - U(0x80000001u)) <= U(0x7f7fffffu));
    let over = (bits > U(bitcast<u32>(params.activation))) & (bits <= U(0x7f800000u));
    return select(low, V(params.activation), over);
}

fn is_open(v: V) -> B {
    return (v > V(0.0)) & (v < V(params.activation));
}

fn gate(dy: V, open: B) -> V {
    return select(V(0.0), dy, open);
}

fn backpropagate(dy: V, v: V) -> V {
    return gate(dy, is_open(v));
}
