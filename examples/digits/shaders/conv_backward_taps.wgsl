// What every output pixel of the convolution sends back through each tap:
// taps[tap, image, pixel] = Σ over filters of weights · gradient; four neighbouring pixels per
// invocation. Grid: pixels / 4 / LANES × images.

@group(0) @binding(0) var<uniform> sizes: Sizes;
@group(0) @binding(1) var<uniform> weights: array<vec4<f32>, 72>; // [tap, filter]
@group(0) @binding(2) var<storage, read> output: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> doutput: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> taps: array<vec4<f32>>;

const PLANE = CONV_AREA / 4u;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let quad = workgroup.x * LANES + lane;
    if quad >= PLANE {
        return;
    }
    let start = workgroup.y * FILTERS * PLANE + quad;
    var sums: array<vec4<f32>, 9>;
    for (var f = 0u; f < 8u; f = f + 1u) {
        let at = start + 4u * f * PLANE;
        let g0 = passed(at);
        let g1 = passed(at + PLANE);
        let g2 = passed(at + 2u * PLANE);
        let g3 = passed(at + 3u * PLANE);
        for (var tap = 0u; tap < TAPS; tap = tap + 1u) {
            let w = weights[tap * 8u + f];
            sums[tap] = sums[tap] + (g0 * w.x + g1 * w.y) + (g2 * w.z + g3 * w.w);
        }
    }
    for (var tap = 0u; tap < TAPS; tap = tap + 1u) {
        taps[(tap * sizes.batch + workgroup.y) * PLANE + quad] = sums[tap];
    }
}
