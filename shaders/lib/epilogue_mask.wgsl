
// y = act(v + z), and back by the mask: one bit per value, set where the slope is 1. The backward
// needs neither v nor z.

fn finish(i: u32, v: V, z: V) {
    let sum = plus_residual(v, z);
    store_mask(i, bits_of(is_open(sum)));
    store_y(i, activate(sum));
}

fn incoming(i: u32, v: V) -> V {
    return gate(load_dy(i), from_bits(load_mask(i)));
}
