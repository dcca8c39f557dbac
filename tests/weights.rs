//! Weighted statistics: every path, memory, element and epilogue against the oracle; padding that holds
//! NaN; batches without weight; shards and windows.

use ndarray::{Array1, ArrayD};
use wgpu_batchnorm::reference;
use wgpu_batchnorm::{
    Activation, Affine, Backward, BatchNorm, ChannelAxis, Config, Element, Geometry, Gradient,
    Gradients, GroupNorm, HostError, Infer, Input, LayerInput, LayerState, Mask, Memory, Moments,
    Plan, PlanError, Reduce, Renorm, RunningStatistics, RunningVariance, SingleValue, Slot,
    Statistics, Train, Update,
};

use crate::common::check::{
    Oracle, agree, check, compare_sharded, compare_training, expected_training, positions,
};
use crate::common::compare::{DIFFERENCE_ERROR, DIFFERENCE_STEP, exactly};
use crate::common::data::{Case, Data, Random, small_tunings};
use crate::common::gpu;
use crate::common::runner::{self, bits, inputs};

fn config() -> Config {
    Config { weights: true, ..Config::pytorch() }
}

/// Rows and columns, with and without vectors, in several chunks.
fn cases(config: &Config) -> Vec<Case> {
    let case = |shape: &[usize], axis| Case::new(shape, axis, config.clone());
    let [split, fused, wide] = small_tunings();
    vec![
        case(&[6, 3, 8, 5], ChannelAxis::First).tuned(&split),
        case(&[6, 3, 8, 5], ChannelAxis::First).tuned(&fused),
        case(&[5, 7, 9], ChannelAxis::First).tuned(&wide),
        case(&[31, 4, 3], ChannelAxis::First).tuned(&split),
        case(&[17, 12], ChannelAxis::Last).tuned(&split),
        case(&[70, 7], ChannelAxis::Last).tuned(&wide),
        case(&[9, 1, 33], ChannelAxis::First).tuned(&split),
        case(&[5, 6, 4], ChannelAxis::PerActivation).tuned(&split),
        case(&[3, 10, 8], ChannelAxis::At(1)),
        case(&[9, 2, 65], ChannelAxis::First),
        case(&[40, 5], ChannelAxis::Last),
    ]
}

/// What weights can look like.
const KINDS: [&str; 5] = ["ones", "mask", "fractions", "one of all", "padding"];

fn weights(case: &Case, kind: &str, seed: u64) -> Vec<f32> {
    let (g, mut random) = (case.geometry(), Random(seed));
    let (outer, inner) = (g.outer() as usize, g.inner() as usize);
    let n = outer * inner;
    let of = |i: usize, random: &mut Random| match kind {
        "ones" => 1.0,
        "mask" => f32::from(u8::from(random.unit() < 0.5)),
        "fractions" if random.unit() < 0.2 => 0.0,
        "fractions" => (random.unit() * 3.0) as f32,
        "one of all" => f32::from(u8::from(i == n - 2)),
        // The second half of the samples.
        _ => f32::from(u8::from(i / inner < outer.div_ceil(2))),
    };
    (0..n).map(|i| of(i, &mut random)).collect()
}

fn data(case: &Case, kind: &str, mean: f64, std: f64) -> Data {
    let weights = weights(case, kind, 5);
    Data { weights, ..Data::random(case.geometry(), 91, mean, std).rounded(case.config.element) }
}

#[test]
fn every_kind_in_every_memory() {
    let Some(gpu) = gpu() else { return };
    for (i, memory) in [Memory::Separate, Memory::InPlace, Memory::Arena].into_iter().enumerate() {
        let activation = [Activation::Relu, Activation::None, Activation::Silu][i];
        let update = [Update::Rate(0.1), Update::Cumulative, Update::Decay(0.0)][i];
        let residual = memory == Memory::Arena;
        let config = Config { memory, activation, residual, update, ..config() };
        for case in cases(&config) {
            for kind in KINDS {
                check(gpu, &case, &data(&case, kind, 1.0, 2.0));
            }
        }
    }
}

#[test]
fn every_epilogue_and_half() {
    let Some(gpu) = gpu() else { return };
    for element in [Element::F32, Element::F16, Element::Bf16] {
        for (residual, mask) in [(false, Mask::Bits), (true, Mask::Bits), (false, Mask::Auto)] {
            let activation = Activation::LeakyRelu { slope: 0.2 };
            let renorm = (mask == Mask::Auto).then_some(Renorm { rmax: 1.5, dmax: 1.0 });
            let config = Config { element, activation, residual, mask, renorm, ..config() };
            for case in cases(&config) {
                let data = data(&case, "fractions", 1.0, 2.0);
                compare_training(&case, &data, &runner::train(gpu, &case, &data)).unwrap();
            }
        }
    }
}

/// Affine parameters and gradients that are not there.
#[test]
fn every_gradient_alone() {
    let Some(gpu) = gpu() else { return };
    for case in cases(&config()).into_iter().take(5) {
        for of in 0..16 {
            let on = |bit: u32| of & 1 << bit != 0;
            let mut case = case.clone();
            case.config.affine = Affine { gamma: on(3), beta: !on(3) };
            let gradients = &mut case.config.gradients;
            (gradients.x, gradients.gamma, gradients.beta) = (on(0), on(1), on(2));
            let data = data(&case, "mask", 0.5, 1.0);
            compare_training(&case, &data, &runner::train(gpu, &case, &data)).unwrap();
        }
    }
}

/// Mean and deviation far apart, and padding that is further away: it must not become the shift.
#[test]
fn hostile_padding() {
    let Some(gpu) = gpu() else { return };
    for (mean, std) in [(1e6, 1.0), (-1e4, 1e-2), (0.0, 1e15)] {
        for case in cases(&config()) {
            for kind in ["mask", "padding", "one of all"] {
                let mut data = data(&case, kind, mean, std);
                let g = case.geometry();
                let (inner, sample) = (g.inner() as usize, (g.inner() * g.channels()) as usize);
                for (i, x) in data.x.iter_mut().enumerate() {
                    if data.weights[i / sample * inner + i % inner] == 0.0 {
                        *x = if i % 3 == 0 { 1e18 } else { -7.0 };
                    }
                }
                compare_training(&case, &data, &runner::train(gpu, &case, &data)).unwrap();
            }
        }
    }
}

/// Padding that is not finite, behind a loss that does not look at it: every result but y at the
/// padding itself is what it is with zeros there, to the bit.
#[test]
fn padding_may_hold_anything() {
    let Some(gpu) = gpu() else { return };
    let epilogues = [
        (Activation::None, false, Mask::Auto),
        (Activation::Relu, false, Mask::Auto),
        (Activation::Silu, true, Mask::Auto),
        (Activation::Relu, true, Mask::Bits),
    ];
    for (activation, residual, mask) in epilogues {
        for case in cases(&Config { activation, residual, mask, ..config() }) {
            for bad in [f32::NAN, f32::INFINITY, 1e30] {
                let mut clean = data(&case, "mask", 1.0, 2.0);
                let g = case.geometry();
                let (inner, sample) = (g.inner() as usize, (g.inner() * g.channels()) as usize);
                let weights = clean.weights.clone();
                let padded = |i: usize| weights[i / sample * inner + i % inner] == 0.0;
                let mut dirty = clean.clone();
                for i in (0..clean.x.len()).filter(|&i| padded(i)) {
                    (clean.x[i], clean.z[i], clean.dy[i]) = (0.0, 0.0, 0.0);
                    (dirty.x[i], dirty.z[i], dirty.dy[i]) = (bad, bad, 0.0);
                }
                let expected = runner::train(gpu, &case, &clean);
                let results = runner::train(gpu, &case, &dirty);
                for name in [
                    "mean",
                    "inv_std",
                    "running_mean",
                    "running_var",
                    "dx",
                    "dgamma",
                    "dbeta",
                    "dz",
                ] {
                    let (a, e) = (results.get(name), expected.get(name));
                    assert_eq!(bits(a), bits(e), "{name} with {bad}: {case}");
                }
                for (i, (y, e)) in results.y.iter().zip(&expected.y).enumerate() {
                    assert!(padded(i) || y.to_bits() == e.to_bits(), "y[{i}] with {bad}: {case}");
                }
                compare_training(&case, &dirty, &results).unwrap();
            }
        }
    }
}

/// A value with weight that is not finite spoils its channel and no other.
#[test]
fn bad_values_stay_in_their_channel() {
    let Some(gpu) = gpu() else { return };
    for case in cases(&config()).into_iter().filter(|case| case.geometry().channels() > 1) {
        let (c, inner) = (case.geometry().channels() as usize, case.geometry().inner() as usize);
        let fine = data(&case, "fractions", 1.0, 1.0);
        let expected = runner::train(gpu, &case, &fine);
        let position = fine.weights.iter().position(|w| *w > 0.0).unwrap();
        let at = (position / inner * c + 1) * inner + position % inner;
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut bad = fine.clone();
            bad.x[at] = value;
            let results = runner::train(gpu, &case, &bad);
            let sick = |i: usize| i / inner % c == 1;
            for (i, (y, e)) in results.y.iter().zip(&expected.y).enumerate() {
                assert!(if sick(i) { y.is_nan() } else { y == e }, "{value} y[{i}] = {y}: {case}");
            }
            assert_eq!(results.mean[1].is_nan(), value.is_nan(), "{case}");
            assert!(!results.mean[1].is_finite() && !results.running_var[1].is_finite(), "{case}");
        }
    }
}

/// As an empty batch: y = β, no gradient, nothing moves, and what accumulates stays.
#[test]
fn a_batch_without_weight() {
    let Some(gpu) = gpu() else { return };
    for update in [Update::Rate(0.1), Update::Cumulative] {
        for memory in [Memory::Separate, Memory::Arena] {
            for case in cases(&Config { update, memory, ..config() }) {
                let mut data = data(&case, "ones", 1.0, 2.0);
                data.weights.fill(0.0);
                let r = runner::train(gpu, &case, &data);
                let (c, inner) =
                    (case.geometry().channels() as usize, case.geometry().inner() as usize);
                let beta: Vec<f32> = (0..data.x.len()).map(|i| data.beta[i / inner % c]).collect();
                assert!(exactly(&r.y, &beta).is_good(), "{case}");
                for zero in [&r.dx, &r.dgamma, &r.dbeta, &r.mean, &r.inv_std, &r.count] {
                    assert!(zero.iter().all(|v| *v == 0.0), "{zero:?}: {case}");
                }
                assert_eq!(bits(&r.running_mean), bits(&data.running_mean), "{case}");
                assert_eq!(bits(&r.running_var), bits(&data.running_var), "{case}");
                if update == Update::Cumulative {
                    assert_eq!(r.batches, data.batches, "{case}");
                }
                let moments = runner::statistics(gpu, &case, &data);
                assert!(moments.iter().all(|v| *v == 0.0), "{moments:?}: {case}");
            }
        }
    }
    let mut case = cases(&config()).remove(0);
    case.config.gradients.accumulate = true;
    let mut data = data(&case, "ones", 1.0, 2.0);
    data.weights.fill(0.0);
    let mut given = inputs(&data);
    given.insert(Slot::Saved, vec![0; 4 * 3]);
    let prior = [(Slot::Dgamma, bits(&[1.0, 2.0, 3.0])), (Slot::Dbeta, bits(&[4.0, 5.0, 6.0]))];
    given.extend(prior.clone());
    let plan = runner::plan::<Backward>(gpu, &case).unwrap();
    let out = runner::run(gpu, gpu.kernels(), plan, &given);
    for (slot, values) in prior {
        assert_eq!(out[&slot], values);
    }
}

/// The host form and the layer do not count it either.
#[test]
fn hosts_do_not_count_a_batch_without_weight() {
    let Some(gpu) = gpu() else { return };
    let config = Config { update: Update::Cumulative, ..config() };
    let case = Case::new(&[4, 3, 6], ChannelAxis::First, config.clone());
    let x = ArrayD::from_elem(case.shape.clone(), 5.0f32);
    let (none, some) = (ArrayD::zeros(vec![4, 6]), ArrayD::ones(vec![4, 6]));
    let mut running = RunningStatistics::new(3);
    let mut layer = BatchNorm::new(gpu, 3, config.clone()).unwrap();
    for (weights, batches) in [(&none, 0), (&some, 1), (&none, 1)] {
        let input = Input { weights: Some(weights.view()), ..Input::new(x.view(), case.axis) };
        gpu.forward_train_blocking(&input, &mut running, &config).unwrap();
        let input = LayerInput { x: x.view(), z: None, weights: Some(weights.view()) };
        layer.forward_train_blocking(input).unwrap();
        let state = layer.state_blocking().unwrap();
        let mean = if batches == 0 { 0.0 } else { 5.0 };
        for (batch, means) in
            [(running.batches, &running.mean), (state.batches, &state.running_mean)]
        {
            assert_eq!(batch, batches);
            assert!(means.iter().all(|m| *m == mean), "{means}");
        }
    }
}

/// With weights of 1 it is batch norm, up to rounding; a factor of two in all weights changes no bit
/// but that of the unbiased variance and the count.
#[test]
fn weights_are_relative() {
    let Some(gpu) = gpu() else { return };
    for case in cases(&Config { running_variance: RunningVariance::Population, ..config() }) {
        let ones = data(&case, "ones", 3.0, 1.0);
        let mut plain = case.clone();
        plain.config.weights = false;
        let (a, b) = (runner::train(gpu, &case, &ones), runner::train(gpu, &plain, &ones));
        agree(&case, &a, &b, expected_training(&case, &ones)).unwrap();
        let mut twice = data(&case, "fractions", 3.0, 1.0);
        let once = runner::train(gpu, &case, &twice);
        twice.weights.iter_mut().for_each(|w| *w *= 2.0);
        let twice = runner::train(gpu, &case, &twice);
        for name in ["y", "mean", "inv_std", "running_mean", "running_var", "dx", "dgamma", "dbeta"]
        {
            assert_eq!(bits(once.get(name)), bits(twice.get(name)), "{name}: {case}");
        }
    }
}

/// Shards are weighed by their weights; one of them has none.
#[test]
fn shards() {
    let Some(gpu) = gpu() else { return };
    for case in cases(&Config { activation: Activation::Relu, ..config() }) {
        let mut data = data(&case, "fractions", -3.0, 1.0);
        let inner = case.geometry().inner() as usize;
        data.weights[..inner].fill(0.0);
        let results = runner::sharded(gpu, &case, &data, &[1, 2, 2]);
        compare_sharded(&case, &data, 4, &results).unwrap();
    }
}

/// Windows of whole samples, of channels, and of pieces of a channel, some of them without weight.
#[test]
fn windows() {
    let Some(gpu) = gpu() else { return };
    for (shape, axis, binding) in [
        (&[9, 4, 24][..], ChannelAxis::First, 1024),
        (&[3, 7, 50], ChannelAxis::First, 1024),
        (&[2, 3, 700], ChannelAxis::First, 6144),
        (&[1200, 2, 1], ChannelAxis::First, 6144),
        (&[90, 12], ChannelAxis::Last, 2048),
        (&[91, 7], ChannelAxis::Last, 2048),
    ] {
        for memory in [Memory::Separate, Memory::Arena] {
            let mut case = Case::new(shape, axis, Config { memory, ..config() });
            case.binding = Some(binding);
            for kind in ["fractions", "padding"] {
                let data = data(&case, kind, 2.0, 1.0);
                let plan = runner::plan::<Train>(gpu, &case).unwrap();
                assert!(plan.stages().iter().any(|stage| stage.window.is_some()), "{case}");
                let results = runner::train(gpu, &case, &data);
                let parts = plan.stages().len();
                compare_sharded(&case, &data, parts, &results).unwrap();
            }
        }
    }
}

/// The same bits in every run.
#[test]
fn the_same_bits() {
    let Some(gpu) = gpu() else { return };
    for case in cases(&config()) {
        let data = data(&case, "fractions", 2.0, 1.0);
        let first = runner::train(gpu, &case, &data).bits();
        for _ in 0..5 {
            assert_eq!(runner::train(gpu, &case, &data).bits(), first, "{case}");
        }
    }
}

/// The values 1, 5 with weights 3, 1: mean 2, variance 3; W/(W−1) = 4/3. 100 has no weight.
#[test]
fn by_hand() {
    let x = ArrayD::from_shape_vec(vec![3, 1], vec![1.0, 100.0, 5.0]).unwrap();
    let w = ArrayD::from_shape_vec(vec![3], vec![3.0, 0.0, 1.0]).unwrap();
    let dy = ArrayD::from_shape_vec(vec![3, 1], vec![1.0, 2.0, 4.0]).unwrap();
    let config = Config { epsilon: 1.0, update: Update::Rate(1.0), ..config() };
    let input = reference::Input {
        weights: Some(w.view()),
        ..reference::Input::new(x.view(), ChannelAxis::Last)
    };
    let f = reference::train(&input, &reference::Running::new(1), &config).unwrap();
    assert_eq!((f.mean[0], f.var[0], f.inv_std[0]), (2.0, 3.0, 0.5));
    assert_eq!((f.running.mean[0], f.running.var[0]), (2.0, 4.0));
    assert_eq!(f.y.iter().copied().collect::<Vec<_>>(), [-0.5, 49.0, 1.5]);
    // S₁ = 7, S₂ = −1 + 196 + 12 = 207: dx = ½·(dy − w/4·(7 + (x−2)/4·207)).
    let g = reference::backward(&input, dy.view(), &config).unwrap();
    assert_eq!((g.dgamma[0], g.dbeta[0]), (103.5, 7.0));
    let dx: Vec<f64> = g.dx.iter().copied().collect();
    assert_eq!(dx, [0.5 * (1.0 - 0.75 * (7.0 - 51.75)), 1.0, 0.5 * (4.0 - 0.25 * (7.0 + 155.25))]);
    let m = reference::statistics(&input).unwrap();
    assert_eq!((m.count(), m.mean()[0]), (4.0, 2.0));

    let Some(gpu) = gpu() else { return };
    let narrow = |a: &ArrayD<f64>| a.mapv(|v| v as f32);
    let (x, w, dy) = (narrow(&x), narrow(&w), narrow(&dy));
    let input = Input { weights: Some(w.view()), ..Input::new(x.view(), ChannelAxis::Last) };
    let mut running = RunningStatistics::new(1);
    let out = gpu.forward_train_blocking(&input, &mut running, &config).unwrap();
    assert_eq!((out.saved.mean[0], out.saved.count[0]), (2.0, 4.0));
    let bound = 32.0 * f32::EPSILON;
    let near = |a: f32, e: f32| assert!((a - e).abs() <= bound * e.abs().max(1.0), "{a} {e}");
    near(running.var[0], 4.0);
    let back = gpu.backward_blocking(&input, dy.view(), &out.saved, &config).unwrap();
    near(back.dgamma.unwrap_or_else(|| vec![103.5].into())[0], 103.5);
    for (a, e) in back.dx.unwrap().iter().zip(dx) {
        near(*a, e as f32);
    }
    let moments = gpu.statistics_blocking(&input).unwrap();
    assert_eq!((moments.count(), moments.mean()[0]), (4.0, 2.0));
    // Inference does not look at weights.
    let with = gpu.forward_infer_blocking(&input, &running, &config).unwrap();
    let plain = Input::new(x.view(), ChannelAxis::Last);
    assert_eq!(gpu.forward_infer_blocking(&plain, &running, &config).unwrap(), with);
    let frozen = |input| gpu.frozen_backward_blocking(input, dy.view(), &running, &config).unwrap();
    assert_eq!(frozen(&input), frozen(&plain));
}

/// The oracle's gradients are slopes of its own forward, through weighted statistics.
#[test]
fn the_oracle_is_differentiable() {
    let config = Config { activation: Activation::Silu, residual: true, ..config() };
    let case = Case::new(&[3, 2, 4], ChannelAxis::First, config);
    let data = data(&case, "fractions", 0.3, 1.0);
    assert!(data.weights.contains(&0.0));
    let oracle = Oracle::new(&case, &data);
    let input = oracle.input(&case);
    let g = reference::backward(&input, oracle.dy.view(), &case.config).unwrap();
    let loss = |input: &reference::Input<'_>| -> f64 {
        let y = reference::train(input, &oracle.running, &case.config).unwrap().y;
        y.iter().zip(&oracle.dy).map(|(y, dy)| y * dy).sum()
    };
    let close = |name: &str, slope: &dyn Fn(f64) -> f64, gradient: f64| {
        let h = DIFFERENCE_STEP;
        let slope = (slope(h) - slope(-h)) / (2.0 * h);
        assert!((slope - gradient).abs() <= DIFFERENCE_ERROR, "{name}: {slope} for {gradient}");
    };
    for i in 0..oracle.x.len() {
        let moved = |array: &ArrayD<f64>, h: f64| {
            let mut array = array.clone();
            *array.iter_mut().nth(i).unwrap() += h;
            array
        };
        let at = |array: &ArrayD<f64>| *array.iter().nth(i).unwrap();
        let along = |h| loss(&reference::Input { x: moved(&oracle.x, h).view(), ..input.clone() });
        close("dx", &along, at(&g.dx));
        let along =
            |h| loss(&reference::Input { z: Some(moved(&oracle.z, h).view()), ..input.clone() });
        close("dz", &along, at(&g.dz));
    }
    for c in 0..2 {
        let moved = |values: &[f64], h: f64| {
            let mut values = Array1::from(values.to_vec());
            values[c] += h;
            values
        };
        let along = |h| {
            let gamma = moved(&oracle.gamma, h);
            loss(&reference::Input { gamma: Some(gamma.view()), ..input.clone() })
        };
        close("dgamma", &along, g.dgamma[c]);
        let along = |h| {
            let beta = moved(&oracle.beta, h);
            loss(&reference::Input { beta: Some(beta.view()), ..input.clone() })
        };
        close("dbeta", &along, g.dbeta[c]);
    }
}

/// What plans ask for: weights where statistics move with them, one value in all without complaint
/// (how many count is not known when planning), and no group normalization.
#[test]
fn plans() {
    let caps = wgpu_batchnorm::Caps::webgpu_default();
    let case = Case::new(&[4, 6, 5], ChannelAxis::First, config());
    let (g, config) = (case.geometry(), &case.config);
    let size = |slots: Vec<(Slot, u64)>| {
        slots.into_iter().find(|(slot, _)| *slot == Slot::Weights).map(|(_, size)| size)
    };
    assert_eq!(size(Plan::<Train>::new(g, config, &caps).unwrap().slots()), Some(4 * 5 * 4));
    assert_eq!(size(Plan::<Statistics>::new(g, config, &caps).unwrap().slots()), Some(80));
    assert_eq!(size(Plan::<Backward>::new(g, config, &caps).unwrap().slots()), Some(80));
    assert_eq!(size(Plan::<Gradient>::new(g, config, &caps).unwrap().slots()), Some(80));
    assert_eq!(size(Plan::<Reduce>::new(g, config, &caps).unwrap().slots()), None);
    assert_eq!(size(Plan::<Infer>::new(g, config, &caps).unwrap().slots()), None);
    let error = Plan::<GroupNorm>::new(g, config, &caps).unwrap_err();
    assert_eq!(error, PlanError::Weights);
    let single = Case::new(&[1, 6], ChannelAxis::Last, config.clone()).geometry();
    assert!(matches!(
        Plan::<Train>::new(single, config, &caps),
        Err(PlanError::SingleValue { .. })
    ));
    let allowed = Config { single_value: SingleValue::Allow, ..config.clone() };
    assert!(Plan::<Train>::new(single, &allowed, &caps).is_ok());
}

/// Weights that add up to 1, but for rounding, are one value: the unbiased variance has no pole there.
#[test]
fn weights_that_add_up_to_one() {
    let Some(gpu) = gpu() else { return };
    for (shape, axis, n) in [
        (vec![10, 64], ChannelAxis::Last, 10),
        (vec![10, 3], ChannelAxis::Last, 10),
        (vec![11, 3, 4], ChannelAxis::First, 44),
        (vec![29, 5], ChannelAxis::Last, 29),
    ] {
        for unit in [1.0, 1.25, 2.0] {
            let case = Case::new(&shape, axis, config());
            let mut data = data(&case, "ones", 1.0, 2.0);
            data.weights.fill(unit / n as f32);
            let results = runner::train(gpu, &case, &data);
            compare_training(&case, &data, &results).unwrap();
            assert!(results.running_var.iter().all(|v| *v < 100.0), "{:?}", results.running_var);
        }
    }
}

/// Windows of pieces of a row begin with any position, and weights are loaded as x is: where vectors fit x
/// but not the weights, none are taken. No device here has such memory.
#[test]
fn windows_begin_where_weights_do() {
    let caps = wgpu_batchnorm::Caps {
        max_storage_binding_size: (1 << 31) - 4,
        storage_alignment: 32,
        ..wgpu_batchnorm::Caps::webgpu_default()
    };
    let inner = (1 << 28) - 31;
    let geometry = Geometry::new(&[2, 3, inner], ChannelAxis::First).unwrap();
    let plan = Plan::<Train>::new(geometry, &config(), &caps).unwrap();
    let mut pieces = 0;
    for stage in plan.stages() {
        let Some(window) = &stage.window else { continue };
        if stage.variant.slots.contains(Slot::Weights) && stage.variant.vector == 4 {
            // Of the first channel of the first sample alone is a position a whole vector.
            assert!(window.start < 4 * inner as u64, "{stage:?}");
        }
        pieces += 1;
    }
    assert!(pieces > 6, "{}", plan.explain());
}

/// Eight storage buffers are enough for all plans but one, whose error says so.
#[test]
fn one_backward_needs_nine_buffers() {
    let caps = wgpu_batchnorm::Caps::webgpu_default();
    let geometry = Case::new(&[4, 6, 500], ChannelAxis::First, config()).geometry();
    for memory in [Memory::Separate, Memory::InPlace, Memory::Arena] {
        for activation in [Activation::None, Activation::Relu, Activation::Silu] {
            for (residual, z, mask) in [
                (false, false, Mask::Auto),
                (true, false, Mask::Auto),
                (true, false, Mask::Recompute),
                (true, true, Mask::Auto),
                (true, true, Mask::Recompute),
            ] {
                let gradients = Gradients { z, ..Gradients::ALL };
                let config = Config { memory, activation, residual, mask, gradients, ..config() };
                let again = activation == Activation::Silu
                    || activation == Activation::Relu && mask == Mask::Recompute;
                let nine = memory != Memory::InPlace && residual && again && !z;
                let error = Plan::<Backward>::new(geometry, &config, &caps).err();
                match error {
                    Some(PlanError::Buffers { needed: 9, limit: 8, .. }) if nine => {}
                    error => assert!(error.is_none() && !nine, "{config:?}: {error:?}"),
                }
                assert!(Plan::<Train>::new(geometry, &config, &caps).is_ok(), "{config:?}");
            }
        }
    }
}

/// The host form and the layer: shapes, values and presence are checked, and nothing changes.
#[test]
fn misuse_of_the_host_form() {
    let Some(gpu) = gpu() else { return };
    let case = Case::new(&[4, 3, 6], ChannelAxis::First, config());
    let data = data(&case, "fractions", 1.0, 2.0);
    let tensor =
        |values: &[f32]| ArrayD::from_shape_vec(case.shape.clone(), values.to_vec()).unwrap();
    let (x, dy) = (tensor(&data.x), tensor(&data.dy));
    let good = positions(&case, &data.weights).mapv(|v| v as f32);
    let wrong = |value: f32| {
        let mut weights = good.clone();
        weights[[2, 1]] = value;
        weights
    };
    let mut running = RunningStatistics::new(3);
    for value in [-1.0, f32::NAN, f32::INFINITY] {
        let weights = wrong(value);
        let input = Input { weights: Some(weights.view()), ..Input::new(x.view(), case.axis) };
        let error = gpu.forward_train_blocking(&input, &mut running, &config()).unwrap_err();
        let HostError::Weight { position: 13, value: found } = error else { panic!("{error}") };
        assert_eq!(found.to_bits(), value.to_bits());
        assert!(matches!(gpu.statistics_blocking(&input), Err(HostError::Weight { .. })));
    }
    let flat = ArrayD::<f32>::ones(vec![24]);
    let input = Input { weights: Some(flat.view()), ..Input::new(x.view(), case.axis) };
    let error = gpu.forward_train_blocking(&input, &mut running, &config()).unwrap_err();
    assert_eq!(error, HostError::Shape { slot: Slot::Weights, x: vec![4, 6], found: vec![24] });
    assert_eq!(running, RunningStatistics::new(3));
    let input = Input { weights: Some(good.view()), ..Input::new(x.view(), case.axis) };
    let error = gpu.group_norm_blocking(&input, &config()).unwrap_err();
    assert_eq!(error, HostError::Plan(PlanError::Weights));

    let mut layer = BatchNorm::new(gpu, 3, config()).unwrap();
    let state = LayerState {
        gamma: data.gamma.clone().into(),
        beta: data.beta.clone().into(),
        running_mean: data.running_mean.clone().into(),
        running_var: data.running_var.clone().into(),
        batches: 0,
    };
    layer.load(&state).unwrap();
    let error = layer.forward_train_blocking(x.view()).unwrap_err();
    assert_eq!(error, HostError::Weights { given: false });
    let bad = wrong(-0.5);
    let input = LayerInput { x: x.view(), z: None, weights: Some(bad.view()) };
    let error = layer.forward_train_blocking(input).unwrap_err();
    assert_eq!(error, HostError::Weight { position: 13, value: -0.5 });
    assert_eq!(layer.state_blocking().unwrap(), state);
    let batch = || LayerInput { x: x.view(), z: None, weights: Some(good.view()) };
    let y = layer.forward_train_blocking(batch()).unwrap();
    let back = layer.backward_blocking(dy.view()).unwrap();
    let expected = runner::train(gpu, &case, &data);
    assert_eq!(y.into_raw_vec_and_offset().0, expected.y);
    assert_eq!(back.dx.unwrap().into_raw_vec_and_offset().0, expected.dx);
    assert_eq!(back.dgamma.unwrap().to_vec(), expected.dgamma);
    assert!(layer.forward_infer_blocking(x.view()).is_ok());
    // Precise statistics of weighted batches; a batch without weights is refused.
    let moments = layer.re_estimate_blocking([batch(), batch()]).unwrap();
    let once = gpu.statistics_blocking(&Input {
        weights: Some(good.view()),
        ..Input::new(x.view(), case.axis)
    });
    let mut twice = Moments::empty(3);
    let once = once.unwrap();
    twice.merge(&once).unwrap();
    twice.merge(&once).unwrap();
    assert_eq!(moments, twice);
    let error = layer.re_estimate_blocking([x.view()]).unwrap_err();
    assert_eq!(error, HostError::Weights { given: false });
    let mut plain = BatchNorm::new(gpu, 3, Config::pytorch()).unwrap();
    let error = plain.forward_train_blocking(batch()).unwrap_err();
    assert_eq!(error, HostError::Weights { given: true });
}
