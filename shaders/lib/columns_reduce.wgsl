
struct ColumnSums {
    dy: V,
    dyx: V,
}

// Σdy and Σdy·(x−μ) of every column of a strip.
fn columns_sums(strip: Strip, c: Centers) -> ColumnSums {
    var s = ColumnSums(V(0.0), V(0.0));
    let stride = params.row_loads;
    var row = strip.begin;
    var i = row * stride + strip.place;
    for (; row + 3u < strip.end; row = row + 4u) {
        let g0 = load_dy(i);
        let g1 = load_dy(i + stride);
        let g2 = load_dy(i + 2u * stride);
        let g3 = load_dy(i + 3u * stride);
        let x0 = load_x(i) - c.mean;
        let x1 = load_x(i + stride) - c.mean;
        let x2 = load_x(i + 2u * stride) - c.mean;
        let x3 = load_x(i + 3u * stride) - c.mean;
        s.dy = s.dy + ((g0 + g1) + (g2 + g3));
        s.dyx = s.dyx + ((g0 * x0 + g1 * x1) + (g2 * x2 + g3 * x3));
        i = i + 4u * stride;
    }
    for (; row < strip.end; row = row + 1u) {
        let g = load_dy(i);
        s.dy = s.dy + g;
        s.dyx = s.dyx + g * (load_x(i) - c.mean);
        i = i + stride;
    }
    s.dyx = s.dyx - c.rest * s.dy;
    return s;
}
