//! The CPU oracle: the formulas in plain f64 loops, nothing else. Slow on purpose of being readable;
//! tested first, against hand-computed values and PyTorch's float64 results.

use std::fmt;

use ndarray::{Array1, ArrayD, ArrayView1, ArrayViewD};

use crate::config::{
    Activation, Config, ConfigError, NonFinite, Renorm, RunningVariance, SingleValue, Update,
};
use crate::geometry::{ChannelAxis, Geometry, GeometryError};
use crate::moments::Moments;

/// Running statistics, `[C]` each, and how many batches went into them.
#[derive(Debug, Clone, PartialEq)]
pub struct Running {
    /// Running mean.
    pub mean: Array1<f64>,
    /// Running variance, by the convention of the config that updates it.
    pub var: Array1<f64>,
    /// Batches seen.
    pub batches: u64,
}

impl Running {
    /// Mean 0, variance 1, no batches: where every framework starts.
    pub fn new(channels: usize) -> Self {
        Self { mean: Array1::zeros(channels), var: Array1::ones(channels), batches: 0 }
    }
}

/// The tensor and parameters that every operation takes.
#[derive(Debug, Clone)]
pub struct Input<'a> {
    /// The tensor.
    pub x: ArrayViewD<'a, f64>,
    /// Where its channels are.
    pub axis: ChannelAxis,
    /// Scale `[C]`; 1 if absent.
    pub gamma: Option<ArrayView1<'a, f64>>,
    /// Shift `[C]`; 0 if absent.
    pub beta: Option<ArrayView1<'a, f64>>,
    /// Residual, shaped as `x`; 0 if absent.
    pub z: Option<ArrayViewD<'a, f64>>,
    /// Weights of positions in the batch's statistics, shaped as `x` without its channel axis (per
    /// activation: `[N]`); 1 if absent. Presence decides, and not [`Config::weights`].
    pub weights: Option<ArrayViewD<'a, f64>>,
}

impl<'a> Input<'a> {
    /// A tensor alone.
    pub fn new(x: ArrayViewD<'a, f64>, axis: ChannelAxis) -> Self {
        Self { x, axis, gamma: None, beta: None, z: None, weights: None }
    }
}

/// What a training forward gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// Output, shaped as `x`.
    pub y: ArrayD<f64>,
    /// Batch mean `[C]`.
    pub mean: Array1<f64>,
    /// Batch variance `[C]`, population.
    pub var: Array1<f64>,
    /// `1/√(var+ε)` `[C]`; 0 of a batch without weight.
    pub inv_std: Array1<f64>,
    /// Batch renormalization's factor `[C]`; 1 without it.
    pub r: Array1<f64>,
    /// Batch renormalization's shift `[C]`; 0 without it.
    pub d: Array1<f64>,
    /// The running statistics after the update.
    pub running: Running,
}

/// What a backward gives. All gradients are computed, whatever the config asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct InputGradients {
    /// Gradient of `x`, shaped as `x`.
    pub dx: ArrayD<f64>,
    /// Gradient of gamma `[C]`.
    pub dgamma: Array1<f64>,
    /// Gradient of beta `[C]`.
    pub dbeta: Array1<f64>,
    /// Gradient of the residual, shaped as `x`: dy behind the activation.
    pub dz: ArrayD<f64>,
}

/// Training forward: `y = act((x−μ)/√(σ²+ε)·γ + β + z)` with the batch's own statistics; with
/// [`Renorm`], `y = act(((x−μ)/√(σ²+ε)·r + d)·γ + β + z)`.
///
/// # Errors
/// [`ReferenceError`]: a bad shape, axis, config or length, one value per channel where the
/// config refuses it, or an activation in WGSL.
pub fn train(
    input: &Input<'_>,
    running: &Running,
    config: &Config,
) -> Result<Forward, ReferenceError> {
    let view = View::new(input, config)?;
    check_length("running_mean", running.mean.len(), view.channels)?;
    check_length("running_var", running.var.len(), view.channels)?;
    view.check_single_value(config)?;
    let (mean, var) = view.moments();
    let inv_std = view.inv_std(&var, config);
    let (r, d) = view.renorm(&mean, &var, running, config);
    let view = view.renormalized(r, d);
    let y = view.map_indexed(|i, _, _| view.function.value(view.before(i, &mean, &inv_std)));
    let mut running = running.clone();
    if view.count > 0.0 && config.update != Update::None {
        running.batches += 1;
        let rate = match config.update {
            Update::Rate(rate) => rate,
            Update::Decay(decay) => 1.0 - decay,
            Update::Cumulative => 1.0 / running.batches as f64,
            Update::None => 0.0,
        };
        let factor = config.running_variance.factor(view.count);
        for c in 0..view.channels {
            let finite = mean[c].is_finite() && var[c].is_finite();
            if finite || config.non_finite == NonFinite::Propagate {
                running.mean[c] = (1.0 - rate) * running.mean[c] + rate * mean[c];
                running.var[c] = (1.0 - rate) * running.var[c] + rate * var[c] * factor;
            }
        }
    }
    let View { r, d, .. } = view;
    Ok(Forward { y, mean, var, inv_std, r, d, running })
}

/// Inference: `y = act((x−running_mean)/√(running_var+ε)·γ + β + z)`.
///
/// # Errors
/// [`ReferenceError`]: a bad shape, axis, config or length, or an activation in WGSL.
pub fn infer(
    input: &Input<'_>,
    running: &Running,
    config: &Config,
) -> Result<ArrayD<f64>, ReferenceError> {
    let view = View::new(input, config)?;
    let inv_std = view.running_inv_std(running, config)?;
    let before = |i| view.before(i, &running.mean, &inv_std);
    Ok(view.map_indexed(|i, _, _| view.function.value(before(i))))
}

/// Backward of [`train`], through the statistics of `input.x`.
///
/// # Errors
/// [`ReferenceError`]: a bad shape, axis, config or length, an activation in WGSL, or a config with
/// batch renormalization, which is [`renorm_backward`].
pub fn backward(
    input: &Input<'_>,
    dy: ArrayViewD<'_, f64>,
    config: &Config,
) -> Result<InputGradients, ReferenceError> {
    match config.renorm {
        Some(_) => Err(ReferenceError::Renorm),
        None => train_backward(input, dy, None, config),
    }
}

/// Backward of [`train`] with batch renormalization, whose r and d are constants: of `running` as it
/// was before the forward. Without it, that of [`backward`].
///
/// # Errors
/// [`ReferenceError`]: a bad shape, axis, config or length, or an activation in WGSL.
pub fn renorm_backward(
    input: &Input<'_>,
    dy: ArrayViewD<'_, f64>,
    running: &Running,
    config: &Config,
) -> Result<InputGradients, ReferenceError> {
    train_backward(input, dy, Some(running), config)
}

fn train_backward(
    input: &Input<'_>,
    dy: ArrayViewD<'_, f64>,
    running: Option<&Running>,
    config: &Config,
) -> Result<InputGradients, ReferenceError> {
    let mut view = View::new(input, config)?;
    view.check_single_value(config)?;
    let (mean, var) = view.moments();
    if let Some(running) = running {
        check_length("running_mean", running.mean.len(), view.channels)?;
        check_length("running_var", running.var.len(), view.channels)?;
        let (r, d) = view.renorm(&mean, &var, running, config);
        view = view.renormalized(r, d);
    }
    let inv_std = view.inv_std(&var, config);
    let dy = view.behind(dy, &mean, &inv_std)?;
    let (mut s1, mut s2) = view.sums(&dy, &mean);
    let n = view.count;
    if n == 0.0 {
        (s1, s2) = (Array1::zeros(view.channels), Array1::zeros(view.channels));
    }
    let dx = view.map_indexed(|i, x, c| {
        let center = x - mean[c];
        let slope = center * inv_std[c] * inv_std[c] * s2[c] / n;
        let moved = match view.weight(i) {
            0.0 => 0.0,
            w => w * (s1[c] / n + slope),
        };
        view.gamma(c) * inv_std[c] * view.r[c] * (dy[i] - moved)
    });
    let dz = view.map_indexed(|i, _, _| dy[i]);
    let dgamma = s2 * inv_std * &view.r + &s1 * &view.d;
    Ok(InputGradients { dx, dgamma, dbeta: s1, dz })
}

/// Backward of [`infer`]: the statistics are constants.
///
/// # Errors
/// [`ReferenceError`]: a bad shape, axis, config or length, or an activation in WGSL.
pub fn frozen_backward(
    input: &Input<'_>,
    dy: ArrayViewD<'_, f64>,
    running: &Running,
    config: &Config,
) -> Result<InputGradients, ReferenceError> {
    let view = View::new(input, config)?.unweighted();
    let inv_std = view.running_inv_std(running, config)?;
    let dy = view.behind(dy, &running.mean, &inv_std)?;
    let (s1, s2) = view.sums(&dy, &running.mean);
    let dx = view.map_indexed(|i, _, c| dy[i] * view.gamma(c) * inv_std[c]);
    let dz = view.map_indexed(|i, _, _| dy[i]);
    Ok(InputGradients { dx, dgamma: s2 * inv_std, dbeta: s1, dz })
}

/// What a group normalization gives.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupForward {
    /// Output, shaped as `x`.
    pub y: ArrayD<f64>,
    /// Mean of every group of every sample, `[outer·groups]`.
    pub mean: Array1<f64>,
    /// Its variance `[outer·groups]`, population.
    pub var: Array1<f64>,
    /// `1/√(var+ε)` `[outer·groups]`.
    pub inv_std: Array1<f64>,
}

/// Group normalization: `y = act((x−μ)/√(σ²+ε)·γ + β + z)` with the statistics of every group of
/// [`groups`](Config::groups) of every position of `outer`.
///
/// # Errors
/// [`ReferenceError`]: a bad shape, axis, config or length, groups that do not part the channels, one
/// value per group where the config refuses it, or an activation in WGSL.
pub fn group_norm(input: &Input<'_>, config: &Config) -> Result<GroupForward, ReferenceError> {
    let view = View::new(input, config)?;
    let Groups { size, mean, var, inv_std } = &Groups::new(&view, config)?;
    let value = |i: usize, g: usize| {
        let normal = (view.data[i] - mean[g]) * inv_std[g];
        let c = view.channel(i);
        view.function.value(normal * view.gamma(c) + view.beta(c) + view.z[i])
    };
    let y = view.map_indexed(|i, _, _| value(i, i / size));
    Ok(GroupForward { y, mean: mean.clone(), var: var.clone(), inv_std: inv_std.clone() })
}

/// Backward of [`group_norm`].
///
/// # Errors
/// As [`group_norm`].
pub fn group_norm_backward(
    input: &Input<'_>,
    dy: ArrayViewD<'_, f64>,
    config: &Config,
) -> Result<InputGradients, ReferenceError> {
    let view = View::new(input, config)?;
    if dy.shape() != view.shape {
        return Err(shapes_differ("dy", &input.x, &dy));
    }
    let Groups { size, mean, inv_std, .. } = &Groups::new(&view, config)?;
    let normal = |i: usize| (view.data[i] - mean[i / size]) * inv_std[i / size];
    let behind = |(i, &dy): (usize, &f64)| {
        let c = view.channel(i);
        view.function.back(dy, normal(i) * view.gamma(c) + view.beta(c) + view.z[i])
    };
    let dy: Vec<f64> = dy.iter().enumerate().map(behind).collect();
    // Means over each group of γ·dy and of γ·dy·x̂.
    let (mut m1, mut m2) = (Array1::<f64>::zeros(mean.len()), Array1::<f64>::zeros(mean.len()));
    for (i, dy) in dy.iter().enumerate() {
        let weighed = dy * view.gamma(view.channel(i)) / *size as f64;
        m1[i / size] += weighed;
        m2[i / size] += weighed * normal(i);
    }
    let dx = view.map_indexed(|i, _, c| {
        let g = i / size;
        inv_std[g] * (view.gamma(c) * dy[i] - m1[g] - normal(i) * m2[g])
    });
    let dz = view.map_indexed(|i, _, _| dy[i]);
    let (dgamma, dbeta) = (view.sum(|i, _, _| dy[i] * normal(i)), view.sum(|i, _, _| dy[i]));
    Ok(InputGradients { dx, dgamma, dbeta, dz })
}

/// The statistics of every group, which lies together.
struct Groups {
    /// Values in a group.
    size: usize,
    mean: Array1<f64>,
    var: Array1<f64>,
    inv_std: Array1<f64>,
}

impl Groups {
    fn new(view: &View<'_, '_>, config: &Config) -> Result<Self, ReferenceError> {
        let (groups, channels) = (config.groups, view.channels as u64);
        if groups == 0 || channels % groups != 0 {
            return Err(ReferenceError::Groups { groups, channels });
        }
        let size = view.channels / groups as usize * view.inner;
        let count = view.data.len().checked_div(size).unwrap_or(0);
        if size == 1 && count > 0 && config.single_value == SingleValue::Error {
            return Err(ReferenceError::SingleValue);
        }
        let x = ArrayD::from_shape_vec(vec![1, count, size], view.data.clone())
            .expect("bug: as many values as the groups have");
        let m = statistics(&Input::new(x.view(), ChannelAxis::First))?;
        let var = Array1::from(m.variance(RunningVariance::Population));
        let inv_std = var.mapv(|v| 1.0 / (v + config.epsilon).sqrt());
        Ok(Self { size, mean: m.mean().to_vec().into(), var, inv_std })
    }
}

/// The statistics of `input.x` alone, weighed if there are weights.
///
/// # Errors
/// [`ReferenceError`]: a bad shape, axis or length.
pub fn statistics(input: &Input<'_>) -> Result<Moments, ReferenceError> {
    // No number of a config matters.
    let view = View::new(input, &Config::pytorch())?;
    let (mean, var) = view.moments();
    Ok(Moments::new(view.count, mean.to_vec(), var.to_vec())
        .expect("bug: as many variances as means, and they are sums of squares"))
}

/// A tensor as `[outer, C, inner]` in row-major memory.
struct View<'v, 'a> {
    shape: Vec<usize>,
    data: Vec<f64>,
    z: Vec<f64>,
    weights: Option<Vec<f64>>,
    function: Function,
    channels: usize,
    inner: usize,
    /// Values per channel, or the sum of their weights.
    count: f64,
    /// Values per channel.
    values: usize,
    /// Normalized values are multiplied by this…
    r: Array1<f64>,
    /// …and this is added.
    d: Array1<f64>,
    input: &'v Input<'a>,
}

impl<'v, 'a> View<'v, 'a> {
    fn new(input: &'v Input<'a>, config: &Config) -> Result<Self, ReferenceError> {
        config.validate()?;
        let geometry = Geometry::new(input.x.shape(), input.axis)?;
        let channels = geometry.channels() as usize;
        for (name, parameter) in [("gamma", &input.gamma), ("beta", &input.beta)] {
            if let Some(parameter) = parameter {
                check_length(name, parameter.len(), channels)?;
            }
        }
        let z = match &input.z {
            Some(z) if z.shape() == input.x.shape() => z.iter().copied().collect(),
            Some(z) => return Err(shapes_differ("z", &input.x, z)),
            None => vec![0.0; input.x.len()],
        };
        let values = geometry.values_per_channel() as usize;
        let weights: Option<Vec<f64>> = match &input.weights {
            Some(weights) => {
                let shape = input.axis.positions(input.x.shape());
                if weights.shape() != shape {
                    let found = weights.shape().to_vec();
                    return Err(ReferenceError::Shape { name: "weights", x: shape, found });
                }
                Some(weights.iter().copied().collect())
            }
            None => None,
        };
        let count = weights.as_ref().map_or(values as f64, |weights| weights.iter().sum());
        Ok(Self {
            shape: input.x.shape().to_vec(),
            data: input.x.iter().copied().collect(),
            z,
            weights,
            function: Function::of(config.activation)?,
            channels,
            inner: geometry.inner() as usize,
            count,
            values,
            r: Array1::ones(channels),
            d: Array1::zeros(channels),
            input,
        })
    }

    /// Frozen statistics know no weights.
    fn unweighted(self) -> Self {
        Self { weights: None, ..self }
    }

    fn check_single_value(&self, config: &Config) -> Result<(), ReferenceError> {
        let refused = self.values == 1 && config.single_value == SingleValue::Error;
        if refused && self.channels > 0 { Err(ReferenceError::SingleValue) } else { Ok(()) }
    }

    /// r and d of batch renormalization; 1 and 0 without it.
    fn renorm(
        &self,
        mean: &Array1<f64>,
        var: &Array1<f64>,
        running: &Running,
        config: &Config,
    ) -> (Array1<f64>, Array1<f64>) {
        let one = |c: usize| {
            let Some(Renorm { rmax, dmax }) = config.renorm else { return (1.0, 0.0) };
            let running_std = (running.var[c] + config.epsilon).sqrt();
            let r = (var[c] + config.epsilon).sqrt() / running_std;
            let d = (mean[c] - running.mean[c]) / running_std;
            (r.clamp(1.0 / rmax, rmax), d.clamp(-dmax, dmax))
        };
        let (r, d): (Vec<f64>, Vec<f64>) = (0..self.channels).map(one).unzip();
        (r.into(), d.into())
    }

    fn renormalized(self, r: Array1<f64>, d: Array1<f64>) -> Self {
        Self { r, d, ..self }
    }

    /// The weight of the position of value `i`.
    fn weight(&self, i: usize) -> f64 {
        let sample = self.channels * self.inner;
        let at = || i / sample * self.inner + i % self.inner;
        self.weights.as_ref().map_or(1.0, |weights| weights[at()])
    }

    /// 0 of a batch without weight, so that y = β.
    fn inv_std(&self, var: &Array1<f64>, config: &Config) -> Array1<f64> {
        match self.weights.is_some() && self.count == 0.0 {
            true => Array1::zeros(self.channels),
            false => var.mapv(|v| 1.0 / (v + config.epsilon).sqrt()),
        }
    }

    fn channel(&self, i: usize) -> usize {
        i / self.inner % self.channels
    }

    fn gamma(&self, c: usize) -> f64 {
        self.input.gamma.as_ref().map_or(1.0, |gamma| gamma[c])
    }

    fn beta(&self, c: usize) -> f64 {
        self.input.beta.as_ref().map_or(0.0, |beta| beta[c])
    }

    /// What the activation takes.
    fn before(&self, i: usize, mean: &Array1<f64>, inv_std: &Array1<f64>) -> f64 {
        let c = self.channel(i);
        let normal = (self.data[i] - mean[c]) * inv_std[c] * self.r[c] + self.d[c];
        normal * self.gamma(c) + self.beta(c) + self.z[i]
    }

    /// dy behind the activation.
    fn behind(
        &self,
        dy: ArrayViewD<'_, f64>,
        mean: &Array1<f64>,
        inv_std: &Array1<f64>,
    ) -> Result<Vec<f64>, ReferenceError> {
        if dy.shape() != self.shape {
            return Err(shapes_differ("dy", &self.input.x, &dy));
        }
        let one = |(i, &dy): (usize, &f64)| match dy == 0.0 && self.weights.is_some() {
            // Whatever padding holds.
            true => 0.0,
            false => self.function.back(dy, self.before(i, mean, inv_std)),
        };
        Ok(dy.iter().enumerate().map(one).collect())
    }

    fn map_indexed(&self, f: impl Fn(usize, f64, usize) -> f64) -> ArrayD<f64> {
        let values = self.data.iter().enumerate().map(|(i, &x)| f(i, x, self.channel(i))).collect();
        ArrayD::from_shape_vec(self.shape.clone(), values)
            .expect("bug: as many values as the shape has")
    }

    /// Population mean and variance of every channel, in two passes; 0 of no values.
    fn moments(&self) -> (Array1<f64>, Array1<f64>) {
        let n = if self.count == 0.0 { 1.0 } else { self.count };
        let weighed = |i: usize, v: f64| match self.weight(i) {
            0.0 => 0.0,
            w => w * v,
        };
        let mean = self.sum(|i, x, _| weighed(i, x)) / n;
        // A second pass takes back what rounding lost in the first; not where it is infinite.
        let rest = self.sum(|i, x, c| weighed(i, x - mean[c])) / n;
        let mean = Array1::from_shape_fn(self.channels, |c| {
            if rest[c].is_finite() { mean[c] + rest[c] } else { mean[c] }
        });
        let var = self.sum(|i, x, c| weighed(i, (x - mean[c]).powi(2))) / n;
        (mean, var)
    }

    /// `Σdy` and `Σdy·(x−center)` of every channel.
    fn sums(&self, dy: &[f64], center: &Array1<f64>) -> (Array1<f64>, Array1<f64>) {
        let product = |i: usize, x: f64, c: usize| match dy[i] == 0.0 && self.weights.is_some() {
            true => 0.0,
            false => dy[i] * (x - center[c]),
        };
        (self.sum(|i, _, _| dy[i]), self.sum(product))
    }

    fn sum(&self, f: impl Fn(usize, f64, usize) -> f64) -> Array1<f64> {
        let mut sums = Array1::zeros(self.channels);
        for (i, &x) in self.data.iter().enumerate() {
            let c = self.channel(i);
            sums[c] += f(i, x, c);
        }
        sums
    }

    fn running_inv_std(
        &self,
        running: &Running,
        config: &Config,
    ) -> Result<Array1<f64>, ReferenceError> {
        check_length("running_mean", running.mean.len(), self.channels)?;
        check_length("running_var", running.var.len(), self.channels)?;
        Ok(running.var.mapv(|v| 1.0 / (v + config.epsilon).sqrt()))
    }
}

/// An activation that can be computed here.
enum Function {
    Identity,
    /// `slope·v` up to 0, constant from the limit on.
    Relu {
        slope: f64,
        limit: Option<f64>,
    },
    Silu,
}

impl Function {
    fn of(activation: Activation) -> Result<Self, ReferenceError> {
        match activation {
            Activation::None => Ok(Self::Identity),
            Activation::Relu => Ok(Self::Relu { slope: 0.0, limit: None }),
            Activation::LeakyRelu { slope } => Ok(Self::Relu { slope, limit: None }),
            Activation::ClippedRelu { limit } => Ok(Self::Relu { slope: 0.0, limit: Some(limit) }),
            Activation::Silu => Ok(Self::Silu),
            Activation::Custom(_) => Err(ReferenceError::Activation),
        }
    }

    fn value(&self, v: f64) -> f64 {
        match *self {
            Self::Identity => v,
            // Not −∞·0.
            Self::Relu { slope: 0.0, .. } if v < 0.0 => 0.0,
            Self::Relu { slope, .. } if v < 0.0 => v * slope,
            Self::Relu { limit: Some(limit), .. } if v > limit => limit,
            Self::Relu { .. } => v,
            Self::Silu => v / (1.0 + (-v).exp()),
        }
    }

    /// dy times the slope; 0 where the slope is, whatever dy.
    fn back(&self, dy: f64, v: f64) -> f64 {
        match *self {
            Self::Identity => dy,
            Self::Relu { limit, .. } if v > 0.0 && limit.is_none_or(|limit| v < limit) => dy,
            Self::Relu { slope: 0.0, .. } => 0.0,
            Self::Relu { slope, .. } => dy * slope,
            Self::Silu => {
                let s = 1.0 / (1.0 + (-v).exp());
                dy * (s * (1.0 + v * (1.0 - s)))
            }
        }
    }
}

fn shapes_differ(
    name: &'static str,
    x: &ArrayViewD<'_, f64>,
    other: &ArrayViewD<'_, f64>,
) -> ReferenceError {
    ReferenceError::Shape { name, x: x.shape().to_vec(), found: other.shape().to_vec() }
}

fn check_length(name: &'static str, length: usize, channels: usize) -> Result<(), ReferenceError> {
    if length == channels { Ok(()) } else { Err(ReferenceError::Length { name, length, channels }) }
}

/// Why the oracle cannot compute.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ReferenceError {
    /// A bad shape or axis.
    Geometry(GeometryError),
    /// A bad number in the config.
    Config(ConfigError),
    /// A per-channel array of the wrong length.
    Length {
        /// Which.
        name: &'static str,
        /// Its length.
        length: usize,
        /// The number of channels.
        channels: usize,
    },
    /// A tensor that is not shaped as `x`, or weights that are not as `x` without its channel axis.
    Shape {
        /// Which.
        name: &'static str,
        /// The shape it should have.
        x: Vec<usize>,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A backward with batch renormalization but without the running statistics.
    Renorm,
    /// An activation in WGSL, which only a device can compute.
    Activation,
    /// Groups that do not part the channels evenly.
    Groups {
        /// The number of groups.
        groups: u64,
        /// The number of channels.
        channels: u64,
    },
    /// One value per channel or group under [`SingleValue::Error`].
    SingleValue,
}

impl fmt::Display for ReferenceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Geometry(error) => error.fmt(f),
            Self::Config(error) => error.fmt(f),
            Self::Length { name, length, channels } => {
                write!(f, "{name} has {length} values for {channels} channels")
            }
            Self::Shape { name, x, found } => {
                write!(f, "{name} is shaped {found:?}, and not {x:?}")
            }
            Self::Renorm => {
                f.write_str("batch renormalization needs the running statistics: renorm_backward")
            }
            Self::Activation => f.write_str("the oracle cannot compute an activation in WGSL"),
            Self::Groups { groups, channels } => {
                write!(f, "{channels} channels cannot be parted into {groups} groups of equal size")
            }
            Self::SingleValue => f.write_str("training needs more than one value per channel"),
        }
    }
}

impl std::error::Error for ReferenceError {}

impl From<GeometryError> for ReferenceError {
    fn from(error: GeometryError) -> Self {
        Self::Geometry(error)
    }
}

impl From<ConfigError> for ReferenceError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}
