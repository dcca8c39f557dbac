// Softmax cross-entropy: the sum of the losses and the count of right answers go to the record, the
// gradient of the mean loss to the logits and the dense bias. Grid: 1.

@group(0) @binding(0) var<uniform> sizes: Sizes;
@group(0) @binding(1) var<uniform> step: Step;
@group(0) @binding(2) var<storage, read> labels: array<u32>;
@group(0) @binding(3) var<storage, read> logits: array<f32>;
@group(0) @binding(4) var<storage, read_write> dlogits: array<f32>;
@group(0) @binding(5) var<storage, read_write> dbias: array<f32>;
@group(0) @binding(6) var<storage, read_write> records: array<vec2<f32>>;

var<workgroup> partial: array<vec2<f32>, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32) {
    var own = vec2<f32>(0.0);
    for (var image = lane; image < sizes.batch; image = image + LANES) {
        own = own + one(image);
    }
    partial[lane] = own;
    storageBarrier();
    workgroupBarrier();
    for (var c = lane; c < CLASSES; c = c + LANES) {
        var sum = 0.0;
        for (var image = 0u; image < sizes.batch; image = image + 1u) {
            sum = sum + dlogits[image * LOGIT_ROW + c];
        }
        dbias[c] = sum;
    }
    if lane == 0u {
        var total = vec2<f32>(0.0);
        for (var l = 0u; l < LANES; l = l + 1u) {
            total = total + partial[l];
        }
        records[step.record] = total;
    }
}

// One image's loss, and 1 for a right answer. The first of equal logits is the answer.
fn one(image: u32) -> vec2<f32> {
    let row = image * LOGIT_ROW;
    let label = labels[image];
    var best = 0u;
    for (var c = 1u; c < CLASSES; c = c + 1u) {
        if logits[row + c] > logits[row + best] {
            best = c;
        }
    }
    let top = logits[row + best];
    var sum = 0.0;
    for (var c = 0u; c < CLASSES; c = c + 1u) {
        sum = sum + exp(logits[row + c] - top);
    }
    for (var c = 0u; c < CLASSES; c = c + 1u) {
        let probability = exp(logits[row + c] - top) / sum;
        let wanted = select(0.0, 1.0, c == label);
        dlogits[row + c] = (probability - wanted) / f32(sizes.batch);
    }
    let loss = log(sum) - (logits[row + label] - top);
    return vec2<f32>(loss, select(0.0, 1.0, best == label));
}
