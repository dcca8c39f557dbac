//! A batch normalization layer in this pipeline, made of the library's public parts: the pipeline's
//! own buffers, its encoder, one recorded operation per batch size.

use wgpu_batchnorm::{
    Backward, BackwardBuffers, Bind, Bound, ChannelAxis, Config, Geometry, Gpu, Gradients, Infer,
    InferBuffers, Memory, Plan, SlotMemory, Statistics, StatisticsBuffers, Train, TrainBuffers,
    wgpu,
};

use crate::Error;
use crate::gpu;

/// The layer's own memory is small; tensors, parameters and gradients are the network's.
pub struct BatchNorm<'a> {
    pub gpu: &'a Gpu,
    pub config: &'a Config,
    /// `[C, height, width]` of one image.
    pub shape: [usize; 3],
    pub gamma: wgpu::BufferSlice<'a>,
    pub beta: wgpu::BufferSlice<'a>,
    pub dgamma: wgpu::BufferSlice<'a>,
    pub dbeta: wgpu::BufferSlice<'a>,
    pub running_mean: wgpu::BufferSlice<'a>,
    pub running_var: wgpu::BufferSlice<'a>,
    pub saved: &'a wgpu::Buffer,
}

impl BatchNorm<'_> {
    fn plan<O: Bind>(&self, batch: usize, config: &Config) -> Result<Plan<O>, Error> {
        let [channels, height, width] = self.shape;
        let geometry = Geometry::new(&[batch, channels, height, width], ChannelAxis::First)?;
        Ok(Plan::new(geometry, config, self.gpu.caps())?)
    }

    /// Working memory for a plan.
    fn scratch<O: Bind>(&self, plan: &Plan<O>) -> Option<wgpu::Buffer> {
        let size = plan.scratch_size();
        (size > 0).then(|| gpu::buffer(self.gpu, "scratch", size, wgpu::BufferUsages::STORAGE))
    }

    /// Training forward of a batch.
    pub fn train(&self, batch: usize, x: &wgpu::Buffer, y: &wgpu::Buffer) -> Result<Bound, Error> {
        let plan = self.plan::<Train>(batch, self.config)?;
        let scratch = self.scratch(&plan);
        Ok(self.gpu.kernels().prepare(plan)?.bind(&TrainBuffers {
            x: x.into(),
            y: y.into(),
            gamma: self.gamma.into(),
            beta: self.beta.into(),
            running_mean: self.running_mean.into(),
            running_var: self.running_var.into(),
            saved: self.saved.into(),
            scratch: scratch.as_ref().into(),
            ..Default::default()
        })?)
    }

    /// Inference on a batch.
    pub fn infer(&self, batch: usize, x: &wgpu::Buffer, y: &wgpu::Buffer) -> Result<Bound, Error> {
        let plan = self.plan::<Infer>(batch, self.config)?;
        Ok(self.gpu.kernels().prepare(plan)?.bind(&InferBuffers {
            x: x.into(),
            y: y.into(),
            gamma: self.gamma.into(),
            beta: self.beta.into(),
            running_mean: self.running_mean.into(),
            running_var: self.running_var.into(),
            ..Default::default()
        })?)
    }

    /// Backward of a batch: the gradients of γ and β, and, where the input needs one, `dx` over `dy`.
    pub fn backward(
        &self,
        batch: usize,
        x: &wgpu::Buffer,
        dy: &wgpu::Buffer,
        input_gradient: bool,
    ) -> Result<Bound, Error> {
        let config = Config {
            memory: if input_gradient { Memory::InPlace } else { Memory::Separate },
            gradients: Gradients { x: input_gradient, ..Gradients::ALL },
            ..self.config.clone()
        };
        let plan = self.plan::<Backward>(batch, &config)?;
        let scratch = self.scratch(&plan);
        Ok(self.gpu.kernels().prepare(plan)?.bind(&BackwardBuffers {
            x: x.into(),
            dy: dy.into(),
            dx: SlotMemory::default(),
            gamma: self.gamma.into(),
            saved: self.saved.into(),
            dgamma: self.dgamma.into(),
            dbeta: self.dbeta.into(),
            scratch: scratch.as_ref().into(),
            ..Default::default()
        })?)
    }

    /// The statistics of a batch alone, for re-estimating the running statistics.
    pub fn measure(
        &self,
        batch: usize,
        x: &wgpu::Buffer,
        moments: &wgpu::Buffer,
    ) -> Result<Bound, Error> {
        let plan = self.plan::<Statistics>(batch, self.config)?;
        let scratch = self.scratch(&plan);
        Ok(self.gpu.kernels().prepare(plan)?.bind(&StatisticsBuffers {
            x: x.into(),
            moments: moments.into(),
            scratch: scratch.as_ref().into(),
            ..Default::default()
        })?)
    }
}
