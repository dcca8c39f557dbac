// Stands before every kernel of the example: the network's sizes, and what the host sends.
//
// Images are 28×28, a 3×3 convolution without padding gives 32 planes of 26×26, pooling 13×13.

override LANES: u32;
// relu stands right after the convolution; otherwise batch normalization stands between them, and
// relu is taken after pooling, which gives the same.
override RELU_FIRST: bool;
// Parameters that weight decay shrinks.
override DECAYED: u32;

const SIDE = 28u;
const IMAGE = 784u;
const CONV_SIDE = 26u;
const CONV_AREA = 676u;
const FILTERS = 32u;
const TAPS = 9u;
const POOL_SIDE = 13u;
const POOL_AREA = 169u;
const FEATURES = 5408u;
const CLASSES = 10u;
// Logits and their gradients lie in rows of three vec4; the last two numbers mean nothing.
const LOGIT_ROW = 12u;
// Images that one invocation of an element-wise kernel goes through.
const GROUP = 8u;

// Fixed for a pass: the twin of `Sizes` in network.rs.
struct Sizes {
    // Images in the batch.
    batch: u32,
    // Images in a chunk of the convolution's weight gradient.
    chunk: u32,
    // Chunks.
    chunk_count: u32,
    padding: u32,
}

// Written before every step: the twin of `Step` in network.rs.
struct Step {
    // Where the loss goes.
    record: u32,
    dropout_seed: u32,
    // A feature is dropped when its hash is below; 0 drops none.
    dropout_threshold: u32,
    // 1 / (1 − rate).
    dropout_scale: f32,
    learning_rate: f32,
    // Learning rate times weight decay.
    decay: f32,
    // Adam's 1 / (1 − β₁ᵗ) and 1 / (1 − β₂ᵗ).
    correction_1: f32,
    correction_2: f32,
}

// The top left of a feature's 2×2, within an image's planes.
fn corner_of(feature: u32) -> u32 {
    let pooled = feature % POOL_AREA;
    let place = 2u * (pooled / POOL_SIDE * CONV_SIDE + pooled % POOL_SIDE);
    return feature / POOL_AREA * CONV_AREA + place;
}
