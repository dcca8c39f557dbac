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
    source: &'static str,
}

/// Names a kernel by its file.
macro_rules! kernel {
    ($name:literal) => {
        Kernel { name: $name, source: include_str!(concat!("shaders/", $name, ".wgsl")) }
    };
}

pub const CONV_FORWARD: Kernel = kernel!("conv_forward");
pub const POOL_FORWARD: Kernel = kernel!("pool_forward");
pub const DENSE_FORWARD: Kernel = kernel!("dense_forward");
pub const LOSS: Kernel = kernel!("loss");
pub const POOL_BACKWARD: Kernel = kernel!("pool_backward");
pub const DENSE_BACKWARD: Kernel = kernel!("dense_backward");
pub const CONV_BACKWARD_WEIGHTS: Kernel = kernel!("conv_backward_weights");
pub const CONV_MERGE_WEIGHTS: Kernel = kernel!("conv_merge_weights");
pub const CONV_BACKWARD_TAPS: Kernel = kernel!("conv_backward_taps");
pub const CONV_GATHER_TAPS: Kernel = kernel!("conv_gather_taps");
pub const ADAM: Kernel = kernel!("adam");
pub const SGD: Kernel = kernel!("sgd");

/// One dispatch of the example's, or one operation of the library's.
pub enum Command {
    Dispatch {
        name: &'static str,
        pipeline: wgpu::ComputePipeline,
        group: wgpu::BindGroup,
        grid: [u32; 2],
    },
    BatchNorm(Bound),
}

impl Command {
    pub fn encode(&self, pass: &mut wgpu::ComputePass<'_>) {
        match self {
            Self::Dispatch { name, pipeline, group, grid } => {
                pass.insert_debug_marker(name);
                pass.set_pipeline(pipeline);
                pass.set_bind_group(0, group, &[]);
                pass.dispatch_workgroups(grid[0], grid[1], 1);
            }
            Self::BatchNorm(bound) => bound.encode(pass),
        }
    }
}

/// Makes commands; compiles every kernel once.
pub struct Workshop {
    gpu: Gpu,
    decayed: usize,
    pipelines: HashMap<Kernel, wgpu::ComputePipeline>,
}

impl Workshop {
    /// `decayed`: how many parameters decay (the optimizers' `DECAYED`).
    pub fn new(gpu: &Gpu, decayed: usize) -> Self {
        Self { gpu: gpu.clone(), decayed, pipelines: HashMap::new() }
    }

    /// Invocations in a workgroup: one SIMD unit of a software adapter, or what suits any GPU and
    /// keeps the workgroup memory of `conv_backward_weights` below WebGPU's 16 KiB.
    pub fn lanes(&self) -> usize {
        match self.gpu.caps().class {
            Class::Software => 8,
            Class::Hardware => 32,
        }
    }

    /// A dispatch with `bindings` at `@binding(0)`, `@binding(1)`, …
    pub fn dispatch(
        &mut self,
        kernel: Kernel,
        bindings: &[wgpu::BufferSlice<'_>],
        grid: [usize; 2],
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
        Command::Dispatch { name: kernel.name, pipeline, group, grid }
    }

    fn pipeline(&mut self, kernel: Kernel) -> wgpu::ComputePipeline {
        if let Some(pipeline) = self.pipelines.get(&kernel) {
            return pipeline.clone();
        }
        let device = self.gpu.device();
        let mut source = String::from(include_str!("shaders/common.wgsl"));
        if kernel.source.contains("dropout_factor") {
            source += include_str!("shaders/dropout.wgsl");
        }
        source += kernel.source;
        let mut constants = vec![("LANES", self.lanes() as f64)];
        if kernel.source.contains("override DECAYED") {
            constants.push(("DECAYED", self.decayed as f64));
        }
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
