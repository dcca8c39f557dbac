// features = dropout(max over 2×2 of planes), and relu where it does not stand first.
// Grid: features / LANES × images / GROUP.

@group(0) @binding(0) var<uniform> sizes: Sizes;
@group(0) @binding(1) var<uniform> step: Step;
@group(0) @binding(2) var<storage, read> planes: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> features: array<f32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let feature = workgroup.x * LANES + lane;
    if feature >= FEATURES {
        return;
    }
    let corner = corner_of(feature);
    let end = min((workgroup.y + 1u) * GROUP, sizes.batch);
    for (var image = workgroup.y * GROUP; image < end; image = image + 1u) {
        let at = (image * FILTERS * CONV_AREA + corner) / 2u;
        let pair = max(planes[at], planes[at + CONV_SIDE / 2u]);
        let to = image * FEATURES + feature;
        let largest = max(pair.x, pair.y);
        features[to] = select(max(largest, 0.0), largest, RELU_FIRST) * dropout_factor(to);
    }
}
