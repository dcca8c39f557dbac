//! Folding: a layer and its batch norm against the folded layer, both computed naively in f64.

use wgpu_batchnorm::fold::{FoldError, Layer, Norm, WeightLayout, fold};
use wgpu_batchnorm::{ConfigError, GeometryError};

use crate::common::compare;
use crate::common::data::Random;

/// What a layer's weight does, written per layout and not by the code under test. Images are
/// `[channels, size, size]`; a linear layer's size is 1.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// OIHW, in groups.
    Oihw { groups: usize },
    /// HWIO, in groups.
    Hwio { groups: usize },
    /// PyTorch's transposed convolution, `[I, O/groups, k, k]`.
    Iohw { groups: usize },
    /// Keras' transposed convolution, `[k, k, O, I]`.
    Hwoi,
    /// `[O, I]`.
    Oi,
    /// `[I, O]`.
    Io,
}

struct Problem {
    kind: Kind,
    inputs: usize,
    outputs: usize,
    size: usize,
    kernel: usize,
}

impl Problem {
    fn shape(&self) -> Vec<usize> {
        let &Self { inputs, outputs, kernel: k, .. } = self;
        match self.kind {
            Kind::Oihw { groups } => vec![outputs, inputs / groups, k, k],
            Kind::Hwio { groups } => vec![k, k, inputs / groups, outputs],
            Kind::Iohw { groups } => vec![inputs, outputs / groups, k, k],
            Kind::Hwoi => vec![k, k, outputs, inputs],
            Kind::Oi => vec![outputs, inputs],
            Kind::Io => vec![inputs, outputs],
        }
    }

    fn layout(&self) -> WeightLayout {
        match self.kind {
            Kind::Oihw { .. } | Kind::Oi => WeightLayout::OutputFirst,
            Kind::Hwio { .. } | Kind::Io => WeightLayout::OutputLast,
            Kind::Iohw { groups } => WeightLayout::Transposed { groups },
            Kind::Hwoi => WeightLayout::TransposedLast,
        }
    }

    /// The weight between input channel i and output channel o at a place of the kernel; none
    /// between groups.
    fn index(&self, i: usize, o: usize, row: usize, column: usize) -> Option<usize> {
        let &Self { inputs, outputs, kernel: k, .. } = self;
        let groups = match self.kind {
            Kind::Oihw { groups } | Kind::Hwio { groups } | Kind::Iohw { groups } => groups,
            _ => 1,
        };
        let (per_in, per_out) = (inputs / groups, outputs / groups);
        if i / per_in != o / per_out {
            return None;
        }
        Some(match self.kind {
            Kind::Oihw { .. } => ((o * per_in + i % per_in) * k + row) * k + column,
            Kind::Hwio { .. } => ((row * k + column) * per_in + i % per_in) * outputs + o,
            Kind::Iohw { .. } => ((i * per_out + o % per_out) * k + row) * k + column,
            Kind::Hwoi => ((row * k + column) * outputs + o) * inputs + i,
            Kind::Oi => o * inputs + i,
            Kind::Io => i * outputs + o,
        })
    }

    /// The layer's output without a bias: a convolution padded by zeros, or a transposed one.
    fn apply(&self, x: &[f64], weight: &[f64]) -> Vec<f64> {
        let &Self { inputs, outputs, size, kernel, .. } = self;
        let transposed = matches!(self.kind, Kind::Iohw { .. } | Kind::Hwoi);
        let half = kernel / 2;
        let mut y = vec![0.0; outputs * size * size];
        for (o, plane) in y.chunks_exact_mut(size * size).enumerate() {
            for (place, y) in plane.iter_mut().enumerate() {
                for tap in 0..kernel * kernel {
                    let (row, column) = (tap / kernel, tap % kernel);
                    // A transposed convolution scatters: it meets its input mirrored.
                    let at = |y: usize, tap: usize| match transposed {
                        true => (y + half).checked_sub(tap),
                        false => (y + tap).checked_sub(half),
                    };
                    let (Some(r), Some(c)) = (at(place / size, row), at(place % size, column))
                    else {
                        continue;
                    };
                    if r >= size || c >= size {
                        continue;
                    }
                    for i in 0..inputs {
                        if let Some(index) = self.index(i, o, row, column) {
                            *y += x[(i * size + r) * size + c] * weight[index];
                        }
                    }
                }
            }
        }
        y
    }
}

fn problems() -> Vec<Problem> {
    let image = |kind, inputs, outputs| Problem { kind, inputs, outputs, size: 5, kernel: 3 };
    let linear = |kind| Problem { kind, inputs: 7, outputs: 4, size: 1, kernel: 1 };
    vec![
        image(Kind::Oihw { groups: 1 }, 3, 4),
        image(Kind::Oihw { groups: 2 }, 4, 6),
        image(Kind::Hwio { groups: 1 }, 3, 4),
        image(Kind::Hwio { groups: 5 }, 5, 10),
        image(Kind::Iohw { groups: 1 }, 3, 4),
        image(Kind::Iohw { groups: 2 }, 4, 6),
        image(Kind::Iohw { groups: 3 }, 9, 3),
        image(Kind::Hwoi, 3, 4),
        linear(Kind::Oi),
        linear(Kind::Io),
    ]
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

struct Data {
    x: Vec<f64>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    mean: Vec<f32>,
    var: Vec<f32>,
}

impl Data {
    fn new(problem: &Problem, seed: u64) -> Self {
        let mut random = Random(seed);
        let (o, len) = (problem.outputs, problem.shape().iter().product());
        Self {
            x: wide(&random.normals(problem.inputs * problem.size.pow(2), 1.0, 2.0)),
            weight: random.normals(len, 0.0, 0.3),
            bias: random.normals(o, 0.5, 1.0),
            gamma: random.normals(o, 1.0, 0.5),
            beta: random.normals(o, 0.0, 1.0),
            mean: random.normals(o, 3.0, 1.0),
            // From a dead channel, where ε is all there is, to a wide one.
            var: (0..o).map(|c| if c == 0 { 0.0 } else { 10f32.powi(c as i32 - 3) }).collect(),
        }
    }
}

const EPSILON: f64 = 1e-3;

/// The worst error of the folded layer against layer and batch norm, of its bound.
fn ratio(problem: &Problem, data: &Data, layout: WeightLayout, present: usize) -> f64 {
    let given = |bit: usize, values| if present & bit > 0 { Some(values) } else { None };
    let (bias, gamma) = (given(1, &data.bias[..]), given(2, &data.gamma[..]));
    let beta = given(4, &data.beta[..]);
    let shape = problem.shape();
    let layer = Layer { weight: &data.weight, shape: &shape, layout, bias };
    let (running_mean, running_var) = (&data.mean[..], &data.var[..]);
    let norm = Norm { gamma, beta, running_mean, running_var, epsilon: EPSILON };
    let folded = fold(&layer, &norm).unwrap();
    assert_eq!((folded.weight.len(), folded.bias.len()), (data.weight.len(), problem.outputs));

    let weight = wide(&folded.weight);
    let absolute = |values: &[f64]| values.iter().map(|v| v.abs()).collect::<Vec<f64>>();
    let plain = problem.apply(&data.x, &wide(&data.weight));
    let actual = problem.apply(&data.x, &weight);
    let magnitude = problem.apply(&absolute(&data.x), &absolute(&weight));
    let mut worst = 0.0f64;
    for (i, ((plain, actual), magnitude)) in plain.iter().zip(actual).zip(magnitude).enumerate() {
        let c = i / problem.size.pow(2);
        let of = |values: Option<&[f32]>, absent| values.map_or(absent, |v| f64::from(v[c]));
        let y = plain + of(bias, 0.0);
        let i = 1.0 / (f64::from(data.var[c]) + EPSILON).sqrt();
        let expected = (y - f64::from(data.mean[c])) * i * of(gamma, 1.0) + of(beta, 0.0);
        let shift = f64::from(folded.bias[c]);
        let bound = compare::folded(magnitude + shift.abs());
        worst = worst.max((actual + shift - expected).abs() / bound);
    }
    worst
}

#[test]
fn the_folded_layer_is_layer_and_batch_norm() {
    let mut worst = 0.0f64;
    for (seed, problem) in (0..).zip(problems()) {
        let data = Data::new(&problem, seed);
        // Bias, gamma and beta, present or not.
        for present in 0..8 {
            let ratio = ratio(&problem, &data, problem.layout(), present);
            assert!(ratio <= 1.0, "{:?}, present {present:03b}: {ratio}", problem.kind);
            worst = worst.max(ratio);
        }
    }
    println!("worst error {worst:.3} of the bound");
    assert!(worst > 0.05, "the bound is too wide to notice anything");
}

/// The comparison notices a wrong layout, wherever sizes do not.
#[test]
fn a_wrong_layout_is_noticed() {
    let problem =
        Problem { kind: Kind::Iohw { groups: 2 }, inputs: 4, outputs: 4, size: 5, kernel: 3 };
    let data = Data { var: vec![0.5, 1.0, 2.0, 4.0], ..Data::new(&problem, 3) };
    assert!(ratio(&problem, &data, problem.layout(), 7) <= 1.0);
    assert!(ratio(&problem, &data, WeightLayout::OutputFirst, 7) > 1000.0);
    let square = Problem { kind: Kind::Oi, inputs: 4, outputs: 4, size: 1, kernel: 1 };
    let data = Data { var: vec![0.5, 1.0, 2.0, 4.0], ..Data::new(&square, 3) };
    assert!(ratio(&square, &data, WeightLayout::OutputFirst, 7) <= 1.0);
    assert!(ratio(&square, &data, WeightLayout::OutputLast, 7) > 1000.0);
}

#[test]
fn mistakes_are_typed() {
    let (two, three) = ([1.0f32, 2.0], [1.0f32, 2.0, 3.0]);
    let (weight, shape) = ([1.0f32; 12], [4usize, 1, 3]);
    let layout = WeightLayout::Transposed { groups: 2 };
    let bias: Option<&[f32]> = None;
    let layer = Layer { weight: &weight, shape: &shape[..], layout, bias };
    let norm =
        Norm { gamma: None, beta: None, running_mean: &two, running_var: &two, epsilon: EPSILON };
    fold(&layer, &norm).unwrap();
    let error = |layer: Layer<'_>, norm: Norm<'_>| {
        let error = fold(&layer, &norm).unwrap_err();
        assert!(!error.to_string().is_empty());
        error
    };
    let length = |name| FoldError::Length { name, length: 3, channels: 2 };
    let arrays: [(_, Layer<'_>, Norm<'_>); 5] = [
        ("bias", Layer { bias: Some(&three), ..layer }, norm),
        ("gamma", layer, Norm { gamma: Some(&three), ..norm }),
        ("beta", layer, Norm { beta: Some(&three), ..norm }),
        ("running_mean", layer, Norm { running_mean: &three, ..norm }),
        ("running_var", layer, Norm { running_var: &three, ..norm }),
    ];
    for (name, layer, norm) in arrays {
        assert_eq!(error(layer, norm), length(name));
    }
    assert_eq!(
        error(Layer { weight: &weight[1..], ..layer }, norm),
        FoldError::Weight { length: 11, shape: shape.to_vec() }
    );
    for groups in [0, 3] {
        let layout = WeightLayout::Transposed { groups };
        let expected = FoldError::Groups { groups, inputs: 4 };
        assert_eq!(error(Layer { layout, ..layer }, norm), expected);
    }
    assert_eq!(
        error(Layer { shape: &[12], ..layer }, norm),
        FoldError::Geometry(GeometryError::Axis { axis: 1, rank: 1 })
    );
    // No input, and so many groups that their channels cannot be counted.
    let endless = Layer {
        weight: &[],
        shape: &[0, 3, 1],
        layout: WeightLayout::Transposed { groups: usize::MAX },
        ..layer
    };
    assert!(matches!(error(endless, norm), FoldError::Geometry(GeometryError::Overflow { .. })));
    assert_eq!(
        error(layer, Norm { epsilon: 0.0, ..norm }),
        FoldError::Config(ConfigError::Epsilon { epsilon: 0.0 })
    );
    assert_eq!(
        error(layer, Norm { running_var: &[1.0, -0.5], ..norm }),
        FoldError::Variance { channel: 1, value: -0.5 }
    );
    let infinite = f64::INFINITY;
    let not_finite = |name, index, value| FoldError::NotFinite { name, index, value };
    let bad = [1.0, f32::INFINITY];
    assert_eq!(
        error(layer, Norm { running_var: &bad, ..norm }),
        not_finite("running_var", 1, infinite)
    );
    assert_eq!(error(layer, Norm { gamma: Some(&bad), ..norm }), not_finite("gamma", 1, infinite));
    let mut weight = weight;
    weight[7] = f32::NEG_INFINITY;
    assert_eq!(error(Layer { weight: &weight, ..layer }, norm), not_finite("weight", 7, -infinite));
    // Finite, and too large for f32 once scaled: the second group's first value.
    weight[7] = 1.0;
    let large = Norm { gamma: Some(&[1.0, 3e38]), running_var: &[1.0, 0.0], ..norm };
    let FoldError::NotFinite { name: "folded weight", index: 6, value } =
        error(Layer { weight: &weight, ..layer }, large)
    else {
        panic!("an overflow is not refused");
    };
    assert!(value.is_finite() && value > 1e39);
}
