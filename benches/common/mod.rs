//! What the benchmarks share: shapes, operations on the GPU and on the CPU path, the memcpy kernel,
//! and time.

pub mod copy;
#[cfg(feature = "cpu")]
pub mod cpu;

use std::time::{Duration, Instant};

use half::{bf16, f16};
use wgpu_batchnorm::{
    Activation, Backward, BackwardBuffers, Bound, ChannelAxis, Config, Element, Geometry, Gpu,
    Infer, InferBuffers, Operation as Planned, Plan, PlanError, Slot, Train, TrainBuffers, Tuning,
    wgpu,
};

use copy::Copy;

/// Whether a benchmark measures. `cargo bench` passes --bench, `cargo test --benches` does not:
/// then everything runs once, on small shapes.
pub fn measures() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}

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

    pub fn dims(&self) -> String {
        let dims: Vec<String> = self.logical.iter().map(usize::to_string).collect();
        dims.join("×")
    }

    pub fn layout(&self) -> &'static str {
        match (self.logical.len(), self.channels_last) {
            (2, _) => "–",
            (_, false) => "NCHW",
            (_, true) => "NHWC",
        }
    }

    pub fn name(&self) -> String {
        format!("{} {}", self.dims(), self.layout())
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

    pub fn config(self) -> Config {
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
    match Gpu::new_blocking().and_then(Gpu::with_f16_blocking) {
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
    pub on_gpu: OnGpu,
    #[cfg(feature = "cpu")]
    on_cpu: cpu::OnCpu,
}

impl Subject {
    /// `Err` says why the shape cannot run on this device.
    pub fn new(gpu: &Gpu, shape: &Shape, kind: Kind) -> Result<Self, String> {
        let geometry = shape.geometry();
        let memory = Memory::new(gpu, geometry.len(), kind)?;
        Ok(Self {
            on_gpu: OnGpu::new(gpu, planned(gpu, geometry, kind)?, kind, &memory)?,
            #[cfg(feature = "cpu")]
            on_cpu: cpu::OnCpu::new(geometry),
        })
    }

    /// `count` times the operation on the CPU path, plain and f32 whatever the kind; `None` without
    /// the feature `cpu`.
    #[cfg(feature = "cpu")]
    pub fn run_cpu(&mut self, operation: Operation, count: u32) -> Option<Duration> {
        Some(self.on_cpu.run(operation, count))
    }

    #[cfg(not(feature = "cpu"))]
    pub fn run_cpu(&mut self, _: Operation, _: u32) -> Option<Duration> {
        None
    }
}

/// Tensors for every operation, in which those of smaller shapes fit too.
pub struct Memory {
    x: wgpu::Buffer,
    dy: wgpu::Buffer,
    y: wgpu::Buffer,
    dx: wgpu::Buffer,
    /// Under a residual: z, dz and the mask.
    residual: Option<[wgpu::Buffer; 3]>,
}

impl Memory {
    /// For `len` values of the kind; `Err` where the device has no room.
    pub fn new(gpu: &Gpu, len: u64, kind: Kind) -> Result<Self, String> {
        let scopes = [wgpu::ErrorFilter::Validation, wgpu::ErrorFilter::OutOfMemory]
            .map(|filter| gpu.device().push_error_scope(filter));
        let made = Self::made(gpu, len, kind);
        let errors = scopes.into_iter().rev().filter_map(|scope| pollster::block_on(scope.pop()));
        match errors.last() {
            Some(error) => Err(error.to_string()),
            None => made,
        }
    }

    fn made(gpu: &Gpu, len: u64, kind: Kind) -> Result<Self, String> {
        let size = (len * kind.config().element.size()).next_multiple_of(16).max(16);
        let tensor = |seed| filled(gpu, size, kind, seed);
        let residual = match kind {
            Kind::AddRelu => Some([tensor(2)?, tensor(2)?, empty(gpu, 4 * len.div_ceil(32))]),
            _ => None,
        };
        Ok(Self { x: tensor(1)?, dy: tensor(2)?, y: tensor(1)?, dx: tensor(1)?, residual })
    }
}

/// A geometry's operations, bound to memory.
pub struct OnGpu {
    /// Bytes of one tensor.
    pub tensor_size: u64,
    pub explain: [String; 3],
    pub dispatches: [usize; 3],
    /// What all dispatches must move.
    pub bytes_moved: [u64; 3],
    gpu: Gpu,
    bound: [Bound; 3],
    copy: Copy,
}

/// Values that no arithmetic unit is slow on.
pub fn noise(count: usize, seed: u32) -> Vec<f32> {
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

/// A buffer of zeros.
pub fn empty(gpu: &Gpu, size: u64) -> wgpu::Buffer {
    gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: size.next_multiple_of(4).max(4),
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    })
}

/// A buffer of noise: the same million values again and again.
fn filled(gpu: &Gpu, size: u64, kind: Kind, seed: u32) -> Result<wgpu::Buffer, String> {
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: true,
    });
    let values = noise((1 << 20).min(size as usize), seed);
    let words = kind.stored(&values);
    let pattern: &[u8] = bytemuck::cast_slice(&words);
    let mut view = buffer.get_mapped_range_mut(..).map_err(|error| error.to_string())?;
    let mut offset = 0;
    while offset < size as usize {
        let end = (offset + pattern.len()).min(size as usize);
        view.slice(offset..end).copy_from_slice(&pattern[..end - offset]);
        offset = end;
    }
    drop(view);
    buffer.unmap();
    Ok(buffer)
}

/// The plans of the three operations.
pub type Plans = (Plan<Train>, Plan<Infer>, Plan<Backward>);

pub fn plans(
    gpu: &Gpu,
    geometry: Geometry,
    kind: Kind,
    tuning: &Tuning,
) -> Result<Plans, PlanError> {
    let (config, caps) = (kind.config(), gpu.caps());
    Ok((
        Plan::with_tuning(geometry, &config, caps, tuning)?,
        Plan::with_tuning(geometry, &config, caps, tuning)?,
        Plan::with_tuning(geometry, &config, caps, tuning)?,
    ))
}

/// With the tuning of the device's class.
pub fn planned(gpu: &Gpu, geometry: Geometry, kind: Kind) -> Result<Plans, String> {
    let tuning = Tuning::choose(gpu.caps(), &geometry, kind.config().element);
    plans(gpu, geometry, kind, &tuning).map_err(|error| error.to_string())
}

impl OnGpu {
    /// `Err` says why the plans cannot run on this device.
    pub fn new(
        gpu: &Gpu,
        (train, infer, backward): Plans,
        kind: Kind,
        memory: &Memory,
    ) -> Result<Self, String> {
        fn text(error: impl std::error::Error) -> String {
            error.to_string()
        }
        fn moved<O: Planned>(plan: &Plan<O>) -> (String, usize, u64) {
            (plan.explain(), plan.stages().len(), plan.bytes_moved())
        }
        let told = [moved(&train), moved(&infer), moved(&backward)];
        let c = train.geometry().channels() as usize;
        let plain = |values: &[f32]| storage(gpu, values);
        let (gamma, beta) = (plain(&noise(c, 3)), plain(&noise(c, 4)));
        let (mean, var) = (plain(&vec![0.0; c]), plain(&vec![1.0; c]));
        let (dgamma, dbeta) = (plain(&noise(c, 3)), plain(&noise(c, 4)));
        let saved = plain(&vec![0.0; 4 * c]);
        let scratch = empty(gpu, train.scratch_size().max(backward.scratch_size()));
        // A backward computes the slope of a lone ReLU again.
        let shift = (kind == Kind::Relu).then_some(&beta);
        let [z, dz, mask] = match &memory.residual {
            Some(three) if kind == Kind::AddRelu => three.each_ref().map(Some),
            _ => [None; 3],
        };
        let tensor_size = train.slot_size(Slot::X);
        let Memory { x, dy, y, dx, .. } = memory;
        let kernels = gpu.kernels();
        let bound = [
            kernels.prepare(train).map_err(text)?.bind(&TrainBuffers {
                x: x.into(),
                y: y.into(),
                gamma: (&gamma).into(),
                beta: (&beta).into(),
                saved: (&saved).into(),
                running_mean: (&mean).into(),
                running_var: (&var).into(),
                z: z.into(),
                mask: mask.into(),
                scratch: (&scratch).into(),
                ..Default::default()
            }),
            // Of the three, the inference has no backward to write a mask for.
            kernels.prepare(infer).map_err(text)?.bind(&InferBuffers {
                x: x.into(),
                y: y.into(),
                gamma: (&gamma).into(),
                beta: (&beta).into(),
                running_mean: (&mean).into(),
                running_var: (&var).into(),
                z: z.into(),
                ..Default::default()
            }),
            kernels.prepare(backward).map_err(text)?.bind(&BackwardBuffers {
                x: x.into(),
                dy: dy.into(),
                dx: dx.into(),
                gamma: (&gamma).into(),
                dgamma: (&dgamma).into(),
                dbeta: (&dbeta).into(),
                saved: (&saved).into(),
                beta: shift.into(),
                dz: dz.into(),
                mask: mask.into(),
                scratch: (&scratch).into(),
                ..Default::default()
            }),
        ];
        let [train, infer, backward] = bound.map(|bound| bound.map_err(text));
        let bound = [train?, infer?, backward?];
        Ok(Self {
            tensor_size,
            explain: told.each_ref().map(|(text, ..)| text.clone()),
            dispatches: told.each_ref().map(|(_, count, _)| *count),
            bytes_moved: told.each_ref().map(|(.., bytes)| *bytes),
            gpu: gpu.clone(),
            bound,
            copy: Copy::of(gpu, x, y, tensor_size),
        })
    }

    pub fn encode(&self, operation: Operation, pass: &mut wgpu::ComputePass<'_>) {
        self.bound[operation as usize].encode(pass);
    }

    /// `count` times the operation on the GPU, in one submit.
    pub fn run(&self, operation: Operation, count: u32) -> Duration {
        time(&self.gpu, count, |pass| self.encode(operation, pass))
    }

    /// `count` times the memcpy kernel from `x` to `y`, in one submit.
    pub fn run_copy(&self, count: u32) -> Duration {
        time(&self.gpu, count, |pass| self.copy.encode(pass))
    }

    /// Bytes that the memcpy kernel reads and writes.
    pub fn copy_bytes(&self) -> u64 {
        2 * self.copy.size
    }
}

pub fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// How often, so that it takes `target`.
pub fn repetitions(once: Duration, target: Duration) -> u32 {
    (target.as_secs_f64() / once.as_secs_f64().max(1e-6)).clamp(1.0, 500.0) as u32
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
