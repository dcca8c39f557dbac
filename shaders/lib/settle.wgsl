
// From the merged moments of a channel to what its values are normalized with, and to the saved
// and running statistics.

fn center_from(k: f32, m: Moments) -> Center {
    let mean = opaque(k + m.mean);
    let rest = opaque(k - mean) + m.mean;
    return Center(mean, rest, 1.0 / sqrt(m.variance + params.epsilon));
}

fn settle(channel: u32, center: Center, variance: f32) {
    let c = params.channel_count;
    store_saved(channel, center.mean);
    store_saved(c + channel, center.rest);
    store_saved(2u * c + channel, center.inv_std);
    if HAS_RUNNING_MEAN {
        if KEEP_NON_FINITE && !(is_finite(center.mean) && is_finite(variance)) {
            return;
        }
        var rate = params.rate;
        var keep = params.keep;
        if CUMULATIVE {
            rate = 1.0 / f32(load_batches(0u));
            keep = 1.0 - rate;
        }
        let running_var = variance * params.variance_factor;
        store_running_mean(channel, load_running_mean(channel) * keep + center.mean * rate);
        store_running_var(channel, load_running_var(channel) * keep + running_var * rate);
    }
}
