//! The memcpy kernel: the yardstick, with the best geometry found per class of adapter
//! (`cargo bench --bench ratios -- --copy` measures again).
//!
//! | device (25.7 MB, GB/s read + written) | 8 lanes | 64 lanes | 256 lanes |
//! |---|---|---|---|
//! | llvmpipe, Mesa 22.3.6, 2 cores, vec4<u64>, 64 to 4096 workgroups | 18.8 | 7.6–8.6 | 10.3–12.1 |
//! | the same, vec4<f32> | 12.5 | 2.4–2.6 | 2.4–7.0 |
//!
//! lavapipe goes through the lanes of every load and store one by one, so that few large ones are
//! better. An unrolled copy by single invocations at addresses that are the same for a whole workgroup,
//! and 16 or 32 lanes, did not pay (0.8 to 1.1 of 8 lanes). No hardware GPU has been measured.

use std::num::NonZeroU64;

use wgpu_batchnorm::{Class, Gpu, wgpu};

/// A bound copy of one buffer to another.
pub struct Copy {
    /// Bytes that it reads; it writes as many.
    pub size: u64,
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    grid: [u32; 2],
}

impl Copy {
    /// Copies the first `size` bytes, in whole vectors.
    pub fn of(gpu: &Gpu, x: &wgpu::Buffer, y: &wgpu::Buffer, size: u64) -> Self {
        let (lanes, workgroups) = match gpu.caps().class {
            Class::Software => (8u32, 256u32),
            Class::Hardware => (256, 4_096),
        };
        let wide = gpu.caps().class == Class::Software && gpu.caps().int64;
        Self::with_geometry(gpu, x, y, size, wide, [lanes, workgroups])
    }

    /// With so many invocations in each of about so many workgroups, in vectors of 32 bytes where it is
    /// `wide`, else of 16.
    pub fn with_geometry(
        gpu: &Gpu,
        x: &wgpu::Buffer,
        y: &wgpu::Buffer,
        size: u64,
        wide: bool,
        [lanes, workgroups]: [u32; 2],
    ) -> Self {
        let device = gpu.device();
        // Of what does not fit one binding, as much as does.
        let vector = if wide { 32 } else { 16 };
        let size = (size.min(gpu.caps().max_storage_binding_size) / vector).max(1) * vector;
        let length = (size / vector) as u32;
        let chunk = length.div_ceil(workgroups).next_multiple_of(4 * lanes);
        let vector = if wide { "vec4<u64>" } else { "vec4<f32>" };
        let source = format!("alias Vector = {vector};{}", include_str!("../../shaders/copy.wgsl"));
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some("copy"),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        };
        // SAFETY: indices stay below `length`, the number of whole vectors in both buffers, and
        // every loop advances towards its end. The kernels are compiled with the same freedom.
        let module = unsafe {
            device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
        };
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("copy"),
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[("LANES", f64::from(lanes))],
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        let params = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("copy params"),
            size: 8,
            usage: wgpu::BufferUsages::UNIFORM,
            mapped_at_creation: true,
        });
        params
            .get_mapped_range_mut(..)
            .expect("the buffer was just mapped")
            .copy_from_slice(bytemuck::cast_slice(&[length, chunk]));
        params.unmap();
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("copy"),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &[
                wgpu::BindGroupEntry { binding: 0, resource: params.as_entire_binding() },
                wgpu::BindGroupEntry { binding: 1, resource: first(x, size) },
                wgpu::BindGroupEntry { binding: 2, resource: first(y, size) },
            ],
        });
        let count = length.div_ceil(chunk);
        let rows = count.div_ceil(65_535).max(1);
        Self { size, pipeline, group, grid: [count.div_ceil(rows), rows] }
    }

    pub fn encode(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.group, &[]);
        pass.dispatch_workgroups(self.grid[0], self.grid[1], 1);
    }
}

fn first(buffer: &wgpu::Buffer, size: u64) -> wgpu::BindingResource<'_> {
    let size = NonZeroU64::new(size);
    wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset: 0, size })
}
