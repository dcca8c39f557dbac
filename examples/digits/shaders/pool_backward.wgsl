// The gradient of the features, dlogits · weights, through dropout to the largest of each 2×2 (the
// first of equals), and through relu where it does not stand first. Grid: features / LANES × images / GROUP.

@group(0) @binding(0) var<uniform> sizes: Sizes;
@group(0) @binding(1) var<uniform> step: Step;
@group(0) @binding(2) var<storage, read> weights: array<f32>; // [class, feature]
@group(0) @binding(3) var<storage, read> dlogits: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> planes: array<vec2<f32>>;
@group(0) @binding(5) var<storage, read_write> dplanes: array<vec2<f32>>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let feature = workgroup.x * LANES + lane;
    if feature >= FEATURES {
        return;
    }
    let w0 = weights_of(0u, feature);
    let w1 = weights_of(4u, feature);
    let w2 = vec2<f32>(weights[8u * FEATURES + feature], weights[9u * FEATURES + feature]);
    let corner = corner_of(feature);
    let end = min((workgroup.y + 1u) * GROUP, sizes.batch);
    for (var image = workgroup.y * GROUP; image < end; image = image + 1u) {
        let d = image * 3u;
        let sum = dot(dlogits[d], w0) + dot(dlogits[d + 1u], w1) + dot(dlogits[d + 2u].xy, w2);
        let at = (image * FILTERS * CONV_AREA + corner) / 2u;
        let top = planes[at];
        let bottom = planes[at + CONV_SIDE / 2u];
        var largest = 0u;
        var value = top.x;
        if top.y > value { largest = 1u; value = top.y; }
        if bottom.x > value { largest = 2u; value = bottom.x; }
        if bottom.y > value { largest = 3u; value = bottom.y; }
        let passes = RELU_FIRST || value > 0.0;
        let gradient = select(0.0, sum * dropout_factor(image * FEATURES + feature), passes);
        let places = vec4<u32>(0u, 1u, 2u, 3u) == vec4<u32>(largest);
        let spread = select(vec4<f32>(0.0), vec4<f32>(gradient), places);
        dplanes[at] = spread.xy;
        dplanes[at + CONV_SIDE / 2u] = spread.zw;
    }
}

fn weights_of(c: u32, feature: u32) -> vec4<f32> {
    let at = c * FEATURES + feature;
    return vec4<f32>(
        weights[at], weights[at + FEATURES], weights[at + 2u * FEATURES], weights[at + 3u * FEATURES],
    );
}
