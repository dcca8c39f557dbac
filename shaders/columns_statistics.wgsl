
// Partial statistics: mean (relative to the channel's shift) and variance of every column, or of a
// strip's columns of one channel, in one chunk of rows.
// Grid: as in columns_walk.wgsl or columns_join.wgsl. Reads: x.
// Writes: scratch, two planes [chunk][column].

fn strip_moments(strip: Strip) -> Accumulators {
    return columns_moments(strip, shifts_of(strip));
}
