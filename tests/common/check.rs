//! One checker for every entry point: a case on the GPU against the oracle, within derived bounds.

use ndarray::{ArrayD, ArrayView1};
use wgpu_batchnorm::reference::{self, Input, Running};
use wgpu_batchnorm::{ChannelAxis, Gpu, Moments, RunningVariance, Update};

use super::compare::{self, Arithmetic, Bounds, Center, Comparison, Given, GroupBounds};
use super::data::{Case, Data};
use super::runner::{self, Results};

pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// Runs all five operations and compares every result.
pub fn check(gpu: &Gpu, case: &Case, data: &Data) {
    compare_training(case, data, &runner::train(gpu, case, data)).unwrap();
    compare_frozen(case, data, &runner::frozen(gpu, case, data)).unwrap();
    let slot = runner::statistics(gpu, case, data);
    compare_statistics(case, data, &Moments::from_slot(&slot).unwrap()).unwrap();
}

/// What must hold of the statistics alone.
pub fn compare_statistics(case: &Case, data: &Data, moments: &Moments) -> Result<(), String> {
    let oracle = Oracle::new(case, data);
    let weights = oracle.input(case).weights;
    let input = Input { weights, ..Input::new(oracle.x.view(), case.axis) };
    let expected = reference::statistics(&input).unwrap();
    let b = oracle.bounds(case, data, Center::Batch);
    let mut failures = Failures::new(case);
    failures.add("moments count", &[moments.count()], vec![expected.count()], &b.count()[..1]);
    failures.add("moments mean", moments.mean(), expected.mean().to_vec(), &b.whole_mean());
    let variance = |moments: &Moments| moments.variance(RunningVariance::Population);
    let (actual, expected) = (variance(moments), variance(&expected));
    failures.add("moments variance", &actual, expected, &b.variance());
    failures.result()
}

/// What must hold of a training forward and backward; `Err` names what does not.
pub fn compare_training(case: &Case, data: &Data, r: &Results) -> Result<(), String> {
    all_hold(case, r, expected_training(case, data))
}

/// What must hold of an inference and a frozen backward.
pub fn compare_frozen(case: &Case, data: &Data, r: &Results) -> Result<(), String> {
    all_hold(case, r, expected_frozen(case, data))
}

/// One result by the oracle, and how far each value may be from it.
pub struct Expected {
    pub name: &'static str,
    pub values: Vec<f64>,
    pub bounds: Vec<f64>,
}

/// Every result of a training forward and backward that the case asks for.
pub fn expected_training(case: &Case, data: &Data) -> Vec<Expected> {
    expected_by(case, data, Arithmetic::Kernel)
}

/// The same of a batch in shards.
pub fn expected_sharded(case: &Case, data: &Data, parts: usize) -> Vec<Expected> {
    expected_by(case, data, Arithmetic::Sharded { parts })
}

/// What must hold of a training forward and backward of a batch in shards.
pub fn compare_sharded(case: &Case, data: &Data, parts: usize, r: &Results) -> Result<(), String> {
    all_hold(case, r, expected_sharded(case, data, parts))
}

fn expected_by(case: &Case, data: &Data, arithmetic: Arithmetic) -> Vec<Expected> {
    let oracle = Oracle::new(case, data);
    let input = oracle.input(case);
    let f = reference::train(&input, &oracle.running, &case.config).unwrap();
    let dy = oracle.dy.view();
    let g = reference::renorm_backward(&input, dy, &oracle.running, &case.config).unwrap();
    let center = match case.config.renorm {
        Some(_) => Center::Renormalized { mean: &data.running_mean, var: &data.running_var },
        None => Center::Batch,
    };
    let b = oracle.bounds_by(case, data, center, arithmetic);
    let n = count(case, data);
    let factor = case.config.running_variance.factor(n);
    let rate = rate(case, data);
    let mut all = vec![
        Expected { name: "y", values: flat(&f.y), bounds: b.y() },
        Expected { name: "mean", values: f.mean.to_vec(), bounds: b.mean() },
        Expected { name: "inv_std", values: f.inv_std.to_vec(), bounds: b.inv_std() },
        Expected { name: "count", values: vec![n; f.mean.len()], bounds: b.count() },
    ];
    if case.config.renorm.is_some() {
        all.push(Expected { name: "r", values: f.r.to_vec(), bounds: b.r() });
        all.push(Expected { name: "d", values: f.d.to_vec(), bounds: b.d() });
    }
    if case.config.update != Update::None {
        let bounds = b.running_mean(&data.running_mean, rate);
        all.push(Expected { name: "running_mean", values: f.running.mean.to_vec(), bounds });
        let bounds = b.running_var(&data.running_var, rate, factor, case.config.epsilon);
        all.push(Expected { name: "running_var", values: f.running.var.to_vec(), bounds });
    }
    all.extend(gradients(case, g, gradient_bounds(&b)));
    all
}

/// Values per channel, or the sum of their weights.
fn count(case: &Case, data: &Data) -> f64 {
    match case.config.weights {
        true => wide(&data.weights).iter().sum(),
        false => case.geometry().values_per_channel() as f64,
    }
}

/// The weight of the batch in the running update.
pub fn rate(case: &Case, data: &Data) -> f64 {
    match case.config.update {
        Update::Rate(rate) => rate,
        Update::Decay(decay) => 1.0 - decay,
        Update::Cumulative => 1.0 / f64::from(data.batches + 1),
        Update::None => 0.0,
    }
}

/// Every result of an inference and a frozen backward that the case asks for.
pub fn expected_frozen(case: &Case, data: &Data) -> Vec<Expected> {
    let oracle = Oracle::new(case, data);
    let input = oracle.input(case);
    let y = reference::infer(&input, &oracle.running, &case.config).unwrap();
    let g = reference::frozen_backward(&input, oracle.dy.view(), &oracle.running, &case.config)
        .unwrap();
    let center = Center::Running { mean: &data.running_mean, var: &data.running_var };
    let b = oracle.bounds(case, data, center);
    let mut all = vec![Expected { name: "y", values: flat(&y), bounds: b.y() }];
    all.extend(gradients(case, g, gradient_bounds(&b)));
    all
}

fn gradient_bounds(b: &Bounds) -> [Vec<f64>; 4] {
    [b.dx(), b.dgamma(), b.dbeta(), b.dz()]
}

/// Gradients that were asked for.
fn gradients(
    case: &Case,
    g: reference::InputGradients,
    [dx, dgamma, dbeta, dz]: [Vec<f64>; 4],
) -> Vec<Expected> {
    let (wanted, affine) = (case.config.gradients, case.config.affine);
    let all = [
        (wanted.x, "dx", flat(&g.dx), dx),
        (wanted.gamma && affine.gamma, "dgamma", g.dgamma.to_vec(), dgamma),
        (wanted.beta && affine.beta, "dbeta", g.dbeta.to_vec(), dbeta),
        (wanted.z && case.config.residual, "dz", flat(&g.dz), dz),
    ];
    let asked = all.into_iter().filter(|(asked, ..)| *asked);
    asked.map(|(_, name, values, bounds)| Expected { name, values, bounds }).collect()
}

fn all_hold(case: &Case, r: &Results, all: Vec<Expected>) -> Result<(), String> {
    // Accumulation adds to the poison of the runner, which is tested elsewhere.
    assert!(!case.config.gradients.accumulate && !case.geometry().is_empty());
    for name in ["dx", "dgamma", "dbeta", "dz"] {
        let asked = all.iter().any(|expected| expected.name == name);
        assert!(asked || r.get(name).is_empty(), "{name} was not asked for: {case}");
    }
    let mut failures = Failures::new(case);
    for Expected { name, values, bounds } in all {
        let element = case.config.element;
        let of_tensor = matches!(name, "y" | "dx" | "dz");
        let round = |v| if of_tensor { compare::representable(element, v) } else { v };
        failures.add(name, r.get(name), values.into_iter().map(round).collect(), &bounds);
    }
    failures.result()
}

/// What must hold of a group normalization and its backward.
pub fn compare_grouped(case: &Case, data: &Data, r: &Results) -> Result<(), String> {
    let oracle = Oracle::new(case, data);
    let input = oracle.input(case);
    let f = reference::group_norm(&input, &case.config).unwrap();
    let g = reference::group_norm_backward(&input, oracle.dy.view(), &case.config).unwrap();
    let b = GroupBounds::new(case.geometry(), given(case, data), &case.config);
    let count = vec![case.geometry().len() as f64 / f.mean.len() as f64; f.mean.len()];
    let mut all = vec![
        Expected { name: "y", values: flat(&f.y), bounds: b.rows.y() },
        Expected { name: "mean", values: f.mean.to_vec(), bounds: b.groups.mean() },
        Expected { name: "inv_std", values: f.inv_std.to_vec(), bounds: b.groups.inv_std() },
        Expected { name: "count", values: count, bounds: b.groups.count() },
    ];
    let bounds = [b.groups.dx(), b.dgamma(), b.dbeta(), b.rows.dz()];
    all.extend(gradients(case, g, bounds));
    all_hold(case, r, all)
}

/// Two ways to compute the same: each may be off by its bound.
pub fn agree(case: &Case, a: &Results, b: &Results, all: Vec<Expected>) -> Result<(), String> {
    let mut failures = Failures::new(case);
    for Expected { name, bounds, .. } in all {
        let twice: Vec<f64> = bounds.iter().map(|bound| 2.0 * bound).collect();
        failures.add(name, a.get(name), wide(b.get(name)), &twice);
    }
    failures.result()
}

/// The case and its data as the oracle takes them.
pub struct Oracle {
    pub x: ArrayD<f64>,
    pub dy: ArrayD<f64>,
    pub z: ArrayD<f64>,
    pub weights: ArrayD<f64>,
    pub gamma: Vec<f64>,
    pub beta: Vec<f64>,
    pub running: Running,
}

impl Oracle {
    pub fn new(case: &Case, data: &Data) -> Self {
        let tensor = |values| ArrayD::from_shape_vec(case.shape.clone(), wide(values)).unwrap();
        Self {
            x: tensor(&data.x),
            dy: tensor(&data.dy),
            z: if data.z.is_empty() { Default::default() } else { tensor(&data.z) },
            weights: positions(case, &data.weights),
            gamma: wide(&data.gamma),
            beta: wide(&data.beta),
            running: Running {
                mean: wide(&data.running_mean).into(),
                var: wide(&data.running_var).into(),
                batches: u64::from(data.batches),
            },
        }
    }

    pub fn input(&self, case: &Case) -> Input<'_> {
        let affine = case.config.affine;
        Input {
            gamma: affine.gamma.then(|| ArrayView1::from(&self.gamma)),
            beta: affine.beta.then(|| ArrayView1::from(&self.beta)),
            z: case.config.residual.then(|| self.z.view()),
            weights: case.config.weights.then(|| self.weights.view()),
            ..Input::new(self.x.view(), case.axis)
        }
    }

    pub fn bounds(&self, case: &Case, data: &Data, center: Center<'_>) -> Bounds {
        self.bounds_by(case, data, center, Arithmetic::Kernel)
    }

    pub fn bounds_by(
        &self,
        case: &Case,
        data: &Data,
        center: Center<'_>,
        arithmetic: Arithmetic,
    ) -> Bounds {
        Bounds::new(case.geometry(), given(case, data), &case.config, center, arithmetic)
    }
}

/// What the case uses of the data.
pub fn given<'a>(case: &Case, data: &'a Data) -> Given<'a> {
    let (affine, residual) = (case.config.affine, case.config.residual);
    // The statistics alone need no parameters.
    let when = |used: bool, values: &'a [f32]| (used && !values.is_empty()).then_some(values);
    Given {
        x: &data.x,
        dy: &data.dy,
        gamma: when(affine.gamma, &data.gamma),
        beta: when(affine.beta, &data.beta),
        z: when(residual, &data.z),
        weights: when(case.config.weights, &data.weights),
    }
}

/// One value for each position, shaped as the host form and the oracle take it; none of no values.
pub fn positions(case: &Case, values: &[f32]) -> ArrayD<f64> {
    if values.is_empty() {
        return ArrayD::default(vec![0]);
    }
    let mut shape = case.shape.clone();
    let channels = match case.axis {
        ChannelAxis::PerActivation => 1..shape.len(),
        ChannelAxis::First => 1..2,
        ChannelAxis::Last => shape.len() - 1..shape.len(),
        ChannelAxis::At(axis) => {
            let at = axis.rem_euclid(shape.len() as isize) as usize;
            at..at + 1
        }
    };
    shape.drain(channels);
    ArrayD::from_shape_vec(shape, wide(values)).unwrap()
}

pub fn flat(array: &ArrayD<f64>) -> Vec<f64> {
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

    fn result(self) -> Result<(), String> {
        match self.found.is_empty() {
            true => Ok(()),
            false => Err(format!("{}\n  {}", self.case, self.found.join("\n  "))),
        }
    }
}
