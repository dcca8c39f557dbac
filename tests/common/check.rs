//! One checker for every entry point: a case on the GPU against the oracle, within derived bounds.

use ndarray::{ArrayD, ArrayView1};
use wgpu_batchnorm::reference::{self, Input, Running};
use wgpu_batchnorm::{Gpu, Moments, RunningVariance, Update};

use super::compare::{self, Arithmetic, Bounds, Center, Comparison};
use super::data::{Case, Data};
use super::runner::{self, Results};

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// Runs all five operations and compares every result.
pub fn check(gpu: &Gpu, case: &Case, data: &Data) {
    compare_training(case, data, &runner::train(gpu, case, data)).unwrap();
    compare_frozen(case, data, &runner::frozen(gpu, case, data)).unwrap();
    let slot = runner::statistics(gpu, case, data);
    let n = case.geometry().values_per_channel();
    compare_statistics(case, data, &Moments::from_slot(n, &slot).unwrap()).unwrap();
}

/// What must hold of the statistics alone.
pub fn compare_statistics(case: &Case, data: &Data, moments: &Moments) -> Result<(), String> {
    let oracle = Oracle::new(case, data);
    let expected = reference::statistics(oracle.x.view(), case.axis).unwrap();
    let b = oracle.bounds(case, data, Center::Batch);
    let mut failures = Failures::new(case);
    assert_eq!(moments.count(), expected.count(), "{case}");
    failures.add("moments mean", moments.mean(), expected.mean().to_vec(), &b.whole_mean());
    let variance = |moments: &Moments| moments.variance(RunningVariance::Population);
    let (actual, expected) = (variance(moments), variance(&expected));
    failures.add("moments variance", &actual, expected, &b.variance());
    failures.result()
}

/// What must hold of a training forward and backward; `Err` names what does not.
pub fn compare_training(case: &Case, data: &Data, r: &Results) -> Result<(), String> {
    let oracle = Oracle::new(case, data);
    let input = oracle.input(case);
    let f = reference::train(&input, &oracle.running, &case.config).unwrap();
    let g = reference::backward(&input, oracle.dy.view(), &case.config).unwrap();
    let b = oracle.bounds(case, data, Center::Batch);
    let n = case.geometry().values_per_channel();
    let factor = case.config.running_variance.factor(n);
    let rate = match case.config.update {
        Update::Rate(rate) => rate,
        Update::Decay(decay) => 1.0 - decay,
        Update::Cumulative => 1.0 / f64::from(data.batches + 1),
        Update::None => 0.0,
    };
    let mut failures = Failures::new(case);
    failures.add("y", &r.y, flat(&f.y), &b.y());
    failures.add("mean", &r.mean, f.mean.to_vec(), &b.mean());
    failures.add("inv_std", &r.inv_std, f.inv_std.to_vec(), &b.inv_std());
    if case.config.update != Update::None {
        let bounds = b.running_mean(&data.running_mean, rate);
        failures.add("running_mean", &r.running_mean, f.running.mean.to_vec(), &bounds);
        let bounds = b.running_var(&data.running_var, rate, factor, case.config.epsilon);
        failures.add("running_var", &r.running_var, f.running.var.to_vec(), &bounds);
    }
    failures.gradients(case, data, r, g, &b);
    failures.result()
}

/// What must hold of an inference and a frozen backward.
pub fn compare_frozen(case: &Case, data: &Data, r: &Results) -> Result<(), String> {
    let oracle = Oracle::new(case, data);
    let input = oracle.input(case);
    let y = reference::infer(&input, &oracle.running, &case.config).unwrap();
    let g = reference::frozen_backward(&input, oracle.dy.view(), &oracle.running, &case.config)
        .unwrap();
    let center = Center::Running { mean: &data.running_mean, var: &data.running_var };
    let b = oracle.bounds(case, data, center);
    let mut failures = Failures::new(case);
    failures.add("inference y", &r.y, flat(&y), &b.y());
    failures.gradients(case, data, r, g, &b);
    failures.result()
}

struct Oracle {
    x: ArrayD<f64>,
    dy: ArrayD<f64>,
    gamma: Vec<f64>,
    beta: Vec<f64>,
    running: Running,
}

impl Oracle {
    fn new(case: &Case, data: &Data) -> Self {
        let tensor = |values| ArrayD::from_shape_vec(case.shape.clone(), wide(values)).unwrap();
        Self {
            x: tensor(&data.x),
            dy: tensor(&data.dy),
            gamma: wide(&data.gamma),
            beta: wide(&data.beta),
            running: Running {
                mean: wide(&data.running_mean).into(),
                var: wide(&data.running_var).into(),
                batches: u64::from(data.batches),
            },
        }
    }

    fn input(&self, case: &Case) -> Input<'_> {
        let affine = case.config.affine;
        Input {
            x: self.x.view(),
            axis: case.axis,
            gamma: affine.gamma.then(|| ArrayView1::from(&self.gamma)),
            beta: affine.beta.then(|| ArrayView1::from(&self.beta)),
        }
    }

    fn bounds(&self, case: &Case, data: &Data, center: Center<'_>) -> Bounds {
        let affine = case.config.affine;
        let gamma = affine.gamma.then_some(data.gamma.as_slice());
        let beta = affine.beta.then_some(data.beta.as_slice());
        let epsilon = case.config.epsilon;
        let (geometry, arithmetic) = (case.geometry(), Arithmetic::Kernel);
        Bounds::new(geometry, &data.x, &data.dy, (gamma, beta), epsilon, center, arithmetic)
    }
}

fn flat(array: &ArrayD<f64>) -> Vec<f64> {
    array.iter().copied().collect()
}

struct Failures {
    case: String,
    found: Vec<String>,
}

impl Failures {
    fn new(case: &Case) -> Self {
        Self { case: case.to_string(), found: Vec::new() }
    }

    fn add<T: Copy + Into<f64>>(
        &mut self,
        name: &str,
        actual: &[T],
        expected: Vec<f64>,
        bounds: &[f64],
    ) {
        let result: Comparison = compare::within(actual, &expected, bounds);
        if !result.is_good() {
            let at = result.at;
            let (a, e): (f64, f64) = (actual[at].into(), expected[at]);
            self.found.push(format!("{name}[{at}] = {a:e}, not {e:e}: {result:?}"));
        }
    }

    /// Gradients that were asked for; the others must not be there.
    fn gradients(
        &mut self,
        case: &Case,
        data: &Data,
        r: &Results,
        g: reference::InputGradients,
        b: &Bounds,
    ) {
        let wanted = case.config.gradients;
        if wanted.x {
            self.add("dx", &r.dx, flat(&g.dx), &b.dx());
        }
        // Accumulation adds to the poison of the runner, which is tested elsewhere.
        assert!(!wanted.accumulate && !data.x.is_empty());
        if wanted.gamma && case.config.affine.gamma {
            self.add("dgamma", &r.dgamma, g.dgamma.to_vec(), &b.dgamma());
        } else {
            assert!(r.dgamma.is_empty());
        }
        if wanted.beta && case.config.affine.beta {
            self.add("dbeta", &r.dbeta, g.dbeta.to_vec(), &b.dbeta());
        } else {
            assert!(r.dbeta.is_empty());
        }
    }

    fn result(self) -> Result<(), String> {
        match self.found.is_empty() {
            true => Ok(()),
            false => Err(format!("{}\n  {}", self.case, self.found.join("\n  "))),
        }
    }
}
