//! The CPU path as one of the peers that `benches/peers/run` compares: with `--serve` it answers each line
//! `SHAPE LAYOUT OPERATION COUNT` on its input (`8x64x56x56 nhwc forward 10`) with a line of JSON: the
//! seconds of one of COUNT calls, and a few values of the result. The first line is its version.
//!
//! Without, as in `cargo bench`, it answers a line of its own per operation and layout.

use std::io::{BufRead, Write};
use std::time::Instant;

use serde_json::json;
use wgpu_batchnorm::cpu::{self, BackwardSlices, CpuError, InferSlices, TrainSlices};
use wgpu_batchnorm::{ChannelAxis, Config, Geometry};

/// Values of each tensor that is written, which are compared with the peers'.
const SAMPLES: usize = 16;

/// The same numbers in every peer: multiples of 2⁻²⁰ in −7..9.
fn value(i: usize, seed: u32) -> f32 {
    let mixed = (i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8;
    mixed as f32 / 1_048_576.0 - 7.0
}

struct Case {
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

impl Case {
    fn new(shape: &str, layout: &str) -> Result<Self, String> {
        let sizes: Result<Vec<usize>, _> = shape.split('x').map(str::parse).collect();
        let mut sizes = sizes.map_err(|error| format!("shape {shape}: {error}"))?;
        if sizes.len() < 2 {
            return Err(format!("shape {shape}: at least two sizes"));
        }
        let axis = match layout {
            "nchw" => ChannelAxis::First,
            "nhwc" => {
                sizes[1..].rotate_left(1);
                ChannelAxis::Last
            }
            other => return Err(format!("layout {other}: nchw or nhwc")),
        };
        let geometry = Geometry::new(&sizes, axis).map_err(|error| error.to_string())?;
        let (n, c) = (geometry.len() as usize, geometry.channels() as usize);
        let part = |i: usize| i as f32 / c as f32;
        let mut case = Self {
            geometry,
            config: Config::pytorch(),
            x: (0..n).map(|i| value(i, 0)).collect(),
            dy: (0..n).map(|i| value(i, 0x9e37_79b9)).collect(),
            out: vec![0.0; n],
            gamma: (0..c).map(|i| 1.0 + part(i)).collect(),
            beta: (0..c).map(|i| part(i) - 0.5).collect(),
            saved: vec![0.0; 4 * c],
            running: [vec![0.5; c], vec![2.0; c]],
            gradients: [vec![0.0; c], vec![0.0; c]],
        };
        case.call("forward")?;
        Ok(case)
    }

    fn call(&mut self, operation: &str) -> Result<(), String> {
        let Self { geometry, x, dy, out, gamma, beta, saved, .. } = self;
        let (gamma, beta) = (Some(gamma.as_slice()), Some(beta.as_slice()));
        let done: Result<(), CpuError> = match operation {
            "forward" => {
                let [mean, var] = &mut self.running.clone();
                let (running_mean, running_var) = (Some(mean.as_mut_slice()), Some(&mut var[..]));
                let slices = TrainSlices {
                    x,
                    y: out,
                    gamma,
                    beta,
                    saved,
                    running_mean,
                    running_var,
                    batches: None,
                };
                cpu::train(*geometry, &self.config, slices)
            }
            "inference" => {
                let [running_mean, running_var] = &self.running;
                let slices = InferSlices { x, y: out, gamma, beta, running_mean, running_var };
                cpu::infer(*geometry, &self.config, slices)
            }
            "backward" => {
                let [dgamma, dbeta] = &mut self.gradients;
                let (dgamma, dbeta) = (Some(dgamma.as_mut_slice()), Some(dbeta.as_mut_slice()));
                let slices = BackwardSlices { x, dy, dx: Some(out), gamma, dgamma, dbeta, saved };
                cpu::backward(*geometry, &self.config, slices)
            }
            other => return Err(format!("operation {other}: forward, inference or backward")),
        };
        done.map_err(|error| error.to_string())
    }

    /// Seconds of one of `count` calls, after one that warms the caches.
    fn time(&mut self, operation: &str, count: u32) -> Result<f64, String> {
        self.call(operation)?;
        let start = Instant::now();
        for _ in 0..count {
            self.call(operation)?;
        }
        Ok(start.elapsed().as_secs_f64() / f64::from(count))
    }

    /// Of what was written last, which of backward is dx, dgamma and dbeta.
    fn samples(&self, operation: &str) -> Vec<f32> {
        let [dgamma, dbeta] = &self.gradients;
        let written: &[&[f32]] = match operation {
            "backward" => &[&self.out, dgamma, dbeta],
            _ => &[&self.out],
        };
        let places = |n: usize| (0..SAMPLES).map(move |i| i * (n - 1) / (SAMPLES - 1));
        written.iter().flat_map(|values| places(values.len()).map(|i| values[i])).collect()
    }
}

/// Answers one line; `last` is the case of the line before.
fn answer(line: &str, last: &mut Option<(String, Case)>) -> Result<serde_json::Value, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [shape, layout, operation, count] = words[..] else {
        return Err(format!("{line:?}: SHAPE LAYOUT OPERATION COUNT"));
    };
    let count: u32 = count.parse().map_err(|error| format!("count {count}: {error}"))?;
    let name = format!("{shape} {layout}");
    if last.as_ref().is_none_or(|(of, _)| *of != name) {
        *last = None;
        *last = Some((name, Case::new(shape, layout)?));
    }
    let Some((_, case)) = last else { return Err("bug: the case was just made".into()) };
    let seconds = case.time(operation, count.max(1))?;
    Ok(json!({ "seconds": seconds, "samples": case.samples(operation) }))
}

fn main() -> Result<(), String> {
    let mut last = None;
    // Not `--bench`, with which `cargo bench` starts every benchmark.
    if !std::env::args().any(|argument| argument == "--serve") {
        for layout in ["nchw", "nhwc"] {
            for operation in ["forward", "inference", "backward"] {
                println!("{}", answer(&format!("3x5x4x4 {layout} {operation} 2"), &mut last)?);
            }
        }
        return Ok(());
    }
    println!("{}", json!({ "version": format!("wgpu-batchnorm {}", env!("CARGO_PKG_VERSION")) }));
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|error| error.to_string())?;
        println!("{}", answer(&line, &mut last)?);
        std::io::stdout().flush().map_err(|error| error.to_string())?;
    }
    Ok(())
}
