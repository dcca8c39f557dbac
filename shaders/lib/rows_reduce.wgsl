
// One lane's share of Σdy and Σdy·(x−μ) over a range of a channel; dy is the gradient behind the
// activation, and is kept as dz.
fn rows_sums(range: Range, lane: u32, center: Center) -> Sums {
    let mean = V(center.mean);
    let affine = affine_of(range.channel, center);
    let gain = affine.gain;
    let shift = affine.shift;
    var sum_dy = V(0.0);
    var sum_dyx = V(0.0);
    var step = first_step(range, lane);
    var w = walk_from(range.channel, step);
    let by = pace();
    for (; has_stride(range, step); step = step + 4u * LANES) {
        let stride = stride_from(w, by);
        let x = minus(load_x_four(stride.at), both(mean));
        let g = keep_incoming_four(stride.at, scaled(x, both(gain), both(shift)));
        let gx = times_four(g, x);
        sum_dy = sum_dy + ((g.a + g.b) + (g.c + g.d));
        sum_dyx = sum_dyx + ((gx.a + gx.b) + (gx.c + gx.d));
        w = stride.next;
    }
    for (; step < range.end; step = step + PAIR * LANES) {
        for (var i = w.index; i < w.index + PAIR; i = i + 1u) {
            let x = load_x(i) - mean;
            let g = keep_incoming(i, x * gain + shift);
            sum_dy = sum_dy + g;
            sum_dyx = sum_dyx + times(g, x);
        }
        w = advance(w, by);
    }
    let dy = sum_components(sum_dy);
    return Sums(dy, sum_components(sum_dyx) - center.rest * dy);
}
