
// y = act((x − mean)·gain + shift + z) over one lane's share of a range of a channel.
fn rows_normalize(range: Range, lane: u32, center: Center) {
    let mean = V(center.mean);
    let affine = affine_of(range.channel, center);
    let gain = V(affine.gain);
    let shift = V(affine.shift);
    var step = range.begin + lane;
    var w = walk_from(range.channel, step);
    for (; step + 3u * LANES < range.end; step = step + 4u * LANES) {
        let w1 = advance(w);
        let w2 = advance(w1);
        let w3 = advance(w2);
        let x0 = load_x(w.index);
        let x1 = load_x(w1.index);
        let x2 = load_x(w2.index);
        let x3 = load_x(w3.index);
        let z0 = load_z(w.index);
        let z1 = load_z(w1.index);
        let z2 = load_z(w2.index);
        let z3 = load_z(w3.index);
        finish(w.index, (x0 - mean) * gain + shift, z0);
        finish(w1.index, (x1 - mean) * gain + shift, z1);
        finish(w2.index, (x2 - mean) * gain + shift, z2);
        finish(w3.index, (x3 - mean) * gain + shift, z3);
        w = advance(w3);
    }
    for (; step < range.end; step = step + LANES) {
        finish(w.index, (load_x(w.index) - mean) * gain + shift, load_z(w.index));
        w = advance(w);
    }
}
