
// Mean and variance of weighted values: as in moments.wgsl, with weights for counts. A value without
// weight is not looked at.
//
// Which value may be a shift is known only once its weight is: every component of a lane is relative
// to its own first value with weight, and all of them are brought to one shift when they are merged.

struct WeightedAccumulator {
    count: V,
    shift: V,
    mean: V,
    variance: V,
    total: V,
}

fn weighted_accumulator() -> WeightedAccumulator {
    return WeightedAccumulator(V(0.0), V(0.0), V(0.0), V(0.0), V(0.0));
}

fn add_weighted(a: WeightedAccumulator, x: V, weight: V) -> WeightedAccumulator {
    let counts = weight > V(0.0);
    let starts = counts & (a.count == V(0.0)) & are_finite(x);
    let shift = select(a.shift, x, starts);
    let d = select(V(0.0), x - shift, counts);
    let count = a.count + select(V(0.0), weight, counts);
    // Nothing divided by nothing is nothing here.
    let w = select(V(0.0), weight / count, counts);
    let delta = d - a.mean;
    return WeightedAccumulator(
        count,
        shift,
        a.mean + delta * w,
        a.variance + ((delta * w) * (delta * (V(1.0) - w)) - w * a.variance),
        a.total + d,
    );
}

// The moments of one component, relative to its own shift. Values that are not finite have no
// variance, wherever they stand.
fn weighted_moments_of(a: WeightedAccumulator, i: u32) -> Moments {
    let mean = component(a.mean, i);
    let finite = is_finite(mean);
    return Moments(
        component(a.count, i),
        select(component(a.total, i), mean, finite),
        select(not_a_number(), component(a.variance, i), finite),
    );
}

// The moments of all components together, relative to `k`.
fn collapse_weighted(a: WeightedAccumulator, k: f32) -> Moments {
    var all = Moments(0.0, 0.0, 0.0);
    for (var i = 0u; i < WIDTH; i = i + 1u) {
        let m = weighted_moments_of(a, i);
        if m.count > 0.0 {
            let mean = opaque(component(a.shift, i) - k) + m.mean;
            all = merge(all, Moments(m.count, mean, m.variance));
        }
    }
    return all;
}

// One shift for all lanes: that of the first component with weight of the first lane that has one.
fn share_shift(a: WeightedAccumulator, lane: u32) -> f32 {
    var count = 0.0;
    var k = 0.0;
    for (var i = 0u; i < WIDTH; i = i + 1u) {
        if count == 0.0 {
            count = component(a.count, i);
            k = component(a.shift, i);
        }
    }
    for (var distance = 1u; distance < LANES; distance = distance * 2u) {
        put_moments(lane, Moments(count, k, 0.0));
        workgroupBarrier();
        if lane % (distance * 2u) == 0u && count == 0.0 {
            let other = moments_at(lane + distance);
            count = other.count;
            k = other.mean;
        }
        workgroupBarrier();
    }
    if lane == 0u {
        put_moments(0u, Moments(count, k, 0.0));
    }
    workgroupBarrier();
    let shared_shift = moments_at(0u).mean;
    workgroupBarrier();
    return shared_shift;
}
