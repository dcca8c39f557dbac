
fn no_slopes() -> Slopes {
    return Slopes(both(V(0.0)), both(V(0.0)), both(V(0.0)), both(V(0.0)));
}

fn put_slope(s: Slopes, i: u32, slope: Slope) -> Slopes {
    return Slopes(
        put_component(s.scale, i, slope.scale),
        put_component(s.offset, i, slope.offset),
        put_component(s.factor, i, slope.factor),
        put_component(s.weight, i, slope.weight),
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
