
// From the merged moments of a channel to what its values are normalized with, and to the saved
// and running statistics.

fn center_from(k: f32, m: Moments) -> Center {
    let mean = opaque(k + m.mean);
    let rest = opaque(k - mean) + m.mean;
    // No value is zeros.
    let inv_std = select(0.0, 1.0 / sqrt(m.variance + params.epsilon), m.count > Count(0));
    return Center(mean, rest, inv_std);
}

// The population variance of n values to the running variance: 1, or n/(n − 1) = 1 + 1/(n − 1), but no
// more than n, which is 1 or more: sums of weights may be near 1.
fn variance_factor(n: f32) -> f32 {
    let over = max(n - 1.0, 0.0);
    return 1.0 + select(0.0, select(over, 1.0 / over, over > 1.0), params.unbiased != 0u);
}

// The running statistic `old` after a batch's, whose factor is `gain`. What the two rounded factors lack
// of 1 would be lost in every step alike.
fn moved(old: f32, keep: f32, new_one: f32, gain: f32, rate: f32) -> f32 {
    let missing = opaque(1.0 - keep) - rate;
    // Small ones first: the last addition rounds by more than that.
    return old * keep + opaque(new_one * gain + select(0.0, old * missing, is_finite(old)));
}

// NaN stays NaN, which WGSL's clamp does not promise.
fn clamped(v: f32, low: f32, high: f32) -> f32 {
    let is_nan = (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u;
    return select(clamp(v, low, high), v, is_nan);
}

// r and d of batch renormalization, by running statistics that have not moved yet. No value is
// zeros.
fn save_renorm(channel: u32, center: Center, m: Moments) {
    let c = params.channel_count;
    let deviation = sqrt(m.variance + params.epsilon);
    let running_deviation = sqrt(load_running_var(channel) + params.epsilon);
    // An infinite mean has no rest.
    let rest = select(0.0, center.rest, is_finite(center.mean));
    let distance = opaque(center.mean - load_running_mean(channel)) + rest;
    let r = clamped(deviation / running_deviation, params.rmin, params.rmax);
    let d = clamped(distance / running_deviation, -params.dmax, params.dmax);
    store_saved(4u * c + channel, select(0.0, r, m.count > Count(0)));
    store_saved(5u * c + channel, select(0.0, d, m.count > Count(0)));
}

fn settle(channel: u32, center: Center, m: Moments) {
    let c = params.channel_count;
    if RENORM {
        save_renorm(channel, center, m);
    }
    store_saved(channel, center.mean);
    store_saved(c + channel, center.rest);
    store_saved(2u * c + channel, center.inv_std);
    store_saved(3u * c + channel, f32(m.count));
    if HAS_RUNNING_MEAN && m.count > Count(0) {
        if KEEP_NON_FINITE && !(is_finite(center.mean) && is_finite(m.variance)) {
            return;
        }
        var rate = params.rate;
        var keep = params.keep;
        if CUMULATIVE {
            rate = 1.0 / f32(min(load_batches(0u), 0xfffffffeu) + 1u);
            keep = 1.0 - rate;
        }
        let gain = rate * variance_factor(f32(m.count));
        store_running_mean(channel, moved(load_running_mean(channel), keep, center.mean, rate, rate));
        store_running_var(channel, moved(load_running_var(channel), keep, m.variance, gain, rate));
    }
}

// The moments as they are handed out.
fn keep_moments(channel: u32, center: Center, m: Moments) {
    let c = params.channel_count;
    store_moments(channel, center.mean);
    store_moments(c + channel, center.rest);
    store_moments(2u * c + channel, m.variance);
    store_moments(3u * c + channel, f32(m.count));
}

// A part of a batch in the scratch, for merge_parts; planes lie `plane` floats apart.
fn keep_part(at: u32, plane: u32, center: Center, m: Moments) {
    store_scratch(at, center.mean);
    store_scratch(at + plane, center.rest);
    store_scratch(at + 2u * plane, m.variance);
    store_scratch(at + 3u * plane, f32(m.count));
}
