// Partial dweights and dbias of the convolution: a workgroup sums eight filters over a chunk of
// images, lanes over pixels. The gradient passes where relu's output is above 0.
// Grid: chunks × filters / 8.

@group(0) @binding(0) var<uniform> sizes: Sizes;
@group(0) @binding(1) var<storage, read> images: array<f32>;
@group(0) @binding(2) var<storage, read> output: array<f32>;
@group(0) @binding(3) var<storage, read> doutput: array<f32>;
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
        let base = (image * FILTERS + workgroup.y * 8u) * CONV_AREA;
        for (var pixel = lane; pixel < CONV_AREA; pixel = pixel + LANES) {
            let low = gradient(base + pixel);
            let high = gradient(base + 4u * CONV_AREA + pixel);
            let start = image * IMAGE + pixel / CONV_SIDE * SIDE + pixel % CONV_SIDE;
            for (var tap = 0u; tap < TAPS; tap = tap + 1u) {
                let value = images[start + tap / 3u * SIDE + tap % 3u];
                sums[2u * tap] = sums[2u * tap] + value * low;
                sums[2u * tap + 1u] = sums[2u * tap + 1u] + value * high;
            }
            sums[18] = sums[18] + low;
            sums[19] = sums[19] + high;
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

fn gradient(at: u32) -> vec4<f32> {
    return vec4<f32>(
        passed(at), passed(at + CONV_AREA), passed(at + 2u * CONV_AREA), passed(at + 3u * CONV_AREA),
    );
}

fn passed(at: u32) -> f32 {
    return select(0.0, doutput[at], output[at] > 0.0);
}
