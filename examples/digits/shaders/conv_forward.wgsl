// output = relu(bias + images ∗ weights), all filters of one pixel per invocation.
// Grid: pixels / LANES × images.

@group(0) @binding(0) var<uniform> weights: array<vec4<f32>, 72>; // [tap, filter]
@group(0) @binding(1) var<uniform> bias: array<vec4<f32>, 8>;
@group(0) @binding(2) var<storage, read> images: array<f32>;
@group(0) @binding(3) var<storage, read_write> output: array<f32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pixel = workgroup.x * LANES + lane;
    if pixel >= CONV_AREA {
        return;
    }
    let start = workgroup.y * IMAGE + pixel / CONV_SIDE * SIDE + pixel % CONV_SIDE;
    var sums: array<vec4<f32>, 8>;
    for (var f = 0u; f < 8u; f = f + 1u) {
        sums[f] = bias[f];
    }
    for (var tap = 0u; tap < TAPS; tap = tap + 1u) {
        let value = images[start + tap / 3u * SIDE + tap % 3u];
        for (var f = 0u; f < 8u; f = f + 1u) {
            sums[f] = sums[f] + value * weights[tap * 8u + f];
        }
    }
    let to = workgroup.y * FILTERS * CONV_AREA + pixel;
    for (var f = 0u; f < 8u; f = f + 1u) {
        let value = max(sums[f], vec4<f32>(0.0));
        output[to + (4u * f) * CONV_AREA] = value.x;
        output[to + (4u * f + 1u) * CONV_AREA] = value.y;
        output[to + (4u * f + 2u) * CONV_AREA] = value.z;
        output[to + (4u * f + 3u) * CONV_AREA] = value.w;
    }
}
