
// Σdy and Σdy·(x−μ) of every column of a strip; dy is the gradient behind the activation, and is
// kept as dz.
fn columns_sums(strip: Strip, c: Centers) -> ColumnSums {
    var s = ColumnSums(both(V(0.0)), both(V(0.0)));
    let a = affines_of(strip, c);
    let stride = params.row_loads;
    var row = strip.begin;
    var i = index_of(strip, row);
    for (; row + ROWS_OF_FOUR <= strip.end; row = row + ROWS_OF_FOUR) {
        let at = rows_from(i);
        let x = minus(load_x_four(at), c.mean);
        let g = keep_incoming_four(at, scaled(x, a.gain, a.shift));
        s.dy = plus(s.dy, sum_rows(g));
        s.dyx = plus(s.dyx, sum_rows(times_four(g, x)));
        i = i + ROWS_OF_FOUR * stride;
    }
    for (; row < strip.end; row = row + 1u) {
        let x = load_x(i) - c.mean.a;
        let g = keep_incoming(i, x * a.gain.a + a.shift.a);
        s.dy.a = s.dy.a + g;
        s.dyx.a = s.dyx.a + times(g, x);
        if PAIR == 2u {
            let x = load_x(i + 1u) - c.mean.b;
            let g = keep_incoming(i + 1u, x * a.gain.b + a.shift.b);
            s.dy.b = s.dy.b + g;
            s.dyx.b = s.dyx.b + times(g, x);
        }
        i = i + stride;
    }
    s.dyx = Both(s.dyx.a - c.rest.a * s.dy.a, s.dyx.b - c.rest.b * s.dy.b);
    return s;
}
