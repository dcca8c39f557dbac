
// dx = γ·i·(dy − S₁/n − (x−μ)·i²·S₂/n).
// Grid: as in columns_walk.wgsl. Reads: x, dy, gamma, saved, scratch (the merged sums).
// Writes: dx.

fn visit(strip: Strip) {
    let c = centers_of(strip);
    var s = no_slopes();
    for (var i = 0u; i < COLUMNS; i = i + 1u) {
        let channel = channel_of(strip, i);
        s = put_slope(s, i, slope_of(channel, get_center(c, i), merged_sums(channel)));
    }
    columns_gradient(strip, c, s);
}
