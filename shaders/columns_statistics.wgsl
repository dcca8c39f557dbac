
// Partial statistics: mean (relative to the channel's shift) and variance of every column
// in one chunk of rows.
// Grid: as in columns_walk.wgsl. Reads: x. Writes: scratch, two planes [chunk][column].

fn visit(strip: Strip) {
    let at = partials_at(strip);
    var a = accumulators();
    if strip.begin > strip.first {
        a = resumed(strip, at);
    }
    a = columns_moments(strip, shifts_of(strip), a);
    for (var i = 0u; i < COLUMNS; i = i + 1u) {
        let m = moments_of_column(a, i);
        store_scratch(at + i, m.mean);
        store_scratch(params.plane + at + i, m.variance);
    }
}

// What the blocks before have left.
fn resumed(strip: Strip, at: u32) -> Accumulators {
    var mean = both(V(0.0));
    var variance = both(V(0.0));
    for (var i = 0u; i < COLUMNS; i = i + 1u) {
        mean = put_component(mean, i, load_scratch(at + i));
        variance = put_component(variance, i, load_scratch(params.plane + at + i));
    }
    let count = f32(strip.begin - strip.first);
    // Where the mean is infinite, so is the total.
    return Accumulators(
        Accumulator(count, mean.a, variance.a, mean.a),
        Accumulator(count, mean.b, variance.b, mean.b),
    );
}
