
// Tensors are loaded one f32 at a time: rows or sizes that are no multiple of four.
alias V = f32;
const WIDTH: u32 = 1u;

fn component(v: V, i: u32) -> f32 {
    return v;
}

fn put(v: V, i: u32, value: f32) -> V {
    return value;
}

fn sum_components(v: V) -> f32 {
    return v;
}

