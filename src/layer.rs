//! A batch-norm layer that keeps its parameters and running statistics on the GPU.

use ndarray::{Array1, ArrayD, ArrayViewD};

use crate::config::{Config, Gradients, Mask, Memory, Update};
use crate::geometry::{ChannelAxis, Geometry};
use crate::host::{
    BackwardOutput, Gpu, HostError, Input, Source, check_length, check_shape, check_weights,
    floats, has_weight, narrowed, shaped, standard, values,
};
use crate::moments::{Moments, MomentsError};
use crate::plan::{Backward, FrozenBackward, Infer, Plan, Slot, Train};

/// A layer: parameters, running statistics, and what the last training forward left for its
/// backward.
///
/// ```no_run
/// use ndarray::ArrayD;
/// use wgpu_batchnorm::{BatchNorm, Config, Gpu};
/// let gpu = Gpu::new_blocking()?;
/// let mut layer = BatchNorm::new(&gpu, 3, Config::pytorch())?;
/// let x = ArrayD::<f32>::ones(vec![8, 3, 4, 4]);
/// let y = layer.forward_train_blocking(x.view())?;
/// let gradients = layer.backward_blocking(y.view())?;
/// # Ok::<(), wgpu_batchnorm::HostError>(())
/// ```
#[derive(Debug)]
pub struct BatchNorm {
    gpu: Gpu,
    channels: usize,
    axis: ChannelAxis,
    config: Config,
    memory: Memories,
    batches: u32,
    last: Option<LastForward>,
}

/// The layer's own buffers, `[C]` f32 each, and the count.
#[derive(Debug)]
struct Memories {
    gamma: wgpu::Buffer,
    beta: wgpu::Buffer,
    running_mean: wgpu::Buffer,
    running_var: wgpu::Buffer,
    batches: wgpu::Buffer,
}

#[derive(Debug)]
struct LastForward {
    shape: Vec<usize>,
    /// What the backward may take of the forward's memory.
    slots: Vec<(Slot, wgpu::Buffer)>,
}

/// What a layer takes: a tensor, or `(x, z)` where its config has a residual; with weights, written
/// out.
#[derive(Debug, Clone)]
pub struct LayerInput<'a> {
    /// The tensor.
    pub x: ArrayViewD<'a, f32>,
    /// The residual, shaped as `x`; given if [`Config::residual`].
    pub z: Option<ArrayViewD<'a, f32>>,
    /// Weights of positions, finite and ≥ 0, shaped as `x` without its channel axis; given in training
    /// if [`Config::weights`]. Inference does not look at them.
    pub weights: Option<ArrayViewD<'a, f32>>,
}

impl<'a> From<ArrayViewD<'a, f32>> for LayerInput<'a> {
    fn from(x: ArrayViewD<'a, f32>) -> Self {
        Self { x, z: None, weights: None }
    }
}

impl<'a> From<(ArrayViewD<'a, f32>, ArrayViewD<'a, f32>)> for LayerInput<'a> {
    fn from((x, z): (ArrayViewD<'a, f32>, ArrayViewD<'a, f32>)) -> Self {
        Self { x, z: Some(z), weights: None }
    }
}

/// Everything of a layer that is worth saving, `[C]` each.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerState {
    /// Scale; 1 where the layer has none.
    pub gamma: Array1<f32>,
    /// Shift; 0 where the layer has none.
    pub beta: Array1<f32>,
    /// Running mean.
    pub running_mean: Array1<f32>,
    /// Running variance, by the convention of the layer's config.
    pub running_var: Array1<f32>,
    /// Training batches seen.
    pub batches: u32,
}

impl LayerState {
    /// γ = 1, β = 0, running mean 0, running variance 1, no batches.
    pub fn new(channels: usize) -> Self {
        Self {
            gamma: Array1::ones(channels),
            beta: Array1::zeros(channels),
            running_mean: Array1::zeros(channels),
            running_var: Array1::ones(channels),
            batches: 0,
        }
    }
}

impl BatchNorm {
    /// A fresh layer for `channels` channels at axis 1. The config's memory is not looked at, and
    /// gradients do not accumulate.
    ///
    /// # Errors
    /// [`HostError`]: a bad config, or a device that cannot create memory.
    pub fn new(gpu: &Gpu, channels: usize, config: Config) -> Result<Self, HostError> {
        Self::with_axis(gpu, channels, ChannelAxis::First, config)
    }

    /// A fresh layer with its channels at `axis`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_axis(
        gpu: &Gpu,
        channels: usize,
        axis: ChannelAxis,
        config: Config,
    ) -> Result<Self, HostError> {
        config.validate()?;
        let gradients = Gradients { accumulate: false, ..config.gradients };
        let config = Config { memory: Memory::Separate, gradients, ..config };
        let state = LayerState::new(channels);
        let memory = Memories::new(gpu, &state)?;
        Ok(Self { gpu: gpu.clone(), channels, axis, config, memory, batches: 0, last: None })
    }

    /// The config.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Training forward. Moves the running statistics, and keeps what
    /// [`backward`](Self::backward) needs of its input.
    ///
    /// # Errors
    /// [`HostError`]; the layer is then as it was before.
    pub async fn forward_train<'a>(
        &mut self,
        input: impl Into<LayerInput<'a>>,
    ) -> Result<ArrayD<f32>, HostError> {
        let input = input.into();
        let geometry = self.geometry(&input)?;
        self.check_weights(&input)?;
        let plan = Plan::<Train>::new(geometry, &self.config, self.gpu.caps())?;
        let backward = Plan::<Backward>::new(geometry, &self.config, self.gpu.caps())?;
        let keeps = |slot| backward.slots().iter().any(|(kept, _)| *kept == slot);
        let mut slots = Vec::new();
        for (slot, tensor) in input.tensors() {
            slots.push((slot, self.upload(slot, plan.slot_size(slot), tensor)?));
        }
        if let Some(weights) = &input.weights {
            let (slot, weights) = (Slot::Weights, standard(weights.view()));
            let words = bytemuck::cast_slice(values(&weights));
            slots.push((slot, self.gpu.memory(slot, plan.slot_size(slot), words)?));
        }
        for slot in [Slot::Saved, Slot::Mask] {
            if plan.slots().iter().any(|(used, _)| *used == slot) {
                slots.push((slot, self.gpu.memory(slot, plan.slot_size(slot), &[])?));
            }
        }
        // The running statistics move in copies, which replace them once the results are here: a
        // device that fails, or a caller who stops waiting, leaves the old ones.
        let moving: &[Slot] = match self.config.update {
            _ if geometry.is_empty() => &[],
            Update::None => &[],
            Update::Cumulative => &[Slot::RunningMean, Slot::RunningVar, Slot::Batches],
            Update::Rate(_) | Update::Decay(_) => &[Slot::RunningMean, Slot::RunningVar],
        };
        let mut moved = Vec::with_capacity(moving.len());
        for &slot in moving {
            let size = self.memory.running(slot).size();
            moved.push((slot, self.gpu.memory(slot, size, &[])?));
        }
        let mut inputs = self.inputs();
        for (slot, to) in &moved {
            inputs.retain(|(other, _)| other != slot);
            inputs.push((*slot, Source::Copied { from: self.memory.running(*slot), to }));
        }
        inputs.extend(slots.iter().map(|(slot, buffer)| (*slot, Source::Buffer(buffer))));
        let mut outputs = self.gpu.run(plan, &inputs, &[Slot::Y]).await?;
        let y = shaped(input.x.shape(), outputs.pop().unwrap_or_default())?;
        if !moved.is_empty() && has_weight(input.weights.as_ref()) {
            self.batches = self.batches.saturating_add(1);
        }
        for (slot, buffer) in moved {
            *self.memory.running_mut(slot) = buffer;
        }
        slots.retain(|(slot, _)| keeps(*slot));
        self.last = Some(LastForward { shape: input.x.shape().to_vec(), slots });
        Ok(y)
    }

    /// Backward of the last [`forward_train`](Self::forward_train), with its input and statistics.
    ///
    /// # Errors
    /// [`HostError::NoForward`] without one, [`HostError::Shape`] when `dy` is not shaped as its
    /// `x`, or a device that fails.
    pub async fn backward(&self, dy: ArrayViewD<'_, f32>) -> Result<BackwardOutput, HostError> {
        let last = self.last.as_ref().ok_or(HostError::NoForward)?;
        if dy.shape() != last.shape {
            let (x, found) = (last.shape.clone(), dy.shape().to_vec());
            return Err(HostError::Shape { slot: Slot::Dy, x, found });
        }
        let geometry = Geometry::new(dy.shape(), self.axis)?;
        let plan = Plan::<Backward>::new(geometry, &self.config, self.gpu.caps())?;
        let gradient = standard(dy.view());
        let mut inputs = self.inputs();
        inputs.extend(last.slots.iter().map(|(slot, buffer)| (*slot, Source::Buffer(buffer))));
        inputs.push((Slot::Dy, Source::Floats(values(&gradient))));
        self.gpu.gradients(plan, &inputs, dy.shape()).await
    }

    /// Inference with the running statistics.
    ///
    /// # Errors
    /// [`HostError`]: a bad shape, or a device that fails.
    pub async fn forward_infer<'a>(
        &self,
        input: impl Into<LayerInput<'a>>,
    ) -> Result<ArrayD<f32>, HostError> {
        let input = input.into();
        let config = self.unmasked();
        let plan = Plan::<Infer>::new(self.geometry(&input)?, &config, self.gpu.caps())?;
        let tensors: Vec<_> = input.tensors().map(|(slot, v)| (slot, standard(v))).collect();
        let mut inputs = self.inputs();
        inputs.extend(tensors.iter().map(|(slot, v)| (*slot, Source::Floats(values(v)))));
        let mut outputs = self.gpu.run(plan, &inputs, &[Slot::Y]).await?;
        shaped(input.x.shape(), outputs.pop().unwrap_or_default())
    }

    /// Backward of [`forward_infer`](Self::forward_infer): the running statistics are constants.
    ///
    /// # Errors
    /// [`HostError`]: a bad shape, or a device that fails.
    pub async fn frozen_backward<'a>(
        &self,
        input: impl Into<LayerInput<'a>>,
        dy: ArrayViewD<'_, f32>,
    ) -> Result<BackwardOutput, HostError> {
        let input = input.into();
        let geometry = self.geometry(&input)?;
        check_shape(Slot::Dy, &dy, &input.x)?;
        let config = self.unmasked();
        let plan = Plan::<FrozenBackward>::new(geometry, &config, self.gpu.caps())?;
        let all = input.tensors().chain([(Slot::Dy, dy.view())]);
        let tensors: Vec<_> = all.map(|(slot, v)| (slot, standard(v))).collect();
        let mut inputs = self.inputs();
        inputs.extend(tensors.iter().map(|(slot, v)| (*slot, Source::Floats(values(v)))));
        self.gpu.gradients(plan, &inputs, dy.shape()).await
    }

    /// Reads parameters and running statistics back.
    ///
    /// # Errors
    /// [`HostError`]: a device that fails.
    pub async fn state(&self) -> Result<LayerState, HostError> {
        let encoder = self.gpu.device().create_command_encoder(&Default::default());
        let size = self.channels as u64 * 4;
        let m = &self.memory;
        let pieces = [&m.gamma, &m.beta, &m.running_mean, &m.running_var];
        let pieces = pieces.map(|buffer| (Some(buffer), size));
        let read = self.gpu.read(encoder, &pieces).await?;
        let mut read = read.iter().map(|words| Array1::from(floats(words)));
        let mut next = || read.next().unwrap_or_default();
        Ok(LayerState {
            gamma: next(),
            beta: next(),
            running_mean: next(),
            running_var: next(),
            batches: self.batches,
        })
    }

    /// Replaces parameters and running statistics, and forgets the last forward.
    ///
    /// # Errors
    /// [`HostError::Length`] for arrays of another length, [`HostError::RunningVariance`] for a
    /// variance that is negative or not finite, or a device that cannot create memory; the layer is
    /// then as it was.
    pub fn load(&mut self, state: &LayerState) -> Result<(), HostError> {
        let check = |slot, values: &Array1<f32>| check_length(slot, values.len(), self.channels);
        check(Slot::Gamma, &state.gamma)?;
        check(Slot::Beta, &state.beta)?;
        crate::host::check_running(&state.running_mean, &state.running_var, self.channels)?;
        self.memory = Memories::new(&self.gpu, state)?;
        self.batches = state.batches;
        self.last = None;
        Ok(())
    }

    /// Makes `moments` the running statistics, with the variance by the convention of the config.
    /// The count of training batches stays: it is what the next [`Update::Cumulative`] divides by.
    ///
    /// # Errors
    /// [`HostError::Moments`] for moments of another number of channels, of no value, or of a
    /// channel that is not finite; [`HostError::Device`] when the device cannot create memory. The
    /// layer is then as it was.
    pub fn set_running(&mut self, moments: &Moments) -> Result<(), HostError> {
        let (found, expected) = (moments.channels(), self.channels);
        if found != expected {
            return Err(MomentsError::Channels { found, expected }.into());
        }
        let (mean, var) = moments.running(self.config.running_variance)?;
        let mean = per_channel(&self.gpu, Slot::RunningMean, &mean)?;
        let var = per_channel(&self.gpu, Slot::RunningVar, &var)?;
        (self.memory.running_mean, self.memory.running_var) = (mean, var);
        Ok(())
    }

    /// Replaces the running statistics by the exact statistics of all values of `batches` together:
    /// inputs of the layer as in [`forward_train`](Self::forward_train) (a residual is not looked at),
    /// of any and unequal sizes, each read once. For precise batch norm (after training) and AdaBN (another domain). The
    /// other choice, an average of batches with equal weights, is training forwards under
    /// [`Update::Cumulative`]. Gives the statistics, which more batches may be merged into.
    ///
    /// # Errors
    /// [`HostError`]: a batch with a bad shape, a device that fails, or what
    /// [`set_running`](Self::set_running) refuses; the layer is then as it was.
    pub async fn re_estimate<'a>(
        &mut self,
        batches: impl IntoIterator<Item = impl Into<LayerInput<'a>>>,
    ) -> Result<Moments, HostError> {
        let mut all = Moments::empty(self.channels);
        for batch in batches {
            let batch = batch.into();
            self.channels_of(&batch.x)?;
            self.check_weights(&batch)?;
            let LayerInput { x, weights, .. } = batch;
            let input = Input { weights, ..Input::new(x, self.axis) };
            all.merge(&self.gpu.statistics_as(&input, self.config.element).await?)?;
        }
        self.set_running(&all)?;
        Ok(all)
    }

    /// Of an input that the config asks for.
    fn geometry(&self, input: &LayerInput<'_>) -> Result<Geometry, HostError> {
        match (&input.z, self.config.residual) {
            (Some(z), true) => check_shape(Slot::Z, z, &input.x)?,
            (None, false) => {}
            (given, _) => return Err(HostError::Residual { given: given.is_some() }),
        }
        self.channels_of(&input.x)
    }

    /// That there are weights where the config asks for them, and good ones.
    fn check_weights(&self, input: &LayerInput<'_>) -> Result<(), HostError> {
        match (&input.weights, self.config.weights) {
            (Some(weights), true) => check_weights(weights, self.axis, input.x.shape()),
            (None, false) => Ok(()),
            (given, _) => Err(HostError::Weights { given: given.is_some() }),
        }
    }

    /// Frozen passes of this form compute an activation's slope again.
    fn unmasked(&self) -> Config {
        Config { mask: Mask::Recompute, ..self.config.clone() }
    }

    fn upload(
        &self,
        slot: Slot,
        size: u64,
        tensor: ArrayViewD<'_, f32>,
    ) -> Result<wgpu::Buffer, HostError> {
        let tensor = standard(tensor);
        self.gpu.memory(slot, size, &narrowed(values(&tensor), self.config.element))
    }

    fn channels_of(&self, x: &ArrayViewD<'_, f32>) -> Result<Geometry, HostError> {
        let geometry = Geometry::new(x.shape(), self.axis)?;
        if geometry.channels() != self.channels as u64 {
            let (found, expected) = (geometry.channels(), self.channels as u64);
            return Err(HostError::Channels { found, expected });
        }
        Ok(geometry)
    }

    fn inputs(&self) -> Vec<(Slot, Source<'_>)> {
        let m = &self.memory;
        vec![
            (Slot::Gamma, Source::Buffer(&m.gamma)),
            (Slot::Beta, Source::Buffer(&m.beta)),
            (Slot::RunningMean, Source::Buffer(&m.running_mean)),
            (Slot::RunningVar, Source::Buffer(&m.running_var)),
            (Slot::Batches, Source::Buffer(&m.batches)),
        ]
    }
}

impl<'a> LayerInput<'a> {
    fn tensors(&self) -> impl Iterator<Item = (Slot, ArrayViewD<'_, f32>)> {
        let z = self.z.as_ref().map(|z| (Slot::Z, z.view()));
        [(Slot::X, self.x.view())].into_iter().chain(z)
    }
}

impl Memories {
    fn new(gpu: &Gpu, state: &LayerState) -> Result<Self, HostError> {
        let make = |slot, values: &Array1<f32>| per_channel(gpu, slot, &values.to_vec());
        Ok(Self {
            gamma: make(Slot::Gamma, &state.gamma)?,
            beta: make(Slot::Beta, &state.beta)?,
            running_mean: make(Slot::RunningMean, &state.running_mean)?,
            running_var: make(Slot::RunningVar, &state.running_var)?,
            batches: gpu.memory(Slot::Batches, 4, &[state.batches])?,
        })
    }

    /// What an update moves.
    fn running(&self, slot: Slot) -> &wgpu::Buffer {
        match slot {
            Slot::RunningMean => &self.running_mean,
            Slot::RunningVar => &self.running_var,
            _ => &self.batches,
        }
    }

    fn running_mut(&mut self, slot: Slot) -> &mut wgpu::Buffer {
        match slot {
            Slot::RunningMean => &mut self.running_mean,
            Slot::RunningVar => &mut self.running_var,
            _ => &mut self.batches,
        }
    }
}

/// A buffer of `[C]` values. One of no bytes cannot be bound or mapped; one of four is never looked
/// at.
fn per_channel(gpu: &Gpu, slot: Slot, values: &[f32]) -> Result<wgpu::Buffer, HostError> {
    gpu.memory(slot, (values.len() as u64 * 4).max(4), bytemuck::cast_slice(values))
}

/// The blocking twins.
impl BatchNorm {
    /// [`forward_train`](Self::forward_train), blocking.
    ///
    /// # Errors
    /// As its async twin.
    pub fn forward_train_blocking<'a>(
        &mut self,
        input: impl Into<LayerInput<'a>>,
    ) -> Result<ArrayD<f32>, HostError> {
        pollster::block_on(self.forward_train(input))
    }

    /// [`backward`](Self::backward), blocking.
    ///
    /// # Errors
    /// As its async twin.
    pub fn backward_blocking(&self, dy: ArrayViewD<'_, f32>) -> Result<BackwardOutput, HostError> {
        pollster::block_on(self.backward(dy))
    }

    /// [`forward_infer`](Self::forward_infer), blocking.
    ///
    /// # Errors
    /// As its async twin.
    pub fn forward_infer_blocking<'a>(
        &self,
        input: impl Into<LayerInput<'a>>,
    ) -> Result<ArrayD<f32>, HostError> {
        pollster::block_on(self.forward_infer(input))
    }

    /// [`frozen_backward`](Self::frozen_backward), blocking.
    ///
    /// # Errors
    /// As its async twin.
    pub fn frozen_backward_blocking<'a>(
        &self,
        input: impl Into<LayerInput<'a>>,
        dy: ArrayViewD<'_, f32>,
    ) -> Result<BackwardOutput, HostError> {
        pollster::block_on(self.frozen_backward(input, dy))
    }

    /// [`re_estimate`](Self::re_estimate), blocking.
    ///
    /// # Errors
    /// As its async twin.
    pub fn re_estimate_blocking<'a>(
        &mut self,
        batches: impl IntoIterator<Item = impl Into<LayerInput<'a>>>,
    ) -> Result<Moments, HostError> {
        pollster::block_on(self.re_estimate(batches))
    }

    /// [`state`](Self::state), blocking.
    ///
    /// # Errors
    /// As its async twin.
    pub fn state_blocking(&self) -> Result<LayerState, HostError> {
        pollster::block_on(self.state())
    }
}
