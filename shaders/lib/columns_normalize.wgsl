
// y = act((x − mean)·gain + shift + z) down a strip.
fn columns_normalize(strip: Strip, c: Centers) {
    let a = affines_of(strip, c);
    let stride = params.row_loads;
    var row = strip.begin;
    var i = index_of(strip, row);
    for (; row + ROWS_OF_FOUR <= strip.end; row = row + ROWS_OF_FOUR) {
        let at = rows_from(i);
        let x = minus(load_x_four(at), c.mean);
        finish_four(at, scaled(x, a.gain, a.shift), load_z_four(at));
        i = i + ROWS_OF_FOUR * stride;
    }
    for (; row < strip.end; row = row + 1u) {
        finish(i, (load_x(i) - c.mean.a) * a.gain.a + a.shift.a, load_z(i));
        if PAIR == 2u {
            let j = i + 1u;
            finish(j, (load_x(j) - c.mean.b) * a.gain.b + a.shift.b, load_z(j));
        }
        i = i + stride;
    }
}
