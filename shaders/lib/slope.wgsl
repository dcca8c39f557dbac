
// dx = scale·((dy − offset) − (x − mean)·factor), with scale = γ·i (times r, where the batch is
// renormalized), factor = i·(S₂·i/n) and offset = S₁/n − rest·factor. In group normalization, whose
// sums have γ in them, scale = i and weight = γ multiplies dy. The count n is that of the whole batch, which is saved.

struct Sums {
    dy: f32,
    dyx: f32,
}

struct Slope {
    scale: V,
    offset: V,
    factor: V,
    weight: V,
}

fn weigh(dy: V, weight: V) -> V {
    if GROUPED {
        return dy * weight;
    }
    return dy;
}

fn slope_from(dy: V, dyx: V, count: V, gamma: V, rest: V, inv_std: V, r: V) -> Slope {
    // A batch without weight has sums of 0.
    let n = select(count, V(1.0), B(WEIGHTED) & (count == V(0.0)));
    let i = inv_std;
    let factor = i * (dyx * i / n);
    let offset = dy / n - rest * factor;
    if GROUPED {
        return Slope(i, offset, factor, gamma);
    }
    if RENORM {
        return Slope(gamma * i * r, offset, factor, V(1.0));
    }
    return Slope(gamma * i, offset, factor, V(1.0));
}

fn slope_of(channel: u32, center: Center, s: Sums) -> Slope {
    let count = V(load_saved(3u * params.group_count + group_of(channel)));
    let gamma = V(load_gamma(parameter_of(channel)));
    var renorm = no_renorm();
    if RENORM {
        renorm = renorm_of(channel);
    }
    let rest = V(center.rest);
    let inv_std = V(center.inv_std);
    return slope_from(V(s.dy), V(s.dyx), count, gamma, rest, inv_std, renorm.r);
}

// dx at one position of the given weight. One without weight has moved no statistics, whatever x is.
fn gradient_at(g: V, x: V, weight: V, scale: V, offset: V, factor: V) -> V {
    if WEIGHTED {
        let moved = weight * (offset + x * factor);
        return scale * (g - select(V(0.0), moved, weight > V(0.0)));
    }
    return scale * ((g - offset) - x * factor);
}

// The same of four vectors, before they are weighed.
struct Slopes {
    scale: Both,
    offset: Both,
    factor: Both,
    weight: Both,
}

fn gradients_at(g: Four, x: Four, weights: Four, s: Slopes) -> Four {
    let a = weigh(g.a, s.weight.a);
    let b = weigh(g.b, s.weight.b);
    let c = weigh(g.c, s.weight.a);
    let d = weigh(g.d, s.weight.b);
    return Four(
        gradient_at(a, x.a, weights.a, s.scale.a, s.offset.a, s.factor.a),
        gradient_at(b, x.b, weights.b, s.scale.b, s.offset.b, s.factor.b),
        gradient_at(c, x.c, weights.c, s.scale.a, s.offset.a, s.factor.a),
        gradient_at(d, x.d, weights.d, s.scale.b, s.offset.b, s.factor.b),
    );
}

// dβ = S₁ and dγ = S₂·i (S₂·i·r + S₁·d, where the batch is renormalized); and the sums themselves.
fn store_parameter_gradients(channel: u32, inv_std: f32, s: Sums) {
    var dgamma = s.dyx * inv_std;
    if RENORM {
        let renorm = renorm_of(channel);
        dgamma = dgamma * component(renorm.r, 0u) + s.dy * component(renorm.d, 0u);
    }
    store_dgamma(channel, select(0.0, load_dgamma(channel), ACCUMULATE) + dgamma);
    store_dbeta(channel, select(0.0, load_dbeta(channel), ACCUMULATE) + s.dy);
    store_sums(channel, s.dy);
    store_sums(params.channel_count + channel, s.dyx);
}

fn sums_at(channel: u32) -> u32 {
    return params.sums + params.first_channel + channel;
}

// The sums of all shards, or those that finalize_gradients has left in the scratch, or merge_rows
// behind those.
fn merged_sums(channel: u32) -> Sums {
    if HAS_SUMS {
        return Sums(load_sums(channel), load_sums(params.channel_count + channel));
    }
    if GROUPED {
        let at = params.sums + 2u * params.channel_count + group_of(channel);
        return Sums(load_scratch(at), load_scratch(at + params.group_count));
    }
    let at = sums_at(channel);
    return Sums(load_scratch(at), load_scratch(at + params.sums_plane));
}
