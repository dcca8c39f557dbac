
// The caller's `activation` and `activation_derivative`.
fn activate(v: V) -> V {
    return activation(v);
}

fn backpropagate(dy: V, v: V) -> V {
    return dy * activation_derivative(v);
}
