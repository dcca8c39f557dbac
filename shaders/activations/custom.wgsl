
// The caller's `activation` and `activation_derivative`, one component at a time.
fn activate(v: V) -> V {
    var y = V(0.0);
    for (var i = 0u; i < WIDTH; i = i + 1u) {
        y = put(y, i, activation(component(v, i)));
    }
    return y;
}

fn backpropagate(dy: V, v: V) -> V {
    var dv = V(0.0);
    for (var i = 0u; i < WIDTH; i = i + 1u) {
        dv = put(dv, i, component(dy, i) * activation_derivative(component(v, i)));
    }
    return dv;
}
