//! The article's network: [BN], Conv 32 3×3, ReLU, [BN], MaxPool 2, Flatten, [Dropout], Dense 10,
//! softmax cross-entropy; or with the second BN before the ReLU. All tensors, parameters and the optimizer live on one device; a batch size
//! is a list of commands, made once.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytemuck::{Pod, Zeroable};
use wgpu::BufferUsages;
use wgpu_batchnorm::{Config, Gpu, Moments, wgpu};

use crate::Error;
use crate::batch_norm::BatchNorm;
use crate::data::{CLASSES, Images, SIDE};
use crate::gpu::{self, Command, Kernel, Overrides, Workshop};

pub const IMAGE: usize = SIDE * SIDE;
pub const CONV_SIDE: usize = SIDE - 2;
pub const CONV_AREA: usize = CONV_SIDE * CONV_SIDE;
pub const FILTERS: usize = 32;
pub const TAPS: usize = 9;
pub const FEATURES: usize = FILTERS * (CONV_SIDE / 2) * (CONV_SIDE / 2);
/// Floats from one image's logits to the next one's.
pub const LOGIT_ROW: usize = 12;
/// Images that one invocation of an element-wise kernel goes through: `GROUP` of `common.wgsl`.
pub const GROUP: usize = 8;

/// A parameter. All of them lie in one buffer in this order, each at a multiple of [`ALIGNMENT`],
/// and so do their gradients and moments: the optimizer is one dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parameter {
    /// `[tap, filter]`.
    ConvWeights,
    /// `[class, feature]`.
    DenseWeights,
    ConvBias,
    DenseBias,
    InputGamma,
    InputBeta,
    Gamma,
    Beta,
}

/// Bytes; what a binding's offset must be a multiple of by WebGPU's default limits.
const ALIGNMENT: usize = 256;

impl Parameter {
    pub const ALL: [Self; 8] = [
        Self::ConvWeights,
        Self::DenseWeights,
        Self::ConvBias,
        Self::DenseBias,
        Self::InputGamma,
        Self::InputBeta,
        Self::Gamma,
        Self::Beta,
    ];

    pub fn len(self) -> usize {
        match self {
            Self::ConvWeights => TAPS * FILTERS,
            Self::DenseWeights => CLASSES * FEATURES,
            Self::DenseBias => CLASSES,
            Self::InputGamma | Self::InputBeta => 1,
            Self::ConvBias | Self::Gamma | Self::Beta => FILTERS,
        }
    }

    /// Where it starts, in floats.
    pub fn offset(self) -> usize {
        let before = Self::ALL.iter().take_while(|other| **other != self);
        before.map(|parameter| parameter.padded()).sum()
    }

    fn padded(self) -> usize {
        self.len().next_multiple_of(ALIGNMENT / 4)
    }

    /// Floats of all parameters together.
    pub fn total() -> usize {
        Self::ALL.iter().map(|parameter| parameter.padded()).sum()
    }

    /// Floats that decay: the weights stand first; biases, γ and β are spared, as is usual.
    pub fn decayed() -> usize {
        Self::ConvBias.offset()
    }

    /// Whether it belongs to batch normalization.
    #[cfg(test)]
    pub fn normalizes(self) -> bool {
        matches!(self, Self::InputGamma | Self::InputBeta | Self::Gamma | Self::Beta)
    }

    /// Its part of a buffer of parameters or gradients.
    fn of(self, buffer: &wgpu::Buffer) -> wgpu::BufferSlice<'_> {
        let begin = 4 * self.offset() as u64;
        buffer.slice(begin..begin + 4 * self.len() as u64)
    }
}

/// Floats from one of a layer's running statistics to the next: mean and variance of the input, mean
/// and variance of the planes.
pub const RUNNING_STRIDE: usize = ALIGNMENT / 4;
const RUNNING_LEN: usize = 4 * RUNNING_STRIDE;

/// All that training changes.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Laid out as [`Parameter`].
    pub parameters: Vec<f32>,
    /// Adam's first, then its second moments, each laid out as [`Parameter`].
    pub moments: Vec<f32>,
    /// Laid out by [`Layer::running_offset`].
    pub running: Vec<f32>,
}

impl State {
    fn initial(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut parameters = vec![0.0; Parameter::total()];
        let mut fill = |parameter: Parameter, value: &mut dyn FnMut() -> f32| {
            let begin = parameter.offset();
            parameters[begin..begin + parameter.len()].fill_with(value);
        };
        let glorot = |inputs: usize, outputs: usize| (6.0 / (inputs + outputs) as f32).sqrt();
        for (parameter, limit) in [
            (Parameter::ConvWeights, glorot(TAPS, TAPS * FILTERS)),
            (Parameter::DenseWeights, glorot(FEATURES, CLASSES)),
        ] {
            fill(parameter, &mut || limit * (2.0 * random.f32() - 1.0));
        }
        fill(Parameter::InputGamma, &mut || 1.0);
        fill(Parameter::Gamma, &mut || 1.0);
        // Mean 0, variance 1.
        let running = (0..RUNNING_LEN).map(|i| (i / RUNNING_STRIDE % 2) as f32).collect();
        Self { parameters, moments: vec![0.0; 2 * Parameter::total()], running }
    }

    /// A parameter's values.
    pub fn parameter(&self, parameter: Parameter) -> &[f32] {
        &self.parameters[parameter.offset()..parameter.offset() + parameter.len()]
    }

    /// A layer's running mean and variance.
    pub fn running(&self, layer: Layer) -> [&[f32]; 2] {
        let begin = layer.running_offset();
        [0, RUNNING_STRIDE].map(|next| &self.running[begin + next..][..layer.channels()])
    }
}

/// What the loss summed up over a batch.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub struct Record {
    /// Sum of the images' losses.
    pub loss: f32,
    /// Right answers.
    pub correct: f32,
}

/// The twin of `Step` in `common.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub struct Step {
    pub record: u32,
    pub dropout_seed: u32,
    pub dropout_threshold: u32,
    pub dropout_scale: f32,
    pub learning_rate: f32,
    pub decay: f32,
    pub correction_1: f32,
    pub correction_2: f32,
}

/// The twin of `Sizes` in `common.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Sizes {
    pub batch: u32,
    pub chunk: u32,
    pub chunk_count: u32,
    pub padding: u32,
}

/// Which update the optimizer makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Optimizer {
    Adam,
    Sgd,
}

/// Where the second batch normalization stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Conv, ReLU, BN: the article's.
    ReluFirst,
    /// Conv, BN, ReLU: as in residual networks. For inference this pair folds into one convolution.
    NormFirst,
}

/// A layer that normalizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layer {
    /// Before the convolution.
    Input,
    /// After it.
    Planes,
}

impl Layer {
    pub const ALL: [Self; 2] = [Self::Input, Self::Planes];

    /// `[C, height, width]` of one image.
    pub fn shape(self) -> [usize; 3] {
        match self {
            Self::Input => [1, SIDE, SIDE],
            Self::Planes => [FILTERS, CONV_SIDE, CONV_SIDE],
        }
    }

    pub fn channels(self) -> usize {
        self.shape()[0]
    }

    /// Where its running mean starts among the running statistics, in floats; the variance is one
    /// [`RUNNING_STRIDE`] behind.
    pub fn running_offset(self) -> usize {
        2 * RUNNING_STRIDE * self as usize
    }
}

/// What a pass over a batch is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Forward with batch statistics, backward, update.
    Train,
    /// Forward with running statistics and without dropout.
    Infer,
    /// The same with the convolution that [`Network::load_folded`] was given, which stands for
    /// convolution and second normalization.
    Folded,
    /// Only the statistics of what a layer gets to normalize.
    Measure(Layer),
}

/// What a network is made of.
#[derive(Debug, Clone)]
pub struct Design {
    /// Batch normalization and its conventions, or none.
    pub normalize: Option<Config>,
    pub order: Order,
    pub optimizer: Optimizer,
    /// The largest batch.
    pub max_batch: usize,
    /// Losses that are kept until they are read.
    pub record_count: usize,
    /// Invocations in a workgroup: see [`gpu::lanes`].
    pub lanes: usize,
}

/// Passes that the device may be behind; more wait for the oldest.
const PASSES_AHEAD: usize = 16;

/// The network on a device.
pub struct Network {
    gpu: Gpu,
    workshop: Workshop,
    design: Design,
    passes: HashMap<(Mode, usize), Vec<Command>>,
    behind: VecDeque<wgpu::SubmissionIndex>,
    memory: Buffers,
}

/// Everything on the device. Activations hold the largest batch.
struct Buffers {
    images: wgpu::Buffer,
    labels: wgpu::Buffer,
    step: wgpu::Buffer,
    parameters: wgpu::Buffer,
    /// Weights and bias of the folded convolution.
    folded: wgpu::Buffer,
    gradients: wgpu::Buffer,
    moments: wgpu::Buffer,
    running: wgpu::Buffer,
    /// BN of the images, and its gradient.
    input: wgpu::Buffer,
    dinput: wgpu::Buffer,
    input_saved: wgpu::Buffer,
    /// conv, and relu where it stands first.
    planes: wgpu::Buffer,
    /// BN of the planes.
    normalized: wgpu::Buffer,
    /// The gradient of `normalized`, and then, in the same place, of `planes`.
    dplanes: wgpu::Buffer,
    saved: wgpu::Buffer,
    measured: wgpu::Buffer,
    taps: wgpu::Buffer,
    partials: wgpu::Buffer,
    features: wgpu::Buffer,
    logits: wgpu::Buffer,
    dlogits: wgpu::Buffer,
    records: wgpu::Buffer,
}

impl Network {
    /// A network with weights from `seed`: Glorot's uniform distribution, zero biases, as Keras
    /// starts.
    ///
    /// # Errors
    /// A batch whose tensors do not fit one binding of the device.
    pub fn new(gpu: &Gpu, design: Design, seed: u64) -> Result<Self, Error> {
        let &Design { max_batch, record_count, .. } = &design;
        let largest = 4 * (max_batch * FILTERS * CONV_AREA) as u64;
        let limit = gpu.caps().max_storage_binding_size;
        if largest > limit {
            let message = format!(
                "{max_batch} images in a batch need tensors of {largest} bytes, and the device \
                 binds {limit} at most: take a smaller --batch"
            );
            return Err(message.into());
        }
        let floats = |label, count: usize, usage| {
            gpu::buffer(gpu, label, 4 * count as u64, usage | BufferUsages::STORAGE)
        };
        let plain = BufferUsages::empty();
        let each = |label, count: usize| floats(label, max_batch * count, plain);
        let memory = Buffers {
            images: each("images", IMAGE),
            labels: each("labels", 1),
            step: gpu::buffer(gpu, "step", size_of::<Step>() as u64, BufferUsages::UNIFORM),
            parameters: floats("parameters", Parameter::total(), BufferUsages::UNIFORM),
            folded: floats("folded", Parameter::total(), BufferUsages::UNIFORM),
            gradients: floats("gradients", Parameter::total(), plain),
            moments: floats("moments", 2 * Parameter::total(), plain),
            running: floats("running", RUNNING_LEN, plain),
            input: each("input", IMAGE),
            dinput: each("dinput", IMAGE),
            input_saved: floats("input_saved", 4, plain),
            planes: each("planes", FILTERS * CONV_AREA),
            normalized: each("normalized", FILTERS * CONV_AREA),
            dplanes: each("dplanes", FILTERS * CONV_AREA),
            saved: floats("saved", 4 * FILTERS, plain),
            measured: floats("measured", 4 * FILTERS, plain),
            taps: each("taps", TAPS * CONV_AREA),
            partials: floats("partials", chunks(max_batch).1 * (TAPS + 1) * FILTERS, plain),
            features: each("features", FEATURES),
            logits: each("logits", LOGIT_ROW),
            dlogits: each("dlogits", LOGIT_ROW),
            records: floats("records", 2 * record_count, plain),
        };
        let overrides = Overrides {
            lanes: design.lanes,
            relu_first: design.normalize.is_none() || design.order == Order::ReluFirst,
            decayed: Parameter::decayed(),
        };
        let network = Self {
            gpu: gpu.clone(),
            workshop: Workshop::new(gpu, overrides),
            design,
            passes: HashMap::new(),
            behind: VecDeque::new(),
            memory,
        };
        network.load(&State::initial(seed));
        Ok(network)
    }

    /// What it is made of.
    pub fn design(&self) -> &Design {
        &self.design
    }

    /// Replaces all that training changes.
    pub fn load(&self, state: &State) {
        let queue = self.gpu.queue();
        queue.write_buffer(&self.memory.parameters, 0, bytemuck::cast_slice(&state.parameters));
        queue.write_buffer(&self.memory.moments, 0, bytemuck::cast_slice(&state.moments));
        self.load_running(&state.running);
    }

    /// Replaces the running statistics, laid out as in [`State`].
    pub fn load_running(&self, running: &[f32]) {
        self.gpu.queue().write_buffer(&self.memory.running, 0, bytemuck::cast_slice(running));
    }

    /// The convolution of [`Mode::Folded`]: weights `[tap, filter]` and bias.
    pub fn load_folded(&self, weights: &[f32], bias: &[f32]) {
        for (parameter, values) in [(Parameter::ConvWeights, weights), (Parameter::ConvBias, bias)]
        {
            let offset = 4 * parameter.offset() as u64;
            let values = bytemuck::cast_slice(values);
            self.gpu.queue().write_buffer(&self.memory.folded, offset, values);
        }
    }

    /// All that training changes.
    pub fn state(&self) -> Result<State, Error> {
        Ok(State {
            parameters: gpu::read(&self.gpu, &self.memory.parameters, Parameter::total())?,
            moments: gpu::read(&self.gpu, &self.memory.moments, 2 * Parameter::total())?,
            running: gpu::read(&self.gpu, &self.memory.running, RUNNING_LEN)?,
        })
    }

    /// Sends a batch to the device and records and submits one pass over it: one submit. Waits for
    /// no result, but for an earlier pass where the device is [`PASSES_AHEAD`] behind.
    pub fn run(
        &mut self,
        mode: Mode,
        images: &Images,
        indices: &[usize],
        step: &Step,
    ) -> Result<(), Error> {
        self.send(mode, images, indices, step)?;
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for command in &self.passes[&(mode, indices.len())] {
                command.encode(&mut pass);
            }
        }
        self.behind.push_back(self.gpu.queue().submit([encoder.finish()]));
        if self.behind.len() > PASSES_AHEAD {
            if let Some(oldest) = self.behind.pop_front() {
                gpu::wait(&self.gpu, oldest)?;
            }
        }
        Ok(())
    }

    /// As [`run`](Self::run), with every command in a pass of its own between two timestamps: the
    /// commands' names and times. The device needs `TIMESTAMP_QUERY`.
    pub fn profile(
        &mut self,
        mode: Mode,
        images: &Images,
        indices: &[usize],
        step: &Step,
    ) -> Result<Vec<(&'static str, Duration)>, Error> {
        self.send(mode, images, indices, step)?;
        let commands = &self.passes[&(mode, indices.len())];
        gpu::timed(&self.gpu, commands)
    }

    fn send(
        &mut self,
        mode: Mode,
        images: &Images,
        indices: &[usize],
        step: &Step,
    ) -> Result<(), Error> {
        let (batch, max) = (indices.len(), self.design.max_batch);
        if batch == 0 || batch > max {
            return Err(format!("a batch of {batch} images; up to {max} fit").into());
        }
        if !self.passes.contains_key(&(mode, batch)) {
            let commands = self.commands(mode, batch)?;
            self.passes.insert((mode, batch), commands);
        }
        let mut pixels = Vec::with_capacity(batch * IMAGE);
        for &index in indices {
            pixels.extend_from_slice(images.image(index));
        }
        let labels: Vec<u32> = indices.iter().map(|&i| images.labels[i].into()).collect();
        let step = match mode {
            Mode::Train => *step,
            // Dropout is for training.
            _ => Step { dropout_threshold: 0, dropout_scale: 1.0, ..*step },
        };
        let queue = self.gpu.queue();
        queue.write_buffer(&self.memory.images, 0, bytemuck::cast_slice(&pixels));
        queue.write_buffer(&self.memory.labels, 0, bytemuck::cast_slice(&labels));
        queue.write_buffer(&self.memory.step, 0, bytemuck::bytes_of(&step));
        Ok(())
    }

    /// The first `count` records.
    pub fn records(&self, count: usize) -> Result<Vec<Record>, Error> {
        gpu::read(&self.gpu, &self.memory.records, count)
    }

    /// The logits of the last batch, `[image, class]`.
    pub fn logits(&self, batch: usize) -> Result<Vec<[f32; CLASSES]>, Error> {
        let rows: Vec<[f32; LOGIT_ROW]> = gpu::read(&self.gpu, &self.memory.logits, batch)?;
        Ok(rows.iter().map(|row| std::array::from_fn(|class| row[class])).collect())
    }

    /// What [`Mode::Measure`] found in a batch.
    pub fn measured(&self, layer: Layer) -> Result<Moments, Error> {
        let [channels, ..] = layer.shape();
        let slot: Vec<f32> = gpu::read(&self.gpu, &self.memory.measured, 4 * channels)?;
        Ok(Moments::from_slot(&slot)?)
    }

    /// The last batch before and after the second normalization, `[image, filter, pixel]` each.
    pub fn planes(&self, batch: usize) -> Result<[Vec<f32>; 2], Error> {
        let count = batch * FILTERS * CONV_AREA;
        let read = |buffer| gpu::read(&self.gpu, buffer, count);
        Ok([read(&self.memory.planes)?, read(&self.memory.normalized)?])
    }

    /// The last step's gradients, laid out as [`Parameter`].
    #[cfg(test)]
    pub fn gradients(&self) -> Result<Vec<f32>, Error> {
        gpu::read(&self.gpu, &self.memory.gradients, Parameter::total())
    }

    /// The last batch's features, `[image, feature]`.
    #[cfg(test)]
    pub fn features(&self, batch: usize) -> Result<Vec<f32>, Error> {
        gpu::read(&self.gpu, &self.memory.features, batch * FEATURES)
    }

    /// The commands of a pass.
    fn commands(&mut self, mode: Mode, batch: usize) -> Result<Vec<Command>, Error> {
        let m = &self.memory;
        let (chunk, chunk_count) = chunks(batch);
        let sizes =
            gpu::buffer(&self.gpu, "sizes", size_of::<Sizes>() as u64, BufferUsages::UNIFORM);
        let values = Sizes {
            batch: batch as u32,
            chunk: chunk as u32,
            chunk_count: chunk_count as u32,
            padding: 0,
        };
        self.gpu.queue().write_buffer(&sizes, 0, bytemuck::bytes_of(&values));
        let norms = self.design.normalize.as_ref().map(|config| {
            let norm = |layer: Layer, gamma: Parameter, beta: Parameter, saved| BatchNorm {
                gpu: &self.gpu,
                config,
                shape: layer.shape(),
                gamma: gamma.of(&m.parameters),
                beta: beta.of(&m.parameters),
                dgamma: gamma.of(&m.gradients),
                dbeta: beta.of(&m.gradients),
                running_mean: running_of(&m.running, layer, 0),
                running_var: running_of(&m.running, layer, 1),
                saved,
            };
            use Parameter::{Beta, Gamma, InputBeta, InputGamma};
            (
                norm(Layer::Input, InputGamma, InputBeta, &m.input_saved),
                norm(Layer::Planes, Gamma, Beta, &m.saved),
            )
        });
        let lanes = self.workshop.lanes();
        let shop = &mut self.workshop;
        let across = |count: usize| count.div_ceil(lanes);
        let groups = batch.div_ceil(GROUP);
        let weights = |parameter: Parameter| parameter.of(&m.parameters);
        let gradient = |parameter: Parameter| parameter.of(&m.gradients);
        let (sizes, step) = (sizes.slice(..), m.step.slice(..));
        use Parameter::{ConvBias, ConvWeights, DenseBias, DenseWeights};

        let mut commands = Vec::new();
        let (mut input, mut planes) = (&m.images, &m.planes);
        if let Some((norm, _)) = &norms {
            let bound = match mode {
                Mode::Measure(Layer::Input) => {
                    let bound = norm.measure(batch, input, &m.measured)?;
                    return Ok(vec![Command::batch_norm("measure_input", bound)]);
                }
                Mode::Train => norm.train(batch, input, &m.input)?,
                _ => norm.infer(batch, input, &m.input)?,
            };
            commands.push(Command::batch_norm("batch_norm_input", bound));
            input = &m.input;
        }
        let convolution = if mode == Mode::Folded { &m.folded } else { &m.parameters };
        commands.push(shop.dispatch(
            gpu::CONV_FORWARD,
            &[
                ConvWeights.of(convolution),
                ConvBias.of(convolution),
                input.slice(..),
                planes.slice(..),
            ],
            [across(CONV_AREA / 4), batch, FILTERS / 8],
        ));
        if let Some((_, norm)) = norms.as_ref().filter(|_| mode != Mode::Folded) {
            let bound = match mode {
                Mode::Measure(_) => {
                    let bound = norm.measure(batch, planes, &m.measured)?;
                    commands.push(Command::batch_norm("measure_planes", bound));
                    return Ok(commands);
                }
                Mode::Train => norm.train(batch, planes, &m.normalized)?,
                _ => norm.infer(batch, planes, &m.normalized)?,
            };
            commands.push(Command::batch_norm("batch_norm", bound));
            planes = &m.normalized;
        }
        commands.push(shop.dispatch(
            gpu::POOL_FORWARD,
            &[sizes, step, planes.slice(..), m.features.slice(..)],
            [across(FEATURES), groups, 1],
        ));
        commands.push(shop.dispatch(
            gpu::DENSE_FORWARD,
            &[
                sizes,
                weights(DenseWeights),
                weights(DenseBias),
                m.features.slice(..),
                m.logits.slice(..),
            ],
            [batch.div_ceil(4), 1, 1],
        ));
        commands.push(shop.dispatch(
            gpu::LOSS,
            &[
                sizes,
                step,
                m.labels.slice(..),
                m.logits.slice(..),
                m.dlogits.slice(..),
                gradient(DenseBias),
                m.records.slice(..),
            ],
            [1, 1, 1],
        ));
        if mode != Mode::Train {
            return Ok(commands);
        }
        commands.push(shop.dispatch(
            gpu::POOL_BACKWARD,
            &[
                sizes,
                step,
                weights(DenseWeights),
                m.dlogits.slice(..),
                planes.slice(..),
                m.dplanes.slice(..),
            ],
            [across(FEATURES), groups, 1],
        ));
        commands.push(shop.dispatch(
            gpu::DENSE_BACKWARD,
            &[sizes, m.dlogits.slice(..), m.features.slice(..), gradient(DenseWeights)],
            [across(FEATURES), 1, 1],
        ));
        if let Some((_, norm)) = &norms {
            let bound = norm.backward(batch, &m.planes, &m.dplanes, true)?;
            commands.push(Command::batch_norm("batch_norm_backward", bound));
        }
        commands.push(shop.dispatch(
            gpu::CONV_BACKWARD_WEIGHTS,
            &[
                sizes,
                input.slice(..),
                m.planes.slice(..),
                m.dplanes.slice(..),
                m.partials.slice(..),
            ],
            [chunk_count, FILTERS / 8, 1],
        ));
        commands.push(shop.dispatch(
            gpu::CONV_MERGE_WEIGHTS,
            &[sizes, m.partials.slice(..), gradient(ConvWeights), gradient(ConvBias)],
            [across((TAPS + 1) * FILTERS), 1, 1],
        ));
        if let Some((norm, _)) = &norms {
            commands.push(shop.dispatch(
                gpu::CONV_BACKWARD_TAPS,
                &[
                    sizes,
                    weights(ConvWeights),
                    m.planes.slice(..),
                    m.dplanes.slice(..),
                    m.taps.slice(..),
                ],
                [across(CONV_AREA / 4), batch, 1],
            ));
            commands.push(shop.dispatch(
                gpu::CONV_GATHER_TAPS,
                &[sizes, m.taps.slice(..), m.dinput.slice(..)],
                [across(IMAGE), batch, 1],
            ));
            let bound = norm.backward(batch, &m.images, &m.dinput, false)?;
            commands.push(Command::batch_norm("batch_norm_input_backward", bound));
        }
        let (kernel, state): (Kernel, &[_]) = match self.design.optimizer {
            Optimizer::Adam => (gpu::ADAM, &[m.moments.slice(..)]),
            Optimizer::Sgd => (gpu::SGD, &[]),
        };
        let mut bindings = vec![step, m.gradients.slice(..), m.parameters.slice(..)];
        bindings.extend_from_slice(state);
        commands.push(shop.dispatch(kernel, &bindings, [across(Parameter::total()), 1, 1]));
        Ok(commands)
    }
}

/// Images in a chunk of the convolution's weight gradient, and how many chunks.
fn chunks(batch: usize) -> (usize, usize) {
    let chunk = batch.div_ceil(32);
    (chunk, batch.div_ceil(chunk))
}

/// A layer's running mean (`which` is 0) or variance (1).
fn running_of(buffer: &wgpu::Buffer, layer: Layer, which: usize) -> wgpu::BufferSlice<'_> {
    let begin = 4 * (layer.running_offset() + which * RUNNING_STRIDE) as u64;
    buffer.slice(begin..begin + 4 * layer.channels() as u64)
}
