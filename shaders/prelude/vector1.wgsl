
// Tensors are loaded one value at a time: rows or sizes that are no multiple of four.
alias V = f32;
alias U = u32;
alias B = bool;
const WIDTH: u32 = 1u;
const COMPONENTS: U = 0u;

fn component(v: V, i: u32) -> f32 {
    return v;
}

fn sum_components(v: V) -> f32 {
    return v;
}

// One bit per component.
fn bits_of(on: B) -> u32 {
    return select(0u, 1u, on);
}

fn from_bits(bits: u32) -> B {
    return (bits & 1u) != 0u;
}

