//! Ghost batches: virtual batches are slices of one tensor, each a batch of its own. Running
//! statistics move once for each, in order (Hoffer, Hubara and Soudry, 2017).

use wgpu_batchnorm::{
    Backward, BackwardBuffers, ChannelAxis, Config, Gradients, Plan, SlotMemory, Train,
    TrainBuffers, wgpu,
};

use crate::common::compare;
use crate::common::data::{Case, Data, shards};
use crate::common::gpu;
use crate::common::runner::{self, bits, floats};

fn part_of(buffer: &wgpu::Buffer, begin: u64, end: u64) -> SlotMemory<'_> {
    buffer.slice(begin..end).into()
}

/// Three virtual batches of 4 samples and one of 2, recorded one after another into one encoder: x and
/// y are one buffer each, dγ and dβ accumulate. A sample has 64 values, so slices are aligned.
#[test]
fn ghost_batches_are_slices_of_one_buffer() {
    let Some(gpu) = gpu() else { return };
    let gradients = Gradients { accumulate: true, ..Gradients::ALL };
    let config = Config { gradients, ..Config::pytorch() };
    let case = Case::new(&[14, 4, 4, 4], ChannelAxis::First, config);
    let data = Data::random(case.geometry(), 111, 1.0, 2.0);
    let zeros = |n: usize| runner::upload(gpu, &vec![0; n]);
    let (x, dy) = (runner::upload(gpu, &bits(&data.x)), runner::upload(gpu, &bits(&data.dy)));
    let (y, dx) = (zeros(data.x.len()), zeros(data.x.len()));
    let [gamma, beta, mean, var] = [&data.gamma, &data.beta, &data.running_mean, &data.running_var]
        .map(|values| runner::upload(gpu, &bits(values)));
    let [dgamma, dbeta] = [zeros(4), zeros(4)];
    let mut encoder = gpu.device().create_command_encoder(&Default::default());

    let mut expected = data.clone();
    let (mut all_y, mut all_dx) = (Vec::new(), Vec::new());
    let (mut sums, mut bounds) = ([0f32; 8], [0f64; 8]);
    let mut begin = 0;
    for (ghost, part) in shards(&case, &data, &[4, 8, 12]) {
        let end = begin + 4 * ghost.geometry().len();

        let saved = zeros(4 * 4);
        let plan: Plan<Train> = runner::plan(gpu, &ghost).unwrap();
        let scratch = zeros(1 << 12);
        assert!(plan.scratch_size() <= scratch.size());
        let forward = gpu.kernels().prepare(plan).unwrap();
        let buffers = TrainBuffers {
            x: part_of(&x, begin, end),
            y: part_of(&y, begin, end),
            gamma: (&gamma).into(),
            beta: (&beta).into(),
            saved: (&saved).into(),
            running_mean: (&mean).into(),
            running_var: (&var).into(),
            scratch: (&scratch).into(),
            ..Default::default()
        };
        forward.bind(&buffers).unwrap().encode_into(&mut encoder);
        let plan: Plan<Backward> = runner::plan(gpu, &ghost).unwrap();
        assert!(plan.scratch_size() <= scratch.size());
        let backward = gpu.kernels().prepare(plan).unwrap();
        let buffers = BackwardBuffers {
            x: part_of(&x, begin, end),
            dy: part_of(&dy, begin, end),
            dx: part_of(&dx, begin, end),
            gamma: (&gamma).into(),
            dgamma: (&dgamma).into(),
            dbeta: (&dbeta).into(),
            saved: (&saved).into(),
            scratch: (&scratch).into(),
            ..Default::default()
        };
        backward.bind(&buffers).unwrap().encode_into(&mut encoder);
        begin = end;

        // Each alone, with the running statistics that the one before it left.
        let gradients = Gradients::ALL;
        let alone = Case { config: Config { gradients, ..ghost.config.clone() }, ..ghost };
        let running_mean = expected.running_mean.clone();
        let running_var = expected.running_var.clone();
        let r = runner::train(gpu, &alone, &Data { running_mean, running_var, ..part });
        all_y.extend(r.y);
        all_dx.extend(r.dx);
        for (i, own) in r.dgamma.iter().chain(&r.dbeta).enumerate() {
            bounds[i] += compare::added(sums[i], *own);
            sums[i] += own;
        }
        (expected.running_mean, expected.running_var) = (r.running_mean, r.running_var);
    }
    let read = runner::read(gpu, encoder, &[y, dx, mean, var, dgamma, dbeta]);
    let read: Vec<Vec<f32>> = read.iter().map(|words| floats(words)).collect();
    assert_eq!(read[0], all_y);
    assert_eq!(read[1], all_dx);
    assert_eq!(read[2], expected.running_mean);
    assert_eq!(read[3], expected.running_var);
    let parameters = read[4].iter().chain(&read[5]);
    for (i, a) in parameters.enumerate() {
        let off = f64::from((a - sums[i]).abs());
        assert!(off <= bounds[i], "{a} is not {} within {}", sums[i], bounds[i]);
    }
}
