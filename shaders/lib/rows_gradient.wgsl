
// dx over one lane's share of a range of a channel.
fn rows_gradient(range: Range, lane: u32, center: Center, slope: Slope) {
    let mean = V(center.mean);
    let affine = affine_of(range.channel, center);
    let gain = affine.gain;
    let shift = affine.shift;
    let scale = slope.scale;
    let offset = slope.offset;
    let factor = slope.factor;
    let weight = slope.weight;
    let slopes = Slopes(both(scale), both(offset), both(factor), both(weight));
    var step = first_step(range, lane);
    var w = walk_from(range.channel, step);
    let by = pace();
    for (; has_stride(range, step); step = step + 4u * LANES) {
        let stride = stride_from(w, by);
        let x = minus(load_x_four(stride.at), both(mean));
        let g = incoming_again_four(stride.at, scaled(x, both(gain), both(shift)));
        store_dx_four(stride.at, gradients_at(g, x, weights_from(step), slopes));
        w = stride.next;
    }
    for (; step < range.end; step = step + PAIR * LANES) {
        for (var i = 0u; i < PAIR; i = i + 1u) {
            let x = load_x(w.index + i) - mean;
            let g = weigh(incoming_again(w.index + i, x * gain + shift), weight);
            let v = load_weights(params.weights_base + step + i);
            store_dx(w.index + i, gradient_at(g, x, v, scale, offset, factor));
        }
        w = advance(w, by);
    }
}

// Where positions have weights, lanes take no pairs.
fn weights_from(step: u32) -> Four {
    let i = params.weights_base + step;
    return Four(
        load_weights(i),
        load_weights(i + LANES),
        load_weights(i + 2u * LANES),
        load_weights(i + 3u * LANES),
    );
}
