// dweights and dbias of the convolution: the sum of the partials, chunk by chunk.
// Grid: 320 / LANES.

@group(0) @binding(0) var<uniform> sizes: Sizes;
@group(0) @binding(1) var<storage, read> partials: array<f32>;
@group(0) @binding(2) var<storage, read_write> dweights: array<f32>; // [tap, filter]
@group(0) @binding(3) var<storage, read_write> dbias: array<f32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = workgroup.x * LANES + lane;
    let count = (TAPS + 1u) * FILTERS;
    if i >= count {
        return;
    }
    var sum = 0.0;
    for (var chunk = 0u; chunk < sizes.chunk_count; chunk = chunk + 1u) {
        sum = sum + partials[chunk * count + i];
    }
    if i < TAPS * FILTERS {
        dweights[i] = sum;
    } else {
        dbias[i - TAPS * FILTERS] = sum;
    }
}
