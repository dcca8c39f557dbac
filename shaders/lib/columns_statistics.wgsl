
// As shift_of has them; of neighbouring channels by whole vectors.
fn shifts_of(strip: Strip) -> V {
    var k = V(0.0);
    if NEIGHBOURS {
        let first = params.base + channel_of(strip, 0u) / WIDTH;
        let a = load_x(first);
        let b = load_x(first + params.step_count / 2u * params.row_loads);
        let c = load_x(first + (params.step_count - 1u) * params.row_loads);
        for (var i = 0u; i < WIDTH; i = i + 1u) {
            k = put(k, i, shift_from(component(a, i), component(b, i), component(c, i)));
        }
        return k;
    }
    for (var i = 0u; i < WIDTH; i = i + 1u) {
        k = put(k, i, shift_of(channel_of(strip, i)));
    }
    return k;
}

// Adds the moments of every column of a strip.
fn columns_moments(strip: Strip, k: V, before: Accumulator) -> Accumulator {
    var a = before;
    let stride = params.row_loads;
    var row = strip.begin;
    var i = index_of(strip, row);
    for (; row + 3u < strip.end; row = row + 4u) {
        let d0 = load_x(i) - k;
        let d1 = load_x(i + stride) - k;
        let d2 = load_x(i + 2u * stride) - k;
        let d3 = load_x(i + 3u * stride) - k;
        a = add_four(a, d0, d1, d2, d3);
        i = i + 4u * stride;
    }
    for (; row < strip.end; row = row + 1u) {
        a = add_one(a, load_x(i) - k);
        i = i + stride;
    }
    return a;
}
