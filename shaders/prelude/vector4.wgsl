
// Tensors are loaded four f32 at a time.
alias V = vec4<f32>;
const WIDTH: u32 = 4u;

fn component(v: V, i: u32) -> f32 {
    return v[i];
}

fn put(v: V, i: u32, value: f32) -> V {
    return select(v, V(value), vec4<u32>(0u, 1u, 2u, 3u) == vec4<u32>(i));
}

fn sum_components(v: V) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}

