
// batches ← batches + 1, before the kernels that divide by it.
// Grid: one workgroup. Reads and writes: batches.

@compute @workgroup_size(1)
fn main() {
    store_batches(0u, load_batches(0u) + 1u);
}
