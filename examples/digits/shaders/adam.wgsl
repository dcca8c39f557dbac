// Adam (Kingma and Ba, 2015) with decoupled weight decay (Loshchilov and Hutter, 2019) on all
// parameters at once; those before DECAYED decay. Grid: parameters / LANES.

@group(0) @binding(0) var<uniform> step: Step;
@group(0) @binding(1) var<storage, read> gradients: array<f32>;
@group(0) @binding(2) var<storage, read_write> parameters: array<f32>;
// First, then second moments.
@group(0) @binding(3) var<storage, read_write> moments: array<f32>;

const BETA_1 = 0.9;
const BETA_2 = 0.999;
const EPSILON = 1e-8;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = workgroup.x * LANES + lane;
    let count = arrayLength(&parameters);
    if i >= count {
        return;
    }
    let g = gradients[i];
    let m = BETA_1 * moments[i] + (1.0 - BETA_1) * g;
    let v = BETA_2 * moments[count + i] + (1.0 - BETA_2) * g * g;
    moments[i] = m;
    moments[count + i] = v;
    let decay = select(0.0, step.decay, i < DECAYED);
    let moved = (m * step.correction_1) / (sqrt(v * step.correction_2) + EPSILON);
    parameters[i] = parameters[i] - (decay * parameters[i] + step.learning_rate * moved);
}
