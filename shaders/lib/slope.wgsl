
// dx = scale·((dy − mean_dy) − (x−μ)·factor), with scale = γ·i, mean_dy = S₁/n, factor = i·(S₂·i/n).

struct Slope {
    scale: f32,
    mean_dy: f32,
    factor: f32,
}

fn slope_of(channel: u32, inv_std: f32, dy: f32, dyx: f32) -> Slope {
    let n = params.value_count;
    return Slope(load_gamma(channel) * inv_std, dy / n, inv_std * (dyx * inv_std / n));
}

// dβ = S₁ and dγ = S₂·i.
fn store_parameter_gradients(channel: u32, inv_std: f32, dy: f32, dyx: f32) {
    store_dgamma(channel, select(0.0, load_dgamma(channel), ACCUMULATE) + dyx * inv_std);
    store_dbeta(channel, select(0.0, load_dbeta(channel), ACCUMULATE) + dy);
}
