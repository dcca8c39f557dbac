// logits = bias + features · weightsᵀ, four images per workgroup, lanes over features.
// Grid: images / 4.

@group(0) @binding(0) var<uniform> sizes: Sizes;
@group(0) @binding(1) var<storage, read> weights: array<f32>; // [class, feature]
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read> features: array<f32>;
@group(0) @binding(4) var<storage, read_write> logits: array<f32>;

var<workgroup> partial: array<vec4<f32>, LANES * CLASSES>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let image = workgroup.x * 4u;
    // Past the last image the last one is computed again, and not stored.
    let last = sizes.batch - 1u;
    let at = FEATURES * min(vec4<u32>(image, image + 1u, image + 2u, image + 3u), vec4<u32>(last));
    var sums: array<vec4<f32>, 10>;
    for (var i = lane; i < FEATURES; i = i + LANES) {
        let feature = vec4<f32>(
            features[at.x + i], features[at.y + i], features[at.z + i], features[at.w + i],
        );
        for (var c = 0u; c < CLASSES; c = c + 1u) {
            sums[c] = sums[c] + feature * weights[c * FEATURES + i];
        }
    }
    for (var c = 0u; c < CLASSES; c = c + 1u) {
        partial[lane * CLASSES + c] = sums[c];
    }
    workgroupBarrier();
    for (var c = lane; c < CLASSES; c = c + LANES) {
        var sum = vec4<f32>(bias[c]);
        for (var l = 0u; l < LANES; l = l + 1u) {
            sum = sum + partial[l * CLASSES + c];
        }
        for (var i = 0u; i < min(4u, sizes.batch - image); i = i + 1u) {
            logits[(image + i) * LOGIT_ROW + c] = sum[i];
        }
    }
}
