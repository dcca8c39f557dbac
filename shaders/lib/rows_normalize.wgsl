
// y = (x − mean)·scale + shift, with shift = β − rest·scale, over one lane's share of a range of a channel.
fn rows_normalize(range: Range, lane: u32, center: Center) {
    let mean = V(center.mean);
    let gain = load_gamma(range.channel) * center.inv_std;
    let scale = V(gain);
    let shift = V(load_beta(range.channel) - center.rest * gain);
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
        store_y(w.index, (x0 - mean) * scale + shift);
        store_y(w1.index, (x1 - mean) * scale + shift);
        store_y(w2.index, (x2 - mean) * scale + shift);
        store_y(w3.index, (x3 - mean) * scale + shift);
        w = advance(w3);
    }
    for (; step < range.end; step = step + LANES) {
        store_y(w.index, (load_x(w.index) - mean) * scale + shift);
        w = advance(w);
    }
}
