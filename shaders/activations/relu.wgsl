
// max(v, 0) that keeps NaN.
fn activate(v: V) -> V {
    return select(v, V(0.0), v < V(0.0));
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
