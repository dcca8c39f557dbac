
// y = act(v + z), and back. `v` is the normalized, scaled and shifted value.

fn finish(i: u32, v: V, z: V) {
    store_y(i, activate(plus_residual(v, z)));
}

// The gradient of v, from dy and from v itself.
fn incoming(i: u32, v: V) -> V {
    let dy = load_dy(i);
    return unless_nothing(dy, backpropagate(dy, plus_residual(v, load_z(i))));
}
