
struct Slopes {
    scale: V,
    offset: V,
    factor: V,
    weight: V,
}

fn no_slopes() -> Slopes {
    return Slopes(V(0.0), V(0.0), V(0.0), V(0.0));
}

fn put_slope(s: Slopes, i: u32, slope: Slope) -> Slopes {
    return Slopes(
        put(s.scale, i, slope.scale),
        put(s.offset, i, slope.offset),
        put(s.factor, i, slope.factor),
        put(s.weight, i, slope.weight),
    );
}

fn slope_at(g: V, x: V, weight: V, s: Slopes) -> V {
    return gradient_at(g, x, weight, s.scale, s.offset, s.factor);
}

// dx down a strip.
fn columns_gradient(strip: Strip, c: Centers, s: Slopes) {
    let a = affines_of(strip, c);
    let places = weight_places(strip);
    let stride = params.row_loads;
    var row = strip.begin;
    var i = index_of(strip, row);
    for (; row + 3u < strip.end; row = row + 4u) {
        let x0 = load_x(i) - c.mean;
        let x1 = load_x(i + stride) - c.mean;
        let x2 = load_x(i + 2u * stride) - c.mean;
        let x3 = load_x(i + 3u * stride) - c.mean;
        let g0 = weigh(incoming_again(i, x0 * a.gain + a.shift), s.weight);
        let g1 = weigh(incoming_again(i + stride, x1 * a.gain + a.shift), s.weight);
        let g2 = weigh(incoming_again(i + 2u * stride, x2 * a.gain + a.shift), s.weight);
        let g3 = weigh(incoming_again(i + 3u * stride, x3 * a.gain + a.shift), s.weight);
        store_dx(i, slope_at(g0, x0, weights_at(places + row_weights(row)), s));
        store_dx(i + stride, slope_at(g1, x1, weights_at(places + row_weights(row + 1u)), s));
        store_dx(i + 2u * stride, slope_at(g2, x2, weights_at(places + row_weights(row + 2u)), s));
        store_dx(i + 3u * stride, slope_at(g3, x3, weights_at(places + row_weights(row + 3u)), s));
        i = i + 4u * stride;
    }
    for (; row < strip.end; row = row + 1u) {
        let x = load_x(i) - c.mean;
        let g = weigh(incoming_again(i, x * a.gain + a.shift), s.weight);
        store_dx(i, slope_at(g, x, weights_at(places + row_weights(row)), s));
        i = i + stride;
    }
}
