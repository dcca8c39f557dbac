// dimages: every pixel gathers what the output pixels around it sent back.
// Grid: pixels of an image / LANES × images.

@group(0) @binding(0) var<uniform> sizes: Sizes;
@group(0) @binding(1) var<storage, read> taps: array<f32>; // [tap, image, output pixel]
@group(0) @binding(2) var<storage, read_write> dimages: array<f32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pixel = workgroup.x * LANES + lane;
    if pixel >= IMAGE {
        return;
    }
    var sum = 0.0;
    for (var tap = 0u; tap < TAPS; tap = tap + 1u) {
        // Left of or above the first output pixel these wrap, and are no pixel either.
        let row = pixel / SIDE - tap / 3u;
        let column = pixel % SIDE - tap % 3u;
        if row < CONV_SIDE && column < CONV_SIDE {
            let at = row * CONV_SIDE + column;
            sum = sum + taps[(tap * sizes.batch + workgroup.y) * CONV_AREA + at];
        }
    }
    dimages[workgroup.y * IMAGE + pixel] = sum;
}
