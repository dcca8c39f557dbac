
// y = act(v + z), and back. `v` is the normalized, scaled and shifted value.

fn finish(i: u32, v: V, z: V) {
    store_y(i, activate(plus_residual(v, z)));
}

fn finish_four(at: Places, v: Four, z: Four) {
    let sum = plus_residuals(v, z);
    let y = Four(activate(sum.a), activate(sum.b), activate(sum.c), activate(sum.d));
    store_y_four(at, y);
}

// The gradient of v, from dy and from v itself.
fn gradient_before(i: u32, dy: V, z: V, v: V) -> V {
    return unless_nothing(dy, backpropagate(dy, plus_residual(v, z)));
}

fn gradients_before(at: Places, dy: Four, z: Four, v: Four) -> Four {
    return Four(
        gradient_before(at.a, dy.a, z.a, v.a),
        gradient_before(at.b, dy.b, z.b, v.b),
        gradient_before(at.c, dy.c, z.c, v.c),
        gradient_before(at.d, dy.d, z.d, v.d),
    );
}
