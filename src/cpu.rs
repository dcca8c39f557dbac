//! The CPU path: the same operations on slices, on all cores, without a device. The embedding form
//! is the GPU's alone; this is for machines that have none, and for tensors that are in memory.
//!
//! What is given decides: an absent `gamma` is 1, an absent `beta` is 0, an absent gradient is not
//! computed. Of a [`Config`], `epsilon`, `update`, `running_variance`, `single_value`, `non_finite`
//! and [`accumulate`](crate::Gradients::accumulate) matter. `saved` is laid out as the kernels' is,
//! so that one can go on where the other ended.
//!
//! Work goes to rayon's threads (the global pool, or the pool that the call runs in). The bits of
//! every result depend on the shape alone: not on the number of threads, and not on the processor.
//!
//! ```
//! use wgpu_batchnorm::cpu::{self, TrainSlices};
//! use wgpu_batchnorm::{ChannelAxis, Config, Geometry};
//! let geometry = Geometry::new(&[2, 1, 2], ChannelAxis::First)?;
//! let (mut y, mut saved) = ([0.0; 4], [0.0; 4]);
//! let (mut mean, mut var) = ([0.0], [1.0]);
//! cpu::train(geometry, &Config::pytorch(), TrainSlices {
//!     x: &[1.0, 3.0, 1.0, 3.0],
//!     y: &mut y,
//!     saved: &mut saved,
//!     running_mean: Some(&mut mean),
//!     running_var: Some(&mut var),
//!     ..Default::default()
//! })?;
//! assert_eq!((saved[0], mean[0], var[0]), (2.0, 0.2, 1.0333333));
//! assert!((y[0] + 1.0).abs() < 1e-5);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod output;
mod sums;
mod sweep;
mod vector;
mod writes;

use std::fmt;
use std::ops::Range;

use crate::config::{Activation, Config, Element, Memory, NonFinite, SingleValue, Update};
use crate::geometry::Geometry;
use crate::plan::{PlanError, Slot};
use output::{Output, is_past_caches};
use sums::{Block, Runs, SQUARE_SCALE, Sums};
use sweep::{Apply, Reduce, Reduced, View};

/// Memory of a training forward.
#[derive(Debug, Default)]
pub struct TrainSlices<'a> {
    /// Input tensor.
    pub x: &'a [f32],
    /// Output tensor.
    pub y: &'a mut [f32],
    /// Scale `[C]`.
    pub gamma: Option<&'a [f32]>,
    /// Shift `[C]`.
    pub beta: Option<&'a [f32]>,
    /// Written `[4, C]` for the backward: mean, its rounding remainder, inverse standard deviation,
    /// count.
    /// An empty batch leaves it as it is.
    pub saved: &'a mut [f32],
    /// Moved `[C]`; given if the config updates running statistics.
    pub running_mean: Option<&'a mut [f32]>,
    /// Moved `[C]`; given if the config updates running statistics.
    pub running_var: Option<&'a mut [f32]>,
    /// Batches seen; given for [`Update::Cumulative`].
    pub batches: Option<&'a mut u32>,
}

/// Memory of an inference.
#[derive(Debug, Default)]
pub struct InferSlices<'a> {
    /// Input tensor.
    pub x: &'a [f32],
    /// Output tensor.
    pub y: &'a mut [f32],
    /// Scale `[C]`.
    pub gamma: Option<&'a [f32]>,
    /// Shift `[C]`.
    pub beta: Option<&'a [f32]>,
    /// Read `[C]`.
    pub running_mean: &'a [f32],
    /// Read `[C]`.
    pub running_var: &'a [f32],
}

/// Memory of a training backward.
#[derive(Debug, Default)]
pub struct BackwardSlices<'a> {
    /// The forward's input.
    pub x: &'a [f32],
    /// Gradient of the output.
    pub dy: &'a [f32],
    /// Gradient of the input.
    pub dx: Option<&'a mut [f32]>,
    /// Scale `[C]`.
    pub gamma: Option<&'a [f32]>,
    /// Gradient `[C]`.
    pub dgamma: Option<&'a mut [f32]>,
    /// Gradient `[C]`.
    pub dbeta: Option<&'a mut [f32]>,
    /// What the forward saved, `[4, C]`.
    pub saved: &'a [f32],
}

/// Memory of a backward with frozen statistics.
#[derive(Debug, Default)]
pub struct FrozenBackwardSlices<'a> {
    /// The forward's input; needed for `dgamma`.
    pub x: Option<&'a [f32]>,
    /// Gradient of the output.
    pub dy: &'a [f32],
    /// Gradient of the input.
    pub dx: Option<&'a mut [f32]>,
    /// Scale `[C]`.
    pub gamma: Option<&'a [f32]>,
    /// Gradient `[C]`.
    pub dgamma: Option<&'a mut [f32]>,
    /// Gradient `[C]`.
    pub dbeta: Option<&'a mut [f32]>,
    /// Read `[C]`.
    pub running_mean: &'a [f32],
    /// Read `[C]`.
    pub running_var: &'a [f32],
}

/// Memory of a statistics operation.
#[derive(Debug, Default)]
pub struct StatisticsSlices<'a> {
    /// Input tensor.
    pub x: &'a [f32],
    /// Written `[4, C]`: mean, its rounding remainder, population variance; zeros for an empty
    /// batch. [`Moments::from_slot`](crate::Moments::from_slot) takes it.
    pub moments: &'a mut [f32],
}

/// Training forward, as [`Train`](crate::Train) computes it.
///
/// # Errors
/// [`CpuError`]; nothing has been written then.
pub fn train(geometry: Geometry, config: &Config, slices: TrainSlices<'_>) -> Result<(), CpuError> {
    let TrainSlices { x, y, gamma, beta, saved, running_mean, running_var, batches } = slices;
    let check = Check::new(geometry, config)?;
    check.more_than_one_value()?;
    check.tensor(Slot::X, x)?;
    check.tensor(Slot::Y, y)?;
    check.parameters(gamma, beta)?;
    check.length(Slot::Saved, saved.len(), 4 * geometry.channels())?;
    let updates = config.update != Update::None;
    let counts = config.update == Update::Cumulative;
    let running =
        [(Slot::RunningMean, running_mean.as_deref()), (Slot::RunningVar, running_var.as_deref())];
    for (slot, running) in running {
        let unused = "Update::None leaves the running statistics alone";
        check.given(slot, running.is_some(), updates, unused)?;
        check.channels(slot, running)?;
    }
    check.given(
        Slot::Batches,
        batches.is_some(),
        counts,
        "only Update::Cumulative counts batches",
    )?;
    if geometry.is_empty() {
        return Ok(());
    }
    let count = batches.map(|batches| {
        *batches = batches.saturating_add(1);
        *batches
    });
    let view = View::new(&geometry);
    let finish = |c: usize, reduced: Reduced| {
        let statistics = Statistics::of(reduced, geometry);
        let center = statistics.center(config.epsilon);
        ((statistics, center), center.line(gamma.map(|g| g[c]), beta.map(|b| b[c])))
    };
    let kept = view.sweep(&Moments::new(x, view), &finish, Some(&Line::new(x, y)));
    let channels = kept.len();
    for (c, (_, center)) in kept.iter().enumerate() {
        let Center { mean, rest, inv_std } = *center;
        saved[c] = mean;
        saved[channels + c] = rest;
        saved[2 * channels + c] = inv_std as f32;
        saved[3 * channels + c] = geometry.values_per_channel() as f32;
    }
    if let (Some(mean), Some(var)) = (running_mean, running_var) {
        let (keep, rate) = match config.update {
            Update::Rate(rate) => (1.0 - rate, rate),
            Update::Decay(decay) => (decay, 1.0 - decay),
            Update::Cumulative => {
                let rate = 1.0 / f64::from(count.unwrap_or(1));
                (1.0 - rate, rate)
            }
            Update::None => (1.0, 0.0),
        };
        let factor = config.running_variance.factor(geometry.values_per_channel() as f64);
        for ((&(batch, _), mean), var) in kept.iter().zip(mean).zip(var) {
            let finite = batch.mean.is_finite() && (batch.variance as f32).is_finite();
            if finite || config.non_finite == NonFinite::Propagate {
                *mean = (keep * f64::from(*mean) + rate * batch.mean) as f32;
                *var = (keep * f64::from(*var) + rate * (batch.variance * factor)) as f32;
            }
        }
    }
    Ok(())
}

/// Inference, as [`Infer`](crate::Infer) computes it.
///
/// # Errors
/// [`CpuError`]; nothing has been written then.
pub fn infer(geometry: Geometry, config: &Config, slices: InferSlices<'_>) -> Result<(), CpuError> {
    let InferSlices { x, y, gamma, beta, running_mean, running_var } = slices;
    let check = Check::new(geometry, config)?;
    check.tensor(Slot::X, x)?;
    check.tensor(Slot::Y, y)?;
    check.parameters(gamma, beta)?;
    check.channels(Slot::RunningMean, Some(running_mean))?;
    check.channels(Slot::RunningVar, Some(running_var))?;
    if geometry.is_empty() {
        return Ok(());
    }
    let center = Center::of_running(running_mean, running_var, config.epsilon);
    let table: Vec<_> = (0..running_mean.len())
        .map(|c| center(c).line(gamma.map(|g| g[c]), beta.map(|b| b[c])))
        .collect();
    View::new(&geometry).apply(&table, &Line::new(x, y));
    Ok(())
}

/// Backward of [`train`], as [`Backward`](crate::Backward) computes it.
///
/// # Errors
/// [`CpuError`]; nothing has been written then.
pub fn backward(
    geometry: Geometry,
    config: &Config,
    slices: BackwardSlices<'_>,
) -> Result<(), CpuError> {
    let BackwardSlices { x, dy, dx, gamma, dgamma, dbeta, saved } = slices;
    let check = Check::new(geometry, config)?;
    check.more_than_one_value()?;
    check.tensor(Slot::X, x)?;
    check.length(Slot::Saved, saved.len(), 4 * geometry.channels())?;
    check.gradients(dy, dx.as_deref(), gamma, dgamma.as_deref(), dbeta.as_deref())?;
    if geometry.is_empty() {
        no_gradients(config, dgamma, dbeta);
        return Ok(());
    }
    let channels = saved.len() / 4;
    let plane = |i: usize| &saved[i * channels..(i + 1) * channels];
    let (mean, rest, inv_std, counts) = (plane(0), plane(1), plane(2), plane(3));
    let center = |c: usize| Center { mean: mean[c], rest: rest[c], inv_std: f64::from(inv_std[c]) };
    let view = View::new(&geometry);
    let finish = |c: usize, r: Reduced| {
        let center = center(c);
        let slope = center.slope(gamma.map(|g| g[c]), r.sums, f64::from(counts[c]));
        (center.gradients(r.sums), slope)
    };
    let slope = dx.map(|dx| Slope { x, dy, dx: Output::new(dx, 3) });
    let gradients = view.sweep(&Products::new(x, dy, mean), &finish, slope.as_ref());
    store_gradients(config, &gradients, dgamma, dbeta);
    Ok(())
}

/// Backward of [`infer`], as [`FrozenBackward`](crate::FrozenBackward) computes it.
///
/// # Errors
/// [`CpuError`]; nothing has been written then.
pub fn frozen_backward(
    geometry: Geometry,
    config: &Config,
    slices: FrozenBackwardSlices<'_>,
) -> Result<(), CpuError> {
    let FrozenBackwardSlices { x, dy, dx, gamma, dgamma, dbeta, running_mean, running_var } =
        slices;
    let check = Check::new(geometry, config)?;
    check.gradients(dy, dx.as_deref(), gamma, dgamma.as_deref(), dbeta.as_deref())?;
    check.channels(Slot::RunningMean, Some(running_mean))?;
    check.channels(Slot::RunningVar, Some(running_var))?;
    match x {
        Some(x) => check.tensor(Slot::X, x)?,
        None if dgamma.is_some() => return Err(CpuError::Missing { slot: Slot::X }),
        None => {}
    }
    if geometry.is_empty() {
        no_gradients(config, dgamma, dbeta);
        return Ok(());
    }
    let center = Center::of_running(running_mean, running_var, config.epsilon);
    let constants = |c: usize| [0.0, center(c).scale(gamma.map(|g| g[c])), 0.0, 0.0];
    let view = View::new(&geometry);
    let line = dx.map(|dx| Line::new(dy, dx));
    if dgamma.is_none() && dbeta.is_none() {
        if let Some(line) = line {
            let table: Vec<_> = (0..running_mean.len()).map(constants).collect();
            view.apply(&table, &line);
        }
        return Ok(());
    }
    // Without dgamma, what x is does not matter.
    let products = Products::new(x.unwrap_or(dy), dy, running_mean);
    let finish = |c: usize, r: Reduced| (center(c).gradients(r.sums), constants(c));
    let gradients = view.sweep(&products, &finish, line.as_ref());
    store_gradients(config, &gradients, dgamma, dbeta);
    Ok(())
}

/// The statistics of `x` alone, as [`Statistics`](crate::Statistics) computes them.
///
/// # Errors
/// [`CpuError`]; nothing has been written then.
pub fn statistics(
    geometry: Geometry,
    config: &Config,
    slices: StatisticsSlices<'_>,
) -> Result<(), CpuError> {
    let StatisticsSlices { x, moments } = slices;
    let check = Check::new(geometry, config)?;
    check.tensor(Slot::X, x)?;
    check.length(Slot::Moments, moments.len(), 4 * geometry.channels())?;
    if geometry.is_empty() {
        moments.fill(0.0);
        return Ok(());
    }
    let view = View::new(&geometry);
    let none = None::<&Line<'_>>;
    let finish = |_: usize, reduced: Reduced| (Statistics::of(reduced, geometry), [0.0; 4]);
    let kept = view.sweep(&Moments::new(x, view), &finish, none);
    let channels = kept.len();
    for (c, statistics) in kept.iter().enumerate() {
        let center = statistics.center(config.epsilon);
        moments[c] = center.mean;
        moments[channels + c] = center.rest;
        moments[2 * channels + c] = statistics.variance as f32;
        moments[3 * channels + c] = geometry.values_per_channel() as f32;
    }
    Ok(())
}

/// What the loops are compiled for on this machine, in words.
#[cfg(feature = "host")]
pub(crate) fn instructions() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        return "AVX2";
    }
    std::env::consts::ARCH
}

/// Everything that a config can ask of the kernels and not of the CPU.
fn unsupported(config: &Config) -> Option<&'static str> {
    match config {
        Config { memory: Memory::InPlace, .. } => Some("Memory::InPlace"),
        Config { element: Element::F16 | Element::Bf16, .. } => Some("an element but f32"),
        Config { residual: true, .. } => Some("a residual"),
        Config { renorm: Some(_), .. } => Some("batch renormalization"),
        Config { weights: true, .. } => Some("Config::weights"),
        Config { activation: Activation::None, .. } => None,
        Config { .. } => Some("an activation"),
    }
}

/// A channel's batch mean and population variance.
#[derive(Clone, Copy, Default)]
struct Statistics {
    mean: f64,
    variance: f64,
}

impl Statistics {
    fn of(reduced: Reduced, geometry: Geometry) -> Self {
        let n = geometry.values_per_channel() as f64;
        let [sum, squares] = reduced.sums;
        let apart = sum / n;
        let variance = squares / f64::from(SQUARE_SCALE) / n - apart * apart;
        let mean = f64::from(reduced.shift) + apart;
        // Rounding may leave less than nothing; a NaN stays.
        Self { mean, variance: if variance < 0.0 { 0.0 } else { variance } }
    }

    fn center(self, epsilon: f64) -> Center {
        let mean = self.mean as f32;
        let rest = (self.mean - f64::from(mean)) as f32;
        Center { mean, rest, inv_std: 1.0 / (self.variance + epsilon).sqrt() }
    }
}

/// What a channel is normalized with: `((x − mean) − rest)·inv_std`.
#[derive(Clone, Copy, Default)]
struct Center {
    mean: f32,
    rest: f32,
    inv_std: f64,
}

impl Center {
    fn of_running(mean: &[f32], var: &[f32], epsilon: f64) -> impl Fn(usize) -> Self + Sync {
        move |c| {
            let inv_std = 1.0 / (f64::from(var[c]) + epsilon).sqrt();
            Self { mean: mean[c], rest: 0.0, inv_std }
        }
    }

    fn scale(self, gamma: Option<f32>) -> f32 {
        (f64::from(gamma.unwrap_or(1.0)) * self.inv_std) as f32
    }

    /// `y = (x − mean)·scale + (β − rest·scale)`.
    fn line(self, gamma: Option<f32>, beta: Option<f32>) -> [f32; 4] {
        let scale = self.scale(gamma);
        let shift = f64::from(beta.unwrap_or(0.0)) - f64::from(self.rest) * f64::from(scale);
        [self.mean, scale, shift as f32, 0.0]
    }

    /// `Σdy` and `Σdy·(x−μ)`, of the sums relative to `mean`.
    fn whole(self, [dy, dyx]: Sums) -> Sums {
        [dy, dyx - f64::from(self.rest) * dy]
    }

    /// dgamma and dbeta, of the sums relative to `mean`.
    fn gradients(self, sums: Sums) -> [f64; 2] {
        let [dy, dyx] = self.whole(sums);
        [dyx * self.inv_std, dy]
    }

    /// `dx = scale·((dy − offset) − (x − mean)·factor)`, with `factor = i²·S₂/n` and
    /// `offset = S₁/n − rest·factor`.
    fn slope(self, gamma: Option<f32>, sums: Sums, n: f64) -> [f32; 4] {
        let [dy, dyx] = self.whole(sums);
        let factor = self.inv_std * (dyx * self.inv_std / n);
        let offset = dy / n - f64::from(self.rest) * factor;
        [self.mean, self.scale(gamma), offset as f32, factor as f32]
    }
}

fn store_gradients(
    config: &Config,
    gradients: &[[f64; 2]],
    dgamma: Option<&mut [f32]>,
    dbeta: Option<&mut [f32]>,
) {
    let accumulate = config.gradients.accumulate;
    for (i, to) in [dgamma, dbeta].into_iter().enumerate() {
        for (to, gradients) in to.into_iter().flatten().zip(gradients) {
            let gradient = gradients[i] as f32;
            *to = if accumulate { *to + gradient } else { gradient };
        }
    }
}

/// Those of an empty batch.
fn no_gradients(config: &Config, dgamma: Option<&mut [f32]>, dbeta: Option<&mut [f32]>) {
    if !config.gradients.accumulate {
        dgamma.into_iter().chain(dbeta).for_each(|gradient| gradient.fill(0.0));
    }
}

/// Sums of x relative to one of the channel's values.
struct Moments<'a> {
    x: &'a [f32],
    view: View,
    /// Where the first channel's first, a middle and the last value lie.
    places: [usize; 3],
}

impl<'a> Moments<'a> {
    fn new(x: &'a [f32], view: View) -> Self {
        let n = view.values_per_channel();
        Self { x, view, places: [0, n / 2, n - 1].map(|i| view.place(i)) }
    }
}

impl Reduce for Moments<'_> {
    const TENSORS: usize = 1;

    /// The median of the first, a middle and the last value, or of those of them that are finite:
    /// one of them may be an outlier.
    fn shift(&self, channel: usize) -> f32 {
        let mut values = self.places.map(|place| self.x[place + channel * self.view.inner]);
        if values.iter().any(|value| !value.is_finite()) {
            let Some(finite) = values.into_iter().find(|value| value.is_finite()) else {
                return 0.0;
            };
            values = values.map(|value| if value.is_finite() { value } else { finite });
        }
        let [a, b, c] = values;
        a.min(b).max(a.max(b).min(c))
    }

    fn runs(&self, runs: Runs, shift: f32) -> Sums {
        sums::moments_of_runs(self.x, runs, shift)
    }

    fn columns(&self, block: Block, shifts: &[f32], sums: [&mut [f64]; 2]) {
        sums::moments_of_columns(self.x, block, shifts, sums);
    }

    /// Squares lose what the mean lies from the shift. Farther than 4 deviations, it is the mean.
    fn better_shift(&self, shift: f32, [sum, squares]: Sums) -> Option<f32> {
        let n = self.view.values_per_channel() as f64;
        let squares = squares / f64::from(SQUARE_SCALE);
        let is_far = squares.is_finite() && 17.0 * sum * sum > 16.0 * n * squares;
        let mean = (f64::from(shift) + sum / n) as f32;
        (is_far && mean.is_finite() && mean != shift).then_some(mean)
    }
}

/// Sums of dy, and of dy times x relative to the mean.
struct Products<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    mean: &'a [f32],
    far: bool,
}

impl<'a> Products<'a> {
    fn new(x: &'a [f32], dy: &'a [f32], mean: &'a [f32]) -> Self {
        Self { x, dy, mean, far: is_past_caches(3, dy) }
    }
}

impl Reduce for Products<'_> {
    const TENSORS: usize = 2;

    fn shift(&self, channel: usize) -> f32 {
        self.mean[channel]
    }

    fn runs(&self, runs: Runs, shift: f32) -> Sums {
        sums::products_of_runs(self.x, self.dy, runs, shift)
    }

    fn columns(&self, block: Block, shifts: &[f32], sums: [&mut [f64]; 2]) {
        sums::products_of_columns(self.x, self.dy, block, shifts, sums, self.far);
    }

    fn better_shift(&self, _: f32, _: Sums) -> Option<f32> {
        None
    }
}

/// `y = (x − a)·b + c`.
struct Line<'a> {
    x: &'a [f32],
    y: Output<'a>,
}

impl<'a> Line<'a> {
    fn new(x: &'a [f32], y: &'a mut [f32]) -> Self {
        Self { x, y: Output::new(y, 2) }
    }
}

#[allow(unsafe_code, reason = "threads write parts of one tensor that do not lie together")]
impl Apply for Line<'_> {
    fn rows(&self, span: Range<usize>, inner: usize, table: &[[f32; 4]]) {
        let x = &self.x[span.clone()];
        let write = |y: &mut [f32], stream| writes::line_of_rows(x, y, inner, table, stream);
        // SAFETY: a sweep gives every span to one call.
        unsafe { self.y.write(span, write) };
    }

    fn columns(&self, span: Range<usize>, width: usize, constants: [&[f32]; 4]) {
        let x = &self.x[span.clone()];
        let write = |y: &mut [f32], stream| writes::line_of_columns(x, y, width, constants, stream);
        // SAFETY: a sweep gives every span to one call.
        unsafe { self.y.write(span, write) };
    }
}

/// `dx = b·((dy − c) − (x − a)·d)`.
struct Slope<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    dx: Output<'a>,
}

#[allow(unsafe_code, reason = "threads write parts of one tensor that do not lie together")]
impl Apply for Slope<'_> {
    fn rows(&self, span: Range<usize>, inner: usize, table: &[[f32; 4]]) {
        let (x, dy) = (&self.x[span.clone()], &self.dy[span.clone()]);
        let write = |dx: &mut [f32], stream| writes::slope_of_rows(x, dy, dx, inner, table, stream);
        // SAFETY: a sweep gives every span to one call.
        unsafe { self.dx.write(span, write) };
    }

    fn columns(&self, span: Range<usize>, width: usize, constants: [&[f32]; 4]) {
        let (x, dy) = (&self.x[span.clone()], &self.dy[span.clone()]);
        let write =
            |dx: &mut [f32], stream| writes::slope_of_columns(x, dy, dx, width, constants, stream);
        // SAFETY: a sweep gives every span to one call.
        unsafe { self.dx.write(span, write) };
    }
}

/// What the caller gave, against what the operation needs.
struct Check {
    geometry: Geometry,
    single_value: SingleValue,
}

impl Check {
    fn new(geometry: Geometry, config: &Config) -> Result<Self, CpuError> {
        config.validate().map_err(PlanError::from)?;
        match unsupported(config) {
            Some(what) => Err(CpuError::Unsupported { what }),
            None => Ok(Self { geometry, single_value: config.single_value }),
        }
    }

    fn more_than_one_value(&self) -> Result<(), CpuError> {
        let g = self.geometry;
        let single = g.values_per_channel() == 1 && g.channels() > 0;
        match single && self.single_value == SingleValue::Error {
            true => Err(PlanError::SingleValue { geometry: g }.into()),
            false => Ok(()),
        }
    }

    fn length(&self, slot: Slot, length: usize, required: u64) -> Result<(), CpuError> {
        match length as u64 == required {
            true => Ok(()),
            false => Err(CpuError::Length { slot, length, required }),
        }
    }

    fn tensor(&self, slot: Slot, values: &[f32]) -> Result<(), CpuError> {
        self.length(slot, values.len(), self.geometry.len())
    }

    fn channels(&self, slot: Slot, values: Option<&[f32]>) -> Result<(), CpuError> {
        values.map_or(Ok(()), |v| self.length(slot, v.len(), self.geometry.channels()))
    }

    fn parameters(&self, gamma: Option<&[f32]>, beta: Option<&[f32]>) -> Result<(), CpuError> {
        self.channels(Slot::Gamma, gamma)?;
        self.channels(Slot::Beta, beta)
    }

    fn gradients(
        &self,
        dy: &[f32],
        dx: Option<&[f32]>,
        gamma: Option<&[f32]>,
        dgamma: Option<&[f32]>,
        dbeta: Option<&[f32]>,
    ) -> Result<(), CpuError> {
        self.tensor(Slot::Dy, dy)?;
        dx.map_or(Ok(()), |dx| self.tensor(Slot::Dx, dx))?;
        self.channels(Slot::Gamma, gamma)?;
        self.channels(Slot::Dgamma, dgamma)?;
        self.channels(Slot::Dbeta, dbeta)
    }

    /// That a slot is given where the config needs it, and only there.
    fn given(
        &self,
        slot: Slot,
        given: bool,
        needed: bool,
        reason: &'static str,
    ) -> Result<(), CpuError> {
        match (given, needed) {
            (false, true) => Err(CpuError::Missing { slot }),
            (true, false) => Err(CpuError::Unused { slot, reason }),
            _ => Ok(()),
        }
    }
}

/// Why the CPU path cannot compute. Nothing has been written then.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum CpuError {
    /// A number in the config, or one value per channel.
    Plan(PlanError),
    /// The config asks for what only the kernels do.
    Unsupported {
        /// What.
        what: &'static str,
    },
    /// A slot that the operation needs is not given.
    Missing {
        /// The slot.
        slot: Slot,
    },
    /// A slot is given that the config has no use for.
    Unused {
        /// The slot.
        slot: Slot,
        /// Why it has no use.
        reason: &'static str,
    },
    /// A slice of another length than the geometry needs.
    Length {
        /// The slot.
        slot: Slot,
        /// Its length.
        length: usize,
        /// The length it needs.
        required: u64,
    },
}

impl fmt::Display for CpuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plan(error) => error.fmt(f),
            Self::Unsupported { what } => write!(f, "{what} is not supported by the CPU path"),
            Self::Missing { slot } => write!(f, "{slot} is missing"),
            Self::Unused { slot, reason } => write!(f, "{slot} is given, but {reason}"),
            Self::Length { slot, length, required } => {
                write!(f, "{slot} has {length} values and needs {required}")
            }
        }
    }
}

impl std::error::Error for CpuError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Plan(error) => Some(error),
            _ => None,
        }
    }
}

impl From<PlanError> for CpuError {
    fn from(error: PlanError) -> Self {
        Self::Plan(error)
    }
}
