
// The caller's `activation` and `activation_derivative`, one component after another: a loop would
// count for every load, and planning bounds the loops of an invocation.
fn activate(v: V) -> V {
    return V(activation(v.x), activation(v.y), activation(v.z), activation(v.w));
}

fn backpropagate(dy: V, v: V) -> V {
    return dy * V(
        activation_derivative(v.x),
        activation_derivative(v.y),
        activation_derivative(v.z),
        activation_derivative(v.w),
    );
}
