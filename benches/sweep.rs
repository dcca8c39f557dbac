//! Time per element over the number of elements, over C and over inner, in both layouts, f32: where
//! neighbours differ more than their bytes do, it says so, and it draws `docs/sweep.png`.
//!
//! `cargo bench --bench sweep -- [--limit 1e8] [--passes 5] [--png docs/sweep.png]`. Points are
//! measured one after another, all of them in every pass; figures are medians over the passes. The
//! largest tensor has `--limit` elements (10⁸ on a software adapter, 10⁹ on others), as many as the
//! device's largest buffer holds, or a quarter of it, again and again, where there is no room for four.

#[allow(dead_code, reason = "the other benchmarks use the rest")]
mod common;
#[path = "common/picture.rs"]
mod picture;

use std::path::PathBuf;
use std::time::Duration;

use common::{Kind, Memory, OnGpu, Operation, median, planned, repetitions};
use picture::{BLUE, Color, Curve, GREEN, GREY, Panel, Picture, VERMILLION};
use wgpu_batchnorm::{ChannelAxis, Class, Geometry, Gpu};

/// By how much neighbours may differ beyond their bytes.
const CLIFF: f64 = 1.5;
const COLORS: [Color; 3] = [BLUE, GREEN, VERMILLION];

struct Options {
    limit: Option<f64>,
    passes: usize,
    png: PathBuf,
}

fn options() -> Result<Options, String> {
    let docs = [env!("CARGO_MANIFEST_DIR"), "docs", "sweep.png"].iter().collect();
    let mut options = Options { limit: None, passes: 5, png: docs };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--limit" => {
                let text = value()?;
                let limit = text.parse().ok().filter(|limit| (1e4..1e10).contains(limit));
                options.limit = Some(limit.ok_or(format!("--limit {text}: from 1e4 to 1e10"))?);
            }
            "--passes" => {
                let text = value()?;
                options.passes = text.parse().map_err(|_| format!("--passes {text}: a number"))?;
            }
            "--png" => options.png = value()?.into(),
            "--bench" => {}
            other => return Err(format!("unknown argument {other}")),
        }
    }
    options.passes = options.passes.max(1);
    Ok(options)
}

/// What is swept, and the tensors along it.
struct Sweep {
    title: &'static str,
    x: &'static str,
    /// In memory order: channels first, channels last.
    layouts: [Vec<(u64, Geometry)>; 2],
}

/// About four values to a power of ten, from `first` to `last`. From 8 on multiples of four: an odd
/// size is another path, not another scale.
fn steps(first: f64, last: f64) -> Vec<u64> {
    let count = (4.0 * (last / first).log10()).round().max(1.0) as u32;
    let step = |i: u32| first * (last / first).powf(f64::from(i) / f64::from(count));
    let mut steps: Vec<u64> = (0..=count).map(|i| even(step(i))).collect();
    steps.dedup();
    steps
}

fn even(value: f64) -> u64 {
    if value < 8.0 { value.round().max(1.0) as u64 } else { (value / 4.0).round() as u64 * 4 }
}

fn first(outer: u64, channels: u64, inner: u64) -> Geometry {
    let shape = [outer, channels, inner].map(|size| size as usize);
    Geometry::new(&shape, ChannelAxis::First).expect("a sweep's shape fits")
}

fn last(rows: u64, channels: u64) -> Geometry {
    let shape = [rows, channels].map(|size| size as usize);
    Geometry::new(&shape, ChannelAxis::Last).expect("a sweep's shape fits")
}

/// Elements up to `limit`; C up to `most_channels` and inner up to `most_inner` of fixed totals.
fn sweeps(limit: f64, channel_total: f64, most_channels: f64, inner_total: f64) -> [Sweep; 3] {
    let inners: Vec<u64> = steps(1000.0 / 256.0, limit / 256.0);
    let of_total = |inner: &u64| 8 * 32 * inner;
    let channels = steps(1.0, most_channels);
    [
        Sweep {
            title: "outer 8, C 32",
            x: "elements",
            layouts: [
                inners.iter().map(|i| (of_total(i), first(8, 32, *i))).collect(),
                inners.iter().map(|i| (of_total(i), last(8 * i, 32))).collect(),
            ],
        },
        Sweep {
            title: "outer 8, about 4 million elements",
            x: "C",
            layouts: [
                channels
                    .iter()
                    .map(|&c| (c, first(8, c, even(channel_total / 8.0 / c as f64))))
                    .collect(),
                channels.iter().map(|&c| (c, last(even(channel_total / c as f64), c))).collect(),
            ],
        },
        // Channels-last memory has one element of a channel side by side, whatever H and W.
        Sweep {
            title: "C 64 or less, 10 million elements",
            x: "inner",
            layouts: [
                steps(1.0, inner_total)
                    .into_iter()
                    .map(|inner| {
                        let channels = (inner_total / inner as f64).round().clamp(1.0, 64.0) as u64;
                        let outer = (inner_total / (channels * inner) as f64).round().max(1.0);
                        (inner, first(outer as u64, channels, inner))
                    })
                    .collect(),
                Vec::new(),
            ],
        },
    ]
}

/// One tensor and its times.
struct Point {
    x: u64,
    geometry: Geometry,
    on_gpu: OnGpu,
    /// Of the three operations and of the memcpy kernel, in seconds.
    samples: [Vec<f64>; 4],
}

impl Point {
    fn new(gpu: &Gpu, memory: &Memory, x: u64, geometry: Geometry) -> Result<Self, String> {
        let on_gpu = OnGpu::new(gpu, planned(gpu, geometry, Kind::F32)?, Kind::F32, memory)?;
        Ok(Self { x, geometry, on_gpu, samples: Default::default() })
    }

    fn measure(&mut self, target: Duration) {
        let per = |time: Duration, count: u32| time.as_secs_f64() / f64::from(count);
        for operation in Operation::ALL {
            let count = repetitions(self.on_gpu.run(operation, 1), target);
            let time = per(self.on_gpu.run(operation, count), count);
            self.samples[operation as usize].push(time);
        }
        let count = repetitions(self.on_gpu.run_copy(1), target);
        // A tensor past the copy's binding is copied in part.
        let part = 2.0 * self.on_gpu.tensor_size as f64 / self.on_gpu.copy_bytes() as f64;
        self.samples[3].push(per(self.on_gpu.run_copy(count), count) * part);
    }

    fn seconds(&self, i: usize) -> f64 {
        median(self.samples[i].clone())
    }

    fn nanoseconds_per_element(&self, i: usize) -> f64 {
        self.seconds(i) * 1e9 / self.geometry.len() as f64
    }
}

/// Neighbours whose times differ by more than `CLIFF` beyond what their bytes, or the fixed cost of a
/// dispatch, explain: time may stay while bytes grow, and grow as they do.
fn cliffs(points: &[Point], operation: Operation) -> Vec<String> {
    let i = operation as usize;
    let mut cliffs = Vec::new();
    for pair in points.windows(2) {
        let time = pair[1].seconds(i) / pair[0].seconds(i);
        let bytes = pair[1].on_gpu.bytes_moved[i] as f64 / pair[0].on_gpu.bytes_moved[i] as f64;
        if time > CLIFF * bytes.max(1.0) || time < bytes.min(1.0) / CLIFF {
            cliffs.push(format!(
                "{} from {} to {}: time ×{time:.2}, bytes ×{bytes:.2} ({} and {} dispatches)",
                operation.name(),
                pair[0].x,
                pair[1].x,
                pair[0].on_gpu.dispatches[i],
                pair[1].on_gpu.dispatches[i]
            ));
        }
    }
    cliffs
}

/// Up to `limit` elements, or as many as the device has room for.
fn with_memory(
    gpu: &Gpu,
    mut limit: f64,
    most_channels: f64,
) -> Result<([Sweep; 3], Memory), String> {
    let largest_buffer = gpu.device().limits().max_buffer_size as f64 / size_of::<f32>() as f64;
    // Sizes are rounded.
    limit = limit.min(0.99 * largest_buffer);
    loop {
        // The fixed totals fit into what there is.
        let sweeps = sweeps(limit, limit.min(4e6), most_channels, limit.min(1e7));
        let all = sweeps.iter().flat_map(|sweep| sweep.layouts.iter().flatten());
        let largest = all.map(|(_, geometry)| geometry.len()).max().unwrap_or(0);
        match Memory::new(gpu, largest, Kind::F32) {
            Ok(memory) => return Ok((sweeps, memory)),
            Err(error) if limit < 1e5 => return Err(error),
            Err(error) => {
                println!("no room for four tensors of {largest} elements: {error}");
                limit /= 4.0;
            }
        }
    }
}

fn main() -> Result<(), String> {
    let mut options = options()?;
    let Some(gpu) = common::gpu() else { return Ok(()) };
    let measures = common::measures();
    let by_class = if gpu.caps().class == Class::Software { 1e8 } else { 1e9 };
    let wanted = if measures { options.limit.unwrap_or(by_class) } else { 2e4 };
    let most_channels = if measures { 1e5 } else { 20.0 };
    let (sweeps, memory) = with_memory(&gpu, wanted, most_channels)?;
    let target = Duration::from_millis(if measures { 10 } else { 0 });
    if !measures {
        options.passes = 1;
    }
    println!("{}, medians of {} passes", gpu.describe(), options.passes);
    println!("nanoseconds per element: forward, inference, backward, memcpy kernel");
    let mut panels = Vec::new();
    let mut found = Vec::new();
    for sweep in sweeps {
        let mut curves = Vec::new();
        for (layout, shapes) in ["NCHW", "NHWC"].into_iter().zip(sweep.layouts) {
            let points: Result<Vec<Point>, String> = shapes
                .into_iter()
                .map(|(x, geometry)| Point::new(&gpu, &memory, x, geometry))
                .collect();
            let mut points = points?;
            for _ in 0..options.passes {
                points.iter_mut().for_each(|point| point.measure(target));
            }
            for point in &points {
                let [f, i, b, c] = [0, 1, 2, 3].map(|i| point.nanoseconds_per_element(i));
                let (name, x) = (sweep.x, point.x);
                println!("{layout} {name:<8} {x:>9}: {f:9.3} {i:9.3} {b:9.3} {c:9.3}");
            }
            for operation in Operation::ALL {
                let here = cliffs(&points, operation);
                found.extend(here.into_iter().map(|cliff| format!("{layout} {} {cliff}", sweep.x)));
            }
            for i in (0..4).rev() {
                let curve = points.iter().map(|p| (p.x as f64, p.nanoseconds_per_element(i)));
                let points: Vec<(f64, f64)> = curve.collect();
                let color = COLORS.get(i).copied().unwrap_or(GREY);
                curves.push(Curve { points, color, dashed: layout == "NHWC" });
            }
        }
        panels.push(Panel { title: sweep.title, x: sweep.x, curves });
    }
    match found.is_empty() {
        true => println!("no neighbours differ by more than {CLIFF} beyond their bytes"),
        false => println!("differ by more than {CLIFF} beyond their bytes:\n{}", found.join("\n")),
    }
    if !measures {
        return Ok(());
    }
    let named = |(operation, color): (Operation, Color)| (operation.name().into(), color, false);
    let lines = [("NCHW", false), ("NHWC", true)].map(|(name, dashed)| (name.into(), GREY, dashed));
    let memcpy = ("memcpy kernel (grey curves)".into(), GREY, false);
    let picture = Picture {
        title: format!("Time per element, f32, {}", gpu.describe()),
        legend: Operation::ALL
            .into_iter()
            .zip(COLORS)
            .map(named)
            .chain([memcpy])
            .chain(lines)
            .collect(),
        y: "nanoseconds per element",
        panels,
    };
    let write = || std::fs::write(&options.png, picture.png()?);
    write().map_err(|error| format!("{}: {error}", options.png.display()))?;
    println!("wrote {}", options.png.display());
    Ok(())
}
