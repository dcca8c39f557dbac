//! The little that the example's own kernels need: buffers, a pipeline per kernel, recorded
//! dispatches, and reading back in bounded time.

use std::collections::HashMap;
use std::time::Duration;

use wgpu_batchnorm::{Bound, Class, Gpu, wgpu};

use crate::Error;

/// How long to wait for the device before giving up.
pub const TIMEOUT: Duration = Duration::from_secs(120);

/// A kernel of `shaders/`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kernel {
    pub name: &'static str,
    /// Its file, and the file of what it shares with others.
    parts: [&'static str; 2],
}

/// Names a kernel by its file.
macro_rules! kernel {
    ($name:literal) => {
        kernel!($name, "")
    };
    ($name:literal, $shared:expr) => {
        Kernel { name: $name, parts: [include_str!(concat!("shaders/", $name, ".wgsl")), $shared] }
    };
}

pub const COMMON: &str = include_str!("shaders/common.wgsl");
const DROPOUT: &str = include_str!("shaders/dropout.wgsl");
const RELU: &str = include_str!("shaders/relu.wgsl");

pub const CONV_FORWARD: Kernel = kernel!("conv_forward");
pub const POOL_FORWARD: Kernel = kernel!("pool_forward", DROPOUT);
pub const DENSE_FORWARD: Kernel = kernel!("dense_forward");
pub const LOSS: Kernel = kernel!("loss");
pub const POOL_BACKWARD: Kernel = kernel!("pool_backward", DROPOUT);
pub const DENSE_BACKWARD: Kernel = kernel!("dense_backward");
pub const CONV_BACKWARD_WEIGHTS: Kernel = kernel!("conv_backward_weights", RELU);
pub const CONV_MERGE_WEIGHTS: Kernel = kernel!("conv_merge_weights");
pub const CONV_BACKWARD_TAPS: Kernel = kernel!("conv_backward_taps", RELU);
pub const CONV_GATHER_TAPS: Kernel = kernel!("conv_gather_taps");
pub const ADAM: Kernel = kernel!("adam");
pub const SGD: Kernel = kernel!("sgd");

/// Invocations in a workgroup: one SIMD unit of a software adapter, or what suits any GPU and keeps
/// the workgroup memory of `conv_backward_weights` below WebGPU's 16 KiB.
pub fn lanes(class: Class) -> usize {
    match class {
        Class::Software => 8,
        Class::Hardware => 32,
    }
}

/// One dispatch of the example's, or one operation of the library's.
pub struct Command {
    pub name: &'static str,
    work: Work,
}

enum Work {
    Dispatch { pipeline: wgpu::ComputePipeline, group: wgpu::BindGroup, grid: [u32; 3] },
    BatchNorm(Bound),
}

impl Command {
    pub fn batch_norm(name: &'static str, bound: Bound) -> Self {
        Self { name, work: Work::BatchNorm(bound) }
    }

    pub fn encode(&self, pass: &mut wgpu::ComputePass<'_>) {
        match &self.work {
            Work::Dispatch { pipeline, group, grid } => {
                pass.insert_debug_marker(self.name);
                pass.set_pipeline(pipeline);
                pass.set_bind_group(0, group, &[]);
                pass.dispatch_workgroups(grid[0], grid[1], grid[2]);
            }
            Work::BatchNorm(bound) => bound.encode(pass),
        }
    }
}

/// The values of `common.wgsl`'s overrides.
#[derive(Debug, Clone, Copy)]
pub struct Overrides {
    pub lanes: usize,
    pub relu_first: bool,
    pub decayed: usize,
}

/// Makes commands; compiles every kernel once.
pub struct Workshop {
    gpu: Gpu,
    overrides: Overrides,
    pipelines: HashMap<Kernel, wgpu::ComputePipeline>,
}

impl Workshop {
    pub fn new(gpu: &Gpu, overrides: Overrides) -> Self {
        Self { gpu: gpu.clone(), overrides, pipelines: HashMap::new() }
    }

    /// Invocations in a workgroup.
    pub fn lanes(&self) -> usize {
        self.overrides.lanes
    }

    /// A dispatch with `bindings` at `@binding(0)`, `@binding(1)`, …
    pub fn dispatch(
        &mut self,
        kernel: Kernel,
        bindings: &[wgpu::BufferSlice<'_>],
        grid: [usize; 3],
    ) -> Command {
        let pipeline = self.pipeline(kernel);
        let entries: Vec<_> = bindings
            .iter()
            .zip(0..)
            .map(|(slice, binding)| wgpu::BindGroupEntry {
                binding,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: slice.buffer(),
                    offset: slice.offset(),
                    size: wgpu::BufferSize::new(slice.size()),
                }),
            })
            .collect();
        let group = self.gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(kernel.name),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        let grid = grid.map(|count| count as u32);
        Command { name: kernel.name, work: Work::Dispatch { pipeline, group, grid } }
    }

    fn pipeline(&mut self, kernel: Kernel) -> wgpu::ComputePipeline {
        if let Some(pipeline) = self.pipelines.get(&kernel) {
            return pipeline.clone();
        }
        let device = self.gpu.device();
        let source = [COMMON, kernel.parts[1], kernel.parts[0]].concat();
        let Overrides { lanes, relu_first, decayed } = self.overrides;
        let constants = [
            ("LANES", lanes as f64),
            ("RELU_FIRST", f64::from(u8::from(relu_first))),
            ("DECAYED", decayed as f64),
        ];
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(kernel.name),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.name),
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                ..Default::default()
            },
            cache: None,
        });
        self.pipelines.insert(kernel, pipeline.clone());
        pipeline
    }
}

/// A zeroed buffer that kernels and copies can use.
pub fn buffer(gpu: &Gpu, label: &str, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
    gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size,
        usage: usage | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}

/// Waits for what was submitted, no longer than [`TIMEOUT`].
pub fn wait(gpu: &Gpu, submission: wgpu::SubmissionIndex) -> Result<(), Error> {
    let poll = wgpu::PollType::Wait { submission_index: Some(submission), timeout: Some(TIMEOUT) };
    gpu.device().poll(poll)?;
    Ok(())
}

/// The first `count` values of a buffer, after all that was submitted.
pub fn read<T: bytemuck::Pod>(
    gpu: &Gpu,
    source: &wgpu::Buffer,
    count: usize,
) -> Result<Vec<T>, Error> {
    let size = (count * size_of::<T>()) as u64;
    let staging = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("staging"),
        size,
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(source, 0, &staging, 0, size);
    let submission = gpu.queue().submit([encoder.finish()]);
    staging.map_async(wgpu::MapMode::Read, .., |_| {});
    wait(gpu, submission)?;
    let view = staging.get_mapped_range(..)?;
    Ok(bytemuck::pod_collect_to_vec(&view))
}

/// Runs the commands, each in a pass of its own between two timestamps: their names and times.
pub fn timed(gpu: &Gpu, commands: &[Command]) -> Result<Vec<(&'static str, Duration)>, Error> {
    let device = gpu.device();
    let count = 2 * commands.len() as u32;
    let queries = device.create_query_set(&wgpu::QuerySetDescriptor {
        label: Some("timestamps"),
        ty: wgpu::QueryType::Timestamp,
        count,
    });
    let usage = wgpu::BufferUsages::QUERY_RESOLVE;
    let resolved = buffer(gpu, "timestamps", 8 * u64::from(count), usage);
    let mut encoder = device.create_command_encoder(&Default::default());
    for (command, index) in commands.iter().zip((0..).step_by(2)) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some(command.name),
            timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                query_set: &queries,
                beginning_of_pass_write_index: Some(index),
                end_of_pass_write_index: Some(index + 1),
            }),
        });
        command.encode(&mut pass);
    }
    encoder.resolve_query_set(&queries, 0..count, &resolved, 0);
    gpu.queue().submit([encoder.finish()]);
    let ticks: Vec<u64> = read(gpu, &resolved, count as usize)?;
    let period = f64::from(gpu.queue().get_timestamp_period()) * 1e-9;
    let time =
        |pair: &[u64]| Duration::from_secs_f64(pair[1].saturating_sub(pair[0]) as f64 * period);
    Ok(commands.iter().map(|command| command.name).zip(ticks.chunks(2).map(time)).collect())
}
