
// y = (x − μ)·i·γ + β with saved statistics (training) or running statistics (inference).
// Grid: as in columns_walk.wgsl. Reads: x, gamma, beta, saved or running_mean and running_var.
// Writes: y.

fn visit(strip: Strip) {
    columns_normalize(strip, centers_of(strip));
}
