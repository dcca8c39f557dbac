
// What an adapter makes of the conversions between halves and f32. No kernel: `self_test` asks it.
// Grid: one invocation per number. Reads: given, f32 by their bits. Writes: answer, those narrowed,
// then every half widened, in turn.

@group(0) @binding(1) var<storage, read> given: array<u32>;
@group(0) @binding(2) var<storage, read_write> answer: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.x;
    let count = arrayLength(&given);
    if i < count {
        answer[i] = narrow(bitcast<f32>(given[i] ^ params.zero)) >> 16u;
        answer[count + i] = bitcast<u32>(widen(i << 16u));
    }
}
