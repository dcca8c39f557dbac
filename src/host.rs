//! The host form: `ndarray` in, `ndarray` out, on a device found or given. Every operation is async
//! with a blocking twin. Convenient, not fast: each call uploads and reads back. A pipeline that
//! keeps its tensors on the GPU uses the embedding form.

use std::borrow::Cow;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use futures_intrusive::channel::shared::{Sender, channel};
use half::{bf16, f16};
use ndarray::{Array1, ArrayD, ArrayView1, ArrayViewD, CowArray, IxDyn};

use crate::bind::{Bind, BindError, SlotBuffers};
use crate::caps::Caps;
use crate::config::{Affine, Config, ConfigError, Element, Gradients, Mask, Memory, Update};
#[cfg(feature = "cpu")]
use crate::cpu::CpuError;
use crate::geometry::{ChannelAxis, Geometry, GeometryError};
use crate::kernels::{KernelOptions, Kernels, PrepareError, Scopes, unmapped};
use crate::moments::{Moments, MomentsError};
use crate::plan::{
    Backward, FrozenBackward, GroupNorm, GroupNormBackward, Infer, Plan, PlanError, Slot,
    Statistics, Train,
};

/// A device with its queue and kernels.
#[derive(Debug, Clone)]
pub struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    kernels: Kernels,
    timeout: Duration,
}

/// What every operation takes: the tensor, its parameters, its residual and its weights. An absent
/// parameter is 1 (gamma) or 0 (beta). Presence decides: the [`affine`](Config::affine), the
/// [`residual`](Config::residual) and the [`weights`](Config::weights) of a config are not looked at by
/// the host form.
///
/// Arrays are f32. Under [`Element::F16`] and [`Element::Bf16`], tensors are rounded to the element
/// on their way to the device, and results widened on their way back.
///
/// ```
/// use ndarray::{arr1, ArrayD};
/// use wgpu_batchnorm::{ChannelAxis, Input};
/// let (x, gamma) = (ArrayD::<f32>::zeros(vec![8, 3, 4, 4]), arr1(&[1.0f32, 2.0, 3.0]));
/// let input = Input { gamma: Some(gamma.view()), ..Input::new(x.view(), ChannelAxis::First) };
/// ```
#[derive(Debug, Clone)]
pub struct Input<'a> {
    /// The tensor.
    pub x: ArrayViewD<'a, f32>,
    /// Where its channels are.
    pub axis: ChannelAxis,
    /// Scale `[C]`.
    pub gamma: Option<ArrayView1<'a, f32>>,
    /// Shift `[C]`.
    pub beta: Option<ArrayView1<'a, f32>>,
    /// Residual, shaped as `x`, added before the activation.
    pub z: Option<ArrayViewD<'a, f32>>,
    /// Weights of positions in the batch's statistics, finite and ≥ 0, shaped as `x` without its
    /// channel axis (per activation: `[N]`). See [`Config::weights`].
    pub weights: Option<ArrayViewD<'a, f32>>,
}

impl<'a> Input<'a> {
    /// A tensor alone.
    pub fn new(x: ArrayViewD<'a, f32>, axis: ChannelAxis) -> Self {
        Self { x, axis, gamma: None, beta: None, z: None, weights: None }
    }
}

/// Running statistics `[C]`, and how many batches went into them.
#[derive(Debug, Clone, PartialEq)]
pub struct RunningStatistics {
    /// Running mean.
    pub mean: Array1<f32>,
    /// Running variance, by the convention of the config that updates it.
    pub var: Array1<f32>,
    /// Batches seen.
    pub batches: u32,
}

impl RunningStatistics {
    /// Mean 0, variance 1, no batches: where every framework starts.
    pub fn new(channels: usize) -> Self {
        Self { mean: Array1::zeros(channels), var: Array1::ones(channels), batches: 0 }
    }

    /// Checks that every value can be normalized with.
    ///
    /// # Errors
    /// [`HostError::RunningVariance`] for a variance that is negative or not finite,
    /// [`HostError::Length`] for a length other than `channels`.
    pub fn validate(&self, channels: usize) -> Result<(), HostError> {
        check_running(&self.mean, &self.var, channels)
    }

    /// For a training forward: an earlier batch may have made a variance NaN or infinite.
    pub(crate) fn validate_moving(&self, channels: usize) -> Result<(), HostError> {
        check_length(Slot::RunningMean, self.mean.len(), channels)?;
        check_length(Slot::RunningVar, self.var.len(), channels)?;
        match self.var.iter().position(|v| *v < 0.0) {
            Some(channel) => Err(HostError::RunningVariance { channel, value: self.var[channel] }),
            None => Ok(()),
        }
    }
}

/// Lengths, and that every variance is finite and ≥ 0.
pub(crate) fn check_running(
    mean: &Array1<f32>,
    var: &Array1<f32>,
    channels: usize,
) -> Result<(), HostError> {
    check_length(Slot::RunningMean, mean.len(), channels)?;
    check_length(Slot::RunningVar, var.len(), channels)?;
    match var.iter().position(|v| !(v.is_finite() && *v >= 0.0)) {
        Some(channel) => Err(HostError::RunningVariance { channel, value: var[channel] }),
        None => Ok(()),
    }
}

/// What a training forward saves for the backward, `[C]` each.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedStatistics {
    /// Batch mean.
    pub mean: Array1<f32>,
    /// What rounding the mean to f32 left: the mean is `mean + rest`.
    pub rest: Array1<f32>,
    /// `1/√(σ²+ε)`.
    pub inv_std: Array1<f32>,
    /// How many values per channel there were.
    pub count: Array1<f32>,
    /// Under [`Config::renorm`].
    pub renorm: Option<SavedRenorm>,
}

/// The constants of batch renormalization, `[C]` each: normalized values were multiplied by r, and d
/// was added.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedRenorm {
    /// `clamp(σ/σ_run, 1/rmax, rmax)`.
    pub r: Array1<f32>,
    /// `clamp((μ−running_mean)/σ_run, −dmax, dmax)`.
    pub d: Array1<f32>,
}

/// What a training forward gives.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainOutput {
    /// Output, shaped as `x`.
    pub y: ArrayD<f32>,
    /// Statistics for the backward.
    pub saved: SavedStatistics,
}

/// What a backward gives: what its config asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct BackwardOutput {
    /// Gradient of the input, shaped as `x`.
    pub dx: Option<ArrayD<f32>>,
    /// Gradient of gamma `[C]`.
    pub dgamma: Option<Array1<f32>>,
    /// Gradient of beta `[C]`.
    pub dbeta: Option<Array1<f32>>,
    /// Gradient of the residual, shaped as `x`.
    pub dz: Option<ArrayD<f32>>,
}

/// Where a slot's content comes from; all other slots start at zero.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    Floats(&'a [f32]),
    Count(u32),
    Buffer(&'a wgpu::Buffer),
    /// The content of one buffer, copied into another that the operation then uses.
    Copied {
        from: &'a wgpu::Buffer,
        to: &'a wgpu::Buffer,
    },
}

impl Gpu {
    /// Finds an adapter and opens a device with WebGPU's default limits, and larger bindings where
    /// the adapter allows them.
    ///
    /// `WGPU_BACKEND` (`vulkan`, `metal`, `dx12`, `gl`, comma-separated) restricts the backends and
    /// `WGPU_ADAPTER_NAME` (part of a name) the adapters. A discrete GPU is preferred to an
    /// integrated one, any GPU to a software adapter, and the next is tried where one refuses.
    ///
    /// # Errors
    /// [`HostError::NoAdapter`] says what was looked for, what was found and what to install;
    /// [`HostError::RequestDevice`] when the adapter refuses the limits.
    pub async fn new() -> Result<Self, HostError> {
        Self::find(|_| true).await
    }

    /// The best of the adapters that `accepts` takes.
    pub(crate) async fn find(
        accepts: impl Fn(&wgpu::AdapterInfo) -> bool,
    ) -> Result<Self, HostError> {
        let (adapters, looked_for) = candidates().await;
        let wanted = std::env::var("WGPU_ADAPTER_NAME").unwrap_or_default().to_lowercase();
        let found: Vec<String> =
            adapters.iter().map(|adapter| describe(&adapter.get_info())).collect();
        let mut usable: Vec<&wgpu::Adapter> = adapters
            .iter()
            .filter(|adapter| adapter.get_info().name.to_lowercase().contains(&wanted))
            .filter(|adapter| accepts(&adapter.get_info()))
            .collect();
        usable.sort_by_key(|adapter| std::cmp::Reverse(preference(&adapter.get_info())));
        let mut refusal = HostError::NoAdapter { looked_for, found };
        for (i, adapter) in usable.into_iter().enumerate() {
            match Self::from_adapter(adapter).await {
                Ok(gpu) => return Ok(gpu),
                // The best adapter's refusal says most.
                Err(error) if i == 0 => refusal = error,
                Err(_) => {}
            }
        }
        Err(refusal)
    }

    /// [`new`](Self::new), blocking.
    ///
    /// # Errors
    /// As `new`.
    pub fn new_blocking() -> Result<Self, HostError> {
        pollster::block_on(Self::new())
    }

    /// Opens a device on `adapter`, as [`new`](Self::new) does.
    ///
    /// # Errors
    /// [`HostError::RequestDevice`] when the adapter refuses.
    pub async fn from_adapter(adapter: &wgpu::Adapter) -> Result<Self, HostError> {
        let limits = adapter.limits();
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("batchnorm"),
            required_features: Kernels::wanted_features() & adapter.features(),
            required_limits: wgpu::Limits {
                max_storage_buffer_binding_size: limits.max_storage_buffer_binding_size,
                max_buffer_size: limits.max_buffer_size,
                max_storage_buffers_per_shader_stage: limits
                    .max_storage_buffers_per_shader_stage
                    .max(Kernels::required_limits().max_storage_buffers_per_shader_stage),
                ..Kernels::required_limits()
            },
            ..Default::default()
        };
        let (device, queue) = adapter.request_device(&descriptor).await.map_err(|error| {
            HostError::RequestDevice {
                adapter: describe(&adapter.get_info()),
                message: error.to_string(),
            }
        })?;
        Ok(Self::from_device(device, queue))
    }

    /// Uses a device and queue that you have.
    pub fn from_device(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        let kernels = Kernels::new(&device);
        Self { device, queue, kernels, timeout: Duration::from_secs(120) }
    }

    /// Kernels made with `options`, as [checked](KernelOptions::checked) ones. Nothing that was
    /// compiled before is kept.
    #[must_use]
    pub fn with_options(self, options: KernelOptions) -> Self {
        let kernels = Kernels::with_caps(&self.device, options, self.caps().clone());
        Self { kernels, ..self }
    }

    /// Plans and kernels for `caps`, which know more of the device than it says.
    pub(crate) fn with_caps(self, caps: Caps) -> Self {
        let kernels = Kernels::with_caps(&self.device, self.kernels.options().clone(), caps);
        Self { kernels, ..self }
    }

    /// Asks the device whether its built-in conversions of f16 are exact, with every half and every tie
    /// between two of them, and has [`Caps::exact_widen`] and [`Caps::exact_narrow`] say so: plans for
    /// [`caps`](Self::caps) then use them where they are, for the same bits (but for those of a NaN) by less
    /// arithmetic. Costs the compilation of one kernel and a few milliseconds; worth it where tensors are
    /// [`Element::F16`]. Nothing that was compiled before is kept.
    ///
    /// # Errors
    /// [`HostError::Device`], [`HostError::ReadBack`]: a device that fails, or takes longer than the
    /// [timeout](Self::with_timeout).
    pub async fn with_f16(self) -> Result<Self, HostError> {
        let [exact_widen, exact_narrow] = match self.convert(Element::F16, true, true).await {
            // A device that answers by the kernels' own conversions does not have the others.
            Err(HostError::Device { .. }) => {
                self.convert(Element::F16, false, true).await?;
                [false; 2]
            }
            answer => answer?,
        };
        let caps = Caps { exact_widen, exact_narrow, ..self.caps().clone() };
        Ok(self.with_caps(caps))
    }

    /// [`with_f16`](Self::with_f16), blocking.
    ///
    /// # Errors
    /// As its async twin.
    pub fn with_f16_blocking(self) -> Result<Self, HostError> {
        pollster::block_on(self.with_f16())
    }

    /// Gives up waiting for the device after `timeout` (two minutes by default).
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Every adapter that the enabled backends (and `WGPU_BACKEND`) offer.
    pub async fn adapters() -> Vec<wgpu::Adapter> {
        candidates().await.0
    }

    /// [`adapters`](Self::adapters), blocking.
    pub fn adapters_blocking() -> Vec<wgpu::Adapter> {
        pollster::block_on(Self::adapters())
    }

    /// The device.
    pub fn device(&self) -> &wgpu::Device {
        &self.device
    }

    /// The queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.queue
    }

    /// The kernels, for embedding on the same device.
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// What the device can do.
    pub fn caps(&self) -> &Caps {
        self.kernels.caps()
    }

    /// The adapter in words: name, backend, kind and driver.
    pub fn describe(&self) -> String {
        describe(&self.device.adapter_info())
    }

    /// Training forward: `y = act((x−μ)/√(σ²+ε)·γ + β + z)` with the batch's statistics. `running`
    /// moves by the config's convention; on an error it keeps its values. A running variance that is
    /// not finite is accepted here, as an earlier batch may have made it so.
    ///
    /// # Errors
    /// [`HostError`]: a bad shape, config or length, or a device that fails.
    pub async fn forward_train(
        &self,
        input: &Input<'_>,
        running: &mut RunningStatistics,
        config: &Config,
    ) -> Result<TrainOutput, HostError> {
        let (geometry, config) = input.prepare(config)?;
        let channels = geometry.channels() as usize;
        running.validate_moving(channels)?;
        let plan = Plan::<Train>::new(geometry, &config, self.caps())?;
        let updates = config.update != Update::None && !geometry.is_empty();
        let outputs: &[Slot] = if updates {
            &[Slot::Y, Slot::Saved, Slot::RunningMean, Slot::RunningVar]
        } else {
            &[Slot::Y, Slot::Saved]
        };
        let values = {
            let arrays = input.arrays([
                (Slot::RunningMean, running.mean.view().into_dyn()),
                (Slot::RunningVar, running.var.view().into_dyn()),
            ]);
            let mut inputs = arrays.inputs(channels)?;
            inputs.push((Slot::Batches, Source::Count(running.batches)));
            self.run(plan, &inputs, outputs).await?
        };
        let mut values = values.into_iter();
        let mut next = || values.next().unwrap_or_default();
        let y = shaped(input.x.shape(), next())?;
        let saved = SavedStatistics::from_values(next(), channels, config.renorm.is_some());
        if updates {
            // A batch without weight is none.
            let counts = has_weight(input.weights.as_ref());
            *running = RunningStatistics {
                mean: next().into(),
                var: next().into(),
                batches: running.batches.saturating_add(counts.into()),
            };
        }
        Ok(TrainOutput { y, saved })
    }

    /// Inference: `y = act((x−running_mean)/√(running_var+ε)·γ + β + z)`.
    ///
    /// # Errors
    /// [`HostError`]: a bad shape, config, length or running variance, or a device that fails.
    pub async fn forward_infer(
        &self,
        input: &Input<'_>,
        running: &RunningStatistics,
        config: &Config,
    ) -> Result<ArrayD<f32>, HostError> {
        let (geometry, config) = input.prepare(config)?;
        let channels = geometry.channels() as usize;
        running.validate(channels)?;
        let plan = Plan::<Infer>::new(geometry, &config, self.caps())?;
        let arrays = input.arrays([
            (Slot::RunningMean, running.mean.view().into_dyn()),
            (Slot::RunningVar, running.var.view().into_dyn()),
        ]);
        let mut values = self.run(plan, &arrays.inputs(channels)?, &[Slot::Y]).await?;
        shaped(input.x.shape(), values.pop().unwrap_or_default())
    }

    /// Backward of [`forward_train`](Self::forward_train), with what it was given and what it
    /// saved. Gradients by the config's mask, and only of what there is; `accumulate` has no meaning
    /// here. An activation's slope is computed again.
    ///
    /// # Errors
    /// [`HostError`]: a bad shape, config or length, or a device that fails.
    pub async fn backward(
        &self,
        input: &Input<'_>,
        dy: ArrayViewD<'_, f32>,
        saved: &SavedStatistics,
        config: &Config,
    ) -> Result<BackwardOutput, HostError> {
        let (geometry, config) = input.prepare(config)?;
        let channels = geometry.channels() as usize;
        for values in saved.parts() {
            check_length(Slot::Saved, values.len(), channels)?;
        }
        if saved.renorm.is_some() != config.renorm.is_some() {
            return Err(HostError::Renorm { given: saved.renorm.is_some() });
        }
        check_shape(Slot::Dy, &dy, &input.x)?;
        let plan = Plan::<Backward>::new(geometry, &config, self.caps())?;
        let saved = saved.to_values();
        let arrays = input.arrays([(Slot::Dy, dy)]);
        let mut inputs = arrays.inputs(channels)?;
        inputs.push((Slot::Saved, Source::Floats(&saved)));
        self.gradients(plan, &inputs, input.x.shape()).await
    }

    /// Backward of [`forward_infer`](Self::forward_infer): the statistics are constants. Gradients
    /// by the config's mask, and only of what there is; `accumulate` has no meaning here.
    ///
    /// # Errors
    /// [`HostError`]: a bad shape, config, length or running variance, or a device that fails.
    pub async fn frozen_backward(
        &self,
        input: &Input<'_>,
        dy: ArrayViewD<'_, f32>,
        running: &RunningStatistics,
        config: &Config,
    ) -> Result<BackwardOutput, HostError> {
        let (geometry, config) = input.prepare(config)?;
        let channels = geometry.channels() as usize;
        running.validate(channels)?;
        check_shape(Slot::Dy, &dy, &input.x)?;
        let plan = Plan::<FrozenBackward>::new(geometry, &config, self.caps())?;
        let arrays = input.arrays([
            (Slot::Dy, dy),
            (Slot::RunningMean, running.mean.view().into_dyn()),
            (Slot::RunningVar, running.var.view().into_dyn()),
        ]);
        self.gradients(plan, &arrays.inputs(channels)?, input.x.shape()).await
    }

    /// Group normalization with the config's [`groups`](Config::groups), as [`GroupNorm`] says: layer
    /// normalization with 1, instance normalization with as many as channels. The saved statistics
    /// are those of every group of every sample, `[outer·groups]` each.
    ///
    /// # Errors
    /// [`HostError`]: a bad shape, config or length, groups that do not part the channels, or a device
    /// that fails.
    pub async fn group_norm(
        &self,
        input: &Input<'_>,
        config: &Config,
    ) -> Result<TrainOutput, HostError> {
        let (geometry, config) = input.prepare(config)?;
        let plan = Plan::<GroupNorm>::new(geometry, &config, self.caps())?;
        let groups = geometry.groups(config.groups).channels() as usize;
        let arrays = input.arrays([]);
        let inputs = arrays.inputs(geometry.channels() as usize)?;
        let values = self.run(plan, &inputs, &[Slot::Y, Slot::Saved]).await?;
        let mut values = values.into_iter();
        let mut next = || values.next().unwrap_or_default();
        let y = shaped(input.x.shape(), next())?;
        Ok(TrainOutput { y, saved: SavedStatistics::from_values(next(), groups, false) })
    }

    /// Backward of [`group_norm`](Self::group_norm), with what it was given and what it saved.
    /// Gradients as in [`backward`](Self::backward).
    ///
    /// # Errors
    /// As [`group_norm`](Self::group_norm).
    pub async fn group_norm_backward(
        &self,
        input: &Input<'_>,
        dy: ArrayViewD<'_, f32>,
        saved: &SavedStatistics,
        config: &Config,
    ) -> Result<BackwardOutput, HostError> {
        let (geometry, config) = input.prepare(config)?;
        check_shape(Slot::Dy, &dy, &input.x)?;
        let plan = Plan::<GroupNormBackward>::new(geometry, &config, self.caps())?;
        let groups = geometry.groups(config.groups).channels() as usize;
        if saved.renorm.is_some() {
            return Err(HostError::Renorm { given: true });
        }
        for values in saved.parts() {
            check_length(Slot::Saved, values.len(), groups)?;
        }
        let saved = saved.to_values();
        let arrays = input.arrays([(Slot::Dy, dy)]);
        let mut inputs = arrays.inputs(geometry.channels() as usize)?;
        inputs.push((Slot::Saved, Source::Floats(&saved)));
        self.gradients(plan, &inputs, input.x.shape()).await
    }

    /// The statistics of `input.x` alone, in one read, weighed if there are weights. Several batches'
    /// [`Moments::merge`] exactly.
    ///
    /// # Errors
    /// [`HostError`]: a bad shape or weight, or a device that fails.
    pub async fn statistics(&self, input: &Input<'_>) -> Result<Moments, HostError> {
        self.statistics_as(input, Element::F32).await
    }

    /// The statistics of `input.x` as the element holds it.
    pub(crate) async fn statistics_as(
        &self,
        input: &Input<'_>,
        element: Element,
    ) -> Result<Moments, HostError> {
        let Input { axis, weights, .. } = input;
        let input = Input { weights: weights.clone(), ..Input::new(input.x.view(), *axis) };
        // Nothing else of a config matters.
        let (geometry, config) = input.prepare(&Config { element, ..Config::pytorch() })?;
        let plan = Plan::<Statistics>::new(geometry, &config, self.caps())?;
        let arrays = input.arrays([]);
        let inputs = arrays.inputs(geometry.channels() as usize)?;
        let slot = self.run(plan, &inputs, &[Slot::Moments]).await?.pop().unwrap_or_default();
        // The slot's count is rounded: the number of values above 2^24, and sums of weights.
        let count = match input.weights {
            Some(weights) => weights.iter().map(|weight| f64::from(*weight)).sum(),
            None => geometry.values_per_channel() as f64,
        };
        Ok(Moments::from_slot(&slot)?.with_count(count)?)
    }

    /// Runs a backward and hands out what its config asked for.
    pub(crate) async fn gradients<O: Bind>(
        &self,
        plan: Plan<O>,
        inputs: &[(Slot, Source<'_>)],
        shape: &[usize],
    ) -> Result<BackwardOutput, HostError> {
        let Config { gradients, affine, residual, .. } = *plan.config();
        let (gamma, beta) = (gradients.gamma && affine.gamma, gradients.beta && affine.beta);
        let z = gradients.z && residual;
        let asked =
            [(gradients.x, Slot::Dx), (gamma, Slot::Dgamma), (beta, Slot::Dbeta), (z, Slot::Dz)];
        let outputs: Vec<Slot> =
            asked.iter().filter(|(asked, _)| *asked).map(|(_, slot)| *slot).collect();
        let mut values = self.run(plan, inputs, &outputs).await?.into_iter();
        let mut next = |asked: bool| asked.then(|| values.next().unwrap_or_default());
        Ok(BackwardOutput {
            dx: next(gradients.x).map(|values| shaped(shape, values)).transpose()?,
            dgamma: next(gamma).map(Array1::from),
            dbeta: next(beta).map(Array1::from),
            dz: next(z).map(|values| shaped(shape, values)).transpose()?,
        })
    }

    /// Runs a plan on memory made for it: slots named in `inputs` hold those values, all others
    /// zeros. Gives the contents of `outputs`; zeros for those that an empty tensor leaves out.
    pub(crate) async fn run<O: Bind>(
        &self,
        plan: Plan<O>,
        inputs: &[(Slot, Source<'_>)],
        outputs: &[Slot],
    ) -> Result<Vec<Vec<f32>>, HostError> {
        let element = plan.config().element;
        let len = plan.geometry().len() as usize;
        let sizes: Vec<u64> = outputs.iter().map(|&slot| plan.slot_size(slot)).collect();
        let prepared = self.kernels.prepare(plan)?;
        let mut memory: Vec<(Slot, wgpu::Buffer)> = Vec::new();
        for (slot, size) in prepared.plan().slots() {
            let source = inputs.iter().find(|(s, _)| *s == slot).map(|(_, source)| source);
            memory.push((slot, self.buffer(slot, size, element, source)?));
        }
        let find = |slot| memory.iter().find(|(s, _)| *s == slot).map(|(_, buffer)| buffer);
        let bound = prepared.bind(&O::Buffers::from_slots(&|slot| find(slot).into()))?;
        let mut encoder =
            self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for (slot, source) in inputs {
            if let (Some(_), Source::Copied { from, to }) = (find(*slot), source) {
                encoder.copy_buffer_to_buffer(from, 0, to, 0, from.size());
            }
        }
        bound.encode_into(&mut encoder);
        let pieces: Vec<(Option<&wgpu::Buffer>, u64)> =
            outputs.iter().map(|&slot| find(slot)).zip(sizes).collect();
        let words = self.read(encoder, &pieces).await?;
        let values = |(slot, words): (&Slot, &Vec<u32>)| match slot.is_tensor() {
            true => widened(words, element, len),
            false => floats(words),
        };
        Ok(outputs.iter().zip(&words).map(values).collect())
    }

    fn buffer(
        &self,
        slot: Slot,
        size: u64,
        element: Element,
        source: Option<&Source<'_>>,
    ) -> Result<wgpu::Buffer, HostError> {
        match source {
            Some(Source::Buffer(buffer) | Source::Copied { to: buffer, .. }) => {
                Ok((*buffer).clone())
            }
            Some(Source::Floats(values)) if slot.is_tensor() => {
                self.memory(slot, size, &narrowed(values, element))
            }
            Some(Source::Floats(values)) => self.memory(slot, size, bytemuck::cast_slice(values)),
            Some(Source::Count(count)) => self.memory(slot, size, &[*count]),
            None => self.memory(slot, size, &[]),
        }
    }

    /// A storage buffer that starts with `words`, the rest zero.
    pub(crate) fn memory(
        &self,
        slot: Slot,
        size: u64,
        words: &[u32],
    ) -> Result<wgpu::Buffer, HostError> {
        let bytes: &[u8] = bytemuck::cast_slice(words);
        let scopes = Scopes::push(&self.device);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(slot.name()),
            size,
            usage: wgpu::BufferUsages::STORAGE
                | wgpu::BufferUsages::COPY_SRC
                | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: !bytes.is_empty(),
        });
        if let Some(message) = scopes.pop() {
            return Err(HostError::Device { message });
        }
        if !bytes.is_empty() {
            let mut view = buffer
                .get_mapped_range_mut(..bytes.len() as u64)
                .map_err(|error| HostError::Device { message: unmapped(error) })?;
            view.copy_from_slice(bytes);
            drop(view);
            buffer.unmap();
        }
        Ok(buffer)
    }

    /// Submits the encoder and reads the first bytes of buffers back, in bounded time.
    pub(crate) async fn read(
        &self,
        mut encoder: wgpu::CommandEncoder,
        pieces: &[(Option<&wgpu::Buffer>, u64)],
    ) -> Result<Vec<Vec<u32>>, HostError> {
        let total: u64 = pieces.iter().filter(|p| p.0.is_some()).map(|(_, size)| size).sum();
        if total == 0 {
            self.queue.submit([encoder.finish()]);
            return Ok(pieces.iter().map(|(_, size)| vec![0; (size / 4) as usize]).collect());
        }
        let scopes = Scopes::push(&self.device);
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("batchnorm::read_back"),
            size: total,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut offset = 0;
        for (buffer, size) in pieces {
            if let Some(buffer) = buffer {
                encoder.copy_buffer_to_buffer(buffer, 0, &staging, offset, *size);
                offset += size;
            }
        }
        let submission = self.queue.submit([encoder.finish()]);
        // The answer of the mapping, or of a wait that gave up; room for both.
        let (sender, receiver) = channel(2);
        let mapped = sender.clone();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            let _ = mapped.try_send(result.map_err(|error| error.to_string()));
        });
        if let Some(message) = scopes.pop() {
            return Err(HostError::Device { message });
        }
        self.drive(submission, sender)?;
        match receiver.receive().await {
            Some(Ok(())) => {}
            Some(Err(message)) => return Err(HostError::ReadBack { message }),
            None => {
                return Err(HostError::ReadBack { message: "the device gave no answer".into() });
            }
        }
        let view = staging
            .get_mapped_range(..)
            .map_err(|error| HostError::ReadBack { message: error.to_string() })?;
        let mut offset = 0;
        let take = |(buffer, size): &(Option<&wgpu::Buffer>, u64)| {
            let size = *size as usize;
            if buffer.is_none() {
                return vec![0; size / 4];
            }
            let values = bytemuck::pod_collect_to_vec(&view[offset..offset + size]);
            offset += size;
            values
        };
        Ok(pieces.iter().map(take).collect())
    }

    /// Waits for the submission on a thread of its own, so that no executor is blocked; a browser
    /// drives itself.
    fn drive(
        &self,
        submission: wgpu::SubmissionIndex,
        sender: Sender<Result<(), String>>,
    ) -> Result<(), HostError> {
        let (device, timeout) = (self.device.clone(), self.timeout);
        let wait =
            wgpu::PollType::Wait { submission_index: Some(submission), timeout: Some(timeout) };
        let poll = move || {
            let start = Instant::now();
            // wgpu panics when the device is lost under a wait; the waiter must hear of it.
            let answer = catch_unwind(AssertUnwindSafe(|| {
                loop {
                    match device.poll(wait.clone()) {
                        // GL gives up after two seconds, whatever it was told.
                        Err(wgpu::PollError::Timeout) if start.elapsed() < timeout => {
                            std::thread::sleep(Duration::from_millis(1));
                        }
                        answer => return answer.map_err(|error| error.to_string()),
                    }
                }
            }));
            let message = match answer {
                Ok(Ok(_)) => return,
                Ok(Err(message)) => format!("{message} (waited {:?})", start.elapsed()),
                Err(_) => "the device was lost".to_string(),
            };
            let _ = sender.try_send(Err(message));
        };
        on_a_thread(poll).map_err(|error| HostError::ReadBack { message: error.to_string() })
    }
}

#[cfg(not(target_family = "wasm"))]
fn on_a_thread(wait: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new().name("batchnorm::wait".into()).spawn(wait).map(drop)
}

/// Nobody needs to wait in a browser, where nothing of wgpu is `Send` either.
#[cfg(target_family = "wasm")]
fn on_a_thread(_: impl FnOnce()) -> std::io::Result<()> {
    Ok(())
}

macro_rules! blocking {
    ($($(#[$doc:meta])* $twin:ident($($name:ident: $ty:ty),*) -> $out:ty = $of:ident;)*) => {
        impl Gpu {
            $($(#[$doc])*
            ///
            /// # Errors
            /// As its async twin.
            pub fn $twin(&self, $($name: $ty),*) -> Result<$out, HostError> {
                pollster::block_on(self.$of($($name),*))
            })*
        }
    };
}

/// The operations of the host form, for a macro that makes methods of them.
macro_rules! operations {
    ($make:ident) => {
        $make! {
            /// [`forward_train`](Self::forward_train), blocking.
            forward_train_blocking(
                input: &Input<'_>, running: &mut RunningStatistics, config: &Config
            ) -> TrainOutput = forward_train;
            /// [`forward_infer`](Self::forward_infer), blocking.
            forward_infer_blocking(
                input: &Input<'_>, running: &RunningStatistics, config: &Config
            ) -> ArrayD<f32> = forward_infer;
            /// [`backward`](Self::backward), blocking.
            backward_blocking(
                input: &Input<'_>, dy: ArrayViewD<'_, f32>, saved: &SavedStatistics,
                config: &Config
            ) -> BackwardOutput = backward;
            /// [`frozen_backward`](Self::frozen_backward), blocking.
            frozen_backward_blocking(
                input: &Input<'_>, dy: ArrayViewD<'_, f32>, running: &RunningStatistics,
                config: &Config
            ) -> BackwardOutput = frozen_backward;
            /// [`statistics`](Self::statistics), blocking.
            statistics_blocking(input: &Input<'_>) -> Moments = statistics;
        }
    };
}
#[cfg(feature = "cpu")]
pub(crate) use operations;

operations!(blocking);

blocking! {
    /// [`group_norm`](Self::group_norm), blocking.
    group_norm_blocking(input: &Input<'_>, config: &Config) -> TrainOutput = group_norm;
    /// [`group_norm_backward`](Self::group_norm_backward), blocking.
    group_norm_backward_blocking(
        input: &Input<'_>, dy: ArrayViewD<'_, f32>, saved: &SavedStatistics, config: &Config
    ) -> BackwardOutput = group_norm_backward;
}

impl Input<'_> {
    /// The geometry, and the config as the host form uses it.
    pub(crate) fn prepare(&self, config: &Config) -> Result<(Geometry, Config), HostError> {
        let geometry = Geometry::new(self.x.shape(), self.axis)?;
        if let Some(z) = &self.z {
            check_shape(Slot::Z, z, &self.x)?;
        }
        if let Some(weights) = &self.weights {
            check_weights(weights, self.axis, self.x.shape())?;
        }
        let config = Config {
            affine: Affine { gamma: self.gamma.is_some(), beta: self.beta.is_some() },
            residual: self.z.is_some(),
            weights: self.weights.is_some(),
            mask: Mask::Recompute,
            gradients: Gradients { accumulate: false, ..config.gradients },
            memory: Memory::Separate,
            ..config.clone()
        };
        Ok((geometry, config))
    }

    /// What there is, and other arrays, in row-major memory.
    fn arrays<'s, const N: usize>(
        &'s self,
        others: [(Slot, ArrayViewD<'s, f32>); N],
    ) -> Arrays<'s> {
        let gamma = self.gamma.map(|gamma| (Slot::Gamma, gamma.reborrow().into_dyn()));
        let beta = self.beta.map(|beta| (Slot::Beta, beta.reborrow().into_dyn()));
        let z = self.z.as_ref().map(|z| (Slot::Z, z.view()));
        let weights = self.weights.as_ref().map(|weights| (Slot::Weights, weights.view()));
        let all = [(Slot::X, self.x.view())].into_iter().chain(gamma).chain(beta).chain(z);
        let all = all.chain(weights);
        Arrays(all.chain(others).map(|(slot, array)| (slot, standard(array))).collect())
    }
}

/// Arrays on their way to the device, in row-major memory.
struct Arrays<'a>(Vec<(Slot, CowArray<'a, f32, IxDyn>)>);

impl Arrays<'_> {
    fn inputs(&self, channels: usize) -> Result<Vec<(Slot, Source<'_>)>, HostError> {
        let mut inputs = Vec::with_capacity(self.0.len() + 1);
        for (slot, array) in &self.0 {
            if slot.is_of_channels() {
                check_length(*slot, array.len(), channels)?;
            }
            inputs.push((*slot, Source::Floats(values(array))));
        }
        Ok(inputs)
    }
}

/// The values of an array from [`standard`].
pub(crate) fn values<'s>(array: &'s CowArray<'_, f32, IxDyn>) -> &'s [f32] {
    array.as_slice().expect("bug: the array is in standard layout")
}

/// Values as words of the element.
pub(crate) fn narrowed(values: &[f32], element: Element) -> Cow<'_, [u32]> {
    let halves: Vec<u16> = match element {
        Element::F32 => return Cow::Borrowed(bytemuck::cast_slice(values)),
        Element::F16 => values.iter().map(|&v| f16::from_f32(v).to_bits()).collect(),
        Element::Bf16 => values.iter().map(|&v| bf16::from_f32(v).to_bits()).collect(),
    };
    let word = |pair: &[u16]| {
        u32::from(pair[0]) | u32::from(pair.get(1).copied().unwrap_or_default()) << 16
    };
    Cow::Owned(halves.chunks(2).map(word).collect())
}

/// Words of the element as `len` values.
fn widened(words: &[u32], element: Element, len: usize) -> Vec<f32> {
    let halves = words.iter().flat_map(|&word| [word as u16, (word >> 16) as u16]).take(len);
    match element {
        Element::F32 => floats(words),
        Element::F16 => halves.map(|half| f16::from_bits(half).to_f32()).collect(),
        Element::Bf16 => halves.map(|half| bf16::from_bits(half).to_f32()).collect(),
    }
}

pub(crate) fn floats(words: &[u32]) -> Vec<f32> {
    words.iter().map(|&word| f32::from_bits(word)).collect()
}

/// The array in row-major memory.
pub(crate) fn standard(array: ArrayViewD<'_, f32>) -> CowArray<'_, f32, IxDyn> {
    if array.is_standard_layout() {
        CowArray::from(array)
    } else {
        CowArray::from(array.as_standard_layout().into_owned())
    }
}

impl SavedStatistics {
    pub(crate) fn from_values(values: Vec<f32>, channels: usize, renorm: bool) -> Self {
        let part = |i: usize| Array1::from(values[i * channels..(i + 1) * channels].to_vec());
        let renorm = renorm.then(|| SavedRenorm { r: part(4), d: part(5) });
        Self { mean: part(0), rest: part(1), inv_std: part(2), count: part(3), renorm }
    }

    fn parts(&self) -> impl Iterator<Item = &Array1<f32>> {
        let renorm = self.renorm.iter().flat_map(|SavedRenorm { r, d }| [r, d]);
        [&self.mean, &self.rest, &self.inv_std, &self.count].into_iter().chain(renorm)
    }

    pub(crate) fn to_values(&self) -> Vec<f32> {
        self.parts().flatten().copied().collect()
    }
}

pub(crate) fn shaped(shape: &[usize], values: Vec<f32>) -> Result<ArrayD<f32>, HostError> {
    ArrayD::from_shape_vec(shape, values)
        .map_err(|error| HostError::ReadBack { message: error.to_string() })
}

pub(crate) fn check_shape(
    slot: Slot,
    found: &ArrayViewD<'_, f32>,
    x: &ArrayViewD<'_, f32>,
) -> Result<(), HostError> {
    match found.shape() == x.shape() {
        true => Ok(()),
        false => {
            let (x, found) = (x.shape().to_vec(), found.shape().to_vec());
            Err(HostError::Shape { slot, x, found })
        }
    }
}

/// Their shape, and that each is finite and ≥ 0.
/// That a batch has a value that is not without weight.
pub(crate) fn has_weight(weights: Option<&ArrayViewD<'_, f32>>) -> bool {
    weights.is_none_or(|weights| weights.iter().any(|weight| *weight > 0.0))
}

pub(crate) fn check_weights(
    weights: &ArrayViewD<'_, f32>,
    axis: ChannelAxis,
    x: &[usize],
) -> Result<(), HostError> {
    let expected = axis.positions(x);
    if weights.shape() != expected {
        let (slot, found) = (Slot::Weights, weights.shape().to_vec());
        return Err(HostError::Shape { slot, x: expected, found });
    }
    match weights.iter().enumerate().find(|(_, w)| !(w.is_finite() && **w >= 0.0)) {
        Some((position, &value)) => Err(HostError::Weight { position, value }),
        None => Ok(()),
    }
}

pub(crate) fn check_length(slot: Slot, length: usize, channels: usize) -> Result<(), HostError> {
    if length == channels { Ok(()) } else { Err(HostError::Length { slot, length, channels }) }
}

/// All adapters of the backends that are compiled in and wanted, and what was looked for in words.
async fn candidates() -> (Vec<wgpu::Adapter>, String) {
    let descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    let backends = descriptor.backends & wgpu::Instance::enabled_backend_features();
    let mut looked_for = format!("backends {backends:?}");
    for name in ["WGPU_BACKEND", "WGPU_ADAPTER_NAME"] {
        if let Ok(value) = std::env::var(name) {
            looked_for += &format!(", {name}={value}");
        }
    }
    if backends.is_empty() {
        // wgpu panics on an instance without a backend.
        return (Vec::new(), looked_for);
    }
    let adapters = wgpu::Instance::new(descriptor).enumerate_adapters(backends).await;
    (adapters, looked_for)
}

fn describe(info: &wgpu::AdapterInfo) -> String {
    let driver = [info.driver.as_str(), info.driver_info.as_str()].join(" ");
    let driver = driver.trim();
    let comma = if driver.is_empty() { "" } else { ", " };
    format!("{} ({:?}, {:?}{comma}{driver})", info.name, info.backend, info.device_type)
}

/// Larger is better: real GPUs before software, native interfaces before GL.
fn preference(info: &wgpu::AdapterInfo) -> (u8, bool) {
    let kind = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => 4,
        wgpu::DeviceType::IntegratedGpu => 3,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 1,
        wgpu::DeviceType::Cpu => 0,
    };
    (kind, info.backend != wgpu::Backend::Gl)
}

/// Why a host operation failed. Nothing was changed then.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum HostError {
    /// There is no adapter to use.
    NoAdapter {
        /// Backends and environment variables.
        looked_for: String,
        /// Adapters that exist but do not match or cannot compute.
        found: Vec<String>,
    },
    /// The adapter refuses a device with the limits that the kernels need.
    RequestDevice {
        /// The adapter.
        adapter: String,
        /// What wgpu says.
        message: String,
    },
    /// A bad shape or axis.
    Geometry(GeometryError),
    /// The operation cannot be planned.
    Plan(PlanError),
    /// The device refuses the kernels.
    Prepare(PrepareError),
    /// The device refuses the memory.
    Bind(BindError),
    /// Moments that do not fit or cannot be used.
    Moments(MomentsError),
    /// The CPU path cannot compute it.
    #[cfg(feature = "cpu")]
    Cpu(CpuError),
    /// A per-channel array of the wrong length.
    Length {
        /// Which.
        slot: Slot,
        /// Its length.
        length: usize,
        /// The number of channels.
        channels: usize,
    },
    /// A tensor that is not shaped as `x`, or weights that are not as `x` without its channel axis.
    Shape {
        /// Which.
        slot: Slot,
        /// The shape it should have.
        x: Vec<usize>,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A tensor with another number of channels than the layer.
    Channels {
        /// Channels of the tensor.
        found: u64,
        /// Channels of the layer.
        expected: u64,
    },
    /// A running variance that is negative or not finite.
    RunningVariance {
        /// Its channel.
        channel: usize,
        /// Its value.
        value: f32,
    },
    /// A weight that is negative or not finite.
    Weight {
        /// Which, in row-major order.
        position: usize,
        /// Its value.
        value: f32,
    },
    /// Weights that the layer's config does not have, or none where it has them.
    Weights {
        /// Whether they were given.
        given: bool,
    },
    /// A residual that the layer's config does not have, or none where it has one.
    Residual {
        /// Whether one was given.
        given: bool,
    },
    /// Saved statistics with r and d for a config without batch renormalization, or without them for
    /// one with it.
    Renorm {
        /// Whether r and d were given.
        given: bool,
    },
    /// A backward without the forward it belongs to.
    NoForward,
    /// The device cannot create memory, or is lost.
    Device {
        /// What wgpu says.
        message: String,
    },
    /// Results did not come back: the device is lost or took too long.
    ReadBack {
        /// What wgpu says.
        message: String,
    },
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAdapter { looked_for, found } => {
                writeln!(f, "no GPU adapter to use. Looked for: {looked_for}.")?;
                match found.is_empty() {
                    true => writeln!(f, "Found: none.")?,
                    false => writeln!(f, "Found, but not usable: {}.", found.join("; "))?,
                }
                f.write_str(
                    "To get one: install your GPU's Vulkan driver, or a software adapter: on Debian and \
                     Ubuntu `apt-get install mesa-vulkan-drivers libvulkan1`, on Fedora `dnf \
                     install mesa-vulkan-drivers vulkan-loader`; macOS (Metal) and Windows (DX12, \
                     with WARP as software adapter) have one built in. The program must also \
                     enable a backend of wgpu, or the `backends` feature of this crate.",
                )
            }
            Self::RequestDevice { adapter, message } => {
                write!(f, "{adapter} gives no device with WebGPU's default limits: {message}")
            }
            Self::Geometry(error) => error.fmt(f),
            Self::Plan(error) => error.fmt(f),
            Self::Prepare(error) => error.fmt(f),
            Self::Bind(error) => error.fmt(f),
            Self::Moments(error) => error.fmt(f),
            #[cfg(feature = "cpu")]
            Self::Cpu(error) => error.fmt(f),
            Self::Length { slot, length, channels } => {
                write!(f, "{slot} has {length} values for {channels} channels")
            }
            Self::Shape { slot, x, found } => {
                write!(f, "{slot} is shaped {found:?}, and not {x:?}")
            }
            Self::Channels { found, expected } => {
                write!(f, "x has {found} channels, the layer has {expected}")
            }
            Self::RunningVariance { channel, value } => {
                write!(f, "running_var of channel {channel} is {value}; it must be finite and >= 0")
            }
            Self::Weight { position, value } => {
                write!(f, "weight {position} is {value}; it must be finite and >= 0")
            }
            Self::Weights { given: true } => {
                f.write_str("weights are given, but the config has none")
            }
            Self::Weights { given: false } => {
                f.write_str("the config has weights, but none are given")
            }
            Self::Residual { given: true } => {
                f.write_str("z is given, but the config has no residual")
            }
            Self::Residual { given: false } => {
                f.write_str("the config has a residual, but z is missing")
            }
            Self::Renorm { given: true } => {
                f.write_str("saved has r and d, but the config has no renorm")
            }
            Self::Renorm { given: false } => {
                f.write_str("the config has a renorm, but saved has no r and d")
            }
            Self::NoForward => f.write_str("backward needs a training forward before it"),
            Self::Device { message } => write!(f, "the device failed or is lost: {message}"),
            Self::ReadBack { message } => write!(f, "results did not come back: {message}"),
        }
    }
}

impl std::error::Error for HostError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Geometry(error) => Some(error),
            Self::Plan(error) => Some(error),
            Self::Prepare(error) => Some(error),
            Self::Bind(error) => Some(error),
            Self::Moments(error) => Some(error),
            #[cfg(feature = "cpu")]
            Self::Cpu(error) => Some(error),
            _ => None,
        }
    }
}

macro_rules! from {
    ($($variant:ident: $error:ty),*) => {
        $(impl From<$error> for HostError {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        })*
    };
}

from! {
    Geometry: GeometryError, Plan: PlanError, Prepare: PrepareError, Bind: BindError,
    Moments: MomentsError
}

#[cfg(feature = "cpu")]
impl From<CpuError> for HostError {
    fn from(error: CpuError) -> Self {
        match error {
            CpuError::Plan(error) => Self::Plan(error),
            error => Self::Cpu(error),
        }
    }
}

impl From<ConfigError> for HostError {
    fn from(error: ConfigError) -> Self {
        Self::Plan(error.into())
    }
}
