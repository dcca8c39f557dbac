
// dx over one lane's share of a range of a channel.
fn rows_gradient(range: Range, lane: u32, center: Center, slope: Slope) {
    let mean = V(center.mean);
    let scale = V(slope.scale);
    let offset = V(slope.offset);
    let factor = V(slope.factor);
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
        store_dx(w.index, scale * ((g0 - offset) - x0 * factor));
        store_dx(w1.index, scale * ((g1 - offset) - x1 * factor));
        store_dx(w2.index, scale * ((g2 - offset) - x2 * factor));
        store_dx(w3.index, scale * ((g3 - offset) - x3 * factor));
        w = advance(w3);
    }
    for (; step < range.end; step = step + LANES) {
        let x = load_x(w.index) - mean;
        store_dx(w.index, scale * ((load_dy(w.index) - offset) - x * factor));
        w = advance(w);
    }
}
