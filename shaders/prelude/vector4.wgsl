
// Tensors are loaded four values at a time.
alias V = vec4<f32>;
alias U = vec4<u32>;
alias B = vec4<bool>;
const WIDTH: u32 = 4u;
const COMPONENTS: U = vec4<u32>(0u, 1u, 2u, 3u);

fn component(v: V, i: u32) -> f32 {
    return v[i];
}

fn sum_components(v: V) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}

// One bit per component.
fn bits_of(on: B) -> u32 {
    let bits = select(vec4<u32>(0u), vec4<u32>(1u, 2u, 4u, 8u), on);
    return (bits.x | bits.y) | (bits.z | bits.w);
}

fn from_bits(bits: u32) -> B {
    return (vec4<u32>(bits) & vec4<u32>(1u, 2u, 4u, 8u)) != vec4<u32>(0u);
}

