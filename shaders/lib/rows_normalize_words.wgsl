
// y = act((x − mean)·gain + shift + z) over one lane's share of a range of a channel, as in
// rows_normalize.wgsl, but a lane takes eight neighbouring vectors: those of one word of the mask, which
// it writes whole.
fn rows_normalize(range: Range, lane: u32, center: Center) {
    let affine = affine_of(range.channel, center);
    for (var step = range.begin + 8u * lane; step < range.end; step = step + 8u * LANES) {
        let i = walk_from(range.channel, step).index;
        let low = finish_four(i, center, affine);
        let high = finish_four(i + 4u, center, affine);
        store_mask(i, low | (high << 16u));
    }
}

// Gives the bits of four vectors.
fn finish_four(i: u32, center: Center, affine: Affine) -> u32 {
    let mean = V(center.mean);
    let gain = V(affine.gain);
    let shift = V(affine.shift);
    let x0 = load_x(i);
    let x1 = load_x(i + 1u);
    let x2 = load_x(i + 2u);
    let x3 = load_x(i + 3u);
    let z0 = load_z(i);
    let z1 = load_z(i + 1u);
    let z2 = load_z(i + 2u);
    let z3 = load_z(i + 3u);
    let b0 = finish_open(i, (x0 - mean) * gain + shift, z0);
    let b1 = finish_open(i + 1u, (x1 - mean) * gain + shift, z1);
    let b2 = finish_open(i + 2u, (x2 - mean) * gain + shift, z2);
    let b3 = finish_open(i + 3u, (x3 - mean) * gain + shift, z3);
    return (b0 | (b1 << 4u)) | ((b2 << 8u) | (b3 << 12u));
}
