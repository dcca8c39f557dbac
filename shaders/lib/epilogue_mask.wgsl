
// y = act(v + z), and back by the mask: one bit per value, set where the slope is 1. The backward
// needs neither v nor z.

fn finish(i: u32, v: V, z: V) {
    let sum = plus_residual(v, z);
    store_y(i, activate(sum));
    store_mask(i, bits_of(is_open(sum)));
}

// Gives the bits of each vector.
fn finish_open(at: Places, v: Four, z: Four) -> vec4<u32> {
    let sum = plus_residuals(v, z);
    let y = Four(activate(sum.a), activate(sum.b), activate(sum.c), activate(sum.d));
    store_y_four(at, y);
    return vec4<u32>(
        bits_of(is_open(sum.a)),
        bits_of(is_open(sum.b)),
        bits_of(is_open(sum.c)),
        bits_of(is_open(sum.d)),
    );
}

fn finish_four(at: Places, v: Four, z: Four) {
    let bits = finish_open(at, v, z);
    if PAIR == 2u {
        store_mask_pair(at.a, bits.x | (bits.y << WIDTH));
        store_mask_pair(at.c, bits.z | (bits.w << WIDTH));
        return;
    }
    store_mask(at.a, bits.x);
    store_mask(at.b, bits.y);
    store_mask(at.c, bits.z);
    store_mask(at.d, bits.w);
}

fn gradient_before(i: u32, dy: V, z: V, v: V) -> V {
    return gate(dy, from_bits(load_mask(i)));
}

fn gradients_before(at: Places, dy: Four, z: Four, v: Four) -> Four {
    let m = load_masks(at);
    return Four(
        gate(dy.a, from_bits(m.x)),
        gate(dy.b, from_bits(m.y)),
        gate(dy.c, from_bits(m.z)),
        gate(dy.d, from_bits(m.w)),
    );
}

// The bits of each vector, which others may follow.
fn load_masks(at: Places) -> vec4<u32> {
    if PAIR == 2u {
        let a = load_mask_pair(at.a);
        let c = load_mask_pair(at.c);
        return vec4<u32>(a, a >> WIDTH, c, c >> WIDTH);
    }
    return vec4<u32>(load_mask(at.a), load_mask(at.b), load_mask(at.c), load_mask(at.d));
}
