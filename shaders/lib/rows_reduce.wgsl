
// One lane's share of Σdy and Σdy·(x−μ) over a range of a channel.
fn rows_sums(range: Range, lane: u32, center: Center) -> Sums {
    let mean = V(center.mean);
    var sum_dy = V(0.0);
    var sum_dyx = V(0.0);
    var step = range.begin + lane;
    var w = walk_from(range.channel, step);
    for (; step + 3u * LANES < range.end; step = step + 4u * LANES) {
        let w1 = advance(w);
        let w2 = advance(w1);
        let w3 = advance(w2);
        let g0 = load_dy(w.index);
        let g1 = load_dy(w1.index);
        let g2 = load_dy(w2.index);
        let g3 = load_dy(w3.index);
        let x0 = load_x(w.index) - mean;
        let x1 = load_x(w1.index) - mean;
        let x2 = load_x(w2.index) - mean;
        let x3 = load_x(w3.index) - mean;
        sum_dy = sum_dy + ((g0 + g1) + (g2 + g3));
        sum_dyx = sum_dyx + ((g0 * x0 + g1 * x1) + (g2 * x2 + g3 * x3));
        w = advance(w3);
    }
    for (; step < range.end; step = step + LANES) {
        let g = load_dy(w.index);
        sum_dy = sum_dy + g;
        sum_dyx = sum_dyx + g * (load_x(w.index) - mean);
        w = advance(w);
    }
    let dy = sum_components(sum_dy);
    return Sums(dy, sum_components(sum_dyx) - center.rest * dy);
}
