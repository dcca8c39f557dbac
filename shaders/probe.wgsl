
// What an adapter does with loops, NaN, denormals and sums. No kernel: `self_test` asks it.
// Grid: two workgroups of one invocation, so that each has its iterations to itself.
// Reads: given, numbers that no compiler knows. Writes: answer.

@group(0) @binding(1) var<storage, read> given: array<u32>;
@group(0) @binding(2) var<storage, read_write> answer: array<u32>;

fn number(i: u32) -> f32 {
    return bitcast<f32>(given[i]);
}

@compute @workgroup_size(1)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>) {
    // given[0], given[1]: how often to loop; no compiler finds a closed form of the state.
    let asked = given[workgroup.x];
    var state = asked;
    var done = 0u;
    for (; done < asked; done = done + 1u) {
        state = (state ^ (state >> 7u)) * 1664525u + 1013904223u;
    }
    answer[2u * workgroup.x] = done;
    answer[2u * workgroup.x + 1u] = state;
    if workgroup.x > 0u {
        return;
    }
    let nan = number(2u);
    let infinity = number(3u);
    let one = number(4u);
    let large = number(5u);
    let denormal = number(6u);
    let smallest_normal = number(7u);
    let factor = number(8u);
    let negated_square = number(9u);
    // ∞ − ∞ by two numbers: a compiler may take a − a for 0.
    let negated_infinity = number(10u);
    answer[4] = select(0u, 1u, is_finite(nan));
    answer[5] = select(0u, 1u, is_finite(infinity));
    answer[6] = select(0u, 1u, is_finite(one));
    answer[7] = select(0u, 1u, is_finite(infinity + negated_infinity));
    answer[8] = select(0u, 1u, nan != nan);
    answer[9] = bitcast<u32>(nan + one);
    answer[10] = bitcast<u32>(infinity + negated_infinity);
    answer[11] = bitcast<u32>(large * large);
    answer[12] = bitcast<u32>(denormal + denormal);
    answer[13] = bitcast<u32>(smallest_normal * 0.5);
    answer[14] = bitcast<u32>(factor * factor + negated_square);
    answer[15] = bitcast<u32>((large + one) - large);
    answer[16] = bitcast<u32>(opaque(large + one) - large);
}
