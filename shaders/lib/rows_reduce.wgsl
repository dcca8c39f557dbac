
// One lane's share of Σdy and Σdy·(x−μ) over a range of a channel; dy is the gradient behind the
// activation, and is kept as dz.
fn rows_sums(range: Range, lane: u32, center: Center) -> Sums {
    let mean = V(center.mean);
    let affine = affine_of(range.channel, center);
    let gain = V(affine.gain);
    let shift = V(affine.shift);
    var sum_dy = V(0.0);
    var sum_dyx = V(0.0);
    var step = range.begin + lane;
    var w = walk_from(range.channel, step);
    for (; step + 3u * LANES < range.end; step = step + 4u * LANES) {
        let w1 = advance(w);
        let w2 = advance(w1);
        let w3 = advance(w2);
        let x0 = load_x(w.index) - mean;
        let x1 = load_x(w1.index) - mean;
        let x2 = load_x(w2.index) - mean;
        let x3 = load_x(w3.index) - mean;
        let g0 = keep_incoming(w.index, x0 * gain + shift);
        let g1 = keep_incoming(w1.index, x1 * gain + shift);
        let g2 = keep_incoming(w2.index, x2 * gain + shift);
        let g3 = keep_incoming(w3.index, x3 * gain + shift);
        sum_dy = sum_dy + ((g0 + g1) + (g2 + g3));
        sum_dyx = sum_dyx + ((times(g0, x0) + times(g1, x1)) + (times(g2, x2) + times(g3, x3)));
        w = advance(w3);
    }
    for (; step < range.end; step = step + LANES) {
        let x = load_x(w.index) - mean;
        let g = keep_incoming(w.index, x * gain + shift);
        sum_dy = sum_dy + g;
        sum_dyx = sum_dyx + times(g, x);
        w = advance(w);
    }
    let dy = sum_components(sum_dy);
    return Sums(dy, sum_components(sum_dyx) - center.rest * dy);
}
