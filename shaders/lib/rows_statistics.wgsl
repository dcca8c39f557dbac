
// One lane's share of a range of a channel.
fn rows_moments(range: Range, lane: u32, shift: f32) -> Moments {
    let k = V(shift);
    var a = accumulator();
    var step = first_step(range, lane);
    var w = walk_from(range.channel, step);
    let by = pace();
    for (; has_stride(range, step); step = step + 4u * LANES) {
        let stride = stride_from(w, by);
        let d = minus(load_x_four(stride.at), both(k));
        a = add_four(a, d.a, d.b, d.c, d.d);
        w = stride.next;
    }
    for (; step < range.end; step = step + PAIR * LANES) {
        for (var i = 0u; i < PAIR; i = i + 1u) {
            a = add_one(a, load_x(w.index + i) - k);
        }
        w = advance(w, by);
    }
    return collapse(a);
}
