
// What a value is normalized with: (x − mean) − rest, times inv_std. The pair (mean, rest) keeps
// the bits of the mean that one f32 has no room for. `rest` is always folded into a constant of the
// channel: next to x, a compiler could add it to the mean, where it would be lost.

struct Center {
    mean: f32,
    rest: f32,
    inv_std: f32,
}

// From the batch's saved statistics where they are bound, else from the running statistics.
fn center_of(channel: u32) -> Center {
    if HAS_SAVED {
        let c = params.channel_count;
        return Center(load_saved(channel), load_saved(c + channel), load_saved(2u * c + channel));
    }
    let variance = load_running_var(channel);
    return Center(load_running_mean(channel), 0.0, 1.0 / sqrt(variance + params.epsilon));
}

// Normalized values times γ plus β: (x − mean)·gain + shift.
struct Affine {
    gain: f32,
    shift: f32,
}

// Batch renormalization: normalized values times r plus d, as they were saved.
struct Renorm {
    r: f32,
    d: f32,
}

fn renorm_of(channel: u32) -> Renorm {
    let c = params.channel_count;
    return Renorm(load_saved(4u * c + channel), load_saved(5u * c + channel));
}

fn affine_of(channel: u32, center: Center) -> Affine {
    if RENORM {
        let renorm = renorm_of(channel);
        let gamma = load_gamma(channel);
        let gain = gamma * center.inv_std * renorm.r;
        return Affine(gain, load_beta(channel) + gamma * renorm.d - center.rest * gain);
    }
    let gain = load_gamma(channel) * center.inv_std;
    return Affine(gain, load_beta(channel) - center.rest * gain);
}
