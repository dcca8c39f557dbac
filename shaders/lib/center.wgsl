
// What a value is normalized with: (x − mean) − rest, times inv_std. The pair (mean, rest) keeps
// the bits of the mean that one f32 has no room for. `rest` is always folded into a constant of the
// channel: next to x, a compiler could add it to the mean, where it would be lost.

struct Center {
    mean: f32,
    rest: f32,
    inv_std: f32,
}

// Whose statistics a channel has: its own. In group normalization a channel is a row, one channel of
// one sample, and has those of its group…
fn group_of(channel: u32) -> u32 {
    if GROUPED {
        return channel / params.per_group;
    }
    return channel;
}

// …and the parameters of the same channel of all samples.
fn parameter_of(channel: u32) -> u32 {
    if GROUPED {
        return channel % params.parameter_count;
    }
    return channel;
}

// From the batch's saved statistics where they are bound, else from the running statistics.
fn center_of(channel: u32) -> Center {
    if HAS_SAVED {
        let c = params.group_count;
        let group = group_of(channel);
        return Center(load_saved(group), load_saved(c + group), load_saved(2u * c + group));
    }
    let inv_std = inverse_deviation(V(load_running_var(channel)));
    return Center(load_running_mean(channel), 0.0, component(inv_std, 0u));
}

fn inverse_deviation(variance: V) -> V {
    return 1.0 / sqrt(variance + params.epsilon);
}

// Normalized values times γ plus β: (x − mean)·gain + shift.
struct Affine {
    gain: V,
    shift: V,
}

// Batch renormalization: normalized values times r plus d, as they were saved.
struct Renorm {
    r: V,
    d: V,
}

fn renorm_of(channel: u32) -> Renorm {
    let c = params.channel_count;
    return Renorm(V(load_saved(4u * c + channel)), V(load_saved(5u * c + channel)));
}

fn no_renorm() -> Renorm {
    return Renorm(V(1.0), V(0.0));
}

fn affine_from(gamma: V, beta: V, rest: V, inv_std: V, renorm: Renorm) -> Affine {
    if RENORM {
        let gain = gamma * inv_std * renorm.r;
        return Affine(gain, beta + gamma * renorm.d - rest * gain);
    }
    let gain = gamma * inv_std;
    return Affine(gain, beta - rest * gain);
}

fn affine_of(channel: u32, center: Center) -> Affine {
    let parameter = parameter_of(channel);
    let gamma = V(load_gamma(parameter));
    let beta = V(load_beta(parameter));
    var renorm = no_renorm();
    if RENORM {
        renorm = renorm_of(channel);
    }
    return affine_from(gamma, beta, V(center.rest), V(center.inv_std), renorm);
}
