//! The oracle against values computed by hand.

use ndarray::{Array1, ArrayD, array};
use wgpu_batchnorm::reference::{self, Input, ReferenceError, Running};
use wgpu_batchnorm::{ChannelAxis, Config, NonFinite, RunningVariance, SingleValue, Update};

use crate::common::compare;

/// Channel 0 holds 1, 3, 5, 7 (mean 4, variance 5), channel 1 four times 2.
fn tensor() -> ArrayD<f64> {
    ArrayD::from_shape_vec(vec![2, 2, 2], vec![1.0, 3.0, 2.0, 2.0, 5.0, 7.0, 2.0, 2.0]).unwrap()
}

fn input<'a>(x: &'a ArrayD<f64>, gamma: &'a Array1<f64>, beta: &'a Array1<f64>) -> Input<'a> {
    let (gamma, beta) = (Some(gamma.view()), Some(beta.view()));
    Input { gamma, beta, ..Input::new(x.view(), ChannelAxis::First) }
}

/// ε = 4 makes √(5 + 4) = 3 and √(0 + 4) = 2.
fn config() -> Config {
    Config { epsilon: 4.0, ..Config::pytorch() }
}

#[test]
fn training_forward() {
    let (x, gamma, beta) = (tensor(), array![3.0, 10.0], array![1.0, -1.0]);
    let running = Running { mean: array![1.0, 2.0], var: array![1.0, 2.0], batches: 1 };
    let f = reference::train(&input(&x, &gamma, &beta), &running, &config()).unwrap();
    assert_eq!(f.mean, array![4.0, 2.0]);
    assert_eq!(f.var, array![5.0, 0.0]);
    assert_eq!(f.inv_std, array![1.0 / 3.0, 0.5]);
    let y: Vec<f64> = f.y.iter().copied().collect();
    assert_eq!(y, [-2.0, 0.0, -1.0, -1.0, 2.0, 4.0, -1.0, -1.0]);
    // 0.9·1 + 0.1·4, and 0.9·1 + 0.1·5·4/3.
    assert_eq!(f.running.mean, array![0.9 + 0.1 * 4.0, 0.9 * 2.0 + 0.1 * 2.0]);
    assert!((f.running.var[0] - (0.9 + 0.1 * 20.0 / 3.0)).abs() < f64::EPSILON);
    assert_eq!(f.running.batches, 2);
}

#[test]
fn statistics_alone() {
    let x = tensor();
    let m = reference::statistics(&reference::Input::new(x.view(), ChannelAxis::First)).unwrap();
    assert_eq!((m.count(), m.mean()), (4.0, &[4.0, 2.0][..]));
    assert_eq!(m.variance(RunningVariance::Population), [5.0, 0.0]);
    assert_eq!(m.variance(RunningVariance::Unbiased), [5.0 * (4.0 / 3.0), 0.0]);
    let empty = ArrayD::zeros(vec![0, 2, 3]);
    let m =
        reference::statistics(&reference::Input::new(empty.view(), ChannelAxis::First)).unwrap();
    assert_eq!(m, wgpu_batchnorm::Moments::empty(2));
    let error =
        reference::statistics(&reference::Input::new(x.view(), ChannelAxis::At(3))).unwrap_err();
    assert!(matches!(error, ReferenceError::Geometry(_)));
}

#[test]
fn update_conventions() {
    let (x, one, zero) = (tensor(), array![1.0, 1.0], array![0.0, 0.0]);
    let input = input(&x, &one, &zero);
    let start = Running { mean: array![2.0, 2.0], var: array![3.0, 3.0], batches: 3 };
    let after = |update, running_variance| {
        let config = Config { update, running_variance, ..config() };
        reference::train(&input, &start, &config).unwrap().running
    };
    let population = RunningVariance::Population;
    let r = after(Update::Decay(0.75), population);
    assert_eq!((r.mean[0], r.var[0]), (0.75 * 2.0 + 0.25 * 4.0, 0.75 * 3.0 + 0.25 * 5.0));
    // The fourth batch: a quarter.
    assert_eq!(after(Update::Cumulative, population).mean[0], 2.5);
    assert_eq!(after(Update::Cumulative, population).batches, 4);
    assert_eq!(after(Update::None, population), start);
    let unbiased = after(Update::Rate(1.0), RunningVariance::Unbiased).var[0];
    assert!((unbiased - 20.0 / 3.0).abs() < 8.0 * f64::EPSILON);
}

#[test]
fn inference_and_its_backward() {
    let (x, gamma, beta) = (tensor(), array![3.0, 4.0], array![0.0, 1.0]);
    let running = Running { mean: array![1.0, 0.0], var: array![5.0, 0.0], batches: 0 };
    let input = input(&x, &gamma, &beta);
    let y = reference::infer(&input, &running, &config()).unwrap();
    let y: Vec<f64> = y.iter().map(|y| y.round()).collect();
    assert_eq!(y, [0.0, 2.0, 5.0, 5.0, 4.0, 6.0, 5.0, 5.0]);
    let dy = ArrayD::from_elem(vec![2, 2, 2], 1.0);
    let g = reference::frozen_backward(&input, dy.view(), &running, &config()).unwrap();
    let dx: Vec<f64> = g.dx.iter().copied().collect();
    assert_eq!(dx, [1.0, 1.0, 2.0, 2.0, 1.0, 1.0, 2.0, 2.0]);
    assert_eq!(g.dbeta, array![4.0, 4.0]);
    // Σ(x−1)/3 = (0 + 2 + 4 + 6)/3, and Σx/2.
    assert_eq!(g.dgamma, array![12.0 * (1.0 / 3.0), 4.0]);
}

/// The gradient of a training forward is the slope of its output, by central differences.
#[test]
fn training_backward_is_the_slope() {
    let x = ArrayD::from_shape_fn(vec![3, 2, 4], |d| {
        let i = (d[0] * 8 + d[1] * 4 + d[2]) as f64;
        (i * 1.7).sin() * 2.0 + 0.3 * i
    });
    let dy = x.mapv(|v| (v * 3.1).cos());
    let (gamma, beta) = (array![1.5, -0.5], array![0.1, 0.2]);
    let config = Config { epsilon: 1e-3, ..Config::keras() };
    let loss = |x: &ArrayD<f64>, gamma: &Array1<f64>, beta: &Array1<f64>| {
        let y = reference::train(&input(x, gamma, beta), &Running::new(2), &config).unwrap().y;
        (&y * &dy).sum()
    };
    let g = reference::backward(&input(&x, &gamma, &beta), dy.view(), &config).unwrap();
    let h = compare::DIFFERENCE_STEP;
    let near = |a: f64, b: f64| {
        assert!((a - b).abs() < compare::DIFFERENCE_ERROR, "{a} is not {b}");
    };
    for i in 0..x.len() {
        let (mut up, mut down) = (x.clone(), x.clone());
        up.as_slice_mut().unwrap()[i] += h;
        down.as_slice_mut().unwrap()[i] -= h;
        let slope = (loss(&up, &gamma, &beta) - loss(&down, &gamma, &beta)) / (2.0 * h);
        near(g.dx.as_slice().unwrap()[i], slope);
    }
    for c in 0..2 {
        let step = |v: &Array1<f64>, h: f64| {
            let mut v = v.clone();
            v[c] += h;
            v
        };
        let (up, down) = (step(&gamma, h), step(&gamma, -h));
        near(g.dgamma[c], (loss(&x, &up, &beta) - loss(&x, &down, &beta)) / (2.0 * h));
        let (up, down) = (step(&beta, h), step(&beta, -h));
        near(g.dbeta[c], (loss(&x, &gamma, &up) - loss(&x, &gamma, &down)) / (2.0 * h));
    }
}

#[test]
fn edges() {
    let (one, zero) = (array![1.0, 2.0], array![0.0, 7.0]);
    let single = ArrayD::from_shape_vec(vec![1, 2], vec![5.0, -3.0]).unwrap();
    let running = Running::new(2);
    let refused = reference::train(&input(&single, &one, &zero), &running, &config());
    assert_eq!(refused, Err(ReferenceError::SingleValue));
    let allow = Config { single_value: SingleValue::Allow, ..config() };
    let f = reference::train(&input(&single, &one, &zero), &running, &allow).unwrap();
    assert_eq!(f.y.as_slice().unwrap(), [0.0, 7.0]);
    // The factor n/(n−1) is skipped: 0.9·1 + 0.1·0.
    assert_eq!(f.running.var, array![0.9, 0.9]);

    let empty = ArrayD::<f64>::zeros(vec![0, 2, 3]);
    let f = reference::train(&input(&empty, &one, &zero), &running, &config()).unwrap();
    assert_eq!(f.running, running, "an empty batch moves nothing");
    let g = reference::backward(&input(&empty, &one, &zero), empty.view(), &config()).unwrap();
    assert_eq!((g.dgamma, g.dbeta), (array![0.0, 0.0], array![0.0, 0.0]));

    let mut bad = tensor();
    bad[[0, 1, 0]] = f64::NAN;
    let keep = Config { non_finite: NonFinite::Keep, ..config() };
    let f = reference::train(&input(&bad, &one, &zero), &running, &keep).unwrap();
    assert_eq!((f.running.mean[1], f.running.var[1]), (0.0, 1.0));
    assert!(f.y[[0, 1, 0]].is_nan() && f.y[[0, 0, 0]].is_finite());
    let f = reference::train(&input(&bad, &one, &zero), &running, &config()).unwrap();
    assert!(f.running.mean[1].is_nan() && f.running.mean[0].is_finite());

    let short = array![1.0];
    let length = ReferenceError::Length { name: "gamma", length: 1, channels: 2 };
    let x = tensor();
    let error = reference::train(&input(&x, &short, &zero), &running, &config()).unwrap_err();
    assert_eq!(error, length);
    let error = reference::backward(&input(&x, &one, &zero), single.view(), &config()).unwrap_err();
    assert!(matches!(error, ReferenceError::Shape { .. }));
}
