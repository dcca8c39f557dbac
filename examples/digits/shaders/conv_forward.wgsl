// output = bias + images ∗ weights, and relu where it stands first; eight filters of four neighbouring
// pixels per invocation. Grid: pixels / 4 / LANES × images × filters / 8.

@group(0) @binding(0) var<uniform> weights: array<vec4<f32>, 72>; // [tap, filter]
@group(0) @binding(1) var<uniform> bias: array<vec4<f32>, 8>;
@group(0) @binding(2) var<storage, read> images: array<f32>;
@group(0) @binding(3) var<storage, read_write> output: array<vec4<f32>>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let quad = workgroup.x * LANES + lane;
    if quad >= CONV_AREA / 4u {
        return;
    }
    let pixel = vec4<u32>(4u * quad) + vec4<u32>(0u, 1u, 2u, 3u);
    let start = workgroup.y * IMAGE + pixel / CONV_SIDE * SIDE + pixel % CONV_SIDE;
    let low = bias[2u * workgroup.z];
    let high = bias[2u * workgroup.z + 1u];
    var s0 = vec4<f32>(low.x);
    var s1 = vec4<f32>(low.y);
    var s2 = vec4<f32>(low.z);
    var s3 = vec4<f32>(low.w);
    var s4 = vec4<f32>(high.x);
    var s5 = vec4<f32>(high.y);
    var s6 = vec4<f32>(high.z);
    var s7 = vec4<f32>(high.w);
    for (var tap = 0u; tap < TAPS; tap = tap + 1u) {
        let at = start + tap / 3u * SIDE + tap % 3u;
        let value = vec4<f32>(images[at.x], images[at.y], images[at.z], images[at.w]);
        let a = weights[tap * 8u + 2u * workgroup.z];
        let b = weights[tap * 8u + 2u * workgroup.z + 1u];
        s0 = s0 + value * a.x;
        s1 = s1 + value * a.y;
        s2 = s2 + value * a.z;
        s3 = s3 + value * a.w;
        s4 = s4 + value * b.x;
        s5 = s5 + value * b.y;
        s6 = s6 + value * b.z;
        s7 = s7 + value * b.w;
    }
    let plane = CONV_AREA / 4u;
    let to = (workgroup.y * FILTERS + 8u * workgroup.z) * plane + quad;
    output[to] = relu(s0);
    output[to + plane] = relu(s1);
    output[to + 2u * plane] = relu(s2);
    output[to + 3u * plane] = relu(s3);
    output[to + 4u * plane] = relu(s4);
    output[to + 5u * plane] = relu(s5);
    output[to + 6u * plane] = relu(s6);
    output[to + 7u * plane] = relu(s7);
}

fn relu(sum: vec4<f32>) -> vec4<f32> {
    return select(sum, max(sum, vec4<f32>(0.0)), RELU_FIRST);
}
