
// Partial sums S₁ = Σdy and S₂ = Σdy·(x−μ) of every column in one chunk of rows.
// Grid: as in columns_walk.wgsl. Reads: x, dy, saved.
// Writes: scratch, two planes [chunk][column].

fn visit(strip: Strip) {
    add_sums(strip, columns_sums(strip, centers_of(strip)));
}
