//! What a device's work costs, measured once, for [`Tuning::refined`](crate::Tuning::refined).

use std::time::Instant;

use crate::caps::Class;
use crate::host::{Gpu, HostError};
use crate::kernels::{Scopes, trusted, unmapped};
use crate::plan::Slot;
use crate::shader;
use crate::tuning::{CopyRate, Measured};

/// Bytes of the copies, read and written each; less where a binding takes less.
const SIZES: [u64; 3] = [64 << 10, 512 << 10, 4 << 20];
/// Bytes that one workgroup copies alone.
const ALONE: u64 = 128 << 10;
/// The least of so many is taken: what disturbs a measurement makes it longer.
const ROUNDS: usize = 2;

/// The memcpy kernel, recorded any number of times.
struct Copy {
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    workgroup_count: u32,
}

impl Gpu {
    /// Measures what a dispatch costs and how fast memory is copied: some 100 ms on lavapipe, once per
    /// device. What it gives is plain data, which can be saved and given back.
    ///
    /// Nothing is changed by it: hand the result to [`Tuning::refined`](crate::Tuning::refined), and
    /// that to [`Plan::with_tuning`](crate::Plan::with_tuning). Not in browsers, whose clocks are too
    /// coarse.
    ///
    /// # Errors
    /// [`HostError::Device`], [`HostError::ReadBack`]: a device that fails, or takes longer than the
    /// [timeout](Self::with_timeout).
    pub async fn measure(&self) -> Result<Measured, HostError> {
        let (lanes, workgroups) = match self.caps().class {
            Class::Software => (8, 256),
            Class::Hardware => (self.caps().max_workgroup_size.clamp(1, 256), 4_096),
        };
        let most = self.caps().max_storage_binding_size;
        let memory = |slot| self.memory(slot, SIZES[SIZES.len() - 1].min(most), &[0]);
        let (x, y) = (memory(Slot::X)?, memory(Slot::Y)?);
        let pipeline = self.copy_pipeline(lanes)?;
        let copy = |size, workgroups| self.copy(&pipeline, [&x, &y], size, lanes, workgroups);
        let gigabytes_per_second =
            |size: u64, microseconds: f64| 2.0 * size as f64 / microseconds / 1e3;
        let dispatch_us = self.microseconds(&copy(32, 1)?, &y, [8, 40]).await?;
        let size = ALONE.min(most);
        let each = self.microseconds(&copy(size, 1)?, &y, [2, 10]).await?;
        let alone = gigabytes_per_second(size, each);
        let mut copies = Vec::with_capacity(SIZES.len());
        for size in SIZES {
            let size = size.min(most);
            let counts = if size < 1 << 20 { [2, 10] } else { [1, 3] };
            let each = self.microseconds(&copy(size, workgroups)?, &y, counts).await?;
            let gigabytes_per_second = gigabytes_per_second(size, each);
            copies.push(CopyRate { bytes: size, gigabytes_per_second });
        }
        Ok(Measured { dispatch_us, alone, copies })
    }

    /// [`measure`](Self::measure), blocking.
    ///
    /// # Errors
    /// As its async twin.
    pub fn measure_blocking(&self) -> Result<Measured, HostError> {
        pollster::block_on(self.measure())
    }

    /// Of one copy among others: what so many more take longer than so few, and never nothing.
    async fn microseconds(
        &self,
        copy: &Copy,
        y: &wgpu::Buffer,
        [few, many]: [u32; 2],
    ) -> Result<f64, HostError> {
        let mut least = [f64::MAX; 2];
        for round in 0..=ROUNDS {
            for (least, count) in least.iter_mut().zip([few, many]) {
                let mut encoder = self.device().create_command_encoder(&Default::default());
                {
                    let mut pass = encoder.begin_compute_pass(&Default::default());
                    pass.set_pipeline(&copy.pipeline);
                    pass.set_bind_group(0, &copy.group, &[]);
                    (0..count).for_each(|_| pass.dispatch_workgroups(copy.workgroup_count, 1, 1));
                }
                let start = Instant::now();
                self.read(encoder, &[(Some(y), 4)]).await?;
                // The first round warms up.
                if round > 0 {
                    *least = least.min(start.elapsed().as_secs_f64() * 1e6);
                }
            }
        }
        Ok(((least[1] - least[0]) / f64::from(many - few)).max(1e-3))
    }

    fn copy_pipeline(&self, lanes: u32) -> Result<wgpu::ComputePipeline, HostError> {
        let (device, label) = (self.device(), Some("batchnorm::copy"));
        let scopes = Scopes::push(device);
        let source = wgpu::ShaderSource::Wgsl(shader::copy(self.wide()).into());
        let module = trusted(device, wgpu::ShaderModuleDescriptor { label, source });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: None,
            module: &module,
            entry_point: Some(shader::ENTRY_POINT),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[("LANES", f64::from(lanes))],
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        match scopes.pop() {
            Some(message) => Err(HostError::Device { message }),
            None => Ok(pipeline),
        }
    }

    /// Whether copies are in vectors of 32 bytes instead of 16, as those of the kernels are there.
    fn wide(&self) -> bool {
        self.caps().class == Class::Software && self.caps().int64
    }

    /// Of the first `size` bytes.
    fn copy(
        &self,
        pipeline: &wgpu::ComputePipeline,
        buffers: [&wgpu::Buffer; 2],
        size: u64,
        lanes: u32,
        workgroups: u32,
    ) -> Result<Copy, HostError> {
        let (device, label) = (self.device(), Some("batchnorm::copy"));
        let length = (size / if self.wide() { 32 } else { 16 }) as u32;
        let chunk = length.div_ceil(workgroups).next_multiple_of(4 * lanes);
        let scopes = Scopes::push(device);
        let params = device.create_buffer(&wgpu::BufferDescriptor {
            label,
            size: 8,
            usage: wgpu::BufferUsages::UNIFORM,
            mapped_at_creation: true,
        });
        {
            let view = params.get_mapped_range_mut(..);
            let mut view = view.map_err(|e| HostError::Device { message: unmapped(e) })?;
            view.copy_from_slice(bytemuck::cast_slice(&[length, chunk]));
        }
        params.unmap();
        let [x, y] = buffers.map(wgpu::Buffer::as_entire_binding);
        let entry = |binding, resource| wgpu::BindGroupEntry { binding, resource };
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &[entry(0, params.as_entire_binding()), entry(1, x), entry(2, y)],
        });
        if let Some(message) = scopes.pop() {
            return Err(HostError::Device { message });
        }
        let workgroup_count = length.div_ceil(chunk);
        Ok(Copy { pipeline: pipeline.clone(), group, workgroup_count })
    }
}
