
// v where it is positive, else slope·v.
fn activate(v: V) -> V {
    return select(v, v * params.activation, v < V(0.0));
}

fn is_open(v: V) -> B {
    return v > V(0.0);
}

fn gate(dy: V, open: B) -> V {
    return select(dy * params.activation, dy, open);
}

fn backpropagate(dy: V, v: V) -> V {
    return gate(dy, is_open(v));
}
