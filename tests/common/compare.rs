//! Every tolerance of the tests, each derived from the data.
//!
//! u is half the spacing of the arithmetic, 2⁻²⁴ for f32. Rounding errors of m operations in a row are taken as
//! independent, so that they grow with √m (Higham and Mary, 2019). One is uniform in ±u, of standard
//! deviation 0.58·u, so λ = 4 is a margin of seven standard deviations: correct code exceeds a bound
//! with a chance of some 1e-12.
//!
//! With D = max |x − k| over a channel (k one of its elements: D is at most their range) and m = 16 + n/4 updates in a row (a
//! whole channel in one lane, four values an update, and the trees):
//! - mean: each update rounds once, and the error of update j keeps the weight j/m, which sums to
//!   √(m/3): `δμ = u·D·(6 + λ·√(m/3))`, with 6 for the rounding of x − k and of the batch's mean.
//! - variance: the same relative to σ², plus the rounding of x − k, which enters as D·σ.
//! - mean and remainder together: `k + (μ − k)` is split into `mean = fl(k + (μ − k))` and
//!   `rest = (k − mean) + (μ − k)`, where `k − mean` rounds by u·D and the sum by u·|rest|, and
//!   `|rest| ≤ u·(|μ| + D)`.
//! - `S₁`, `S₂`: partial sums stay within |S| + √Σ²; each addition rounds that.
//! - y and dx: first-order propagation of the above, plus one u for each further operation.
//! - r and d of batch renormalization: as σ and μ, relative to exact running statistics; a clamp
//!   makes no error larger, and where it holds, r and d are exact but for the limit's rounding.
//! - Behind a ReLU, a value within its own bound of the corner may be on either side of it: dy there
//!   may be off by the whole step of the slope, and so may the sums.
//!
//! Weighted values enter one at a time, m = 32 + n updates in a row, and the error of an update keeps
//! a weight of at most 1: `δμ = u·D·(6 + λ·√m)`, with D over the values that have weight. The sum of
//! weights itself rounds as a sum.
//!
//! Group normalization is bounded in two views of the same memory: groups as channels, for the
//! statistics and dx (whose dy is γ·dy); rows as channels, for y and the sums that dγ and dβ are added
//! from.
//!
//! What is stored as halves is rounded once more: by half the spacing of the element, 2⁻¹¹ or 2⁻⁸ of
//! the value. From half's overflow on, infinity is expected.
//!
//! Values below f32's normal range (2⁻¹²⁶) may be flushed to zero by a GPU, so every bound has at
//! least that absolute size, scaled by what the value is multiplied with.

use wgpu_batchnorm::{
    Activation, ChannelAxis, Config, Element, Geometry, Gradients, Moments, Renorm, RunningVariance,
};

const TINY: f64 = f32::MIN_POSITIVE as f64;
const LAMBDA: f64 = 4.0;

/// How far a step of 0.001 may move 4,096 running means on the average, of what they are, from what the
/// batch is too. Three roundings of each are u·0.58·√3, which is 9e-10 on the average, and six times that.
/// Factors of 0.999 and 0.001 that are rounded alone are 1.3e-8 more than 1.
pub const DRIFT: f64 = 5.5e-9;

/// How far a step of 0.1 may leave a running variance from what the formula gives, relative to it, where the
/// batch's variance is all of it: u for each of sixteen roundings, two of x, one of the step and five of its
/// size where it is what 0.9 leaves, six of the variance, two of the sum.
pub const ONE_STEP: f64 = 16.0 / (1 << 24) as f64;

/// The step of central differences of f64 functions of size and slope about 1.
pub const DIFFERENCE_STEP: f64 = 1e-5;

/// They err by h²·f'''/6 and 2⁻⁵²·f/h: some 1e-9 with that step. A hundred times that, as sums of dozens
/// of such terms are differentiated.
pub const DIFFERENCE_ERROR: f64 = 1e-7;

/// The arithmetic whose rounding is bounded.
#[derive(Clone, Copy, PartialEq)]
pub enum Arithmetic {
    /// The kernels: f32, relative to one of the channel's elements, four values an update.
    Kernel,
    /// The kernels on so many parts, merged. Each adds an update, the rounding of its mean's two
    /// halves, and of its distance from the shift.
    Sharded { parts: usize },
    /// The kernels on rows, so many of which are merged into a group.
    Grouped { rows: usize },
    /// Plain f64 loops: the oracle, and PyTorch in float64.
    Oracle,
}

impl Arithmetic {
    fn unit(self) -> f64 {
        match self {
            Self::Kernel | Self::Sharded { .. } | Self::Grouped { .. } => 2f64.powi(-24),
            Self::Oracle => 2f64.powi(-53),
        }
    }

    /// √ of how many roundings stand in a row where a value passes a loop (and the trees).
    fn roundings(self, n: f64) -> f64 {
        match self {
            Self::Kernel => (16.0 + n / 4.0).sqrt(),
            Self::Sharded { parts } => (16.0 + n / 4.0 + 4.0 * parts as f64).sqrt(),
            // Another tree.
            Self::Grouped { rows } => (32.0 + n / 4.0 + rows as f64).sqrt(),
            Self::Oracle => n.sqrt(),
        }
    }
}

/// The worst comparison of a tensor.
#[must_use]
#[derive(Debug, Clone, Copy, Default)]
pub struct Comparison {
    /// Largest |actual − expected|.
    pub max_error: f64,
    /// Largest |actual − expected| / bound; above 1 is wrong.
    pub ratio: f64,
    /// Where.
    pub at: usize,
}

impl Comparison {
    pub fn is_good(&self) -> bool {
        self.ratio <= 1.0
    }
}

/// Compares with one bound per value. A non-finite value must be met by the same non-finite value.
pub fn within<T: Copy + Into<f64>>(actual: &[T], expected: &[f64], bounds: &[f64]) -> Comparison {
    assert_eq!(actual.len(), expected.len());
    assert_eq!(actual.len(), bounds.len());
    let mut worst = Comparison::default();
    for (i, ((&a, &e), &bound)) in actual.iter().zip(expected).zip(bounds).enumerate() {
        let a: f64 = a.into();
        let same = a == e || a.is_nan() && e.is_nan();
        let error = if same { 0.0 } else { (a - e).abs() };
        let ratio = match (same, error.is_finite() && bound.is_finite()) {
            (true, _) => 0.0,
            (false, true) => error / bound,
            (false, false) => f64::INFINITY,
        };
        if !error.is_nan() && error > worst.max_error {
            worst.max_error = error;
        }
        if ratio > worst.ratio {
            (worst.ratio, worst.at) = (ratio, i);
        }
    }
    worst
}

/// Equality to the bit; any NaN equals any NaN.
pub fn exactly(actual: &[f32], expected: &[f32]) -> Comparison {
    let expected: Vec<f64> = expected.iter().map(|&e| f64::from(e)).collect();
    within(actual, &expected, &vec![0.0; expected.len()])
}

/// Values that were added to others, whose sum is `sums`, with one f32 rounding.
pub fn accumulated(bounds: &[f64], sums: &[f64]) -> Vec<f64> {
    bounds
        .iter()
        .zip(sums)
        .map(|(bound, sum)| bound + 2f64.powi(-24) * (sum.abs() + bound))
        .collect()
}

/// A folded layer's output `Σx·w + b` in f64, whose weights and bias were each rounded to f32 once:
/// each term is off by at most u of itself, and `magnitude` is their sum without signs. The f64
/// arithmetic on both sides adds far less than the slack.
pub fn folded(magnitude: f64) -> f64 {
    1.001 * 2f64.powi(-24) * magnitude + TINY
}

/// An error in the last bits of results made of `n` values each: every addition rounds by u of the
/// largest result. Two correct kernels, or one and PyTorch's, differ by so much.
pub fn last_bits(expected: &[f64], n: u64) -> f64 {
    let kernel = Arithmetic::Kernel;
    let finite = expected.iter().map(|e| e.abs()).filter(|e| e.is_finite());
    LAMBDA * kernel.unit() * kernel.roundings(n as f64) * finite.fold(0.0, f64::max)
}

/// What the crate promises of a variance, however far the mean: one part in a million. Not derived;
/// where |x − k| is large against σ the derived bound is wider.
pub fn variance_promise(exact: &[f64]) -> Vec<f64> {
    exact.iter().map(|variance| 1e-6 * variance + TINY).collect()
}

/// The same promise, of as many `center` − 1 as `center` + 1: of the mean, as one f32, and of
/// y = γ·(x − μ)/σ. The mean is off by half a millionth of σ, and rounds to f32 where it is made and
/// where it is stored; a millionth of the variance is half a millionth of σ, and |x − μ| is σ.
pub fn steps_promise(center: f64, gamma: f64) -> [f64; 2] {
    let half = variance_promise(&[1.0])[0] / 2.0;
    let rounding = 2.0 * Arithmetic::Kernel.unit() * center.abs();
    [half + rounding, 2.0 * half * gamma]
}

/// Of `prior + gradient`, where the gradient is known as it is without the prior: the sum rounds
/// once, and a device that contracts rounds the gradient's last product once less.
pub fn added(prior: f32, gradient: f32) -> f64 {
    let (prior, gradient) = (f64::from(prior).abs(), f64::from(gradient).abs());
    2.0 * Arithmetic::Kernel.unit() * (prior + gradient) + TINY
}

/// Of the merged means and variances of parts that are each within their own bounds:
/// `μ = Σwμₚ`, `σ² = Σw(σₚ² + (μₚ−μ)²)` with weights w = nₚ/n. To first order an error of μ itself
/// does not enter σ²; to second order it does. The merge is f64.
pub fn merged(parts: &[(Moments, Bounds)], whole: &Moments) -> (Vec<f64>, Vec<f64>) {
    let n = whole.count();
    let double = 64.0 * Arithmetic::Oracle.unit();
    let variance = whole.variance(RunningVariance::Population);
    let one = |c: usize| {
        let weighed = |f: &dyn Fn(&Moments, &Bounds) -> f64| -> f64 {
            parts.iter().map(|(m, b)| m.count() / n * f(m, b)).sum()
        };
        let mean = whole.mean()[c];
        let mean_error = weighed(&|_, b| b.whole_mean()[c]) + double * mean.abs();
        let variance_error = weighed(&|m, b| {
            let error = b.whole_mean()[c] + mean_error;
            b.variance()[c] + 2.0 * (m.mean()[c] - mean).abs() * error + error * error
        });
        (mean_error, variance_error + double * variance[c])
    };
    (0..whole.channels()).map(one).unzip()
}

/// Slopes of the oracle's loss `L = Σdy·y` over one channel of n values.
pub mod slope {
    use super::Arithmetic;

    /// In units of a radius of 1/(4i), within which L is analytic in each x (σ² + ε changes by less
    /// than 0.4 of itself) and at most `1.3·|γ|·Σ|dy|·(|x̂| + 1/4)`.
    pub const STEP: f64 = 1.0 / 1024.0;

    /// Of central differences at `STEP` and half of it, extrapolated (their h⁴ is left), where L is
    /// at most `largest` within the radius. L itself rounds by its n terms, and by its values' offset
    /// from zero, `offset` in deviations.
    pub fn of_x(largest: f64, inv_std: f64, n: f64, offset: f64) -> f64 {
        largest * 4.0 * inv_std * (STEP.powi(4) + 3.0 / STEP * rounding(n, offset))
    }

    /// Of a difference over a step of 1 in a parameter, in which L is linear.
    pub fn of_parameter(largest: f64, n: f64, offset: f64) -> f64 {
        4.0 * largest * rounding(n, offset)
    }

    fn rounding(n: f64, offset: f64) -> f64 {
        Arithmetic::Oracle.unit() * (16.0 + n + 8.0 * offset)
    }
}

/// A value and how far it may be off.
#[derive(Clone, Copy)]
struct Uncertain {
    value: f64,
    error: f64,
}

impl Uncertain {
    /// The clamp of a value moves no more than the value, and its limit rounds.
    fn clamped(self, low: f64, high: f64, unit: f64) -> Self {
        let clamp = |v: f64| v.clamp(low, high);
        let value = clamp(self.value);
        let up = clamp(self.value + self.error) - value;
        let error = up.max(value - clamp(self.value - self.error)) + unit * value.abs();
        Self { value, error }
    }
}

/// The errors that f32 arithmetic may leave in one channel.
struct Channel {
    mean: f64,
    inv_std: f64,
    n: f64,
    mean_error: f64,
    /// What splitting the mean into two f32 adds.
    split_error: f64,
    /// Relative error of inv_std.
    inv_std_error: f64,
    s1: f64,
    s2: f64,
    s1_error: f64,
    s2_error: f64,
    /// Of batch renormalization; exactly 1 and 0 without it.
    r: Uncertain,
    d: Uncertain,
}

impl Channel {
    /// i·r, what centered values are multiplied by.
    fn stretch(&self) -> f64 {
        self.inv_std * self.r.value
    }

    /// Its relative error; r adds a product.
    fn stretch_error(&self, unit: f64) -> f64 {
        let product = if self.r.error > 0.0 { unit } else { 0.0 };
        self.inv_std_error + self.r.error / self.r.value + product
    }
}

/// Bounds for every result of one tensor.
pub struct Bounds {
    geometry: Geometry,
    unit: f64,
    channels: Vec<Channel>,
    gamma: Vec<f64>,
    beta: Vec<f64>,
    x: Vec<f64>,
    /// Behind the activation.
    dy: Vec<f64>,
    dy_errors: Vec<f64>,
    z: Vec<f64>,
    /// Of every value, if there are any.
    weights: Option<Vec<f64>>,
    activation: Activation,
    element: Element,
    /// A second pass takes dz, as it was stored, for dy.
    keeps_dz: bool,
    /// Running statistics are given exactly.
    frozen: bool,
    variance_errors: Vec<f64>,
}

/// Where the statistics come from.
pub enum Center<'a> {
    Batch,
    /// The batch, renormalized by running statistics that have not moved yet.
    Renormalized {
        mean: &'a [f32],
        var: &'a [f32],
    },
    Running {
        mean: &'a [f32],
        var: &'a [f32],
    },
    /// Those of groups, each of as many neighbouring channels.
    Groups(&'a Bounds),
}

/// What an operation is given.
#[derive(Clone, Copy)]
pub struct Given<'a> {
    pub x: &'a [f32],
    pub dy: &'a [f32],
    pub gamma: Option<&'a [f32]>,
    pub beta: Option<&'a [f32]>,
    pub z: Option<&'a [f32]>,
    /// Of every position.
    pub weights: Option<&'a [f32]>,
}

impl Bounds {
    pub fn new(
        geometry: Geometry,
        given: Given<'_>,
        config: &Config,
        center: Center<'_>,
        arithmetic: Arithmetic,
    ) -> Self {
        let unit = arithmetic.unit();
        let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        let (x, dy) = (wide(given.x), wide(given.dy));
        let c = geometry.channels() as usize;
        let frozen = matches!(center, Center::Running { .. });
        let weights = given.weights.filter(|_| !frozen).map(|weights| {
            let (inner, sample) = (geometry.inner() as usize, geometry.inner() as usize * c);
            let one = |i: usize| f64::from(weights[i / sample * inner + i % inner]);
            (0..x.len()).map(one).collect::<Vec<f64>>()
        });
        let weight = |i: usize| weights.as_ref().map_or(1.0, |weights| weights[i]);
        let values_count = geometry.values_per_channel() as f64;
        let mut channels = Vec::with_capacity(c);
        let mut variance_errors = Vec::with_capacity(c);
        for channel in 0..c {
            // Those that have weight.
            let counted = || places(geometry, channel).filter(|&i| weight(i) > 0.0);
            let values = || counted().map(|i| x[i]);
            let n: f64 = counted().map(weight).sum();
            let first = values().next().filter(|k| k.is_finite());
            let k = first.filter(|_| arithmetic != Arithmetic::Oracle).unwrap_or(0.0);
            let (mean, variance, mean_error, split_error, variance_error) = match &center {
                Center::Batch | Center::Renormalized { .. } => {
                    let shifted = counted().map(|i| weight(i) * (x[i] - k)).sum::<f64>() / n;
                    let mean = k + shifted;
                    let variance =
                        counted().map(|i| weight(i) * (x[i] - mean).powi(2)).sum::<f64>() / n;
                    let reach = match arithmetic {
                        Arithmetic::Kernel
                        | Arithmetic::Sharded { .. }
                        | Arithmetic::Grouped { .. } => {
                            let largest = values().fold(f64::NEG_INFINITY, f64::max);
                            largest - values().fold(f64::INFINITY, f64::min)
                        }
                        Arithmetic::Oracle => values().map(f64::abs).fold(0.0, f64::max),
                    };
                    let in_a_row = match weights {
                        Some(_) => {
                            (32.0 + values_count).sqrt().max(arithmetic.roundings(values_count))
                        }
                        None => arithmetic.roundings(values_count) / 3f64.sqrt(),
                    };
                    let rounding = unit * (6.0 + LAMBDA * in_a_row);
                    let mean_error = rounding * reach;
                    let variance_error =
                        2.0 * rounding * (variance + reach * variance.sqrt()) + mean_error.powi(2);
                    let split_error = unit * (reach + unit * (mean.abs() + reach));
                    (mean, variance, mean_error, split_error, variance_error)
                }
                Center::Groups(groups) => {
                    let group = channel / (c / groups.channels.len());
                    let (g, error) = (&groups.channels[group], groups.variance_errors[group]);
                    let variance = g.inv_std.powi(-2) - config.epsilon;
                    // Not `max`, which would lose a NaN.
                    let variance = if variance < 0.0 { 0.0 } else { variance };
                    (g.mean, variance, g.mean_error, g.split_error, error)
                }
                Center::Running { mean, var } => {
                    let (mean, var) = (f64::from(mean[channel]), f64::from(var[channel]));
                    // PyTorch's inference is x·a + b, which cancels.
                    let largest = values().map(f64::abs).fold(mean.abs(), f64::max);
                    let cancelled = if arithmetic == Arithmetic::Oracle { largest } else { 0.0 };
                    (mean, var, 4.0 * unit * cancelled, 0.0, 0.0)
                }
            };
            let inv_std = 1.0 / (variance + config.epsilon).sqrt();
            let inv_std_error = variance_error / (variance + config.epsilon) / 2.0 + 6.0 * unit;
            variance_errors.push(variance_error);
            let exact = |value| Uncertain { value, error: 0.0 };
            let (r, d) = match (&center, config.renorm) {
                (Center::Renormalized { mean: means, var }, Some(Renorm { rmax, dmax })) => {
                    let (running, var) = (f64::from(means[channel]), f64::from(var[channel]));
                    // A sum and a root each, and a division.
                    let rounding = 16.0 * unit;
                    let deviation = (var + config.epsilon).sqrt();
                    let r = 1.0 / (inv_std * deviation);
                    let d = (mean - running) / deviation;
                    let away = unit * (mean.abs() + running.abs()) + mean_error + split_error;
                    let r = Uncertain { value: r, error: r * (inv_std_error + rounding) };
                    let error = away / deviation + d.abs() * rounding + TINY;
                    let d = Uncertain { value: d, error };
                    (r.clamped(1.0 / rmax, rmax, unit), d.clamped(-dmax, dmax, unit))
                }
                _ => (exact(1.0), exact(0.0)),
            };
            channels.push(Channel {
                mean,
                inv_std,
                n,
                mean_error,
                split_error,
                inv_std_error,
                s1: 0.0,
                s2: 0.0,
                s1_error: 0.0,
                s2_error: 0.0,
                r,
                d,
            });
        }
        let or = |v: Option<&[f32]>, default| v.map_or(vec![default; c], wide);
        let (gamma, beta) = (or(given.gamma, 1.0), or(given.beta, 0.0));
        let z = given.z.map_or(vec![0.0; x.len()], wide);
        let (activation, dy_errors) = (config.activation, vec![0.0; dy.len()]);
        let mut bounds = Self {
            geometry,
            unit,
            channels,
            gamma,
            beta,
            x,
            dy,
            z,
            weights,
            dy_errors,
            activation,
            element: config.element,
            keeps_dz: config.residual && config.gradients.z,
            frozen,
            variance_errors,
        };
        bounds.pass_back();
        bounds.add_up(arithmetic);
        bounds
    }

    /// From dy to the gradient behind the activation.
    fn pass_back(&mut self) {
        let errors = self.before_errors();
        for (i, error) in errors.into_iter().enumerate() {
            if self.weights.is_some() && self.dy[i] == 0.0 {
                // Whatever stands behind it.
                continue;
            }
            let slope = slope_of(self.activation, self.before(i), error, self.unit);
            let dy = self.dy[i];
            // 0 where the slope is, whatever dy.
            self.dy[i] = if slope.value == 0.0 { 0.0 } else { dy * slope.value };
            // The slope as an f32, and the product.
            let rounded = slope.value != 0.0 && slope.value != 1.0;
            let rounding = if rounded { 2.0 * self.unit } else { 0.0 };
            self.dy_errors[i] = match slope.error {
                0.0 => rounding * self.dy[i].abs(),
                error => dy.abs() * error + rounding * self.dy[i].abs(),
            };
        }
    }

    /// The sums over each channel.
    fn add_up(&mut self, arithmetic: Arithmetic) {
        let n = self.geometry.values_per_channel() as f64;
        let additions = self.unit * LAMBDA * arithmetic.roundings(n);
        for channel in 0..self.channels.len() {
            let c = &self.channels[channel];
            let (mean, mean_error) = (c.mean, c.mean_error);
            // Where a device binds few buffers, frozen sums are added from dz, as it was stored.
            let from_dz = self.frozen && self.keeps_dz;
            let error = |i: usize| match self.dy_errors[i] {
                error if from_dz => error + stored(self.element, self.dy[i].abs() + error),
                error => error,
            };
            let all = || {
                let one = |i| (self.x[i] - mean, self.dy[i], error(i));
                let adds = |i: &usize| self.weights.is_none() || self.dy[*i] != 0.0;
                places(self.geometry, channel).filter(adds).map(one)
            };
            let s1: f64 = all().map(|(_, dy, _)| dy).sum();
            let s2: f64 = all().map(|(x, dy, _)| x * dy).sum();
            let squares1: f64 = all().map(|(_, dy, _)| dy * dy).sum();
            let squares2: f64 = all().map(|(x, dy, _)| (x * dy).powi(2)).sum();
            let errors1: f64 = all().map(|(_, _, error)| error).sum();
            let errors2: f64 =
                all().map(|(x, _, e)| if e == 0.0 { 0.0 } else { e * x.abs() }).sum();
            let c = &mut self.channels[channel];
            (c.s1, c.s2) = (s1, s2);
            c.s1_error = additions * (s1.abs() + squares1.sqrt()) + errors1;
            c.s2_error = additions * (s2.abs() + squares2.sqrt())
                + s1.abs() * mean_error
                + errors2
                + TINY * n;
        }
    }

    /// An upper bound of |dx|.
    fn largest_dx(&self, i: usize) -> f64 {
        let channel = i / self.geometry.inner() as usize % self.channels.len();
        let c = &self.channels[channel];
        let scale = self.gamma[channel].abs() * c.stretch();
        if self.frozen {
            return scale * self.dy[i].abs();
        }
        let normal = (self.x[i] - c.mean).abs() * c.inv_std;
        let slope = normal * c.inv_std * c.s2.abs() / c.n;
        let moved = match self.weights.as_ref().map_or(1.0, |weights| weights[i]) {
            0.0 => 0.0,
            weight => weight * (c.s1.abs() / c.n + slope),
        };
        scale * (self.dy[i].abs() + moved)
    }

    /// What the activation takes.
    fn before(&self, i: usize) -> f64 {
        let channel = i / self.geometry.inner() as usize % self.channels.len();
        let c = &self.channels[channel];
        let normal = (self.x[i] - c.mean) * c.stretch() + c.d.value;
        normal * self.gamma[channel] + self.beta[channel] + self.z[i]
    }

    /// How far it may be off.
    fn before_errors(&self) -> Vec<f64> {
        let normalized = self.per_value(|c, i, x, _| {
            let center = (x - c.mean).abs();
            let scale = self.gamma[i].abs() * c.stretch();
            let centering = 3.0 * self.unit * center + c.mean_error + TINY;
            let y = scale * center;
            let moved = self.gamma[i].abs() * c.d.value.abs();
            scale * centering
                + y * (c.stretch_error(self.unit) + 3.0 * self.unit)
                + 2.0 * self.unit * (y + self.beta[i].abs() + 2.0 * moved)
                + self.gamma[i].abs() * c.d.error
                + TINY
        });
        let with_z = |(i, error): (usize, f64)| match self.z[i] {
            0.0 => error,
            z => error + self.unit * (z.abs() + self.before(i).abs()),
        };
        normalized.into_iter().enumerate().map(with_z).collect()
    }

    fn per_channel(&self, bound: impl Fn(&Channel, usize) -> f64) -> Vec<f64> {
        self.channels.iter().enumerate().map(|(i, c)| bound(c, i)).collect()
    }

    fn per_value(&self, bound: impl Fn(&Channel, usize, f64, f64) -> f64) -> Vec<f64> {
        self.per_value_at(|c, channel, _, x, dy| bound(c, channel, x, dy))
    }

    /// With the value's place.
    fn per_value_at(&self, bound: impl Fn(&Channel, usize, usize, f64, f64) -> f64) -> Vec<f64> {
        let (channels, inner) = (self.channels.len(), self.geometry.inner() as usize);
        let one = |(i, (&x, &dy)): (usize, (&f64, &f64))| {
            let channel = i / inner % channels;
            bound(&self.channels[channel], channel, i, x, dy)
        };
        self.x.iter().zip(&self.dy).enumerate().map(one).collect()
    }

    pub fn mean(&self) -> Vec<f64> {
        self.per_channel(|c, _| c.mean_error + self.unit * c.mean.abs() + TINY)
    }

    /// Of mean and remainder together.
    pub fn whole_mean(&self) -> Vec<f64> {
        self.per_channel(|c, _| c.mean_error + c.split_error + TINY)
    }

    /// Of the population variance.
    pub fn variance(&self) -> Vec<f64> {
        self.variance_errors.iter().map(|error| error + TINY).collect()
    }

    pub fn inv_std(&self) -> Vec<f64> {
        self.per_channel(|c, _| c.inv_std * c.inv_std_error)
    }

    /// Of batch renormalization's factor.
    pub fn r(&self) -> Vec<f64> {
        self.per_channel(|c, _| c.r.error)
    }

    /// Of batch renormalization's shift.
    pub fn d(&self) -> Vec<f64> {
        self.per_channel(|c, _| c.d.error)
    }

    /// Of the count of values: f32 holds it exactly up to 2²⁴.
    pub fn count(&self) -> Vec<f64> {
        let additions = LAMBDA * (32.0 + self.geometry.values_per_channel() as f64).sqrt();
        self.per_channel(|c, _| match self.weights {
            Some(_) => self.unit * c.n * additions,
            None if c.n > 2f64.powi(24) => self.unit * c.n,
            None => 0.0,
        })
    }

    /// After an update of `old` with weight `rate`.
    pub fn running_mean(&self, old: &[f32], rate: f64) -> Vec<f64> {
        self.per_channel(|c, i| {
            let size = f64::from(old[i]).abs() + rate * c.mean.abs();
            rate * (c.mean_error + self.unit * c.mean.abs()) + 3.0 * self.unit * size + TINY
        })
    }

    /// After an update of `old` with weight `rate`; `factor` is the variance convention's.
    pub fn running_var(&self, old: &[f32], rate: f64, factor: f64, epsilon: f64) -> Vec<f64> {
        self.per_channel(|c, i| {
            let variance = (c.inv_std.powi(-2) - epsilon).max(0.0);
            let size = f64::from(old[i]).abs() + rate * factor * variance;
            // The factor 1 + 1/(n − 1) divides, which WGSL grants 2.5 units in the last place.
            rate * factor * self.variance_errors[i] + 8.0 * self.unit * size + TINY
        })
    }

    pub fn y(&self) -> Vec<f64> {
        let errors = self.before_errors().into_iter().enumerate();
        errors
            .map(|(i, error)| {
                let v = self.before(i);
                let error = value_error(self.activation, v, error, self.unit);
                // Every activation is at most |v|, or |slope·v|.
                let steep = match self.activation {
                    Activation::LeakyRelu { slope } => slope.abs().max(1.0),
                    _ => 1.0,
                };
                error + stored(self.element, steep * v.abs() + error)
            })
            .collect()
    }

    /// Of the gradient behind the activation.
    pub fn dz(&self) -> Vec<f64> {
        let one = |(error, dy): (&f64, &f64)| error + TINY + stored(self.element, dy.abs() + error);
        self.dy_errors.iter().zip(&self.dy).map(one).collect()
    }

    pub fn dbeta(&self) -> Vec<f64> {
        self.per_channel(|c, _| c.s1_error + self.unit * c.s1.abs() + TINY)
    }

    pub fn dgamma(&self) -> Vec<f64> {
        self.per_channel(|c, _| {
            let scaled = c.s2.abs() * c.stretch();
            let moved = c.s1.abs() * c.d.value.abs();
            // The sum of the two rounds, where there are two.
            let sum = if moved > 0.0 { 2.0 * self.unit * (scaled + moved) } else { 0.0 };
            c.stretch() * c.s2_error
                + scaled * (c.stretch_error(self.unit) + 2.0 * self.unit)
                + c.d.value.abs() * c.s1_error
                + c.s1.abs() * c.d.error
                + sum
                + TINY
        })
    }

    pub fn dx(&self) -> Vec<f64> {
        let own = self.per_value_at(|c, i, at, x, dy| {
            let weight = self.weights.as_ref().map_or(1.0, |weights| weights[at]);
            let scale = self.gamma[i].abs() * c.stretch();
            if self.frozen {
                return scale * dy.abs() * (c.inv_std_error + 3.0 * self.unit) + TINY;
            }
            if weight == 0.0 {
                let relative = c.stretch_error(self.unit) + 6.0 * self.unit;
                return scale * dy.abs() * relative + TINY * (1.0 + scale);
            }
            // A product with a weight, and what dividing by the rounded sum of weights adds.
            let weighing = match self.weights {
                Some(_) => self.unit + self.count()[i] / c.n,
                None => 0.0,
            };
            let center = (x - c.mean).abs();
            let share = weight / c.n;
            let factor = c.inv_std.powi(2) * c.s2.abs() * share;
            let factor_error = 2.0 * factor * (c.inv_std_error + 3.0 * self.unit + weighing)
                + c.inv_std.powi(2) * c.s2_error * share;
            let mean_dy = c.s1.abs() * share;
            let sum = dy.abs() + mean_dy + center * factor;
            scale
                * (c.s1_error * share
                    + mean_dy * weighing
                    + center * factor_error
                    + (3.0 * self.unit * center + c.mean_error) * factor
                    + (c.stretch_error(self.unit) + 6.0 * self.unit) * sum)
                + TINY * (1.0 + scale)
        });
        let passed = self.per_value(|c, i, _, _| self.gamma[i].abs() * c.stretch());
        let scaled = |(i, own): (usize, f64)| {
            let error = match self.dy_errors[i] {
                error if self.keeps_dz => error + stored(self.element, self.dy[i].abs() + error),
                error => error,
            };
            let error = if error == 0.0 { own } else { own + passed[i] * error };
            error + stored(self.element, self.largest_dx(i) + error)
        };
        own.into_iter().enumerate().map(scaled).collect()
    }
}

/// Bounds of a group normalization: of its groups as channels without parameters, whose dy is γ·dy;
/// and of its rows as channels, whose statistics are those of their groups.
pub struct GroupBounds {
    pub groups: Bounds,
    pub rows: Bounds,
    channels: usize,
}

impl GroupBounds {
    pub fn new(geometry: Geometry, given: Given<'_>, config: &Config) -> Self {
        let [samples, channels, inner] =
            [geometry.outer(), geometry.channels(), geometry.inner()].map(|d| d as usize);
        let count = config.groups as usize;
        let (per_group, rows) = (channels / count, samples * channels);
        let view = |shape: [usize; 3]| Geometry::new(&shape, ChannelAxis::First).unwrap();
        let plain = Config {
            activation: Activation::None,
            gradients: Gradients { z: false, ..config.gradients },
            ..config.clone()
        };
        let bare = Given { gamma: None, beta: None, z: None, ..given };
        let arithmetic = Arithmetic::Kernel;
        let whole = view([1, samples * count, per_group * inner]);
        let mut groups = Bounds::new(whole, bare, &plain, Center::Batch, arithmetic);
        let all = |v: Option<&[f32]>| v.map(|v| v.repeat(samples));
        let (gamma, beta) = (all(given.gamma), all(given.beta));
        let given = Given { gamma: gamma.as_deref(), beta: beta.as_deref(), ..given };
        let center = Center::Groups(&groups);
        let rows = Bounds::new(view([1, rows, inner]), given, config, center, arithmetic);
        for i in 0..rows.dy.len() {
            let (gamma, dy, error) = (rows.gamma[i / inner], rows.dy[i], rows.dy_errors[i]);
            let kept = if rows.keeps_dz { stored(rows.element, dy.abs() + error) } else { 0.0 };
            groups.dy[i] = gamma * dy;
            // The product rounds.
            let rounding = rows.unit * (gamma * dy).abs();
            groups.dy_errors[i] = gamma.abs() * (error + kept) + rounding;
        }
        groups.add_up(Arithmetic::Grouped { rows: per_group });
        Self { groups, rows, channels }
    }

    pub fn dgamma(&self) -> Vec<f64> {
        self.over_samples(self.rows.dgamma(), |c| c.s2.abs() * c.inv_std)
    }

    pub fn dbeta(&self) -> Vec<f64> {
        self.over_samples(self.rows.dbeta(), |c| c.s1.abs())
    }

    /// A channel's rows, whose sums are added.
    fn over_samples(&self, bounds: Vec<f64>, size: impl Fn(&Channel) -> f64) -> Vec<f64> {
        let samples = self.rows.channels.len() / self.channels;
        let additions = self.rows.unit * LAMBDA * (16.0 + samples as f64).sqrt();
        let own = |row: usize| bounds[row] + additions * size(&self.rows.channels[row]);
        let of = |c: usize| (0..samples).map(|n| own(n * self.channels + c)).sum();
        (0..self.channels).map(of).collect()
    }
}

/// What storing a value of this size as the element may change.
fn stored(element: Element, size: f64) -> f64 {
    match element {
        Element::F32 => 0.0,
        Element::F16 => (size * 2f64.powi(-11)).max(2f64.powi(-25)),
        _ => size * 2f64.powi(-8) + TINY,
    }
}

/// Infinite where the element overflows.
pub fn representable(element: Element, value: f64) -> f64 {
    match element {
        Element::F16 if value.abs() >= 65_520.0 => f64::INFINITY.copysign(value),
        _ => value,
    }
}

/// How far an activation may be off whose argument v may be off by `error`.
fn value_error(activation: Activation, v: f64, error: f64, unit: f64) -> f64 {
    match activation {
        Activation::None | Activation::Relu => error,
        Activation::ClippedRelu { limit } => error + unit * limit,
        Activation::LeakyRelu { slope } => {
            let steep = slope.abs().max(1.0);
            steep * error + 2.0 * unit * (slope * v).abs() + TINY
        }
        // The slope of SiLU is at most 1.1.
        Activation::Silu => {
            let s = sigmoid(v);
            1.1 * error + (v * s).abs() * (sigmoid_error(v, unit) / s.max(TINY) + 2.0 * unit) + TINY
        }
        Activation::Custom(_) => panic!("bug: no bound is known of a custom activation"),
    }
}

struct Slope {
    value: f64,
    error: f64,
}

/// The slope at v, which may be off by `error`. Where a ReLU's corner is within reach, it is either
/// of two.
fn slope_of(activation: Activation, v: f64, error: f64, unit: f64) -> Slope {
    let corners = |slope: f64, limit: f64| {
        // A NaN is near everything.
        let near = |corner: f64| {
            let distance = (v - corner).abs();
            corner.is_finite() && (distance.is_nan() || distance <= error + unit * corner)
        };
        let value = if v > 0.0 && (v < limit || limit.is_infinite()) { 1.0 } else { slope };
        let step = if near(0.0) || near(limit) { (1.0 - slope).abs() } else { 0.0 };
        Slope { value, error: step }
    };
    match activation {
        Activation::None => Slope { value: 1.0, error: 0.0 },
        Activation::Relu => corners(0.0, f64::INFINITY),
        Activation::LeakyRelu { slope } => corners(slope, f64::INFINITY),
        Activation::ClippedRelu { limit } => corners(0.0, limit),
        Activation::Silu => {
            let s = sigmoid(v);
            let value = s * (1.0 + v * (1.0 - s));
            // |f''| is at most 1/2; the factors 1, s, v·(1 − s) and their rounding.
            let evaluated =
                sigmoid_error(v, unit) * (1.0 + v.abs()) + 4.0 * unit * (s + (s * v).abs());
            Slope { value, error: 0.5 * error + evaluated + TINY }
        }
        Activation::Custom(_) => panic!("bug: no bound is known of a custom activation"),
    }
}

fn sigmoid(v: f64) -> f64 {
    1.0 / (1.0 + (-v).exp())
}

/// Of `1/(1 + e^−v)` in f32: WGSL's exp may be off by 3 + 2·|v| units in the last place, which are
/// two of our units each; 1 + e^−v and the division round too. Where e^−v overflows, s is below the
/// normal range.
fn sigmoid_error(v: f64, unit: f64) -> f64 {
    let s = sigmoid(v);
    s * ((1.0 - s) * 2.0 * (3.0 + 2.0 * v.abs()) + 6.0) * unit + TINY
}

impl Bounds {
    /// Of Σdx over each channel: its values' bounds, added.
    pub fn dx_sum(&self) -> Vec<f64> {
        self.sums(self.dx(), |_, _| 1.0)
    }

    /// Of Σdx·x̂ over each channel, with an exact x̂.
    pub fn dx_slope(&self) -> Vec<f64> {
        self.sums(self.dx(), |c, x| (x - c.mean).abs() * c.inv_std)
    }

    /// Of Σdy·(y − y′) over each channel, for two outputs that are each within their bounds.
    pub fn y_slope(&self) -> Vec<f64> {
        let y = self.y().iter().zip(&self.dy).map(|(y, dy)| 2.0 * y * dy.abs()).collect();
        self.sums(y, |_, _| 1.0)
    }

    fn sums(&self, bounds: Vec<f64>, weight: impl Fn(&Channel, f64) -> f64) -> Vec<f64> {
        self.per_channel(|c, i| {
            places(self.geometry, i).map(|at| bounds[at] * weight(c, self.x[at])).sum()
        })
    }
}

/// Where a channel's values lie.
pub fn places(geometry: Geometry, channel: usize) -> impl Iterator<Item = usize> + Clone {
    let (outer, c, inner) =
        (geometry.outer() as usize, geometry.channels() as usize, geometry.inner() as usize);
    (0..outer).flat_map(move |o| {
        let start = (o * c + channel) * inner;
        start..start + inner
    })
}
