// y = x: what memory can do through wgpu. No kernel: `measure` and the benchmarks run it, and put in
// front of it what a `Vector` is: vec4<f32>, or vec4<u64> where the kernels have that.
// Grid: a workgroup per `chunk` vectors that lie together; each lane copies every LANES-th of them, four
// loads in flight. Reads: x. Writes: y.

struct Params {
    length: u32,
    chunk: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Vector>;
@group(0) @binding(2) var<storage, read_write> y: array<Vector>;

override LANES: u32 = 8u;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let begin = (workgroup.x + workgroup.y * grid.x) * params.chunk;
    let end = min(begin + params.chunk, params.length);
    var i = begin + lane;
    for (; i + 3u * LANES < end; i = i + 4u * LANES) {
        let a = x[i];
        let b = x[i + LANES];
        let c = x[i + 2u * LANES];
        let d = x[i + 3u * LANES];
        y[i] = a;
        y[i + LANES] = b;
        y[i + 2u * LANES] = c;
        y[i + 3u * LANES] = d;
    }
    for (; i < end; i = i + LANES) {
        y[i] = x[i];
    }
}
