//! Batch normalization inside somebody's pipeline: their device, their buffers (all tensors in one
//! arena), their dispatch before it and after it, one compute pass, one submit.

use std::time::Duration;

use wgpu_batchnorm::{
    Caps, ChannelAxis, Config, Geometry, Gpu, Kernels, Memory, Plan, Slot, Train, TrainBuffers,
    wgpu,
};

/// The pipeline's own kernel: every value times a factor.
const SCALE: &str = "
    @group(0) @binding(0) var<storage, read_write> values: array<f32>;
    override factor: f32;
    @compute @workgroup_size(64)
    fn main(@builtin(global_invocation_id) id: vec3<u32>) {
        if id.x < arrayLength(&values) { values[id.x] = values[id.x] * factor; }
    }";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The application has a device; here the host form finds one.
    let gpu = Gpu::new_blocking()?;
    let (device, queue) = (gpu.device(), gpu.queue());

    // Once: plan, compile, place the slots in one buffer, bind.
    let shape = [16, 8, 14, 14];
    let config = Config { memory: Memory::Arena, ..Config::pytorch() };
    let geometry = Geometry::new(&shape, ChannelAxis::First)?;
    let plan = Plan::<Train>::new(geometry, &config, &Caps::of(device))?;
    println!("{}", plan.explain());
    let mut arena_size = 0;
    let mut places = Vec::new();
    for (slot, size) in plan.slots() {
        places.push((slot, arena_size, size));
        arena_size = (arena_size + size).next_multiple_of(256);
    }
    let arena = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("arena"),
        size: arena_size,
        usage: wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_SRC
            | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let piece = |wanted: Slot| {
        let place = places.iter().find(|(slot, ..)| *slot == wanted);
        place.map(|&(_, offset, size)| arena.slice(offset..offset + size))
    };
    let prepared = Kernels::new(device).prepare(plan)?;
    let bound = prepared.bind(&TrainBuffers {
        x: piece(Slot::X).into(),
        y: piece(Slot::Y).into(),
        gamma: piece(Slot::Gamma).into(),
        beta: piece(Slot::Beta).into(),
        saved: piece(Slot::Saved).into(),
        running_mean: piece(Slot::RunningMean).into(),
        running_var: piece(Slot::RunningVar).into(),
        scratch: piece(Slot::Scratch).into(),
        ..Default::default()
    })?;
    let (x, y) = (piece(Slot::X).ok_or("x")?, piece(Slot::Y).ok_or("y")?);
    let before = Scale::new(device, x, 10.0);
    let after = Scale::new(device, y, 100.0);

    // The application's data.
    let values: Vec<f32> = (0..geometry.len()).map(|i| (i % 97) as f32).collect();
    queue.write_buffer(&arena, x.offset(), bytemuck::cast_slice(&values));
    let gamma = piece(Slot::Gamma).ok_or("gamma")?;
    queue.write_buffer(&arena, gamma.offset(), bytemuck::cast_slice(&[1.0f32; 8]));

    // Every step: one encoder, one pass, one submit.
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        before.encode(&mut pass);
        bound.encode(&mut pass);
        after.encode(&mut pass);
    }
    let staging = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("staging"),
        size: y.size(),
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    encoder.copy_buffer_to_buffer(&arena, y.offset(), &staging, 0, y.size());
    let submission = queue.submit([encoder.finish()]);

    // The normalized values have mean 0 and variance 1, times 100.
    staging.map_async(wgpu::MapMode::Read, .., |_| {});
    let timeout = Some(Duration::from_secs(30));
    device.poll(wgpu::PollType::Wait { submission_index: Some(submission), timeout })?;
    let result: Vec<f32> = bytemuck::pod_collect_to_vec(&staging.get_mapped_range(..)?);
    let n = result.len() as f32;
    let mean = result.iter().sum::<f32>() / n;
    let deviation = (result.iter().map(|v| v * v).sum::<f32>() / n).sqrt();
    println!("on {}: mean {mean:.3}, deviation {deviation:.3}", gpu.describe());
    if mean.abs() < 0.01 && (deviation - 100.0).abs() < 0.1 {
        Ok(())
    } else {
        Err("the mean should be 0 and the deviation 100".into())
    }
}

struct Scale {
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    workgroups: u32,
}

impl Scale {
    fn new(device: &wgpu::Device, values: wgpu::BufferSlice<'_>, factor: f64) -> Self {
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("scale"),
            source: wgpu::ShaderSource::Wgsl(SCALE.into()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("scale"),
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[("factor", factor)],
                ..Default::default()
            },
            cache: None,
        });
        let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: values.buffer(),
            offset: values.offset(),
            size: wgpu::BufferSize::new(values.size()),
        });
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("scale"),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &[wgpu::BindGroupEntry { binding: 0, resource }],
        });
        Self { pipeline, group, workgroups: (values.size() / 4).div_ceil(64) as u32 }
    }

    fn encode(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.group, &[]);
        pass.dispatch_workgroups(self.workgroups, 1, 1);
    }
}
