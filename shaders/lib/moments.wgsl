
// Mean and variance with one read, without cancellation.
//
// Values enter relative to a shift k (one of the channel's elements). Four at a time get a mean and a
// variance of their own; sets are merged by Chan, Golub and LeVeque's formula, written with the
// variance instead of the sum of squares so that values up to 1e19 do not overflow:
//   w = n_b / (n_a + n_b),  δ = m_b − m_a
//   m = m_a + δ·w,          v = v_a + (w·(v_b − v_a) + δ·w·δ·(1 − w))

struct Moments {
    count: Count,
    mean: f32,
    variance: f32,
}

fn merge(a: Moments, b: Moments) -> Moments {
    let count = a.count + b.count;
    // The first set is taken whole: division may give a little less than 1 for n / n.
    let w = select(f32(b.count) / f32(count), 1.0, a.count == Count(0));
    let delta = b.mean - a.mean;
    // An infinite mean stays infinite: ∞ − ∞ would make it NaN.
    let mean = select(a.mean + b.mean, a.mean + delta * w, is_finite(delta));
    let apart = (delta * w) * (delta * (1.0 - w));
    let variance = a.variance + (w * (b.variance - a.variance) + apart);
    return Moments(count, mean, variance);
}

// One lane's values so far, component by component. `total` sums the means: it is infinite where
// the mean is, and only then used.
struct Accumulator {
    count: f32,
    mean: V,
    variance: V,
    total: V,
}

fn accumulator() -> Accumulator {
    return Accumulator(0.0, V(0.0), V(0.0), V(0.0));
}

// `rest` is what rounding left in `mean`; it is NaN where the mean is infinite.
fn add_batch(a: Accumulator, size: f32, mean: V, rest: V, variance: V) -> Accumulator {
    let count = a.count + size;
    let w = size / count;
    let delta = (mean - a.mean) + rest;
    return Accumulator(
        count,
        a.mean + delta * w,
        a.variance + (w * (variance - a.variance) + (delta * w) * (delta * (1.0 - w))),
        a.total + mean,
    );
}

fn add_four(a: Accumulator, d0: V, d1: V, d2: V, d3: V) -> Accumulator {
    let m = ((d0 + d1) + (d2 + d3)) * 0.25;
    let e0 = d0 - m;
    let e1 = d1 - m;
    let e2 = d2 - m;
    let e3 = d3 - m;
    let t = ((e0 + e1) + (e2 + e3)) * 0.25;
    let v = ((e0 * e0 + e1 * e1) + (e2 * e2 + e3 * e3)) * 0.25 - t * t;
    return add_batch(a, 4.0, m, t, v);
}

fn add_one(a: Accumulator, d: V) -> Accumulator {
    return add_batch(a, 1.0, d, V(0.0), V(0.0));
}

// The moments of one component. Values that are not finite have no variance, wherever they stand.
fn moments_of(a: Accumulator, i: u32) -> Moments {
    let mean = component(a.mean, i);
    let finite = is_finite(mean);
    return Moments(
        Count(a.count),
        select(component(a.total, i), mean, finite),
        select(not_a_number(), component(a.variance, i), finite),
    );
}

// The moments of all components together, pairwise.
fn collapse(a: Accumulator) -> Moments {
    var first = moments_of(a, 0u);
    if WIDTH == 4u {
        first = merge(first, moments_of(a, 1u));
        first = merge(first, merge(moments_of(a, 2u), moments_of(a, 3u)));
    }
    return first;
}

// The shift of a channel: the median of its first, a middle and a late element, or of those of them
// that are finite. One of them may be an outlier without harm.
fn shift_of(channel: u32) -> f32 {
    let first = channel * params.inner;
    let a = value_at(first);
    let b = value_at(first + params.middle);
    let c = value_at(first + params.last);
    return component(median_of_finite(V(a), V(b), V(c)), 0u);
}

fn median_of_finite(a: V, b: V, c: V) -> V {
    let any = select(select(select(V(0.0), c, are_finite(c)), b, are_finite(b)), a, are_finite(a));
    let k = median(
        select(any, a, are_finite(a)),
        select(any, b, are_finite(b)),
        select(any, c, are_finite(c)),
    );
    return select(V(0.0), k, are_finite(k));
}

fn are_finite(v: V) -> B {
    return (bitcast<U>(v) & U(0x7f800000u)) != U(0x7f800000u);
}

fn median(a: V, b: V, c: V) -> V {
    return max(min(a, b), min(max(a, b), c));
}

fn value_at(e: u32) -> f32 {
    return component(load_x(params.base + e / WIDTH), e % WIDTH);
}
