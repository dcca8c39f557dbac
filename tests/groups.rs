//! Group, layer and instance normalization on the kernels of batch normalization.

use ndarray::{Array1, ArrayD};
use wgpu_batchnorm::reference::{self, ReferenceError};
use wgpu_batchnorm::{
    Activation, Affine, Caps, ChannelAxis, Config, Element, Geometry, Gradients, GroupNorm,
    GroupNormBackward, HostError, Input, Kernel, Mask, Memory, Plan, PlanError, SavedRenorm,
    SingleValue, Slot, Train,
};

use crate::common::check::{Oracle, compare_grouped};
use crate::common::compare::{self, DIFFERENCE_ERROR, DIFFERENCE_STEP};
use crate::common::data::{Case, Data, small_tunings};
use crate::common::gpu;
use crate::common::runner::{self, bits};

/// Long and short rows, with and without vectors; rows of one value; one sample; one channel.
const SHAPES: [&[usize]; 9] = [
    &[2, 6, 8, 5],
    &[3, 6, 7],
    &[2, 8, 40],
    &[5, 12],
    &[7, 5],
    &[1, 4, 301],
    &[3, 1, 10],
    &[2, 12, 3, 4],
    &[40, 2, 3],
];

/// With every number of groups that has more than one value in each.
fn cases(config: &Config) -> Vec<Case> {
    let tunings = small_tunings();
    let mut cases = Vec::new();
    for (i, shape) in SHAPES.iter().enumerate() {
        let channels = shape[1];
        let inner: usize = shape[2..].iter().product();
        for groups in (1..=channels).filter(|g| channels % g == 0 && channels / g * inner > 1) {
            let config = Config { groups: groups as u64, ..config.clone() };
            let case = Case::new(shape, ChannelAxis::First, config);
            cases.push(match (i + groups) % 4 {
                3 => case,
                t => case.tuned(&tunings[t]),
            });
        }
    }
    cases
}

#[test]
fn every_shape_in_every_memory() {
    let Some(gpu) = gpu() else { return };
    for memory in [Memory::Separate, Memory::InPlace, Memory::Arena] {
        for case in cases(&Config { memory, ..Config::pytorch() }) {
            let data = Data::random(case.geometry(), 101, 1.0, 2.0);
            compare_grouped(&case, &data, &runner::grouped(gpu, &case, &data)).unwrap();
        }
    }
}

#[test]
fn activations_residuals_and_parameters() {
    let Some(gpu) = gpu() else { return };
    let options = [
        (Activation::Relu, true, Mask::Auto, Affine::BOTH),
        (
            Activation::LeakyRelu { slope: 0.2 },
            false,
            Mask::Bits,
            Affine { gamma: true, beta: false },
        ),
        (Activation::RELU6, true, Mask::Recompute, Affine { gamma: false, beta: true }),
        (Activation::Silu, false, Mask::Auto, Affine::BOTH),
        (Activation::None, true, Mask::Auto, Affine::NONE),
    ];
    for (activation, residual, mask, affine) in options {
        let config = Config { activation, residual, mask, affine, ..Config::pytorch() };
        for mut case in cases(&config) {
            case.buffers = Some(8);
            let data = Data::random(case.geometry(), 102, -1.0, 1.5);
            compare_grouped(&case, &data, &runner::grouped(gpu, &case, &data)).unwrap();
        }
    }
}

#[test]
fn halves() {
    let Some(gpu) = gpu() else { return };
    for element in [Element::F16, Element::Bf16] {
        let config =
            Config { element, activation: Activation::Relu, residual: true, ..Config::pytorch() };
        for case in cases(&config) {
            let data = Data::random(case.geometry(), 103, 1.0, 2.0).rounded(element);
            compare_grouped(&case, &data, &runner::grouped(gpu, &case, &data)).unwrap();
        }
    }
}

/// A mean of a million deviations does no harm, as in batch normalization.
#[test]
fn far_from_zero() {
    let Some(gpu) = gpu() else { return };
    for case in cases(&Config::pytorch()) {
        let data = Data::random(case.geometry(), 104, 1e6, 1.0);
        compare_grouped(&case, &data, &runner::grouped(gpu, &case, &data)).unwrap();
    }
}

/// What is not asked for is not bound, and the rest has the same bits; dγ and dβ accumulate.
#[test]
fn every_mask_and_accumulation() {
    let Some(gpu) = gpu() else { return };
    for case in cases(&Config::pytorch()) {
        let data = Data::random(case.geometry(), 105, 0.0, 1.0);
        let all = runner::grouped(gpu, &case, &data);
        for mask in 0..8 {
            let gradients = Gradients {
                x: mask & 1 > 0,
                gamma: mask & 2 > 0,
                beta: mask & 4 > 0,
                z: false,
                accumulate: false,
            };
            let case = Case { config: Config { gradients, ..case.config.clone() }, ..case.clone() };
            let some = runner::grouped(gpu, &case, &data);
            compare_grouped(&case, &data, &some).unwrap();
            for name in ["dx", "dgamma", "dbeta"] {
                let same = bits(some.get(name)) == bits(all.get(name));
                assert!(some.get(name).is_empty() || same, "{name}: {case}");
            }
        }
        let gradients = Gradients { accumulate: true, ..Gradients::ALL };
        let case = Case { config: Config { gradients, ..case.config.clone() }, ..case.clone() };
        let mut inputs = runner::inputs(&data);
        inputs.insert(Slot::Saved, bits(&all.saved()));
        let prior = vec![0.75f32; data.gamma.len()];
        inputs.insert(Slot::Dgamma, bits(&prior));
        inputs.insert(Slot::Dbeta, bits(&prior));
        let plan = runner::plan::<GroupNormBackward>(gpu, &case).unwrap();
        let out = runner::run(gpu, gpu.kernels(), plan, &inputs);
        for (slot, alone) in [(Slot::Dgamma, &all.dgamma), (Slot::Dbeta, &all.dbeta)] {
            for (sum, alone) in runner::floats(&out[&slot]).iter().zip(alone) {
                let off = f64::from((sum - (0.75 + alone)).abs());
                assert!(off <= compare::added(0.75, *alone), "{slot}: {sum} for {alone}: {case}");
            }
        }
    }
}

/// Instance normalization is batch normalization of every row, and has its bits.
#[test]
fn instances_are_batches_of_rows() {
    let Some(gpu) = gpu() else { return };
    let [split, _, wide] = small_tunings();
    for tuning in [&split, &wide] {
        for shape in [&[3, 4, 40], &[2, 6, 7], &[1, 5, 301]] {
            let [n, c, inner]: [usize; 3] = *shape;
            let config = Config { affine: Affine::NONE, groups: c as u64, ..Config::pytorch() };
            let grouped = Case::new(shape, ChannelAxis::First, config).tuned(tuning);
            let rows = Case { shape: vec![1, n * c, inner], ..grouped.clone() };
            let rows_data = Data::random(rows.geometry(), 106, 2.0, 1.0);
            let data = Data { gamma: Vec::new(), beta: Vec::new(), ..rows_data.clone() };
            let a = runner::grouped(gpu, &grouped, &data);
            let b = runner::train(gpu, &rows, &rows_data);
            for name in ["y", "mean", "rest", "inv_std", "count", "dx"] {
                assert_eq!(bits(a.get(name)), bits(b.get(name)), "{name}: {grouped}");
            }
        }
    }
}

/// One sample of two channels in one group: 1, 3 and 5, 7 have mean 4 and variance 5; with ε = 4 the
/// deviation is 3. γ = (3, 6), β = (0, 1): y = −3, −1 and 3, 7. Two groups: variance 1, ε = 3,
/// deviation 2.
#[test]
fn by_hand() {
    let x = ArrayD::from_shape_vec(vec![1, 2, 2], vec![1.0, 3.0, 5.0, 7.0]).unwrap();
    let (gamma, beta) = (Array1::from(vec![3.0, 6.0]), Array1::from(vec![0.0, 1.0]));
    let input = reference::Input {
        gamma: Some(gamma.view()),
        beta: Some(beta.view()),
        ..reference::Input::new(x.view(), ChannelAxis::First)
    };
    let near = |a: f64, e: f64| assert!((a - e).abs() <= 16.0 * f64::EPSILON, "{a} is not {e}");
    for (groups, epsilon, expected) in
        [(1, 4.0, [-3.0, -1.0, 3.0, 7.0]), (2, 3.0, [-1.5, 1.5, -2.0, 4.0])]
    {
        let config = Config { groups, epsilon, ..Config::pytorch() };
        let f = reference::group_norm(&input, &config).unwrap();
        f.y.iter().zip(expected).for_each(|(y, e)| near(*y, e));
        let ones = ArrayD::ones(x.raw_dim());
        let g = reference::group_norm_backward(&input, ones.view(), &config).unwrap();
        assert_eq!(g.dbeta.to_vec(), [2.0, 2.0]);
        // Σx̂ of each channel: (−3 − 1)/3 and (1 + 3)/3; or 0.
        let slope = if groups == 1 { 4.0 / 3.0 } else { 0.0 };
        near(g.dgamma[0], -slope);
        near(g.dgamma[1], slope);
        // γ·dy = 3, 3, 6, 6 has mean 4.5; Σγ·dy·x̂ = 3·(−4/3) + 6·4/3 = 4, a mean of 1.
        let dx: Vec<f64> = g.dx.iter().copied().collect();
        let expected = match groups {
            1 => [-1.5 + 1.0, -1.5 + 1.0 / 3.0, 1.5 - 1.0 / 3.0, 1.5 - 1.0].map(|v| v / 3.0),
            _ => [0.0; 4],
        };
        dx.iter().zip(expected).for_each(|(a, e)| near(*a, e));
    }
    for groups in [0, 3] {
        let config = Config { groups, ..Config::pytorch() };
        let error = reference::group_norm(&input, &config).unwrap_err();
        assert_eq!(error, ReferenceError::Groups { groups, channels: 2 });
    }
}

#[test]
fn the_oracle_is_differentiable() {
    for groups in [1, 2, 4] {
        let config =
            Config { groups, activation: Activation::Silu, residual: true, ..Config::pytorch() };
        let case = Case::new(&[2, 4, 3], ChannelAxis::First, config);
        let data = Data::random(case.geometry(), 107, 0.3, 1.0);
        let oracle = Oracle::new(&case, &data);
        let input = oracle.input(&case);
        let g = reference::group_norm_backward(&input, oracle.dy.view(), &case.config).unwrap();
        let loss = |input: &reference::Input<'_>| -> f64 {
            let y = reference::group_norm(input, &case.config).unwrap().y;
            y.iter().zip(&oracle.dy).map(|(y, dy)| y * dy).sum()
        };
        let close = |name: &str, along: &dyn Fn(f64) -> f64, gradient: f64| {
            let h = DIFFERENCE_STEP;
            let slope = (along(h) - along(-h)) / (2.0 * h);
            assert!((slope - gradient).abs() <= DIFFERENCE_ERROR, "{name}: {slope}, {gradient}");
        };
        let moved = |tensor: &ArrayD<f64>, i: usize, h: f64| {
            let mut tensor = tensor.clone();
            *tensor.iter_mut().nth(i).unwrap() += h;
            tensor
        };
        for i in 0..oracle.x.len() {
            let along =
                |h| loss(&reference::Input { x: moved(&oracle.x, i, h).view(), ..input.clone() });
            close("dx", &along, *g.dx.iter().nth(i).unwrap());
            let along = |h| {
                loss(&reference::Input { z: Some(moved(&oracle.z, i, h).view()), ..input.clone() })
            };
            close("dz", &along, *g.dz.iter().nth(i).unwrap());
        }
        for c in 0..4 {
            let step = |values: &[f64], h: f64| {
                let mut values = Array1::from(values.to_vec());
                values[c] += h;
                values
            };
            let along = |h| {
                let gamma = step(&oracle.gamma, h);
                loss(&reference::Input { gamma: Some(gamma.view()), ..input.clone() })
            };
            close("dgamma", &along, g.dgamma[c]);
            let along = |h| {
                let beta = step(&oracle.beta, h);
                loss(&reference::Input { beta: Some(beta.view()), ..input.clone() })
            };
            close("dbeta", &along, g.dbeta[c]);
        }
    }
}

/// One NaN makes its group NaN, and no other.
#[test]
fn bad_values_stay_in_their_group() {
    let Some(gpu) = gpu() else { return };
    for case in cases(&Config::pytorch()) {
        let fine = Data::random(case.geometry(), 108, 1.0, 1.0);
        let expected = runner::grouped(gpu, &case, &fine);
        let size = fine.x.len() / expected.mean.len();
        let bad_group = expected.mean.len() - 1;
        let mut data = fine;
        data.x[bad_group * size] = f32::NAN;
        let results = runner::grouped(gpu, &case, &data);
        for name in ["y", "dx"] {
            for (i, (a, e)) in results.get(name).iter().zip(expected.get(name)).enumerate() {
                let good = if i / size == bad_group { a.is_nan() } else { a == e };
                assert!(good, "{name}[{i}] = {a}: {case}");
            }
        }
    }
}

#[test]
fn what_cannot_be_grouped_is_refused() {
    let caps = Caps::webgpu_default();
    let plan = |shape: &[usize], config: &Config| {
        let geometry = Geometry::new(shape, ChannelAxis::First).unwrap();
        let backward = Plan::<GroupNormBackward>::new(geometry, config, &caps).map(|_| ());
        let forward = Plan::<GroupNorm>::new(geometry, config, &caps).map(|_| ());
        assert_eq!(forward, backward);
        forward
    };
    for groups in [0, 4, 12] {
        let config = Config { groups, ..Config::pytorch() };
        let error = plan(&[2, 6, 8], &config).unwrap_err();
        assert_eq!(error, PlanError::Groups { groups, channels: 6 });
        assert!(error.to_string().contains(&format!("6 channels cannot be parted into {groups}")));
        // Batch normalization does not look at it.
        let geometry = Geometry::new(&[2, 6, 8], ChannelAxis::First).unwrap();
        assert!(Plan::<Train>::new(geometry, &config, &caps).is_ok());
    }
    // One value in every group: instance normalization of [N, C].
    let config = Config { groups: 6, ..Config::pytorch() };
    assert!(matches!(plan(&[5, 6], &config), Err(PlanError::SingleValue { .. })));
    let allow = Config { single_value: SingleValue::Allow, ..config };
    assert!(plan(&[5, 6], &allow).is_ok());
    // Sums of rows of one value are as large as the tensor; and more samples than a workgroup can add
    // up for dγ.
    let refused = |shape: &[usize]| {
        let geometry = Geometry::new(shape, ChannelAxis::First).unwrap();
        Plan::<GroupNormBackward>::new(geometry, &Config::pytorch(), &caps).unwrap_err()
    };
    let error = refused(&[1 << 21, 8]);
    assert!(matches!(error, PlanError::TooLarge { slot: Slot::Scratch, .. }), "{error}");
    let error = refused(&[1 << 23, 2]);
    assert!(matches!(error, PlanError::Iterations { kernel: Kernel::MergeRows, .. }), "{error}");
}

/// An empty batch has no groups, and zero gradients of its parameters.
#[test]
fn an_empty_batch() {
    let Some(gpu) = gpu() else { return };
    let config = Config { groups: 3, ..Config::pytorch() };
    let case = Case::new(&[0, 6, 4], ChannelAxis::First, config.clone());
    assert!(runner::plan::<GroupNorm>(gpu, &case).unwrap().stages().is_empty());
    let plan = runner::plan::<GroupNormBackward>(gpu, &case).unwrap();
    let out = runner::run(gpu, gpu.kernels(), plan, &Default::default());
    assert_eq!((&out[&Slot::Dgamma], &out[&Slot::Dbeta]), (&vec![0; 6], &vec![0; 6]));
    let x = ArrayD::zeros(vec![0, 6, 4]);
    let output = gpu.group_norm_blocking(&Input::new(x.view(), case.axis), &config).unwrap();
    assert!(output.y.is_empty() && output.saved.mean.is_empty());
}

/// No channels part into any number of groups, however large: a product of both once overflowed.
#[test]
fn no_channels() {
    let Some(gpu) = gpu() else { return };
    let config = Config { groups: u64::MAX, ..Config::pytorch() };
    let (x, axis) = (ArrayD::zeros(vec![3, 0, 4]), ChannelAxis::First);
    let output = gpu.group_norm_blocking(&Input::new(x.view(), axis), &config).unwrap();
    assert!(output.y.is_empty() && output.saved.mean.is_empty());
    let input = Input::new(x.view(), axis);
    let back = gpu.group_norm_backward_blocking(&input, x.view(), &output.saved, &config).unwrap();
    assert!(back.dx.unwrap().is_empty());
    let (x, none) = (x.mapv(f64::from), None);
    let input =
        reference::Input { x: x.view(), axis, gamma: none, beta: none, z: None, weights: None };
    let f = reference::group_norm(&input, &config).unwrap();
    assert!(f.y.is_empty() && f.mean.is_empty());
    assert!(reference::group_norm_backward(&input, x.view(), &config).unwrap().dx.is_empty());
}

/// The host form gives what the embedding form gives.
#[test]
fn arrays_in_arrays_out() {
    let Some(gpu) = gpu() else { return };
    let config = Config { groups: 3, activation: Activation::Relu, ..Config::pytorch() };
    let case = Case::new(&[2, 6, 5, 4], ChannelAxis::First, config.clone());
    let data = Data::random(case.geometry(), 109, 1.0, 2.0);
    let expected = runner::grouped(gpu, &case, &data);
    let tensor = |v: &[f32]| ArrayD::from_shape_vec(case.shape.clone(), v.to_vec()).unwrap();
    let (x, dy) = (tensor(&data.x), tensor(&data.dy));
    let (gamma, beta) = (Array1::from(data.gamma), Array1::from(data.beta));
    let (gamma, beta) = (Some(gamma.view()), Some(beta.view()));
    let input = Input { gamma, beta, ..Input::new(x.view(), case.axis) };
    let output = gpu.group_norm_blocking(&input, &config).unwrap();
    assert_eq!(output.y.iter().copied().collect::<Vec<_>>(), expected.y);
    assert_eq!(output.saved.inv_std.to_vec(), expected.inv_std);
    let back = gpu.group_norm_backward_blocking(&input, dy.view(), &output.saved, &config).unwrap();
    assert_eq!(back.dx.unwrap().iter().copied().collect::<Vec<_>>(), expected.dx);
    assert_eq!(back.dgamma.unwrap().to_vec(), expected.dgamma);
    assert_eq!(back.dbeta.unwrap().to_vec(), expected.dbeta);
    let mut short = output.saved.clone();
    short.rest = Array1::zeros(5);
    let error = gpu.group_norm_backward_blocking(&input, dy.view(), &short, &config).unwrap_err();
    assert_eq!(error, HostError::Length { slot: Slot::Saved, length: 5, channels: 6 });
    let mut renormed = output.saved.clone();
    renormed.renorm = Some(SavedRenorm { r: Array1::ones(6), d: Array1::zeros(6) });
    let error =
        gpu.group_norm_backward_blocking(&input, dy.view(), &renormed, &config).unwrap_err();
    assert_eq!(error, HostError::Renorm { given: true });
    let wrong = Config { groups: 4, ..config };
    let error = gpu.group_norm_blocking(&input, &wrong).unwrap_err();
    assert_eq!(error, HostError::Plan(PlanError::Groups { groups: 4, channels: 6 }));
}
