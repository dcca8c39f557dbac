//! Golden files: first the oracle, then the GPU in both classes of tuning.

use std::collections::{BTreeMap, BTreeSet};

use ndarray::{ArrayD, ArrayView1};
use wgpu_batchnorm::reference::{self, Input, Running};
use wgpu_batchnorm::{Caps, Class, Moments, RunningVariance, Tuning, Update};

use crate::common::check::compare_statistics;
use crate::common::compare::{self, Arithmetic};
use crate::common::data::{Case, Data};
use crate::common::golden::{self, Golden};
use crate::common::runner::Results;
use crate::common::{gpu, runner};

fn array(shape: &[usize], values: &[f32]) -> ArrayD<f64> {
    ArrayD::from_shape_vec(shape, values.iter().map(|&v| f64::from(v)).collect()).unwrap()
}

#[test]
fn oracle_agrees_with_pytorch_in_float64() {
    for file in ["core", "adversarial", "dtypes", "fused"] {
        for case in golden::read(file) {
            let wide = |name| {
                case.input(name).map(|v| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>())
            };
            let x = array(&case.shape, case.input("x").unwrap());
            let dy = array(&case.shape, case.input("dy").unwrap());
            let (gamma, beta) = (wide("gamma"), wide("beta"));
            let z = case.input("z").map(|z| array(&case.shape, z));
            let input = Input {
                gamma: gamma.as_deref().map(ArrayView1::from),
                beta: beta.as_deref().map(ArrayView1::from),
                z: z.as_ref().map(|z| z.view()),
                ..Input::new(x.view(), case.axis)
            };
            let running = Running {
                mean: wide("running_mean").unwrap().into(),
                var: wide("running_var").unwrap().into(),
                batches: u64::from(case.batches_before),
            };
            let mut results: Vec<(&str, Vec<f64>)> = Vec::new();
            let gradients = if case.train {
                let f = reference::train(&input, &running, &case.config).unwrap();
                results.push(("y", f.y.into_raw_vec_and_offset().0));
                results.push(("save_mean", f.mean.to_vec()));
                results.push(("save_invstd", f.inv_std.to_vec()));
                results.push(("running_mean_out", f.running.mean.to_vec()));
                results.push(("running_var_out", f.running.var.to_vec()));
                reference::backward(&input, dy.view(), &case.config).unwrap()
            } else {
                let y = reference::infer(&input, &running, &case.config).unwrap();
                results.push(("y", y.into_raw_vec_and_offset().0));
                reference::frozen_backward(&input, dy.view(), &running, &case.config).unwrap()
            };
            results.push(("dx", gradients.dx.into_raw_vec_and_offset().0));
            if case.config.residual {
                results.push(("dz", gradients.dz.into_raw_vec_and_offset().0));
            }
            if case.config.affine.gamma {
                results.push(("dgamma", gradients.dgamma.to_vec()));
                results.push(("dbeta", gradients.dbeta.to_vec()));
            }
            for (name, actual) in results {
                let expected = case.expected(name).unwrap();
                let bounds = case.bounds(name, Arithmetic::Oracle).unwrap();
                for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
                    let same = a == e || a.is_nan() && e.is_nan();
                    let close = (a - e).abs() <= bounds[i];
                    assert!(same || close, "{}/{name}[{i}]: {a} for {e}", case.name);
                }
            }
        }
    }
}

/// A case as the runners take it.
fn inputs(case: &Golden) -> (Case, Data) {
    let input = |name| case.input(name).map(<[f32]>::to_vec).unwrap_or_default();
    let x = input("x");
    let dy = case.input("dy").map_or_else(|| x.clone(), <[f32]>::to_vec);
    let data = Data {
        x,
        dy,
        z: input("z"),
        weights: Vec::new(),
        gamma: input("gamma"),
        beta: input("beta"),
        running_mean: input("running_mean"),
        running_var: input("running_var"),
        batches: case.batches_before,
    };
    (Case::new(&case.shape, case.axis, case.config.clone()), data)
}

/// What a case gives on the GPU, by the names of the golden files.
fn on_gpu(case: &Golden, tuning: &Tuning) -> Option<Vec<(&'static str, Vec<f32>)>> {
    let gpu = gpu()?;
    let (run, data) = inputs(case);
    let run = run.tuned(tuning);
    let r =
        if case.train { runner::train(gpu, &run, &data) } else { runner::frozen(gpu, &run, &data) };
    Some(named(case, r))
}

fn named(case: &Golden, r: Results) -> Vec<(&'static str, Vec<f32>)> {
    if case.train && case.config.update == Update::Cumulative {
        assert_eq!(r.batches, case.batches_before + 1, "{}", case.name);
    }
    vec![
        ("y", r.y),
        ("save_mean", r.mean),
        ("save_invstd", r.inv_std),
        ("running_mean_out", r.running_mean),
        ("running_var_out", r.running_var),
        ("dx", r.dx),
        ("dgamma", r.dgamma),
        ("dbeta", r.dbeta),
        ("dz", r.dz),
    ]
}

/// Runs all cases of a file on the GPU under a tuning.
fn check(file: &str, class: Class) {
    let caps = Caps { class, ..Caps::webgpu_default() };
    compare_all(file, &format!("{class:?} tuning"), |case| {
        let geometry = Case::new(&case.shape, case.axis, case.config.clone()).geometry();
        on_gpu(case, &Tuning::choose(&caps, &geometry, case.config.element))
    });
}

/// Compares all cases of a file; prints the worst error per distribution and tensor beside
/// PyTorch's. Nothing is compared where there are no results.
fn compare_all(
    file: &str,
    how: &str,
    results: impl Fn(&Golden) -> Option<Vec<(&'static str, Vec<f32>)>>,
) {
    let mut worst: BTreeMap<(String, &str), (f64, f64, f64)> = BTreeMap::new();
    let mut failures = Vec::new();
    let (mut compared, mut last_bits, mut excused) = (0, 0, BTreeSet::new());
    for case in golden::read(file) {
        let geometry = Case::new(&case.shape, case.axis, case.config.clone()).geometry();
        let Some(results) = results(&case) else { return };
        for (name, actual) in results {
            let Some(expected) = case.expected(name) else { continue };
            let bounds = case.bounds(name, Arithmetic::Kernel).unwrap();
            let result = compare::within(&actual, expected, &bounds);
            if !result.is_good() {
                failures.push(format!("{how} {}/{name}: {result:?}", case.name));
            }
            if let Some(&torch) = case.torch_error.get(name) {
                compared += 1;
                // Differences of f64 round.
                if result.max_error > torch * (1.0 + 1e-12) {
                    let n = geometry.values_per_channel();
                    if result.max_error <= compare::last_bits(expected, n) {
                        last_bits += 1;
                    } else if why_larger(&case.dist, name).is_some() {
                        excused.insert((case.dist.clone(), name));
                    } else {
                        let error = result.max_error;
                        let than = format!("{error:e} is more than PyTorch's {torch:e}");
                        failures.push(format!("{how} {}/{name}: {than}", case.name));
                    }
                }
            }
            let mode = if case.train { "train" } else { "eval" };
            let entry = worst.entry((format!("{} {mode}", case.dist), name)).or_default();
            entry.0 = entry.0.max(result.max_error);
            entry.1 = entry.1.max(result.ratio);
            entry.2 = entry.2.max(case.torch_error.get(name).copied().unwrap_or(f64::NAN));
        }
    }
    println!("{file}, {how}: worst |error|, of the bound, PyTorch's worst |error|");
    for ((dist, name), (error, ratio, torch)) in worst {
        println!("  {dist:<32} {name:<17} {error:9.2e} {ratio:6.3} {torch:9.2e}");
    }
    println!(
        "of {compared} results, larger than PyTorch's in the last bits: {last_bits}; for a reason:"
    );
    for (dist, name) in &excused {
        println!("  {dist:<32} {name:<17} {}", why_larger(dist, name).unwrap());
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// Why an error may be larger than PyTorch's by more than last bits. It is within the derived bound
/// all the same, and no result that a network sees depends on the difference: the mean's error is
/// small against the deviation.
fn why_larger(dist: &str, tensor: &str) -> Option<&'static str> {
    const DOUBLE: &str = "PyTorch's CPU kernels sum the mean in f64, which WGSL does not have: ours \
                          is exact to f32 against the spread (an outlier's, too), not against a mean close to zero";
    match (dist, tensor) {
        (
            "alternating1e4"
            | "huge1e18"
            | "mixed_scales"
            | "first_outlier1e6"
            | "first_outlier1e6_std1e-3",
            "running_mean_out",
        ) => Some(DOUBLE),
        _ => None,
    }
}

/// The statistics operation on the golden inputs: within the derived bounds, and the variance within
/// the promise. Prints the worst per distribution.
#[test]
fn variances_keep_their_promise() {
    let Some(gpu) = gpu() else { return };
    let mut worst: BTreeMap<String, f64> = BTreeMap::new();
    let mut failures = Vec::new();
    for file in ["core", "adversarial"] {
        for case in golden::read(file).into_iter().filter(|case| case.train) {
            let x = case.input("x").unwrap();
            let exact = reference::statistics(&reference::Input::new(
                array(&case.shape, x).view(),
                case.axis,
            ))
            .unwrap();
            let data = Data { x: x.to_vec(), dy: x.to_vec(), ..Data::default() };
            for class in [Class::Software, Class::Hardware] {
                let run = Case::new(&case.shape, case.axis, case.config.clone());
                let caps = Caps { class, ..Caps::webgpu_default() };
                let tuning = Tuning::choose(&caps, &run.geometry(), case.config.element);
                let run = run.tuned(&tuning);
                let slot = runner::statistics(gpu, &run, &data);
                let moments = Moments::from_slot(&slot).unwrap();
                failures.extend(compare_statistics(&run, &data, &moments).err());
                let variance = |m: &Moments| m.variance(RunningVariance::Population);
                let (actual, exact) = (variance(&moments), variance(&exact));
                let result = compare::within(&actual, &exact, &compare::variance_promise(&exact));
                if !result.is_good() {
                    failures.push(format!("{class:?} {}: {result:?}", case.name));
                }
                let entry = worst.entry(case.dist.clone()).or_default();
                *entry = entry.max(result.ratio);
            }
        }
    }
    println!("worst error of the variance, of the promise");
    worst.iter().for_each(|(dist, ratio)| println!("  {dist:<32} {ratio:6.3}"));
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn core() {
    check("core", Class::Software);
    check("core", Class::Hardware);
}

#[test]
fn adversarial() {
    check("adversarial", Class::Software);
    check("adversarial", Class::Hardware);
}

#[test]
fn fused() {
    check("fused", Class::Software);
    check("fused", Class::Hardware);
}

#[test]
fn dtypes() {
    check("dtypes", Class::Software);
    check("dtypes", Class::Hardware);
}

#[test]
fn onnx() {
    check("onnx", Class::Software);
    check("onnx", Class::Hardware);
}

#[cfg(feature = "cpu")]
#[test]
fn cpu() {
    use crate::cpu::{frozen, train};
    for file in ["core", "adversarial", "onnx"] {
        compare_all(file, "CPU", |case| {
            let (run, data) = inputs(case);
            let r = if case.train { train(&run, &data) } else { frozen(&run, &data) };
            Some(named(case, r))
        });
    }
}
