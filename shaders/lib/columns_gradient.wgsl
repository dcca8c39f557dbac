
fn slopes_of(strip: Strip, c: Centers, s: ColumnSums) -> Slopes {
    let count = saved_of_strip(strip, 3u * params.group_count);
    let gamma = gamma_of_strip(strip, 0u);
    let renorm = renorms_of(strip);
    let a = slope_from(s.dy.a, s.dyx.a, count.a, gamma.a, c.rest.a, c.inv_std.a, renorm.a.r);
    let b = slope_from(s.dy.b, s.dyx.b, count.b, gamma.b, c.rest.b, c.inv_std.b, renorm.b.r);
    if PAIR == 1u {
        return Slopes(both(a.scale), both(a.offset), both(a.factor), both(a.weight));
    }
    return Slopes(
        Both(a.scale, b.scale),
        Both(a.offset, b.offset),
        Both(a.factor, b.factor),
        Both(a.weight, b.weight),
    );
}

// dx down a strip. Where positions have weights, a strip is one vector.
fn columns_gradient(strip: Strip, c: Centers, s: Slopes) {
    let a = affines_of(strip, c);
    let places = weight_places(strip);
    let stride = params.row_loads;
    var row = strip.begin;
    var i = index_of(strip, row);
    for (; row + ROWS_OF_FOUR <= strip.end; row = row + ROWS_OF_FOUR) {
        let at = rows_from(i);
        let x = minus(load_x_four(at), c.mean);
        let g = incoming_again_four(at, scaled(x, a.gain, a.shift));
        let v = Four(
            weights_at(places + row_weights(row)),
            weights_at(places + row_weights(row + 1u)),
            weights_at(places + row_weights(row + 2u)),
            weights_at(places + row_weights(row + 3u)),
        );
        store_dx_four(at, gradients_at(g, x, v, s));
        i = i + ROWS_OF_FOUR * stride;
    }
    for (; row < strip.end; row = row + 1u) {
        let v = weights_at(places + row_weights(row));
        let x = load_x(i) - c.mean.a;
        let g = weigh(incoming_again(i, x * a.gain.a + a.shift.a), s.weight.a);
        store_dx(i, gradient_at(g, x, v, s.scale.a, s.offset.a, s.factor.a));
        if PAIR == 2u {
            let x = load_x(i + 1u) - c.mean.b;
            let g = weigh(incoming_again(i + 1u, x * a.gain.b + a.shift.b), s.weight.b);
            store_dx(i + 1u, gradient_at(g, x, v, s.scale.b, s.offset.b, s.factor.b));
        }
        i = i + stride;
    }
}
