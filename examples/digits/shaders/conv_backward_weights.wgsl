// Partial dweights and dbias of the convolution: a workgroup sums eight filters over a chunk of
// images, lanes over four neighbouring pixels each. Grid: chunks × filters / 8.

@group(0) @binding(0) var<uniform> sizes: Sizes;
@group(0) @binding(1) var<storage, read> images: array<f32>;
@group(0) @binding(2) var<storage, read> output: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> doutput: array<vec4<f32>>;
// [chunk, tap (the tenth is the bias), filter]
@group(0) @binding(4) var<storage, read_write> partials: array<vec4<f32>>;

// Two vec4 of filters for every tap and the bias.
const OWN = 20u;
var<workgroup> shared_sums: array<vec4<f32>, LANES * OWN>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    var sums: array<vec4<f32>, 20>;
    let begin = workgroup.x * sizes.chunk;
    let end = min(begin + sizes.chunk, sizes.batch);
    for (var image = begin; image < end; image = image + 1u) {
        let plane = CONV_AREA / 4u;
        let base = (image * FILTERS + workgroup.y * 8u) * plane;
        for (var quad = lane; quad < plane; quad = quad + LANES) {
            let at = base + quad;
            // Filters become the components, one pixel after the other.
            let low = transpose(mat4x4<f32>(
                passed(at), passed(at + plane), passed(at + 2u * plane), passed(at + 3u * plane),
            ));
            let high = transpose(mat4x4<f32>(
                passed(at + 4u * plane),
                passed(at + 5u * plane),
                passed(at + 6u * plane),
                passed(at + 7u * plane),
            ));
            let pixel = vec4<u32>(4u * quad) + vec4<u32>(0u, 1u, 2u, 3u);
            let start = image * IMAGE + pixel / CONV_SIDE * SIDE + pixel % CONV_SIDE;
            for (var tap = 0u; tap < TAPS; tap = tap + 1u) {
                let from_tap = start + tap / 3u * SIDE + tap % 3u;
                let value = vec4<f32>(
                    images[from_tap.x], images[from_tap.y], images[from_tap.z], images[from_tap.w],
                );
                sums[2u * tap] = sums[2u * tap] + low * value;
                sums[2u * tap + 1u] = sums[2u * tap + 1u] + high * value;
            }
            sums[18] = sums[18] + low * vec4<f32>(1.0);
            sums[19] = sums[19] + high * vec4<f32>(1.0);
        }
    }
    for (var i = 0u; i < OWN; i = i + 1u) {
        shared_sums[lane * OWN + i] = sums[i];
    }
    workgroupBarrier();
    for (var i = lane; i < OWN; i = i + LANES) {
        var sum = vec4<f32>(0.0);
        for (var l = 0u; l < LANES; l = l + 1u) {
            sum = sum + shared_sums[l * OWN + i];
        }
        // Eight vec4 of filters in a row; this workgroup has two of them.
        partials[(workgroup.x * 10u + i / 2u) * 8u + workgroup.y * 2u + i % 2u] = sum;
    }
}
