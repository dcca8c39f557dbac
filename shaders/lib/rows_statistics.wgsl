
// One lane's share of a range of a channel.
fn rows_moments(range: Range, lane: u32, shift: f32) -> Moments {
    let k = V(shift);
    var a = accumulator();
    var step = range.begin + lane;
    var w = walk_from(range.channel, step);
    for (; step + 3u * LANES < range.end; step = step + 4u * LANES) {
        let w1 = advance(w);
        let w2 = advance(w1);
        let w3 = advance(w2);
        let d0 = load_x(w.index) - k;
        let d1 = load_x(w1.index) - k;
        let d2 = load_x(w2.index) - k;
        let d3 = load_x(w3.index) - k;
        a = add_four(a, d0, d1, d2, d3);
        w = advance(w3);
    }
    for (; step < range.end; step = step + LANES) {
        a = add_one(a, load_x(w.index) - k);
        w = advance(w);
    }
    return collapse(a);
}
