
// dx over one lane's share of a range of a channel.
fn rows_gradient(range: Range, lane: u32, center: Center, slope: Slope) {
    let mean = V(center.mean);
    let rest = V(center.rest);
    let scale = V(slope.scale);
    let mean_dy = V(slope.mean_dy);
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
        let x0 = (load_x(w.index) - mean) - rest;
        let x1 = (load_x(w1.index) - mean) - rest;
        let x2 = (load_x(w2.index) - mean) - rest;
        let x3 = (load_x(w3.index) - mean) - rest;
        store_dx(w.index, scale * ((g0 - mean_dy) - x0 * factor));
        store_dx(w1.index, scale * ((g1 - mean_dy) - x1 * factor));
        store_dx(w2.index, scale * ((g2 - mean_dy) - x2 * factor));
        store_dx(w3.index, scale * ((g3 - mean_dy) - x3 * factor));
        w = advance(w3);
    }
    for (; step < range.end; step = step + LANES) {
        let x = (load_x(w.index) - mean) - rest;
        store_dx(w.index, scale * ((load_dy(w.index) - mean_dy) - x * factor));
        w = advance(w);
    }
}
