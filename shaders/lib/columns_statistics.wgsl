
// As shift_of has them; of neighbouring channels by whole vectors.
fn shifts_of(strip: Strip) -> Both {
    if NEIGHBOURS {
        let a = shifts_from(channel_of(strip, 0u));
        if PAIR == 1u {
            return both(a);
        }
        return Both(a, shifts_from(channel_of(strip, WIDTH)));
    }
    var k = both(V(0.0));
    for (var i = 0u; i < channels_of(); i = i + 1u) {
        k = put_channel(strip, k, i, shift_of(channel_of(strip, i)));
    }
    return k;
}

// Those of WIDTH neighbouring channels.
fn shifts_from(channel: u32) -> V {
    let first = params.base + channel / WIDTH;
    let middle = load_x(first + params.middle / WIDTH);
    return median_of_finite(load_x(first), middle, load_x(first + params.last / WIDTH));
}

// One for each vector of a strip.
struct Accumulators {
    a: Accumulator,
    b: Accumulator,
}

fn moments_of_column(a: Accumulators, i: u32) -> Moments {
    if PAIR == 2u && i >= WIDTH {
        return moments_of(a.b, i - WIDTH);
    }
    return moments_of(a.a, i);
}

// The columns of a strip's i-th channel together: all are of as many rows.
fn moments_of_channel(strip: Strip, a: Accumulators, i: u32) -> Moments {
    if !RUNS {
        return moments_of_column(a, i);
    }
    let count = count_of(strip, i);
    let share = 1.0 / f32(max(count, 1u));
    let mean = sum_of_channel(strip, Both(means_of(a.a), means_of(a.b)), i) * share;
    let variances = Both(shared_variances(a.a, mean, share), shared_variances(a.b, mean, share));
    let variance = select(not_a_number(), sum_of_channel(strip, variances, i), is_finite(mean));
    return Moments(Count(a.a.count) * Count(count), mean, variance);
}

// As moments_of has them.
fn means_of(a: Accumulator) -> V {
    return select(a.total, a.mean, are_finite(a.mean));
}

// What columns add to the variance of all.
fn shared_variances(a: Accumulator, mean: f32, share: f32) -> V {
    let apart = a.mean - V(mean);
    return a.variance * share + (apart * share) * apart;
}

// The moments of every column of a strip.
fn columns_moments(strip: Strip, k: Both) -> Accumulators {
    var a = Accumulators(accumulator(), accumulator());
    let stride = params.row_loads;
    var row = strip.begin;
    var i = index_of(strip, row);
    for (; row + 3u < strip.end; row = row + 4u) {
        let d = minus(load_x_four(rows_from(i)), k);
        if PAIR == 2u {
            let e = minus(load_x_four(rows_from(i + 2u * stride)), k);
            a.a = add_four(a.a, d.a, d.c, e.a, e.c);
            a.b = add_four(a.b, d.b, d.d, e.b, e.d);
        } else {
            a.a = add_four(a.a, d.a, d.b, d.c, d.d);
        }
        i = i + 4u * stride;
    }
    for (; row < strip.end; row = row + 1u) {
        a.a = add_one(a.a, load_x(i) - k.a);
        if PAIR == 2u {
            a.b = add_one(a.b, load_x(i + 1u) - k.b);
        }
        i = i + stride;
    }
    return a;
}
