//! What both benchmarks share: shapes, operations on the GPU and on the CPU path, the memcpy
//! kernel, and time.

pub mod copy;

use std::time::{Duration, Instant};

use half::{bf16, f16};
use wgpu_batchnorm::cpu::{self, BackwardSlices, InferSlices, TrainSlices};
use wgpu_batchnorm::{
    Activation, Backward, BackwardBuffers, Bound, ChannelAxis, Config, Element, Geometry, Gpu,
    Infer, InferBuffers, Plan, Slot, Train, TrainBuffers, wgpu,
};

use copy::Copy;

/// Logical `[N, C, ...]` and whether it lies channels-last in memory.
#[derive(Clone, Debug)]
pub struct Shape {
    pub logical: Vec<usize>,
    pub channels_last: bool,
}

impl Shape {
    pub fn geometry(&self) -> Geometry {
        let mut shape = self.logical.clone();
        let mut axis = ChannelAxis::First;
        if self.channels_last {
            let channels = shape.remove(1);
            shape.push(channels);
            axis = ChannelAxis::Last;
        }
        Geometry::new(&shape, axis).expect("a benchmark's shape has two axes and fits")
    }

    pub fn name(&self) -> String {
        let dims: Vec<String> = self.logical.iter().map(usize::to_string).collect();
        let layout = if self.channels_last { "nhwc" } else { "nchw" };
        format!("{} {layout}", dims.join("x"))
    }
}

#[derive(Clone, std::marker::Copy, Debug, PartialEq)]
pub enum Operation {
    Forward,
    Inference,
    Backward,
}

impl Operation {
    pub const ALL: [Self; 3] = [Self::Forward, Self::Inference, Self::Backward];

    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Inference => "inference",
            Self::Backward => "backward",
        }
    }

    /// Bytes of a streaming implementation, in tensors. A residual is read forward and its gradient
    /// written backward; a mask, a bit per value, is not counted.
    pub fn tensors(self, kind: Kind) -> u64 {
        let plain = match self {
            Self::Forward => 3,
            Self::Inference => 2,
            Self::Backward => 5,
        };
        plain + u64::from(kind == Kind::AddRelu)
    }
}

/// What follows the normalization, and in what the tensors are stored.
#[derive(Clone, std::marker::Copy, Debug, PartialEq)]
pub enum Kind {
    F32,
    F16,
    Bf16,
    Relu,
    AddRelu,
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Bf16, Self::Relu, Self::AddRelu];

    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Relu => "relu",
            Self::AddRelu => "add+relu",
        }
    }

    fn config(self) -> Config {
        let base = Config::pytorch();
        match self {
            Self::F32 => base,
            Self::F16 => Config { element: Element::F16, ..base },
            Self::Bf16 => Config { element: Element::Bf16, ..base },
            Self::Relu => Config { activation: Activation::Relu, ..base },
            Self::AddRelu => Config { activation: Activation::Relu, residual: true, ..base },
        }
    }

    /// Values as the tensors store them.
    fn stored(self, values: &[f32]) -> Vec<u32> {
        let narrow = |v: f32| match self {
            Self::F16 => u32::from(f16::from_f32(v).to_bits()),
            _ => u32::from(bf16::from_f32(v).to_bits()),
        };
        let pair = |pair: &[f32]| narrow(pair[0]) | pair.get(1).map_or(0, |v| narrow(*v)) << 16;
        match self {
            Self::F16 | Self::Bf16 => values.chunks(2).map(pair).collect(),
            _ => values.iter().map(|v| v.to_bits()).collect(),
        }
    }
}

/// The device, or the reason why there is none. Without one a benchmark says SKIP, or fails under
/// `BATCHNORM_REQUIRE_GPU=1`.
pub fn gpu() -> Option<Gpu> {
    match Gpu::new_blocking() {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            let required = std::env::var("BATCHNORM_REQUIRE_GPU").is_ok_and(|value| value == "1");
            assert!(!required, "BATCHNORM_REQUIRE_GPU is set, but: {error}");
            println!("SKIP: {error}");
            None
        }
    }
}

/// One shape with everything to run on it; buffers are made and warmed once.
pub struct Subject {
    pub geometry: Geometry,
    /// Bytes of one tensor.
    pub tensor_size: u64,
    pub explain: [String; 3],
    pub dispatches: [usize; 3],
    gpu: Gpu,
    bound: [Bound; 3],
    copy: Copy,
    config: Config,
    x: Vec<f32>,
    dy: Vec<f32>,
    out: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    saved: Vec<f32>,
    running: [Vec<f32>; 2],
    gradients: [Vec<f32>; 2],
}

/// Values that no arithmetic unit is slow on.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| next() + next() + 0.25).collect()
}

pub fn storage<T: bytemuck::NoUninit>(gpu: &Gpu, values: &[T]) -> wgpu::Buffer {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: bytes.len() as u64,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: true,
    });
    let mut view = buffer.get_mapped_range_mut(..).expect("the buffer was just mapped");
    view.copy_from_slice(bytes);
    drop(view);
    buffer.unmap();
    buffer
}

impl Subject {
    /// `Err` says why the shape cannot run on this device.
    pub fn new(gpu: &Gpu, shape: &Shape, kind: Kind) -> Result<Self, String> {
        let geometry = shape.geometry();
        let caps = gpu.caps();
        let config = kind.config();
        let text = |error: &dyn std::error::Error| error.to_string();
        let train = Plan::<Train>::new(geometry, &config, caps).map_err(|e| text(&e))?;
        let infer = Plan::<Infer>::new(geometry, &config, caps).map_err(|e| text(&e))?;
        let backward = Plan::<Backward>::new(geometry, &config, caps).map_err(|e| text(&e))?;
        let explain = [train.explain(), infer.explain(), backward.explain()];
        let dispatches = [train.stages().len(), infer.stages().len(), backward.stages().len()];
        let (n, c) = (geometry.len() as usize, geometry.channels() as usize);
        let (x, dy) = (noise(n, 1), noise(n, 2));
        let (gamma, beta) = (noise(c, 3), noise(c, 4));
        let scratch_size = train.scratch_size().max(backward.scratch_size()).max(4);
        let tensor = |values: &[f32]| storage(gpu, &kind.stored(values));
        let (gx, gdy, gy, gdx) = (tensor(&x), tensor(&dy), tensor(&x), tensor(&x));
        let plain = |values: &[f32]| storage(gpu, values);
        let (ggamma, gbeta) = (plain(&gamma), plain(&beta));
        let (mean, var) = (plain(&vec![0.0; c]), plain(&vec![1.0; c]));
        let (dgamma, dbeta) = (plain(&gamma), plain(&beta));
        let saved = plain(&vec![0.0; 4 * c]);
        let scratch = plain(&vec![0.0; (scratch_size / 4) as usize]);
        let residual = kind == Kind::AddRelu;
        let (z, dz) = (residual.then(|| tensor(&dy)), residual.then(|| tensor(&dy)));
        // Of the three, the inference has no backward to write a mask for.
        let mask = residual.then(|| plain(&vec![0.0; n.div_ceil(32)]));
        // A backward computes the slope of a lone ReLU again.
        let shift = (kind == Kind::Relu).then_some(&gbeta);
        let tensor_size = train.slot_size(Slot::X);
        let kernels = gpu.kernels();
        let bound = [
            kernels.prepare(train).map_err(|e| text(&e))?.bind(&TrainBuffers {
                x: (&gx).into(),
                y: (&gy).into(),
                gamma: (&ggamma).into(),
                beta: (&gbeta).into(),
                saved: (&saved).into(),
                running_mean: (&mean).into(),
                running_var: (&var).into(),
                z: z.as_ref().into(),
                mask: mask.as_ref().into(),
                scratch: (&scratch).into(),
                ..Default::default()
            }),
            kernels.prepare(infer).map_err(|e| text(&e))?.bind(&InferBuffers {
                x: (&gx).into(),
                y: (&gy).into(),
                gamma: (&ggamma).into(),
                beta: (&gbeta).into(),
                running_mean: (&mean).into(),
                running_var: (&var).into(),
                z: z.as_ref().into(),
                ..Default::default()
            }),
            kernels.prepare(backward).map_err(|e| text(&e))?.bind(&BackwardBuffers {
                x: (&gx).into(),
                dy: (&gdy).into(),
                dx: (&gdx).into(),
                gamma: (&ggamma).into(),
                dgamma: (&dgamma).into(),
                dbeta: (&dbeta).into(),
                saved: (&saved).into(),
                beta: shift.into(),
                dz: dz.as_ref().into(),
                mask: mask.as_ref().into(),
                scratch: (&scratch).into(),
                ..Default::default()
            }),
        ];
        let [train, infer, backward] = bound.map(|bound| bound.map_err(|e| text(&e)));
        let bound = [train?, infer?, backward?];
        let copy = Copy::new(gpu, &gx, &gy);
        let mut subject = Self {
            geometry,
            tensor_size,
            explain,
            dispatches,
            gpu: gpu.clone(),
            bound,
            copy,
            // The CPU path is plain and f32, whatever the kind.
            config: Config::pytorch(),
            out: vec![0.0; n],
            x,
            dy,
            gamma,
            beta,
            saved: vec![0.0; 4 * c],
            running: [vec![0.0; c], vec![1.0; c]],
            gradients: [vec![0.0; c], vec![0.0; c]],
        };
        // The backward needs what this saves.
        subject.run_cpu(Operation::Forward, 1);
        Ok(subject)
    }

    /// `count` times the operation on the GPU, in one submit.
    pub fn run_gpu(&self, operation: Operation, count: u32) -> Duration {
        let bound = &self.bound[operation as usize];
        time(&self.gpu, count, |pass| bound.encode(pass))
    }

    /// `count` times the memcpy kernel from `x` to `y`, in one submit.
    pub fn run_copy(&self, count: u32) -> Duration {
        time(&self.gpu, count, |pass| self.copy.encode(pass))
    }

    /// `count` times the operation on the CPU.
    pub fn run_cpu(&mut self, operation: Operation, count: u32) -> Duration {
        let start = Instant::now();
        for _ in 0..count {
            self.run_cpu_once(operation).expect("the slices fit the geometry");
            std::hint::black_box(&mut self.out);
        }
        start.elapsed()
    }

    fn run_cpu_once(&mut self, operation: Operation) -> Result<(), cpu::CpuError> {
        let Self { geometry, config, x, dy, out, gamma, beta, saved, .. } = self;
        let [mean, var] = &mut self.running;
        let [dgamma, dbeta] = &mut self.gradients;
        let (gamma, beta) = (Some(gamma.as_slice()), Some(beta.as_slice()));
        match operation {
            Operation::Forward => cpu::train(
                *geometry,
                config,
                TrainSlices {
                    x,
                    y: out,
                    gamma,
                    beta,
                    saved,
                    running_mean: Some(mean),
                    running_var: Some(var),
                    batches: None,
                },
            ),
            Operation::Inference => cpu::infer(
                *geometry,
                config,
                InferSlices { x, y: out, gamma, beta, running_mean: mean, running_var: var },
            ),
            Operation::Backward => cpu::backward(
                *geometry,
                config,
                BackwardSlices {
                    x,
                    dy,
                    dx: Some(out),
                    gamma,
                    dgamma: Some(dgamma),
                    dbeta: Some(dbeta),
                    saved,
                },
            ),
        }
    }
}

/// Wall time of `count` recordings in one submit, with its wait.
pub fn time(gpu: &Gpu, count: u32, encode: impl Fn(&mut wgpu::ComputePass<'_>)) -> Duration {
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        for _ in 0..count {
            encode(&mut pass);
        }
    }
    let commands = encoder.finish();
    let start = Instant::now();
    let submission_index = Some(gpu.queue().submit([commands]));
    let timeout = Some(Duration::from_secs(300));
    gpu.device()
        .poll(wgpu::PollType::Wait { submission_index, timeout })
        .expect("the device finishes within five minutes");
    start.elapsed()
}
