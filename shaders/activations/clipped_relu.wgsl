
// min(max(v, 0), limit) that keeps NaN.
fn activate(v: V) -> V {
    let low = select(v, V(0.0), v < V(0.0));
    return select(low, V(params.activation), low > V(params.activation));
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
