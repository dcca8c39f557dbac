
// Partial sums S₁ = Σdy and S₂ = Σdy·(x−μ) of every column in one chunk of rows.
// Grid: as in columns_walk.wgsl or columns_join.wgsl. Reads: x, dy, saved.
// Writes: scratch, two planes [chunk][column].

fn strip_sums(strip: Strip) -> ColumnSums {
    return columns_sums(strip, centers_of(strip));
}
