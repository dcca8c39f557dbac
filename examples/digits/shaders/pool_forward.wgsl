// features = dropout(max over 2×2 of planes).
// Grid: features / LANES × images / GROUP.

@group(0) @binding(0) var<uniform> sizes: Sizes;
@group(0) @binding(1) var<uniform> step: Step;
@group(0) @binding(2) var<storage, read> planes: array<f32>;
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
        let at = image * FILTERS * CONV_AREA + corner;
        let top = max(planes[at], planes[at + 1u]);
        let bottom = max(planes[at + CONV_SIDE], planes[at + CONV_SIDE + 1u]);
        let to = image * FEATURES + feature;
        features[to] = max(top, bottom) * dropout_factor(to);
    }
}
