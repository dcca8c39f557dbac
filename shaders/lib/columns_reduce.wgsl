
// Σdy and Σdy·(x−μ) of every column of a strip; dy is the gradient behind the activation, and is
// kept as dz.
fn columns_sums(strip: Strip, c: Centers) -> ColumnSums {
    var s = ColumnSums(V(0.0), V(0.0));
    let a = affines_of(strip, c);
    let stride = params.row_loads;
    var row = strip.begin;
    var i = index_of(strip, row);
    for (; row + 3u < strip.end; row = row + 4u) {
        let x0 = load_x(i) - c.mean;
        let x1 = load_x(i + stride) - c.mean;
        let x2 = load_x(i + 2u * stride) - c.mean;
        let x3 = load_x(i + 3u * stride) - c.mean;
        let g0 = keep_incoming(i, x0 * a.gain + a.shift);
        let g1 = keep_incoming(i + stride, x1 * a.gain + a.shift);
        let g2 = keep_incoming(i + 2u * stride, x2 * a.gain + a.shift);
        let g3 = keep_incoming(i + 3u * stride, x3 * a.gain + a.shift);
        s.dy = s.dy + ((g0 + g1) + (g2 + g3));
        s.dyx = s.dyx + ((times(g0, x0) + times(g1, x1)) + (times(g2, x2) + times(g3, x3)));
        i = i + 4u * stride;
    }
    for (; row < strip.end; row = row + 1u) {
        let x = load_x(i) - c.mean;
        let g = keep_incoming(i, x * a.gain + a.shift);
        s.dy = s.dy + g;
        s.dyx = s.dyx + times(g, x);
        i = i + stride;
    }
    s.dyx = s.dyx - c.rest * s.dy;
    return s;
}
