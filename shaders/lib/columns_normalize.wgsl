
// y = (x − mean)·scale + shift, with shift = β − rest·scale, down a strip.
fn columns_normalize(strip: Strip, c: Centers) {
    var scale = V(0.0);
    var shift = V(0.0);
    for (var i = 0u; i < WIDTH; i = i + 1u) {
        let channel = channel_of(strip.place * WIDTH + i);
        let gain = component(c.inv_std, i) * load_gamma(channel);
        scale = put(scale, i, gain);
        shift = put(shift, i, load_beta(channel) - component(c.rest, i) * gain);
    }
    let stride = params.row_loads;
    var row = strip.begin;
    var i = row * stride + strip.place;
    for (; row + 3u < strip.end; row = row + 4u) {
        let x0 = load_x(i);
        let x1 = load_x(i + stride);
        let x2 = load_x(i + 2u * stride);
        let x3 = load_x(i + 3u * stride);
        store_y(i, (x0 - c.mean) * scale + shift);
        store_y(i + stride, (x1 - c.mean) * scale + shift);
        store_y(i + 2u * stride, (x2 - c.mean) * scale + shift);
        store_y(i + 3u * stride, (x3 - c.mean) * scale + shift);
        i = i + 4u * stride;
    }
    for (; row < strip.end; row = row + 1u) {
        store_y(i, (load_x(i) - c.mean) * scale + shift);
        i = i + stride;
    }
}
