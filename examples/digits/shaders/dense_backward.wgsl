// dweights = dlogitsᵀ · features, all classes of one feature per invocation.
// Grid: features / LANES.

@group(0) @binding(0) var<uniform> sizes: Sizes;
@group(0) @binding(1) var<storage, read> dlogits: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> features: array<f32>;
@group(0) @binding(3) var<storage, read_write> dweights: array<f32>; // [class, feature]

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let feature = workgroup.x * LANES + lane;
    if feature >= FEATURES {
        return;
    }
    var s0 = vec4<f32>(0.0);
    var s1 = vec4<f32>(0.0);
    var s2 = vec4<f32>(0.0);
    for (var image = 0u; image < sizes.batch; image = image + 1u) {
        let value = features[image * FEATURES + feature];
        s0 = s0 + value * dlogits[image * 3u];
        s1 = s1 + value * dlogits[image * 3u + 1u];
        s2 = s2 + value * dlogits[image * 3u + 2u];
    }
    for (var c = 0u; c < 4u; c = c + 1u) {
        dweights[c * FEATURES + feature] = s0[c];
        dweights[(c + 4u) * FEATURES + feature] = s1[c];
    }
    dweights[8u * FEATURES + feature] = s2.x;
    dweights[9u * FEATURES + feature] = s2.y;
}
