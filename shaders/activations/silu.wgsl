
// v·s with s = 1/(1 + e^−v), and its derivative s·(1 + v·(1 − s)).
fn activate(v: V) -> V {
    return v / (V(1.0) + exp(-v));
}

fn backpropagate(dy: V, v: V) -> V {
    let s = V(1.0) / (V(1.0) + exp(-v));
    return dy * (s * (V(1.0) + v * (V(1.0) - s)));
}
