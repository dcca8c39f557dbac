
fn shifts_of(strip: Strip) -> V {
    var k = V(0.0);
    for (var i = 0u; i < WIDTH; i = i + 1u) {
        k = put(k, i, shift_of(channel_of(strip.place * WIDTH + i)));
    }
    return k;
}

// The moments of every column of a strip.
fn columns_moments(strip: Strip, k: V) -> Accumulator {
    var a = accumulator();
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
