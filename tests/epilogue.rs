//! Activations and residuals in the same pass: where the slope comes from, what the mask holds,
//! functions of the caller's, and devices that bind few buffers.

use wgpu_batchnorm::reference;
use wgpu_batchnorm::{
    Activation, Affine, Backward, Caps, ChannelAxis, Config, FrozenBackward, Geometry, Gradients,
    Infer, Kernel, MAX_ITERATIONS, Mask, Memory, Operation, Plan, PlanError, PrepareError, Slot,
    Train, Tuning, Update,
};

use crate::common::check::{Oracle, compare_frozen, compare_training};
use crate::common::compare::{self, DIFFERENCE_ERROR, DIFFERENCE_STEP};
use crate::common::data::{Case, Data, small_tunings};
use crate::common::gpu;
use crate::common::runner::{self, inputs};

const ACTIVATIONS: [Activation; 5] = [
    Activation::None,
    Activation::Relu,
    Activation::LeakyRelu { slope: 0.2 },
    Activation::RELU6,
    Activation::Silu,
];

fn configs() -> impl Iterator<Item = Config> {
    ACTIVATIONS.into_iter().flat_map(|activation| {
        [false, true].into_iter().flat_map(move |residual| {
            [Mask::Auto, Mask::Bits, Mask::Recompute].map(|mask| Config {
                activation,
                residual,
                mask,
                ..Config::pytorch()
            })
        })
    })
}

fn plan<O: Operation>(config: &Config, buffers: u32) -> Result<Plan<O>, PlanError> {
    let geometry = Geometry::new(&[4, 8, 16, 16], ChannelAxis::First).unwrap();
    let caps = Caps { max_storage_buffers: buffers, ..Caps::webgpu_default() };
    Plan::new(geometry, config, &caps)
}

/// Both layouts and every tuning, on a device with WebGPU's eight buffers.
#[test]
fn everything_fits_eight_buffers_and_agrees() {
    let Some(gpu) = gpu() else { return };
    let tunings = small_tunings();
    for (i, config) in configs().enumerate() {
        let update = [Update::Cumulative, Update::Rate(0.1)][i % 2];
        for (j, (shape, axis)) in
            [([3, 5, 12], ChannelAxis::First), ([7, 5, 6], ChannelAxis::Last)].iter().enumerate()
        {
            for z in [true, false] {
                let gradients = Gradients { z, ..Gradients::ALL };
                let config = Config { update, gradients, ..config.clone() };
                let mut case = Case::new(shape, *axis, config).tuned(&tunings[(i + j) % 3]);
                case.buffers = Some(8);
                let data = Data::random(case.geometry(), i as u64, 1.0, 2.0);
                compare_training(&case, &data, &runner::train(gpu, &case, &data)).unwrap();
                compare_frozen(&case, &data, &runner::frozen(gpu, &case, &data)).unwrap();
            }
        }
    }
}

/// More buffers than the device has split the work, and no dispatch ever binds more.
#[test]
fn a_plan_binds_what_the_device_can() {
    for config in configs() {
        let count = |stages: &[wgpu_batchnorm::Stage], limit| {
            assert!(stages.iter().all(|s| s.variant.buffer_count() <= limit), "{config:?}");
            stages.len()
        };
        for limit in [8, 16] {
            count(plan::<Train>(&config, limit).unwrap().stages(), limit);
            count(plan::<Infer>(&config, limit).unwrap().stages(), limit);
            count(plan::<Backward>(&config, limit).unwrap().stages(), limit);
            count(plan::<FrozenBackward>(&config, limit).unwrap().stages(), limit);
        }
    }
    let config = Config { activation: Activation::Relu, residual: true, ..Config::pytorch() };
    let frozen = |limit| plan::<FrozenBackward>(&config, limit).unwrap().stages().len();
    assert_eq!((frozen(16), frozen(8)), (2, 3));
    match plan::<FrozenBackward>(&config, 4) {
        Err(PlanError::Buffers { kernel: Kernel::RowsFrozen, needed, limit: 4 }) => {
            assert!(needed > 4);
        }
        other => panic!("{other:?}"),
    }
}

/// A device with fewer buffers gives the same bits where the order of sums is the same.
#[test]
fn splitting_changes_no_bit_of_frozen_results() {
    let Some(gpu) = gpu() else { return };
    for config in configs() {
        let wide = Case::new(&[3, 5, 12], ChannelAxis::First, config).tuned(&small_tunings()[0]);
        let narrow = Case { buffers: Some(8), ..wide.clone() };
        let data = Data::random(wide.geometry(), 5, 1.0, 2.0);
        let (a, b) = (runner::frozen(gpu, &wide, &data), runner::frozen(gpu, &narrow, &data));
        assert_eq!(a.bits(), b.bits(), "{wide}");
    }
}

/// The slope comes from where fewer bytes are read, and the plan says so.
#[test]
fn the_plan_says_where_the_slope_comes_from() {
    let base = Config { activation: Activation::Relu, ..Config::pytorch() };
    let has = |text: &str, words: &str| assert!(text.contains(words), "{text} lacks {words:?}");
    let alone = plan::<Backward>(&base, 8).unwrap();
    has(&alone.explain(), "The activation's slope is computed again from x.");
    assert!(alone.slots().iter().all(|(slot, _)| *slot != Slot::Mask));
    // Recomputed from x, a ReLU moves not a byte more.
    let plain = plan::<Backward>(&Config::pytorch(), 8).unwrap();
    assert_eq!(alone.bytes_moved(), plain.bytes_moved());

    let added = Config { residual: true, ..base.clone() };
    let n = 4 * 8 * 16 * 16;
    let forward = plan::<Train>(&added, 8).unwrap();
    has(&forward.explain(), "is written as one bit per value");
    assert_eq!(forward.slot_size(Slot::Mask), n / 8);
    let backward = plan::<Backward>(&added, 8).unwrap();
    has(&backward.explain(), "is read as one bit per value, which the forward has written");
    assert!(backward.slots().iter().all(|(slot, _)| *slot != Slot::Z));
    let again = plan::<Backward>(&Config { mask: Mask::Recompute, ..added.clone() }, 8).unwrap();
    has(&again.explain(), "is computed again from x and z");
    assert!(backward.bytes_moved() < again.bytes_moved());

    // An inference needs no mask unless it is asked for one.
    assert!(plan::<Infer>(&added, 8).unwrap().slots().iter().all(|(slot, _)| *slot != Slot::Mask));
    let bits = Config { mask: Mask::Bits, ..added };
    assert!(plan::<Infer>(&bits, 8).unwrap().slots().iter().any(|(slot, _)| *slot == Slot::Mask));
    // SiLU has no mask of one bit.
    let silu = Config { activation: Activation::Silu, ..bits };
    has(&plan::<Backward>(&silu, 8).unwrap().explain(), "is computed again from x and z");
}

/// Bit e % 32 of word e / 32 is set where value e is open; bits past the end stay.
#[test]
fn a_mask_is_one_bit_per_value() {
    let Some(gpu) = gpu() else { return };
    for (shape, axis) in [
        (vec![3, 5, 12], ChannelAxis::First),
        (vec![3, 5, 7], ChannelAxis::First),
        (vec![7, 5], ChannelAxis::Last),
        (vec![1, 3, 1000], ChannelAxis::First),
        (vec![3, 5, 96], ChannelAxis::First),
    ] {
        for tuning in small_tunings() {
            let config = Config {
                activation: Activation::RELU6,
                affine: Affine::NONE,
                mask: Mask::Bits,
                ..Config::pytorch()
            };
            let case = Case::new(&shape, axis, config).tuned(&tuning);
            let mut data = Data::random(case.geometry(), 3, 0.0, 1.0);
            data.running_mean.fill(-1.0);
            data.running_var.fill(1.0);
            let prior = vec![0x5a5a_a5a5_u32; data.x.len().div_ceil(32)];
            let mut inputs = inputs(&data);
            inputs.insert(Slot::Mask, prior.clone());
            let plan = runner::plan::<Infer>(gpu, &case).unwrap();
            let mask = &runner::run(gpu, gpu.kernels(), plan, &inputs)[&Slot::Mask];
            for e in 0..32 * mask.len() {
                let expected = match data.x.get(e) {
                    Some(x) => {
                        let v = (f64::from(*x) + 1.0) / (1.0 + case.config.epsilon).sqrt();
                        assert!(v.abs() > 1e-5 && (v - 6.0).abs() > 1e-5, "near a corner");
                        v > 0.0 && v < 6.0
                    }
                    None => prior[e / 32] >> (e % 32) & 1 == 1,
                };
                assert_eq!(mask[e / 32] >> (e % 32) & 1 == 1, expected, "bit {e}: {case}");
            }
        }
    }
}

/// Words that one invocation writes whole hold the bits that many write by atomics; where rows end
/// within a word, or a window begins in one, there are none.
#[test]
fn whole_words_hold_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    let [split, fused, _] = small_tunings();
    // With bindings of so many bytes, and how many dispatches have whole words.
    let shapes: [(&[usize], Option<u64>, usize); 7] = [
        (&[3, 5, 96], None, 1),
        (&[2, 3, 8, 24], None, 1),
        (&[3, 5, 48], None, 0),
        (&[40, 3, 32], None, 1),
        (&[9, 5, 96], Some(4096), 5),
        // Windows of 512 values and of the rest: 96, then 88, where only two begin with a word.
        (&[2, 3, 608], Some(2048), 12),
        (&[2, 3, 600], Some(2048), 2),
    ];
    for (shape, binding, whole) in shapes {
        for memory in [Memory::Separate, Memory::InPlace, Memory::Arena] {
            for tuning in [&split, &fused] {
                let config = Config {
                    activation: Activation::Relu,
                    residual: true,
                    memory,
                    ..Config::pytorch()
                };
                let mut words = Case::new(shape, ChannelAxis::First, config).tuned(tuning);
                words.binding = binding;
                let atomics = words.clone().tuned(&Tuning { mask_words: false, ..tuning.clone() });
                let of = |case| {
                    let plan = runner::plan::<Train>(gpu, case).unwrap();
                    plan.stages().iter().filter(|stage| stage.variant.words).count()
                };
                assert_eq!((of(&words), of(&atomics)), (whole, 0), "{words}");
                let data = Data::random(words.geometry(), 9, 0.5, 1.0);
                let (a, b) =
                    (runner::train(gpu, &words, &data), runner::train(gpu, &atomics, &data));
                assert_eq!(a.bits(), b.bits(), "{words}");
            }
        }
    }
}

const SILU: Activation = Activation::Custom(
    "fn mine_s(v: f32) -> f32 { return 1.0 / (1.0 + exp(-v)); }
     fn activation(v: f32) -> f32 { return v * mine_s(v); }
     fn activation_derivative(v: f32) -> f32 {
         return mine_s(v) * (1.0 + v * (1.0 - mine_s(v)));
     }",
);

/// A caller's WGSL gives what the same function of ours gives, by the oracle of ours.
#[test]
fn a_custom_activation_is_computed_and_passed_back() {
    let Some(gpu) = gpu() else { return };
    for residual in [false, true] {
        for (shape, axis) in [([4, 3, 8], ChannelAxis::First), ([9, 2, 3], ChannelAxis::Last)] {
            for tuning in small_tunings() {
                let config = Config { activation: SILU, residual, ..Config::pytorch() };
                let custom = Case::new(&shape, axis, config).tuned(&tuning);
                let mut known = custom.clone();
                known.config.activation = Activation::Silu;
                let data = Data::random(custom.geometry(), 8, 0.5, 1.5);
                compare_training(&known, &data, &runner::train(gpu, &custom, &data)).unwrap();
                compare_frozen(&known, &data, &runner::frozen(gpu, &custom, &data)).unwrap();
            }
        }
    }
}

/// In the longest loops that planning lets an invocation take, a caller's ReLU gives the bits of ours:
/// a loop of its own for every load of four would pass 65,535, where lavapipe silently stops. (Where a
/// compiler unrolls it, only `shaders::an_activation_adds_no_loop` sees it.)
#[test]
fn a_custom_activation_takes_the_longest_loops() {
    let Some(gpu) = gpu() else { return };
    let relu = Activation::Custom(
        "fn activation(v: f32) -> f32 { return select(v, 0.0, v < 0.0); }
         fn activation_derivative(v: f32) -> f32 { return select(0.0, 1.0, v > 0.0); }",
    );
    let [_, fused, _] = small_tunings();
    let tuning = Tuning { workgroup_size: 4, fused_loads: u32::MAX, ..fused };
    // Two sweeps of so many loads of four.
    let loads = MAX_ITERATIONS / 2;
    let shape = [1, 1, 4 * (tuning.workgroup_size * loads) as usize];
    let config = Config { activation: Activation::Relu, ..Config::pytorch() };
    let ours = Case::new(&shape, ChannelAxis::First, config).tuned(&tuning);
    let mut custom = ours.clone();
    custom.config.activation = relu;
    let plan = runner::plan::<Backward>(gpu, &custom).unwrap();
    let [stage] = plan.stages() else { panic!("{}", plan.explain()) };
    assert_eq!(stage.params.chunk, loads * tuning.workgroup_size);
    assert!(2 * 4 * loads > 65_535);
    let data = Data::random(ours.geometry(), 6, 0.5, 1.5);
    let (a, b) = (runner::train(gpu, &ours, &data), runner::train(gpu, &custom, &data));
    // Not by assert_eq, which would print a million numbers.
    assert!(a.bits() == b.bits(), "{custom}");
}

/// What does not compile is a typed error of the plan that needs it, and nothing else is touched.
#[test]
fn a_bad_custom_activation_is_refused() {
    let Some(gpu) = gpu() else { return };
    let geometry = Geometry::new(&[4, 3, 8], ChannelAxis::First).unwrap();
    for source in [
        "",
        "fn activation(v: f32) -> f32 { return v; }",
        "fn activation(v: f32) -> f32 { return w; } fn activation_derivative(v: f32) -> f32 { return 1.0; }",
        "fn activation(v: u32) -> u32 { return v; } fn activation_derivative(v: f32) -> f32 { return 1.0; }",
        "}{ no WGSL",
    ] {
        let activation = Activation::Custom(source);
        let config = Config { activation, ..Config::pytorch() };
        let plan = Plan::<Train>::new(geometry, &config, gpu.caps()).unwrap();
        match gpu.kernels().prepare(plan) {
            Err(PrepareError::Activation { message }) => assert!(!message.is_empty()),
            other => panic!("{source:?}: {other:?}"),
        }
    }
    // Indices outside and endless loops are the caller's, and still bounded: all checks are on.
    let wild = "fn activation(v: f32) -> f32 {
            var a = array<f32, 2>(v, v);
            return a[u32(abs(v)) + 7u] * 0.0 + v;
        }
        fn activation_derivative(v: f32) -> f32 { return 1.0; }";
    let config = Config { activation: Activation::Custom(wild), ..Config::pytorch() };
    let case = Case::new(&[4, 3, 8], ChannelAxis::First, config);
    let data = Data::random(case.geometry(), 2, 0.0, 1.0);
    let mut plain = case.clone();
    plain.config.activation = Activation::None;
    let expected = runner::frozen(gpu, &plain, &data);
    let y = runner::frozen(gpu, &case, &data).y;
    assert!(compare::exactly(&y, &expected.y).is_good());
}

/// The oracle's gradients with activations are the slopes of its forwards, away from corners.
#[test]
fn the_oracle_is_differentiable() {
    for config in configs().filter(|config| config.mask == Mask::Auto) {
        let case = Case::new(&[3, 2, 4], ChannelAxis::First, config);
        let data = Data::random(case.geometry(), 4, 0.3, 1.0);
        let oracle = Oracle::new(&case, &data);
        let input = oracle.input(&case);
        for frozen in [false, true] {
            let loss = |input: &reference::Input<'_>| -> f64 {
                let y = match frozen {
                    true => reference::infer(input, &oracle.running, &case.config).unwrap(),
                    false => reference::train(input, &oracle.running, &case.config).unwrap().y,
                };
                y.iter().zip(&oracle.dy).map(|(y, dy)| y * dy).sum()
            };
            let dy = oracle.dy.view();
            let gradients = match frozen {
                true => {
                    reference::frozen_backward(&input, dy, &oracle.running, &case.config).unwrap()
                }
                false => reference::backward(&input, dy, &case.config).unwrap(),
            };
            let close = |name: &str, slope: f64, gradient: f64| {
                let off = (slope - gradient).abs();
                assert!(off <= DIFFERENCE_ERROR, "{name}: {slope} for {gradient}: {case}");
            };
            let slope = |step: &dyn Fn(f64) -> f64| {
                (step(DIFFERENCE_STEP) - step(-DIFFERENCE_STEP)) / (2.0 * DIFFERENCE_STEP)
            };
            for i in 0..oracle.x.len() {
                let moved = |h: f64, tensor: &ndarray::ArrayD<f64>| {
                    let mut tensor = tensor.clone();
                    *tensor.iter_mut().nth(i).unwrap() += h;
                    tensor
                };
                let along_x = slope(&|h| {
                    let x = moved(h, &oracle.x);
                    loss(&reference::Input { x: x.view(), ..input.clone() })
                });
                close("dx", along_x, *gradients.dx.iter().nth(i).unwrap());
                if case.config.residual {
                    let along_z = slope(&|h| {
                        let z = moved(h, &oracle.z);
                        loss(&reference::Input { z: Some(z.view()), ..input.clone() })
                    });
                    close("dz", along_z, *gradients.dz.iter().nth(i).unwrap());
                }
            }
        }
    }
}

/// NaN passes through every activation, and infinities as IEEE has it.
#[test]
fn values_that_are_not_finite_pass_as_defined() {
    let Some(gpu) = gpu() else { return };
    let given = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.5, 2.0, 7.0, 1e30, -1e30];
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let expected = [
        (Activation::Relu, [nan, inf, 0.0, 0.0, 2.0, 7.0, 1e30, 0.0]),
        (Activation::LeakyRelu { slope: 0.5 }, [nan, inf, -inf, -0.25, 2.0, 7.0, 1e30, -5e29]),
        (Activation::RELU6, [nan, 6.0, 0.0, 0.0, 2.0, 6.0, 6.0, 0.0]),
    ];
    for (activation, expected) in expected {
        // z alone decides: x is the running mean.
        let affine = Affine::NONE;
        let config = Config { activation, residual: true, affine, ..Config::pytorch() };
        let case = Case::new(&[1, 2, 4], ChannelAxis::First, config);
        let mut data = Data::random(case.geometry(), 1, 0.0, 1.0);
        data.x.fill(0.0);
        data.running_mean.fill(0.0);
        data.z = given.to_vec();
        let y = runner::frozen(gpu, &case, &data).y;
        assert!(compare::exactly(&y, &expected).is_good(), "{activation:?}: {y:?}");
    }
}
