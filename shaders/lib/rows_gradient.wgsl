
// dx over one lane's share of a range of a channel.
fn rows_gradient(range: Range, lane: u32, center: Center, slope: Slope) {
    let mean = V(center.mean);
    let affine = affine_of(range.channel, center);
    let gain = V(affine.gain);
    let shift = V(affine.shift);
    let scale = V(slope.scale);
    let offset = V(slope.offset);
    let factor = V(slope.factor);
    let weight = V(slope.weight);
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
        let g0 = weigh(incoming_again(w.index, x0 * gain + shift), weight);
        let g1 = weigh(incoming_again(w1.index, x1 * gain + shift), weight);
        let g2 = weigh(incoming_again(w2.index, x2 * gain + shift), weight);
        let g3 = weigh(incoming_again(w3.index, x3 * gain + shift), weight);
        let v0 = load_weights(params.weights_base + step);
        let v1 = load_weights(params.weights_base + step + LANES);
        let v2 = load_weights(params.weights_base + step + 2u * LANES);
        let v3 = load_weights(params.weights_base + step + 3u * LANES);
        store_dx(w.index, gradient_at(g0, x0, v0, scale, offset, factor));
        store_dx(w1.index, gradient_at(g1, x1, v1, scale, offset, factor));
        store_dx(w2.index, gradient_at(g2, x2, v2, scale, offset, factor));
        store_dx(w3.index, gradient_at(g3, x3, v3, scale, offset, factor));
        w = advance(w3);
    }
    for (; step < range.end; step = step + LANES) {
        let x = load_x(w.index) - mean;
        let g = weigh(incoming_again(w.index, x * gain + shift), weight);
        let v = load_weights(params.weights_base + step);
        store_dx(w.index, gradient_at(g, x, v, scale, offset, factor));
        w = advance(w);
    }
}
