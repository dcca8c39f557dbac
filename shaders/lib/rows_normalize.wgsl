
// y = act((x − mean)·gain + shift + z) over one lane's share of a range of a channel.
fn rows_normalize(range: Range, lane: u32, center: Center) {
    let mean = V(center.mean);
    let affine = affine_of(range.channel, center);
    let gain = affine.gain;
    let shift = affine.shift;
    var step = first_step(range, lane);
    var w = walk_from(range.channel, step);
    let by = pace();
    for (; has_stride(range, step); step = step + 4u * LANES) {
        let stride = stride_from(w, by);
        let x = minus(load_x_four(stride.at), both(mean));
        let v = scaled(x, both(gain), both(shift));
        finish_four(stride.at, v, load_z_four(stride.at));
        w = stride.next;
    }
    for (; step < range.end; step = step + PAIR * LANES) {
        for (var i = w.index; i < w.index + PAIR; i = i + 1u) {
            finish(i, (load_x(i) - mean) * gain + shift, load_z(i));
        }
        w = advance(w, by);
    }
}
