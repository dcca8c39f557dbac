
// dx = dy·γ·i with running statistics, and on the way the partial sums S₁ = Σdy and
// S₂ = Σdy·(x−running_mean) of every column in one chunk of rows.
// Grid: as in columns_walk.wgsl or columns_join.wgsl. Reads: dy (or dz, where an earlier dispatch kept
// it), x, z, mask, gamma, beta, running_mean, running_var. Writes: dx, dz, scratch, two planes
// [chunk][column].

fn strip_sums(strip: Strip) -> ColumnSums {
    let c = centers_of(strip);
    let a = affines_of(strip, c);
    var s = ColumnSums(both(V(0.0)), both(V(0.0)));
    let stride = params.row_loads;
    var row = strip.begin;
    var i = index_of(strip, row);
    for (; row + ROWS_OF_FOUR <= strip.end; row = row + ROWS_OF_FOUR) {
        let at = rows_from(i);
        let x = minus(load_x_four(at), c.mean);
        let g = frozen_incoming_four(at, scaled(x, a.gain, a.shift));
        s.dy = plus(s.dy, sum_rows(g));
        s.dyx = plus(s.dyx, sum_rows(times_four(g, x)));
        store_dx_four(at, times_both(g, a.gain));
        i = i + ROWS_OF_FOUR * stride;
    }
    for (; row < strip.end; row = row + 1u) {
        let x = load_x(i) - c.mean.a;
        let g = frozen_incoming(i, x * a.gain.a + a.shift.a);
        s.dy.a = s.dy.a + g;
        s.dyx.a = s.dyx.a + times(g, x);
        store_dx(i, g * a.gain.a);
        if PAIR == 2u {
            let x = load_x(i + 1u) - c.mean.b;
            let g = frozen_incoming(i + 1u, x * a.gain.b + a.shift.b);
            s.dy.b = s.dy.b + g;
            s.dyx.b = s.dyx.b + times(g, x);
            store_dx(i + 1u, g * a.gain.b);
        }
        i = i + stride;
    }
    return s;
}
