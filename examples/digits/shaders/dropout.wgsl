// Inverted dropout without a stored mask: forward and backward compute the same factor from the
// seed of the step and the feature's index (PCG's output permutation as a hash; Jarzynski and Olano,
// "Hash Functions for GPU Rendering", 2020).

fn hash(value: u32) -> u32 {
    let state = value * 747796405u + 2891336453u;
    let word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
    return (word >> 22u) ^ word;
}

fn dropout_factor(index: u32) -> f32 {
    let drop = hash(index ^ hash(step.dropout_seed)) < step.dropout_threshold;
    return select(step.dropout_scale, 0.0, drop);
}
