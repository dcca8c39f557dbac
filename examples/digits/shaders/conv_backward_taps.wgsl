// What every output pixel of the convolution sends back through each tap:
// taps[tap, image, pixel] = Σ over filters of weights · gradient, where relu lets it pass.
// Grid: pixels / LANES × images.

@group(0) @binding(0) var<uniform> sizes: Sizes;
@group(0) @binding(1) var<uniform> weights: array<vec4<f32>, 72>; // [tap, filter]
@group(0) @binding(2) var<storage, read> output: array<f32>;
@group(0) @binding(3) var<storage, read> doutput: array<f32>;
@group(0) @binding(4) var<storage, read_write> taps: array<f32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pixel = workgroup.x * LANES + lane;
    if pixel >= CONV_AREA {
        return;
    }
    let start = workgroup.y * FILTERS * CONV_AREA + pixel;
    var sums: array<f32, 9>;
    for (var f = 0u; f < 8u; f = f + 1u) {
        let at = start + 4u * f * CONV_AREA;
        let gradient = vec4<f32>(
            passed(at),
            passed(at + CONV_AREA),
            passed(at + 2u * CONV_AREA),
            passed(at + 3u * CONV_AREA),
        );
        for (var tap = 0u; tap < TAPS; tap = tap + 1u) {
            sums[tap] = sums[tap] + dot(gradient, weights[tap * 8u + f]);
        }
    }
    for (var tap = 0u; tap < TAPS; tap = tap + 1u) {
        taps[(tap * sizes.batch + workgroup.y) * CONV_AREA + pixel] = sums[tap];
    }
}

fn passed(at: u32) -> f32 {
    return select(0.0, doutput[at], output[at] > 0.0);
}
