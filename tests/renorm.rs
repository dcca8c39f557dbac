//! Batch renormalization: r and d by the running statistics before they move, constants of the
//! backward, in every memory, tuning and in shards.

use ndarray::{Array1, ArrayD};
use wgpu_batchnorm::reference::{self, ReferenceError};
use wgpu_batchnorm::{
    Activation, BatchNorm, ChannelAxis, Config, Element, HostError, Input, LayerState, Memory,
    NonFinite, Renorm, RunningStatistics, Slot, Update,
};

use crate::common::check::{Oracle, compare_sharded, compare_training};
use crate::common::compare::{DIFFERENCE_ERROR, DIFFERENCE_STEP};
use crate::common::data::{Case, Data, small_tunings};
use crate::common::gpu;
use crate::common::runner::{self, bits};

fn config(rmax: f64, dmax: f64) -> Config {
    Config { renorm: Some(Renorm { rmax, dmax }), ..Config::pytorch() }
}

/// Limits that hold everywhere, somewhere and nowhere.
const LIMITS: [(f64, f64); 4] = [(1.0, 0.0), (1.05, 0.1), (1.5, 1.0), (1e3, 1e3)];

fn cases(config: &Config) -> Vec<Case> {
    let case = |shape: &[usize], axis| Case::new(shape, axis, config.clone());
    let [split, fused, wide] = small_tunings();
    vec![
        case(&[6, 3, 8, 5], ChannelAxis::First).tuned(&split),
        case(&[6, 3, 8, 5], ChannelAxis::First).tuned(&fused),
        case(&[5, 7, 9], ChannelAxis::First).tuned(&wide),
        case(&[17, 12], ChannelAxis::Last).tuned(&split),
        case(&[17, 7], ChannelAxis::Last).tuned(&fused),
        case(&[9, 2, 33], ChannelAxis::First),
        case(&[40, 5], ChannelAxis::Last),
    ]
}

#[test]
fn every_limit_in_every_memory() {
    let Some(gpu) = gpu() else { return };
    for (rmax, dmax) in LIMITS {
        for (i, memory) in
            [Memory::Separate, Memory::InPlace, Memory::Arena].into_iter().enumerate()
        {
            let update = [Update::Rate(0.1), Update::Cumulative, Update::Decay(0.0)][i];
            let activation = [Activation::Relu, Activation::None, Activation::Silu][i];
            let residual = memory == Memory::Arena;
            let config = Config { memory, update, activation, residual, ..config(rmax, dmax) };
            for case in cases(&config) {
                let data = Data::random(case.geometry(), 91, 1.0, 2.0);
                let results = runner::train(gpu, &case, &data);
                compare_training(&case, &data, &results).unwrap();
            }
        }
    }
}

#[test]
fn halves() {
    let Some(gpu) = gpu() else { return };
    for element in [Element::F16, Element::Bf16] {
        for case in cases(&Config { element, ..config(1.5, 1.0) }) {
            let data = Data::random(case.geometry(), 92, 1.0, 2.0).rounded(element);
            compare_training(&case, &data, &runner::train(gpu, &case, &data)).unwrap();
        }
    }
}

/// r and d of the whole batch, by the merged statistics.
#[test]
fn shards() {
    let Some(gpu) = gpu() else { return };
    for (rmax, dmax) in LIMITS {
        for case in cases(&Config { activation: Activation::Relu, ..config(rmax, dmax) }) {
            let data = Data::random(case.geometry(), 93, -3.0, 1.0);
            let results = runner::sharded(gpu, &case, &data, &[0, 1, 3, 3]);
            compare_sharded(&case, &data, 5, &results).unwrap();
        }
    }
}

/// With r = 1 and d = 0 it is batch norm, to the bit.
#[test]
fn without_room_it_is_batch_norm() {
    let Some(gpu) = gpu() else { return };
    for plain in cases(&Config { activation: Activation::Relu, ..Config::pytorch() }) {
        let renorm = Case {
            config: Config { renorm: config(1.0, 0.0).renorm, ..plain.config.clone() },
            ..plain.clone()
        };
        let data = Data::random(plain.geometry(), 94, 1.0, 2.0);
        let expected = runner::train(gpu, &plain, &data);
        let results = runner::train(gpu, &renorm, &data);
        assert!(results.r.iter().all(|r| *r == 1.0) && results.d.iter().all(|d| *d == 0.0));
        for name in ["y", "mean", "inv_std", "running_mean", "running_var", "dx", "dgamma", "dbeta"]
        {
            assert_eq!(bits(results.get(name)), bits(expected.get(name)), "{name}: {renorm}");
        }
    }
}

/// Channel 0 holds 1, 3, 5, 7 (mean 4, variance 5, with ε = 4 a deviation of 3); inference with mean
/// 1 and variance 0 (a deviation of 2) gives (x − 1)/2, and so does training without limits: r = 3/2,
/// d = 3/2. Channel 1 holds 2 four times and is limited: its deviation 2 is below 12/1.5, its mean far below 20.
#[test]
fn by_hand() {
    let x = ArrayD::from_shape_vec(vec![2, 2, 2], vec![1.0, 3.0, 2.0, 2.0, 5.0, 7.0, 2.0, 2.0]);
    let x: ArrayD<f64> = x.unwrap();
    let config = Config { epsilon: 4.0, ..config(1.5, 1.5) };
    let running = reference::Running {
        mean: vec![1.0, 20.0].into(),
        var: vec![0.0, 140.0].into(),
        batches: 0,
    };
    let input = reference::Input::new(x.view(), ChannelAxis::First);
    let f = reference::train(&input, &running, &config).unwrap();
    assert_eq!(f.r.to_vec(), [1.5, 1.0 / 1.5]);
    assert_eq!(f.d.to_vec(), [1.5, -1.5]);
    let y: Vec<f64> = f.y.iter().copied().collect();
    let expected = [0.0, 1.0, -1.5, -1.5, 2.0, 3.0, -1.5, -1.5];
    for (y, e) in y.iter().zip(expected) {
        assert!((y - e).abs() <= 8.0 * f64::EPSILON, "{y} is not {e}");
    }
    // It moves as without renormalization.
    let plain = Config { renorm: None, ..config.clone() };
    assert_eq!(f.running, reference::train(&input, &running, &plain).unwrap().running);
    // S₁ = 8 of ones; dγ = Σ y without limits, as γ = 1 and β = 0.
    let ones = ArrayD::ones(x.raw_dim());
    let g = reference::renorm_backward(&input, ones.view(), &running, &config).unwrap();
    assert!((g.dgamma[0] - 6.0).abs() <= 16.0 * f64::EPSILON, "{}", g.dgamma);
    assert_eq!(g.dbeta.to_vec(), [4.0, 4.0]);
    let refused = reference::backward(&input, ones.view(), &config);
    assert_eq!(refused, Err(ReferenceError::Renorm));

    let Some(gpu) = gpu() else { return };
    let x = x.mapv(|v| v as f32);
    let mut running = RunningStatistics {
        mean: vec![1.0, 20.0].into(),
        var: vec![0.0, 140.0].into(),
        batches: 0,
    };
    let input = Input::new(x.view(), ChannelAxis::First);
    let output = gpu.forward_train_blocking(&input, &mut running, &config).unwrap();
    let near = |a: f32, e: f64| {
        // Two roots, a division and some products.
        assert!((f64::from(a) - e).abs() <= 32.0 * 2f64.powi(-24) * e.abs().max(1.0), "{a} {e}");
    };
    for (y, e) in output.y.iter().zip(expected) {
        near(*y, e);
    }
    let saved = output.saved;
    let constants = saved.renorm.clone().unwrap();
    near(constants.r[0], 1.5);
    near(constants.d[1], -1.5);
    // The host form's backward takes what its forward saved, and nothing else.
    let dy = ArrayD::ones(x.raw_dim());
    let back = gpu.backward_blocking(&input, dy.view(), &saved, &config).unwrap();
    assert!(back.dx.is_some());
    let lacks = wgpu_batchnorm::SavedStatistics { renorm: None, ..saved.clone() };
    let error = gpu.backward_blocking(&input, dy.view(), &lacks, &config).unwrap_err();
    assert_eq!(error, HostError::Renorm { given: false });
    let error = gpu.backward_blocking(&input, dy.view(), &saved, &plain).unwrap_err();
    assert_eq!(error, HostError::Renorm { given: true });
    let mut short = saved;
    short.renorm.as_mut().unwrap().d = Array1::ones(1);
    let error = gpu.backward_blocking(&input, dy.view(), &short, &config).unwrap_err();
    assert_eq!(error, HostError::Length { slot: Slot::Saved, length: 1, channels: 2 });
}

/// Where both limits hold, r and d are constants nearby, and the oracle's gradients are slopes.
#[test]
fn the_oracle_is_differentiable() {
    let config = Config { activation: Activation::Silu, residual: true, ..config(1.1, 0.2) };
    let case = Case::new(&[3, 2, 4], ChannelAxis::First, config);
    let mut data = Data::random(case.geometry(), 95, 0.3, 1.0);
    (data.running_mean, data.running_var) = (vec![5.0, -5.0], vec![0.1, 9.0]);
    let oracle = Oracle::new(&case, &data);
    let input = oracle.input(&case);
    let f = reference::train(&input, &oracle.running, &case.config).unwrap();
    assert_eq!((f.r.to_vec(), f.d.to_vec()), (vec![1.1, 1.0 / 1.1], vec![-0.2, 0.2]));
    let dy = oracle.dy.view();
    let g = reference::renorm_backward(&input, dy, &oracle.running, &case.config).unwrap();
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
        let along = |h: f64| {
            let mut x = oracle.x.clone();
            *x.iter_mut().nth(i).unwrap() += h;
            loss(&reference::Input { x: x.view(), ..input.clone() })
        };
        close("dx", &along, *g.dx.iter().nth(i).unwrap());
    }
    for c in 0..2 {
        let moved = |values: &[f64], h: f64| {
            let mut values = Array1::from(values.to_vec());
            values[c] += h;
            values
        };
        let along = |h: f64| {
            let gamma = moved(&oracle.gamma, h);
            loss(&reference::Input { gamma: Some(gamma.view()), ..input.clone() })
        };
        close("dgamma", &along, g.dgamma[c]);
        let along = |h: f64| {
            let beta = moved(&oracle.beta, h);
            loss(&reference::Input { beta: Some(beta.view()), ..input.clone() })
        };
        close("dbeta", &along, g.dbeta[c]);
    }
}

/// One value that is not finite makes its channel NaN and no other; so do running statistics that are
/// NaN, whatever the limits.
#[test]
fn bad_values_stay_in_their_channel() {
    let Some(gpu) = gpu() else { return };
    for case in cases(&Config { non_finite: NonFinite::Keep, ..config(1.5, 1.0) }) {
        let (c, inner) = (case.geometry().channels() as usize, case.geometry().inner() as usize);
        let fine = Data::random(case.geometry(), 96, 1.0, 1.0);
        let expected = runner::train(gpu, &case, &fine);
        for value in [f32::NAN, f32::INFINITY] {
            let (mut x, mut mean, mut var) = (fine.clone(), fine.clone(), fine.clone());
            x.x[inner] = value;
            mean.running_mean[1] = f32::NAN;
            var.running_var[1] = f32::NAN;
            for data in [x, mean, var] {
                let results = runner::train(gpu, &case, &data);
                for (i, (y, e)) in results.y.iter().zip(&expected.y).enumerate() {
                    let same = y.to_bits() == e.to_bits();
                    let bad = i / inner % c == 1;
                    assert!(if bad { y.is_nan() } else { same }, "{value} y[{i}] = {y}: {case}");
                }
            }
        }
    }
}

/// The layer keeps r and d from its forward to its backward.
#[test]
fn a_layer() {
    let Some(gpu) = gpu() else { return };
    let case = Case::new(&[4, 3, 6], ChannelAxis::First, config(1.3, 0.4));
    let data = Data::random(case.geometry(), 97, 1.0, 2.0);
    let mut layer = BatchNorm::new(gpu, 3, case.config.clone()).unwrap();
    let state = LayerState {
        gamma: data.gamma.clone().into(),
        beta: data.beta.clone().into(),
        running_mean: data.running_mean.clone().into(),
        running_var: data.running_var.clone().into(),
        batches: 0,
    };
    layer.load(&state).unwrap();
    let tensor =
        |values: &[f32]| ArrayD::from_shape_vec(case.shape.clone(), values.to_vec()).unwrap();
    let y = layer.forward_train_blocking(tensor(&data.x).view()).unwrap();
    let back = layer.backward_blocking(tensor(&data.dy).view()).unwrap();
    let expected = runner::train(gpu, &case, &data);
    assert_eq!(y.into_raw_vec_and_offset().0, expected.y);
    assert_eq!(back.dx.unwrap().into_raw_vec_and_offset().0, expected.dx);
    assert_eq!(back.dgamma.unwrap().to_vec(), expected.dgamma);
}
