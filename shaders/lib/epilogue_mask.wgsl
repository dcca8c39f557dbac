
// y = act(v + z), and back by the mask: one bit per value, set where the slope is 1. The backward
// needs neither v nor z.

// Gives the bits of one vector.
fn finish_open(i: u32, v: V, z: V) -> u32 {
    let sum = plus_residual(v, z);
    store_y(i, activate(sum));
    return bits_of(is_open(sum));
}

fn finish(i: u32, v: V, z: V) {
    store_mask(i, finish_open(i, v, z));
}

fn incoming(i: u32, v: V) -> V {
    return gate(load_dy(i), from_bits(load_mask(i)));
}
