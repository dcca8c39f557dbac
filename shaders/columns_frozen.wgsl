
// dx = dy·γ·i with running statistics, and on the way the partial sums S₁ = Σdy and
// S₂ = Σdy·(x−running_mean) of every column in one chunk of rows.
// Grid: as in columns_walk.wgsl. Reads: dy (or dz, where an earlier dispatch kept it), x, z, mask,
// gamma, beta, running_mean, running_var. Writes: dx, dz, scratch, two planes [chunk][column].

fn visit(strip: Strip) {
    let c = centers_of(strip);
    let a = affines_of(strip, c);
    var s = ColumnSums(V(0.0), V(0.0));
    for (var row = strip.begin; row < strip.end; row = row + 1u) {
        let at = index_of(strip, row);
        let x = load_x(at) - c.mean;
        let g = frozen_incoming(at, x * a.gain + a.shift);
        s.dy = s.dy + g;
        s.dyx = s.dyx + g * x;
        store_dx(at, g * a.gain);
    }
    add_sums(strip, s);
}
