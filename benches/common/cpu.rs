//! The operations on the CPU path.

use std::time::{Duration, Instant};

use wgpu_batchnorm::cpu::{self, BackwardSlices, CpuError, InferSlices, TrainSlices};
use wgpu_batchnorm::{Config, Geometry};

use super::{Operation, noise};

pub struct OnCpu {
    geometry: Geometry,
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

impl OnCpu {
    pub fn new(geometry: Geometry) -> Self {
        let (n, c) = (geometry.len() as usize, geometry.channels() as usize);
        let mut on_cpu = Self {
            geometry,
            config: Config::pytorch(),
            x: noise(n, 1),
            dy: noise(n, 2),
            out: vec![0.0; n],
            gamma: noise(c, 3),
            beta: noise(c, 4),
            saved: vec![0.0; 4 * c],
            running: [vec![0.0; c], vec![1.0; c]],
            gradients: [vec![0.0; c], vec![0.0; c]],
        };
        // The backward needs what this saves.
        on_cpu.run(Operation::Forward, 1);
        on_cpu
    }

    /// `count` times the operation.
    pub fn run(&mut self, operation: Operation, count: u32) -> Duration {
        let start = Instant::now();
        for _ in 0..count {
            self.run_once(operation).expect("the slices fit the geometry");
            std::hint::black_box(&mut self.out);
        }
        start.elapsed()
    }

    fn run_once(&mut self, operation: Operation) -> Result<(), CpuError> {
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
