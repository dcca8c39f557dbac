
// batches ← batches + 1, up to the largest, unless the batch was empty, after the kernels that divide by it.
// Grid: one workgroup. Reads: saved (a count). Reads and writes: batches.

@compute @workgroup_size(1)
fn main() {
    if load_saved(3u * params.channel_count) > 0.0 {
        store_batches(0u, min(load_batches(0u), 0xfffffffeu) + 1u);
    }
}
