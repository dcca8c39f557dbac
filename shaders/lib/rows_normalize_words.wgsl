
// y = act((x − mean)·gain + shift + z) over one lane's share of a range of a channel, as in
// rows_normalize.wgsl, but a lane takes eight neighbouring vectors: those of one word of the mask, which
// it writes whole.
fn rows_normalize(range: Range, lane: u32, center: Center) {
    let affine = affine_of(range.channel, center);
    var step = range.begin + 8u * lane;
    var w = walk_from(range.channel, step);
    let by = pace();
    for (; step < range.end; step = step + 8u * LANES) {
        let low = finish_neighbours(w.index, center, affine);
        let high = finish_neighbours(w.index + 4u, center, affine);
        store_mask(w.index, low | (high << 16u));
        for (var i = 0u; i < 8u; i = i + PAIR) {
            w = advance(w, by);
        }
    }
}

// Gives the bits of four vectors.
fn finish_neighbours(i: u32, center: Center, affine: Affine) -> u32 {
    let at = Places(i, i + 1u, i + 2u, i + 3u);
    let x = minus(load_x_four(at), both(V(center.mean)));
    let v = scaled(x, both(affine.gain), both(affine.shift));
    let bits = finish_open(at, v, load_z_four(at));
    return (bits.x | (bits.y << 4u)) | ((bits.z << 8u) | (bits.w << 12u));
}
