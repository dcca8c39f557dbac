// What every kernel knows. `Params` is the twin of the struct of that name in src/plan.rs (a test
// compares the two); the overrides are those of `shader::constants`.

struct Params {
    workgroup_count: u32,
    channel_count: u32,
    inner: u32,
    middle: u32,
    last: u32,
    step_count: u32,
    chunk: u32,
    chunk_count: u32,
    width: u32,
    tail: u32,
    row_loads: u32,
    row_stride: u32,
    advance_place: u32,
    advance_index: u32,
    run: u32,
    per_run: u32,
    per_chunk: u32,
    strip: u32,
    weight: u32,
    plane: u32,
    sums: u32,
    unbiased: u32,
    rate: f32,
    keep: f32,
    epsilon: f32,
    zero: u32,
    activation: f32,
    base: u32,
    mask_base: u32,
    first_channel: u32,
    channels_here: u32,
    partials: u32,
    sums_plane: u32,
    rmin: f32,
    rmax: f32,
    dmax: f32,
    group_count: u32,
    per_group: u32,
    parameter_count: u32,
    weights_base: u32,
    tiles: u32,
    block: u32,
    line: u32,
    parts: u32,
    from_end: u32,
}

@group(0) @binding(0) var<uniform> params: Params;

// Invocations in a workgroup, and how many of them share a channel while merging partials.
override LANES: u32 = 8u;
override GROUP: u32 = 1u;
override ACCUMULATE: bool = false;
override CUMULATIVE: bool = false;
override KEEP_NON_FINITE: bool = false;
override RENORM: bool = false;
override GROUPED: bool = false;
override WEIGHTED: bool = false;
override NEIGHBOURS: bool = false;
override RUNS: bool = false;

// A folded grid as one number.
fn workgroup_index(workgroup: vec3<u32>, grid: vec3<u32>) -> u32 {
    return workgroup.x + workgroup.y * grid.x;
}

// In a tree over lanes `apart`, the first of the eight that lie `distance` apart and are taken together.
fn first_of_eight(lane: u32, distance: u32, apart: u32) -> u32 {
    let result = lane & (apart - 1u);
    if distance * 8u >= LANES {
        return result;
    }
    return (lane & ~(distance * 8u - 1u)) | result;
}

// What a workgroup takes: the last one first, where caches still hold what an earlier pass read last.
fn place_in_order(index: u32) -> u32 {
    return select(index, params.workgroup_count - 1u - index, params.from_end != 0u);
}

// Finite by its bits: compilers may assume that no NaN exists and fold `v == v`.
fn is_finite(v: f32) -> bool {
    return (bitcast<u32>(v) & 0x7f800000u) != 0x7f800000u;
}

// WGSL has no such constant; at run time it is allowed.
fn not_a_number() -> f32 {
    return bitcast<f32>(0x7fc00000u ^ params.zero);
}

// The same value, of which no compiler knows how it was computed: it cannot be reassociated with
// what follows.
fn opaque(v: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(v) ^ params.zero);
}
