//! The article's network: [BN], Conv 32 3×3, ReLU, [BN], MaxPool 2, Flatten, [Dropout], Dense 10,
//! softmax cross-entropy. All tensors, parameters and the optimizer live on one device; a batch size
//! is a list of commands, made once.

use std::collections::HashMap;

use bytemuck::{Pod, Zeroable};
use wgpu::BufferUsages;
use wgpu_batchnorm::{Config, Gpu, wgpu};

use crate::Error;
use crate::batch_norm::BatchNorm;
use crate::data::{CLASSES, Images, SIDE};
use crate::gpu::{self, Command, Kernel, Workshop};

pub const IMAGE: usize = SIDE * SIDE;
pub const CONV_SIDE: usize = SIDE - 2;
pub const CONV_AREA: usize = CONV_SIDE * CONV_SIDE;
pub const FILTERS: usize = 32;
pub const TAPS: usize = 9;
pub const FEATURES: usize = FILTERS * (CONV_SIDE / 2) * (CONV_SIDE / 2);
/// Floats from one image's logits to the next one's.
pub const LOGIT_ROW: usize = 12;
/// Images that one invocation of an element-wise kernel goes through: `GROUP` of `common.wgsl`.
const GROUP: usize = 8;

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

/// Running statistics, one after the other at multiples of [`ALIGNMENT`]: mean and variance of the
/// input, mean and variance of the filters.
const RUNNING: [usize; 4] = [1, 1, FILTERS, FILTERS];
const RUNNING_STRIDE: usize = ALIGNMENT / 4;

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
struct Sizes {
    batch: u32,
    chunk: u32,
    chunk_count: u32,
    padding: u32,
}

/// Which update the optimizer makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Optimizer {
    Adam,
    Sgd,
}

/// What a pass over a batch is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Forward with batch statistics, backward, update.
    Train,
    /// Forward with running statistics and without dropout.
    Infer,
}

/// The network on a device.
pub struct Network {
    gpu: Gpu,
    workshop: Workshop,
    normalize: Option<Config>,
    optimizer: Optimizer,
    max_batch: usize,
    passes: HashMap<(Mode, usize), Vec<Command>>,
    memory: Buffers,
}

/// Everything on the device. Activations hold the largest batch.
struct Buffers {
    images: wgpu::Buffer,
    labels: wgpu::Buffer,
    step: wgpu::Buffer,
    parameters: wgpu::Buffer,
    gradients: wgpu::Buffer,
    moments: wgpu::Buffer,
    running: wgpu::Buffer,
    /// BN of the images, and its gradient.
    input: wgpu::Buffer,
    dinput: wgpu::Buffer,
    input_saved: wgpu::Buffer,
    /// relu(conv).
    planes: wgpu::Buffer,
    /// BN of the planes.
    normalized: wgpu::Buffer,
    /// The gradient of `normalized`, and then, in the same place, of `planes`.
    dplanes: wgpu::Buffer,
    saved: wgpu::Buffer,
    taps: wgpu::Buffer,
    partials: wgpu::Buffer,
    features: wgpu::Buffer,
    logits: wgpu::Buffer,
    dlogits: wgpu::Buffer,
    records: wgpu::Buffer,
}

impl Network {
    /// A network for batches of up to `max_batch` images and `record_count` records, with weights
    /// from `seed`: Glorot's uniform distribution, zero biases, as Keras starts.
    pub fn new(
        gpu: &Gpu,
        normalize: Option<Config>,
        optimizer: Optimizer,
        max_batch: usize,
        record_count: usize,
        seed: u64,
    ) -> Self {
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
            gradients: floats("gradients", Parameter::total(), plain),
            moments: floats("moments", 2 * Parameter::total(), plain),
            running: floats("running", RUNNING.len() * RUNNING_STRIDE, plain),
            input: each("input", IMAGE),
            dinput: each("dinput", IMAGE),
            input_saved: floats("input_saved", 3, plain),
            planes: each("planes", FILTERS * CONV_AREA),
            normalized: each("normalized", FILTERS * CONV_AREA),
            dplanes: each("dplanes", FILTERS * CONV_AREA),
            saved: floats("saved", 3 * FILTERS, plain),
            taps: each("taps", TAPS * CONV_AREA),
            partials: floats("partials", chunks(max_batch).1 * (TAPS + 1) * FILTERS, plain),
            features: each("features", FEATURES),
            logits: each("logits", LOGIT_ROW),
            dlogits: each("dlogits", LOGIT_ROW),
            records: floats("records", 2 * record_count, plain),
        };
        let network = Self {
            gpu: gpu.clone(),
            workshop: Workshop::new(gpu, Parameter::decayed()),
            normalize,
            optimizer,
            max_batch,
            passes: HashMap::new(),
            memory,
        };
        network.load(&initial_parameters(seed), &initial_running());
        network
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The largest batch.
    pub fn max_batch(&self) -> usize {
        self.max_batch
    }

    /// Replaces parameters (laid out as [`Parameter`]) and running statistics.
    pub fn load(&self, parameters: &[f32], running: &[f32]) {
        let queue = self.gpu.queue();
        queue.write_buffer(&self.memory.parameters, 0, bytemuck::cast_slice(parameters));
        queue.write_buffer(&self.memory.running, 0, bytemuck::cast_slice(running));
    }

    /// Sends a batch to the device and records and submits one pass over it: one submit.
    pub fn run(
        &mut self,
        mode: Mode,
        images: &Images,
        indices: &[usize],
        step: &Step,
    ) -> Result<wgpu::SubmissionIndex, Error> {
        let batch = indices.len();
        if batch == 0 || batch > self.max_batch {
            return Err(format!("a batch of {batch} images; up to {} fit", self.max_batch).into());
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
        let queue = self.gpu.queue();
        queue.write_buffer(&self.memory.images, 0, bytemuck::cast_slice(&pixels));
        queue.write_buffer(&self.memory.labels, 0, bytemuck::cast_slice(&labels));
        queue.write_buffer(&self.memory.step, 0, bytemuck::bytes_of(step));
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for command in &self.passes[&(mode, batch)] {
                command.encode(&mut pass);
            }
        }
        Ok(queue.submit([encoder.finish()]))
    }

    /// The first `count` records.
    pub fn records(&self, count: usize) -> Result<Vec<Record>, Error> {
        gpu::read(&self.gpu, &self.memory.records, count)
    }

    /// All parameters, laid out as [`Parameter`].
    #[cfg(test)]
    pub fn parameters(&self) -> Result<Vec<f32>, Error> {
        gpu::read(&self.gpu, &self.memory.parameters, Parameter::total())
    }

    /// All running statistics, laid out as [`RUNNING`].
    #[cfg(test)]
    pub fn running(&self) -> Result<Vec<f32>, Error> {
        gpu::read(&self.gpu, &self.memory.running, RUNNING.len() * RUNNING_STRIDE)
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
        let norms = self.normalize.as_ref().map(|config| {
            let norm = |shape, gamma: Parameter, beta: Parameter, running, saved| BatchNorm {
                gpu: &self.gpu,
                config,
                shape,
                gamma: gamma.of(&m.parameters),
                beta: beta.of(&m.parameters),
                dgamma: gamma.of(&m.gradients),
                dbeta: beta.of(&m.gradients),
                running_mean: running_of(&m.running, running),
                running_var: running_of(&m.running, running + 1),
                saved,
            };
            use Parameter::{Beta, Gamma, InputBeta, InputGamma};
            (
                norm([1, SIDE, SIDE], InputGamma, InputBeta, 0, &m.input_saved),
                norm([FILTERS, CONV_SIDE, CONV_SIDE], Gamma, Beta, 2, &m.saved),
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
                Mode::Train => norm.train(batch, input, &m.input)?,
                Mode::Infer => norm.infer(batch, input, &m.input)?,
            };
            commands.push(Command::BatchNorm(bound));
            input = &m.input;
        }
        commands.push(shop.dispatch(
            gpu::CONV_FORWARD,
            &[weights(ConvWeights), weights(ConvBias), input.slice(..), planes.slice(..)],
            [across(CONV_AREA), batch],
        ));
        if let Some((_, norm)) = &norms {
            let bound = match mode {
                Mode::Train => norm.train(batch, planes, &m.normalized)?,
                Mode::Infer => norm.infer(batch, planes, &m.normalized)?,
            };
            commands.push(Command::BatchNorm(bound));
            planes = &m.normalized;
        }
        commands.push(shop.dispatch(
            gpu::POOL_FORWARD,
            &[sizes, step, planes.slice(..), m.features.slice(..)],
            [across(FEATURES), groups],
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
            [batch.div_ceil(4), 1],
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
            [1, 1],
        ));
        if mode == Mode::Infer {
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
            [across(FEATURES), groups],
        ));
        commands.push(shop.dispatch(
            gpu::DENSE_BACKWARD,
            &[sizes, m.dlogits.slice(..), m.features.slice(..), gradient(DenseWeights)],
            [across(FEATURES), 1],
        ));
        if let Some((_, norm)) = &norms {
            let bound = norm.backward(batch, &m.planes, &m.dplanes, true)?;
            commands.push(Command::BatchNorm(bound));
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
            [chunk_count, FILTERS / 8],
        ));
        commands.push(shop.dispatch(
            gpu::CONV_MERGE_WEIGHTS,
            &[sizes, m.partials.slice(..), gradient(ConvWeights), gradient(ConvBias)],
            [across((TAPS + 1) * FILTERS), 1],
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
                [across(CONV_AREA), batch],
            ));
            commands.push(shop.dispatch(
                gpu::CONV_GATHER_TAPS,
                &[sizes, m.taps.slice(..), m.dinput.slice(..)],
                [across(IMAGE), batch],
            ));
            let bound = norm.backward(batch, &m.images, &m.dinput, false)?;
            commands.push(Command::BatchNorm(bound));
        }
        let (kernel, state): (Kernel, &[_]) = match self.optimizer {
            Optimizer::Adam => (gpu::ADAM, &[m.moments.slice(..)]),
            Optimizer::Sgd => (gpu::SGD, &[]),
        };
        let mut bindings = vec![step, m.gradients.slice(..), m.parameters.slice(..)];
        bindings.extend_from_slice(state);
        commands.push(shop.dispatch(kernel, &bindings, [across(Parameter::total()), 1]));
        Ok(commands)
    }
}

/// Images in a chunk of the convolution's weight gradient, and how many chunks.
fn chunks(batch: usize) -> (usize, usize) {
    let chunk = batch.div_ceil(32);
    (chunk, batch.div_ceil(chunk))
}

fn running_of(buffer: &wgpu::Buffer, index: usize) -> wgpu::BufferSlice<'_> {
    let begin = (index * ALIGNMENT) as u64;
    buffer.slice(begin..begin + 4 * RUNNING[index] as u64)
}

/// Mean 0, variance 1.
fn initial_running() -> Vec<f32> {
    (0..RUNNING.len() * RUNNING_STRIDE).map(|i| (i / RUNNING_STRIDE % 2) as f32).collect()
}

fn initial_parameters(seed: u64) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut values = vec![0.0; Parameter::total()];
    let mut fill = |parameter: Parameter, value: &mut dyn FnMut() -> f32| {
        let begin = parameter.offset();
        values[begin..begin + parameter.len()].fill_with(value);
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
    values
}
