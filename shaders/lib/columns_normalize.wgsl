
// y = act((x − mean)·gain + shift + z) down a strip.
fn columns_normalize(strip: Strip, c: Centers) {
    let a = affines_of(strip, c);
    let stride = params.row_loads;
    var row = strip.begin;
    var i = index_of(strip, row);
    for (; row + 3u < strip.end; row = row + 4u) {
        let x0 = load_x(i);
        let x1 = load_x(i + stride);
        let x2 = load_x(i + 2u * stride);
        let x3 = load_x(i + 3u * stride);
        let z0 = load_z(i);
        let z1 = load_z(i + stride);
        let z2 = load_z(i + 2u * stride);
        let z3 = load_z(i + 3u * stride);
        finish(i, (x0 - c.mean) * a.gain + a.shift, z0);
        finish(i + stride, (x1 - c.mean) * a.gain + a.shift, z1);
        finish(i + 2u * stride, (x2 - c.mean) * a.gain + a.shift, z2);
        finish(i + 3u * stride, (x3 - c.mean) * a.gain + a.shift, z3);
        i = i + 4u * stride;
    }
    for (; row < strip.end; row = row + 1u) {
        finish(i, (load_x(i) - c.mean) * a.gain + a.shift, load_z(i));
        i = i + stride;
    }
}
