
// dx = γ·i·(dy − S₁/n − (x−μ)·i²·S₂/n).
// Grid: as in columns_walk.wgsl. Reads: x, dy, gamma, saved, scratch (the merged sums).
// Writes: dx.

// As merged_sums has them.
fn merged_sums_of(strip: Strip) -> ColumnSums {
    if HAS_SUMS {
        return ColumnSums(sums_of_strip(strip, 0u), sums_of_strip(strip, params.channel_count));
    }
    if GROUPED {
        let at = params.sums + 2u * params.channel_count;
        return ColumnSums(scratch_of_strip(strip, at), scratch_of_strip(strip, at + params.group_count));
    }
    let at = sums_at(0u);
    return ColumnSums(scratch_of_strip(strip, at), scratch_of_strip(strip, at + params.sums_plane));
}

fn visit(strip: Strip) {
    let c = centers_of(strip);
    columns_gradient(strip, c, slopes_of(strip, c, merged_sums_of(strip)));
}
