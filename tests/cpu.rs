//! The CPU path: against the oracle within the kernels' bounds, with the same bits whatever the
//! number of threads, beside the kernels, and what it refuses.

use ndarray::{ArrayD, ArrayView1};
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use wgpu_batchnorm::cpu::{
    self, BackwardSlices, CpuError, FrozenBackwardSlices, InferSlices, StatisticsSlices,
    TrainSlices,
};
use wgpu_batchnorm::{
    Activation, Backend, ChannelAxis, Config, Cpu, Element, Geometry, Gpu, Gradients, HostError,
    Input, Memory, Moments, PlanError, RunningStatistics, RunningVariance, SingleValue, Slot,
    Update, reference, wgpu,
};

use crate::common::check::{
    agree, compare_frozen, compare_statistics, compare_training, expected_training, wide,
};
use crate::common::data::{Case, Data, Random};
use crate::common::runner::{Results, bits};
use crate::common::{compare, gpu, runner};
use crate::properties;

/// Outputs start as NaN.
fn poison(count: u64) -> Vec<f32> {
    vec![f32::NAN; count as usize]
}

fn asked(condition: bool, values: &mut [f32]) -> Option<&mut [f32]> {
    condition.then_some(values)
}

fn given(values: &mut Vec<f32>, condition: bool) -> Vec<f32> {
    if condition { std::mem::take(values) } else { Vec::new() }
}

/// A backward's outputs.
struct Outputs {
    dx: Vec<f32>,
    dgamma: Vec<f32>,
    dbeta: Vec<f32>,
    asked: [bool; 3],
}

impl Outputs {
    fn new(case: &Case) -> Self {
        let Config { gradients, affine, .. } = case.config;
        let (g, c) = (case.geometry(), case.geometry().channels());
        let asked = [gradients.x, gradients.gamma && affine.gamma, gradients.beta && affine.beta];
        Self { dx: poison(g.len()), dgamma: poison(c), dbeta: poison(c), asked }
    }

    fn into_results(mut self, results: Results) -> Results {
        let [x, gamma, beta] = self.asked;
        Results {
            dx: given(&mut self.dx, x),
            dgamma: given(&mut self.dgamma, gamma),
            dbeta: given(&mut self.dbeta, beta),
            ..results
        }
    }
}

/// Training forward, then backward on what it saved.
pub fn train(case: &Case, data: &Data) -> Results {
    let (g, affine) = (case.geometry(), case.config.affine);
    let (mut y, mut saved) = (poison(g.len()), poison(4 * g.channels()));
    let (mut mean, mut var) = (data.running_mean.clone(), data.running_var.clone());
    let mut batches = data.batches;
    let updates = case.config.update != Update::None;
    let counts = case.config.update == Update::Cumulative;
    let slices = TrainSlices {
        x: &data.x,
        y: &mut y,
        gamma: affine.gamma.then_some(&data.gamma),
        beta: affine.beta.then_some(&data.beta),
        saved: &mut saved,
        running_mean: asked(updates, &mut mean),
        running_var: asked(updates, &mut var),
        batches: counts.then_some(&mut batches),
    };
    cpu::train(g, &case.config, slices).unwrap();
    let mut out = Outputs::new(case);
    let [x, gamma, beta] = out.asked;
    let slices = BackwardSlices {
        x: &data.x,
        dy: &data.dy,
        dx: asked(x, &mut out.dx),
        gamma: affine.gamma.then_some(&data.gamma),
        dgamma: asked(gamma, &mut out.dgamma),
        dbeta: asked(beta, &mut out.dbeta),
        saved: &saved,
    };
    cpu::backward(g, &case.config, slices).unwrap();
    let c = g.channels() as usize;
    out.into_results(Results {
        y,
        mean: saved[..c].to_vec(),
        rest: saved[c..2 * c].to_vec(),
        inv_std: saved[2 * c..3 * c].to_vec(),
        count: saved[3 * c..].to_vec(),
        running_mean: given(&mut mean, updates),
        running_var: given(&mut var, updates),
        batches,
        ..Results::default()
    })
}

/// Inference, then backward with frozen statistics.
pub fn frozen(case: &Case, data: &Data) -> Results {
    let (g, affine) = (case.geometry(), case.config.affine);
    let mut y = poison(g.len());
    let slices = InferSlices {
        x: &data.x,
        y: &mut y,
        gamma: affine.gamma.then_some(&data.gamma),
        beta: affine.beta.then_some(&data.beta),
        running_mean: &data.running_mean,
        running_var: &data.running_var,
    };
    cpu::infer(g, &case.config, slices).unwrap();
    let mut out = Outputs::new(case);
    let [x, gamma, beta] = out.asked;
    let slices = FrozenBackwardSlices {
        x: gamma.then_some(&data.x),
        dy: &data.dy,
        dx: asked(x, &mut out.dx),
        gamma: affine.gamma.then_some(&data.gamma),
        dgamma: asked(gamma, &mut out.dgamma),
        dbeta: asked(beta, &mut out.dbeta),
        running_mean: &data.running_mean,
        running_var: &data.running_var,
    };
    cpu::frozen_backward(g, &case.config, slices).unwrap();
    out.into_results(Results { y, ..Results::default() })
}

pub fn statistics(case: &Case, data: &Data) -> Vec<f32> {
    let mut moments = poison(4 * case.geometry().channels());
    let slices = StatisticsSlices { x: &data.x, moments: &mut moments };
    cpu::statistics(case.geometry(), &case.config, slices).unwrap();
    moments
}

/// All five operations against the oracle.
fn check(case: &Case, data: &Data) -> Result<(), String> {
    compare_training(case, data, &train(case, data))?;
    compare_frozen(case, data, &frozen(case, data))?;
    let slot = statistics(case, data);
    compare_statistics(case, data, &Moments::from_slot(&slot).unwrap())
}

fn all_bits(case: &Case, data: &Data) -> Vec<u32> {
    let mut all = train(case, data).bits();
    all.extend(frozen(case, data).bits());
    all.extend(bits(&statistics(case, data)));
    all
}

/// The oracle, a channel that is not finite, and the kernels, on the random cases of the
/// properties.
#[test]
fn random_cases_agree_with_the_oracle() {
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(2),
        ..ProptestConfig::default()
    });
    let tried = runner.run(&properties::setups(), |setup| {
        // What the CPU path computes.
        let case = setup.with(|config| {
            config.memory = Memory::Arena;
            config.activation = Activation::None;
            (config.residual, config.element) = (false, Element::F32);
            config.renorm = None;
        });
        let case = Case { tuning: None, ..case };
        check(&case, &setup.data()).map_err(TestCaseError::fail)?;
        let (bad, channel) = setup.bad_data();
        let (good, inner) = (setup.data(), case.geometry().inner() as usize);
        let alone = |name: &str, bad: &[f32], good: &[f32], inner: usize| {
            let channels = case.geometry().channels() as usize;
            for (i, (a, b)) in bad.iter().zip(good).enumerate() {
                let own = channel == Some(i / inner % channels);
                if !own && a.to_bits() != b.to_bits() {
                    return Err(TestCaseError::fail(format!("{name}[{i}]: {a} for {b}: {case}")));
                }
            }
            Ok(())
        };
        let (a, b) = (train(&case, &bad), train(&case, &good));
        alone("y", &a.y, &b.y, inner)?;
        alone("dx", &a.dx, &b.dx, inner)?;
        for name in ["mean", "inv_std", "running_mean", "running_var", "dgamma", "dbeta"] {
            alone(name, a.get(name), b.get(name), 1)?;
        }
        Ok(())
    });
    tried.unwrap();
}

/// Shapes that threads share: groups of channels, pieces of few channels, chunks and tiles of
/// columns, with and without a tail.
const SHARED: [(&[usize], ChannelAxis); 12] = [
    (&[3, 64, 14, 14], ChannelAxis::First),
    (&[9, 301, 17], ChannelAxis::First),
    (&[2, 3, 9_999], ChannelAxis::First),
    (&[1, 2, 40_001], ChannelAxis::First),
    (&[33, 1, 31, 37], ChannelAxis::First),
    (&[40_001], ChannelAxis::At(0)),
    (&[700, 64], ChannelAxis::Last),
    (&[12_001, 3], ChannelAxis::Last),
    (&[40_003, 1], ChannelAxis::Last),
    (&[301, 13, 3, 3], ChannelAxis::First),
    (&[19, 2_051], ChannelAxis::Last),
    (&[9, 4, 1_031], ChannelAxis::PerActivation),
];

#[test]
fn bits_do_not_depend_on_the_threads() {
    for (i, (shape, axis)) in SHARED.into_iter().enumerate() {
        let config = Config { single_value: SingleValue::Allow, ..Config::pytorch() };
        let case = Case::new(shape, axis, config);
        let data = Data::random(case.geometry(), i as u64, 3.0, 2.0);
        check(&case, &data).unwrap();
        let mut first = None;
        for threads in [1, 2, 3, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let bits = pool.install(|| all_bits(&case, &data));
            assert!(*first.get_or_insert_with(|| bits.clone()) == bits, "{threads}: {case}");
        }
    }
}

/// A tensor that is written past the caches, and its halves, which are not.
#[test]
fn large_tensors_have_the_bits_of_their_halves() {
    for (shape, axis) in [
        ([2, 11, 800_001], ChannelAxis::First),
        ([2, 280_001, 31], ChannelAxis::Last),
        ([2, 17_001, 501], ChannelAxis::First),
    ] {
        let whole = Geometry::new(&shape, axis).unwrap();
        let half = Geometry::new(&[1, shape[1], shape[2]], axis).unwrap();
        assert!(half.len() * 4 < 64 << 20 && whole.len() * 4 > 64 << 20);
        let c = whole.channels() as usize;
        let mut random = Random(6);
        let [gamma, beta, mean] = [(); 3].map(|()| random.normals(c, 1.0, 0.5));
        let x: Vec<f32> = (0..whole.len()).map(|i| (i % 8_191) as f32 / 4_096.0).collect();
        let infer = |geometry: Geometry, x: &[f32]| {
            let mut y = poison(geometry.len());
            let slices = InferSlices {
                x,
                y: &mut y,
                gamma: Some(&gamma),
                beta: Some(&beta),
                running_mean: &mean,
                running_var: &vec![2.0; c],
            };
            cpu::infer(geometry, &Config::pytorch(), slices).unwrap();
            y
        };
        let y = infer(whole, &x);
        for (x, y) in x.chunks(half.len() as usize).zip(y.chunks(half.len() as usize)) {
            assert!(infer(half, x) == y, "{shape:?}");
        }
    }
}

/// Where the first, the middle and the last value are outliers, so is the shift: the sums are
/// taken again.
#[test]
fn a_bad_shift_is_replaced() {
    for (shape, axis) in [
        (&[1, 2, 5_000][..], ChannelAxis::First),
        (&[5_000, 2], ChannelAxis::Last),
        (&[1, 2, 50_000], ChannelAxis::First),
        (&[50_000, 2], ChannelAxis::Last),
    ] {
        let case = Case::new(shape, axis, Config::pytorch());
        let mut data = Data::random(case.geometry(), 8, 0.0, 1e-3);
        let n = case.geometry().values_per_channel() as usize;
        let of_channel: Vec<usize> = compare::places(case.geometry(), 1).collect();
        for i in [0, n / 2, n - 1] {
            data.x[of_channel[i]] = 1e4;
        }
        check(&case, &data).unwrap();
        // The bounds allow for such a shift; the promise does not.
        let x = ArrayD::from_shape_vec(case.shape.clone(), wide(&data.x)).unwrap();
        let exact = reference::statistics(&reference::Input::new(x.view(), axis)).unwrap();
        let moments = Moments::from_slot(&statistics(&case, &data)).unwrap();
        let variance = |moments: &Moments| moments.variance(RunningVariance::Population);
        let (actual, exact) = (variance(&moments), variance(&exact));
        let result = compare::within(&actual, &exact, &compare::variance_promise(&exact));
        assert!(result.is_good(), "{result:?}: {case}");
    }
}

#[test]
fn constant_channels_give_beta() {
    for (shape, axis) in SHARED {
        let case = Case::new(
            shape,
            axis,
            Config { single_value: SingleValue::Allow, ..Config::pytorch() },
        );
        let g = case.geometry();
        let mut data = Data::random(g, 3, 0.0, 1.0);
        let channel = |i: usize| i / g.inner() as usize % g.channels() as usize;
        for (i, x) in data.x.iter_mut().enumerate() {
            *x = 0.1 + channel(i) as f32;
        }
        let y = train(&case, &data).y;
        assert!(y.iter().enumerate().all(|(i, y)| *y == data.beta[channel(i)]), "{case}");
    }
}

/// What the GPU's forward saves is what the CPU's backward takes, and the other way round.
#[test]
fn either_goes_on_where_the_other_ended() {
    let Some(gpu) = gpu() else { return };
    for (shape, axis) in SHARED {
        let config = Config { single_value: SingleValue::Allow, ..Config::pytorch() };
        let case = Case::new(shape, axis, config);
        let data = Data::random(case.geometry(), 13, 5.0, 1.0);
        let (a, b) = (train(&case, &data), runner::train(gpu, &case, &data));
        agree(&case, &a, &b, expected_training(&case, &data)).unwrap();
        let mut dx = poison(case.geometry().len());
        let slices = BackwardSlices {
            x: &data.x,
            dy: &data.dy,
            dx: Some(&mut dx),
            gamma: Some(&data.gamma),
            saved: &b.saved(),
            ..Default::default()
        };
        cpu::backward(case.geometry(), &case.config, slices).unwrap();
        compare_training(&case, &data, &Results { dx, ..a }).unwrap();
    }
}

#[test]
fn accumulating_is_adding() {
    let mut case = Case::new(&[5, 3, 40], ChannelAxis::First, Config::pytorch());
    let data = Data::random(case.geometry(), 2, 0.0, 1.0);
    let fresh = [train(&case, &data), frozen(&case, &data)];
    case.config.gradients = Gradients { accumulate: true, ..Gradients::ALL };
    let saved = fresh[0].saved();
    let (mut dgamma, mut dbeta) = (vec![1.0; 3], vec![2.0; 3]);
    let backward = BackwardSlices {
        x: &data.x,
        dy: &data.dy,
        gamma: Some(&data.gamma),
        dgamma: Some(&mut dgamma),
        dbeta: Some(&mut dbeta),
        saved: &saved,
        ..Default::default()
    };
    cpu::backward(case.geometry(), &case.config, backward).unwrap();
    let sum = |prior: f32, all: &[f32]| all.iter().map(|v| prior + v).collect::<Vec<f32>>();
    assert_eq!((&dgamma, &dbeta), (&sum(1.0, &fresh[0].dgamma), &sum(2.0, &fresh[0].dbeta)));
    let before = dbeta.clone();
    let backward = FrozenBackwardSlices {
        dy: &data.dy,
        dbeta: Some(&mut dbeta),
        running_mean: &data.running_mean,
        running_var: &data.running_var,
        ..Default::default()
    };
    cpu::frozen_backward(case.geometry(), &case.config, backward).unwrap();
    let added: Vec<f32> = before.iter().zip(&fresh[1].dbeta).map(|(a, b)| a + b).collect();
    assert_eq!(dbeta, added);
}

#[test]
fn nothing_comes_of_nothing() {
    for shape in [[0, 3], [4, 0]] {
        let config = Config { update: Update::Cumulative, ..Config::pytorch() };
        let case = Case::new(&shape, ChannelAxis::Last, config);
        let data = Data::random(case.geometry(), 1, 0.0, 1.0);
        let (r, f) = (train(&case, &data), frozen(&case, &data));
        assert_eq!((r.batches, &r.running_mean), (data.batches, &data.running_mean));
        assert_eq!((r.running_var, r.y.len()), (data.running_var.clone(), 0));
        let zeros = vec![0.0; shape[1]];
        assert_eq!((&r.dgamma, &r.dbeta, &f.dgamma, &f.dbeta), (&zeros, &zeros, &zeros, &zeros));
        assert_eq!(statistics(&case, &data), vec![0.0; 4 * shape[1]]);
    }
}

#[test]
fn mistakes_are_named() {
    let geometry = Geometry::new(&[4, 3], ChannelAxis::Last).unwrap();
    let config = Config::pytorch();
    let (x, [mut mean, mut var]) = ([1.0; 12], [[0.0; 3]; 2]);
    let length = |slot, length, required| Err(CpuError::Length { slot, length, required });
    let mut train = |y: &mut [f32], saved: &mut [f32], config: &Config, batches| {
        let (running_mean, running_var) = (Some(&mut mean[..]), Some(&mut var[..]));
        let slices = TrainSlices {
            x: &x,
            y,
            saved,
            running_mean,
            running_var,
            batches,
            ..Default::default()
        };
        cpu::train(geometry, config, slices)
    };
    let (mut y, mut saved, mut count) = ([0.0; 12], [0.0; 12], 0);
    assert_eq!(train(&mut y[1..], &mut saved, &config, None), length(Slot::Y, 11, 12));
    assert_eq!(train(&mut y, &mut saved[..3], &config, None), length(Slot::Saved, 3, 12));
    let unused = train(&mut y, &mut saved, &config, Some(&mut count));
    assert!(matches!(unused, Err(CpuError::Unused { slot: Slot::Batches, .. })), "{unused:?}");
    let none = Config { update: Update::None, ..config.clone() };
    let unused = train(&mut y, &mut saved, &none, None);
    assert!(matches!(unused, Err(CpuError::Unused { slot: Slot::RunningMean, .. })), "{unused:?}");
    let cumulative = Config { update: Update::Cumulative, ..config.clone() };
    let missing = train(&mut y, &mut saved, &cumulative, None);
    assert_eq!(missing, Err(CpuError::Missing { slot: Slot::Batches }));
    let in_place = Config { memory: Memory::InPlace, ..config.clone() };
    let error = train(&mut y, &mut saved, &in_place, None).unwrap_err();
    assert_eq!(error.to_string(), "Memory::InPlace is not supported by the CPU path");
    let bad = Config { epsilon: 0.0, ..config.clone() };
    let error = train(&mut y, &mut saved, &bad, None);
    assert!(matches!(error, Err(CpuError::Plan(PlanError::Config(_)))), "{error:?}");
    assert!(train(&mut y, &mut saved, &config, None).is_ok());

    let single = Geometry::new(&[1, 3], ChannelAxis::Last).unwrap();
    let slices =
        BackwardSlices { x: &x[..3], dy: &x[..3], saved: &[1.0; 12], ..Default::default() };
    let error = cpu::backward(single, &config, slices);
    assert!(matches!(error, Err(CpuError::Plan(PlanError::SingleValue { .. }))), "{error:?}");
    let frozen = |dy: &[f32], dgamma: Option<&mut [f32]>| {
        let slices = FrozenBackwardSlices {
            dy,
            dgamma,
            running_mean: &[0.0; 3],
            running_var: &[1.0; 3],
            ..Default::default()
        };
        cpu::frozen_backward(geometry, &config, slices)
    };
    assert_eq!(frozen(&x[..5], None), length(Slot::Dy, 5, 12));
    assert_eq!(frozen(&x, Some(&mut [0.0; 2])), length(Slot::Dgamma, 2, 3));
    let missing = Err(CpuError::Missing { slot: Slot::X });
    assert_eq!(frozen(&x, Some(&mut [0.0; 3])), missing);
}

/// The host form gives what the slices give, on views of any memory order, and says what it is.
#[test]
fn the_host_form_gives_the_same_bits() {
    let backend = Backend::Cpu(Cpu::new());
    assert!(backend.describe().starts_with("CPU ("), "{}", backend.describe());
    for update in [Update::Rate(0.1), Update::Cumulative, Update::None] {
        let config = Config { update, ..Config::pytorch() };
        let case = Case::new(&[6, 3, 50], ChannelAxis::First, config);
        let data = Data::random(case.geometry(), 4, 1.0, 2.0);
        let (expected, frozen) = (train(&case, &data), frozen(&case, &data));
        // Laid out with the axes reversed.
        let tensor = |values: &[f32]| {
            let array = ArrayD::from_shape_vec(case.shape.clone(), values.to_vec()).unwrap();
            array.t().as_standard_layout().into_owned().reversed_axes()
        };
        let (x, dy) = (tensor(&data.x), tensor(&data.dy));
        let (gamma, beta) = (ArrayView1::from(&data.gamma), ArrayView1::from(&data.beta));
        let (gamma, beta) = (Some(gamma), Some(beta));
        let input = Input { gamma, beta, ..Input::new(x.view(), case.axis) };
        let before = RunningStatistics {
            mean: data.running_mean.clone().into(),
            var: data.running_var.clone().into(),
            batches: data.batches,
        };
        let mut running = before.clone();
        let config = &case.config;
        let out = backend.forward_train_blocking(&input, &mut running, config).unwrap();
        let back = backend.backward_blocking(&input, dy.view(), &out.saved, config).unwrap();
        let y = backend.forward_infer_blocking(&input, &before, config).unwrap();
        let fixed = backend.frozen_backward_blocking(&input, dy.view(), &before, config).unwrap();
        let flat = |array: ArrayD<f32>| array.iter().copied().collect::<Vec<f32>>();
        assert_eq!(flat(out.y), expected.y);
        assert_eq!(out.saved.mean.to_vec(), expected.mean);
        assert_eq!(flat(back.dx.unwrap()), expected.dx);
        assert_eq!(back.dgamma.unwrap().to_vec(), expected.dgamma);
        assert_eq!(back.dbeta.unwrap().to_vec(), expected.dbeta);
        assert_eq!(flat(y), frozen.y);
        assert_eq!(flat(fixed.dx.unwrap()), frozen.dx);
        assert_eq!(fixed.dgamma.unwrap().to_vec(), frozen.dgamma);
        assert_eq!(fixed.dbeta.unwrap().to_vec(), frozen.dbeta);
        if update == Update::None {
            assert_eq!(running, before);
        } else {
            assert_eq!(running.mean.to_vec(), expected.running_mean);
            assert_eq!(running.var.to_vec(), expected.running_var);
            assert_eq!(running.batches, before.batches + 1);
        }
        let moments = backend.statistics_blocking(&Input::new(x.view(), case.axis)).unwrap();
        assert_eq!(moments, Moments::from_slot(&statistics(&case, &data)).unwrap());
    }
}

/// The same mistake is the same error on both backends.
#[test]
fn backends_refuse_alike() {
    let cpu = Backend::Cpu(Cpu::new());
    let gpu = gpu().map(|gpu| Backend::Gpu(gpu.clone()));
    let config = Config::pytorch();
    let (one, two) = (ArrayD::zeros(vec![1, 3]), ArrayD::zeros(vec![2, 3]));
    let axis = ChannelAxis::Last;
    let errors = |backend: &Backend| {
        let train = |x: &ArrayD<f32>, running: &mut RunningStatistics, config: &Config| {
            let input = Input::new(x.view(), axis);
            backend.forward_train_blocking(&input, running, config).unwrap_err()
        };
        let mut running = RunningStatistics::new(3);
        let bad = Config { epsilon: -1.0, ..config.clone() };
        let mut all = vec![
            train(&one, &mut running, &config),
            train(&two, &mut RunningStatistics::new(2), &config),
            train(&two, &mut running, &bad),
        ];
        running.var[1] = -1.0;
        all.push(train(&two, &mut running, &config));
        let beta = Some(ArrayView1::from(&[0.0; 4]));
        let input = Input { beta, ..Input::new(two.view(), axis) };
        running.var[1] = 1.0;
        let infer = backend.forward_infer_blocking(&input, &running, &config);
        all.push(infer.unwrap_err());
        let back = backend
            .frozen_backward_blocking(&Input::new(two.view(), axis), one.view(), &running, &config)
            .unwrap_err();
        all.push(back);
        all
    };
    let found = errors(&cpu);
    assert!(matches!(found[0], HostError::Plan(PlanError::SingleValue { .. })), "{:?}", found[0]);
    if let Some(gpu) = gpu {
        assert_eq!(found, errors(&gpu));
    }
}

/// Hardware is taken, a software adapter is not, and the user is told.
#[test]
fn auto_says_what_it_takes() {
    let hardware = |info: &wgpu::AdapterInfo| info.device_type != wgpu::DeviceType::Cpu;
    let adapters = Gpu::adapters_blocking();
    match Backend::auto_blocking() {
        Backend::Gpu(gpu) => assert!(hardware(&gpu.device().adapter_info())),
        Backend::Cpu(cpu) => {
            let text = cpu.describe();
            assert!(text.contains(" threads, ") && text.contains(", as "), "{text}");
            for adapter in adapters.iter().map(wgpu::Adapter::get_info) {
                assert!(!hardware(&adapter), "{text}");
                assert!(text.contains(&adapter.name), "{text}");
            }
        }
    }
}
