// Plain gradient descent with decoupled weight decay on all parameters at once; those before
// DECAYED decay. Grid: parameters / LANES.

@group(0) @binding(0) var<uniform> step: Step;
@group(0) @binding(1) var<storage, read> gradients: array<f32>;
@group(0) @binding(2) var<storage, read_write> parameters: array<f32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = workgroup.x * LANES + lane;
    if i >= arrayLength(&parameters) {
        return;
    }
    let decay = select(0.0, step.decay, i < DECAYED);
    parameters[i] = parameters[i] - (decay * parameters[i] + step.learning_rate * gradients[i]);
}
