//! ResNet-50's shapes and some of few channels, beside PyTorch's figures of the same machine, in one
//! table. For hardware GPUs: `benches/gpu/pack` puts this program into a folder, `benches/gpu/run` runs
//! it there.
//!
//! Options: `--cases` lists the cases and runs nothing; `--rivals FILE` takes what `rivals.py` measured
//! for them; `--batches 32,64,256`, `--shapes 64x112x112,…` (C and the rest) and `--rounds 9` choose;
//! `--any-adapter` runs on a software adapter too, which else is too slow for this.
//!
//! Operations are timed by GPU timestamps around many recordings in one pass, as CUDA events are set
//! around many calls; where an adapter has none, by the wall clock of many recordings less that of few.
//! A step is a training forward and its backward, recorded, submitted and waited for, by the wall clock.

#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "the other benchmarks use the rest")]
mod common;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use common::{Kind, Memory, OnGpu, Operation, Shape, median, planned, repetitions};
use wgpu_batchnorm::{Class, Gpu, wgpu};

/// C, H, W of the normalizations of ResNet-50, with the stride in its 3×3 convolutions.
const RESNET_50: &str = "64x112x112,64x56x56,256x56x56,128x56x56,128x28x28,512x28x28,256x28x28,\
                         256x14x14,1024x14x14,512x14x14,512x7x7,2048x7x7";
/// N, C, H, W.
const FEW_CHANNELS: [[usize; 4]; 3] = [[4, 1, 1024, 1024], [8, 3, 512, 512], [16, 4, 256, 256]];
const KINDS: [Kind; 3] = [Kind::F32, Kind::F16, Kind::Bf16];
const ROWS: [&str; 4] = ["forward", "inference", "backward", "step (wall)"];

struct Options {
    cases: bool,
    rivals: Option<String>,
    shapes: Vec<Vec<usize>>,
    rounds: usize,
    any_adapter: bool,
    required: bool,
}

fn numbers(text: &str, between: char) -> Result<Vec<usize>, String> {
    let number = |text: &str| text.parse().ok().filter(|number| *number > 0);
    let numbers: Option<Vec<usize>> = text.split(between).map(number).collect();
    numbers.ok_or(format!("{text}: numbers above 0 with {between} between them"))
}

fn options() -> Result<Options, String> {
    let (mut cases, mut any_adapter, mut required) = (false, false, false);
    let (mut rivals, mut rounds) = (None, 9);
    let (mut batches, mut own) = (vec![32, 64, 256], None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--cases" => cases = true,
            "--any-adapter" => any_adapter = true,
            "--required" => required = true,
            "--rivals" => rivals = Some(value()?),
            "--batches" => batches = numbers(&value()?, ',')?,
            "--shapes" => own = Some(value()?),
            "--rounds" => rounds = numbers(&value()?, ',')?[0],
            "--bench" => {}
            other => return Err(format!("unknown argument {other}")),
        }
    }
    let planes: Result<Vec<Vec<usize>>, String> =
        own.as_deref().unwrap_or(RESNET_50).split(',').map(|shape| numbers(shape, 'x')).collect();
    let mut shapes = Vec::new();
    for plane in planes? {
        shapes.extend(batches.iter().map(|batch| [&[*batch], plane.as_slice()].concat()));
    }
    if own.is_none() {
        shapes.extend(FEW_CHANNELS.map(Vec::from));
    }
    Ok(Options { cases, rivals, shapes, rounds, any_adapter, required })
}

/// What was measured of others, in microseconds, by operation, shape, layout and element.
type Rivals = HashMap<[String; 4], [Option<f64>; 2]>;

/// Lines of operation, shape, layout, element, native and cuDNN, with tabs between them; `#` begins
/// what is to be said about them.
fn rivals(path: &str) -> Result<(Rivals, Vec<String>), String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let (mut rivals, mut told) = (Rivals::new(), Vec::new());
    for line in text.lines() {
        match line.split('\t').collect::<Vec<_>>()[..] {
            [operation, shape, layout, element, native, cudnn] => {
                let key = [operation, shape, layout, element].map(String::from);
                rivals.insert(key, [native.parse().ok(), cudnn.parse().ok()]);
            }
            [about] if about.starts_with('#') => told.push(about[1..].trim().into()),
            _ => return Err(format!("{path}: not six columns: {line}")),
        }
    }
    Ok((rivals, told))
}

/// The device once more, with timestamps where its adapter has them.
fn with_timestamps(gpu: Gpu) -> Gpu {
    let (info, features) = (gpu.device().adapter_info(), gpu.device().features());
    let adapters = Gpu::adapters_blocking();
    let timestamps = wgpu::Features::TIMESTAMP_QUERY;
    let Some(adapter) = adapters
        .iter()
        .find(|adapter| adapter.get_info() == info && adapter.features().contains(timestamps))
    else {
        return gpu;
    };
    let descriptor = wgpu::DeviceDescriptor {
        required_features: features | timestamps,
        required_limits: gpu.device().limits(),
        ..Default::default()
    };
    match pollster::block_on(adapter.request_device(&descriptor)) {
        Ok((device, queue)) => Gpu::from_device(device, queue).with_f16_blocking().unwrap_or(gpu),
        Err(_) => gpu,
    }
}

/// Two timestamps, and where they are read.
struct Timestamps {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    staging: wgpu::Buffer,
}

impl Timestamps {
    fn new(gpu: &Gpu) -> Option<Self> {
        let device = gpu.device();
        device.features().contains(wgpu::Features::TIMESTAMP_QUERY).then(|| {
            let buffer = |usage| {
                device.create_buffer(&wgpu::BufferDescriptor {
                    label: None,
                    size: 16,
                    usage,
                    mapped_at_creation: false,
                })
            };
            use wgpu::BufferUsages as Usages;
            Self {
                queries: device.create_query_set(&wgpu::QuerySetDescriptor {
                    label: None,
                    ty: wgpu::QueryType::Timestamp,
                    count: 2,
                }),
                resolved: buffer(Usages::QUERY_RESOLVE | Usages::COPY_SRC),
                staging: buffer(Usages::COPY_DST | Usages::MAP_READ),
            }
        })
    }

    /// Microseconds of `count` recordings on the device's clock.
    fn time(&self, gpu: &Gpu, on_gpu: &OnGpu, operation: Operation, count: u32) -> f64 {
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        {
            let writes = wgpu::ComputePassTimestampWrites {
                query_set: &self.queries,
                beginning_of_pass_write_index: Some(0),
                end_of_pass_write_index: Some(1),
            };
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: None,
                timestamp_writes: Some(writes),
            });
            (0..count).for_each(|_| on_gpu.encode(operation, &mut pass));
        }
        encoder.resolve_query_set(&self.queries, 0..2, &self.resolved, 0);
        encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.staging, 0, 16);
        gpu.queue().submit([encoder.finish()]);
        self.staging.map_async(wgpu::MapMode::Read, .., |_| {});
        gpu.device().poll(wgpu::PollType::wait_indefinitely()).expect("the device finishes");
        let ticks: Vec<u64> = {
            let view = self.staging.get_mapped_range(..).expect("the wait has mapped it");
            bytemuck::pod_collect_to_vec(&view)
        };
        self.staging.unmap();
        let period = f64::from(gpu.queue().get_timestamp_period()) * 1e-3;
        ticks[1].saturating_sub(ticks[0]) as f64 * period
    }
}

/// Microseconds of one of the operations.
fn operation(
    gpu: &Gpu,
    timestamps: Option<&Timestamps>,
    on_gpu: &OnGpu,
    operation: Operation,
    rounds: usize,
) -> f64 {
    on_gpu.run(operation, 1);
    let count = match rounds {
        1 => 1,
        _ => repetitions(on_gpu.run(operation, 1), Duration::from_millis(10)).max(5),
    };
    let sample = |_| match timestamps {
        Some(timestamps) => timestamps.time(gpu, on_gpu, operation, count) / f64::from(count),
        None => {
            let [few, many] = [count, 2 * count].map(|count| on_gpu.run(operation, count));
            many.saturating_sub(few).as_secs_f64() * 1e6 / f64::from(count)
        }
    };
    median((0..rounds).map(sample).collect())
}

/// Microseconds of the wall clock.
fn step(gpu: &Gpu, on_gpu: &OnGpu, rounds: usize) -> f64 {
    let sample = |_| {
        let start = Instant::now();
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            on_gpu.encode(Operation::Forward, &mut pass);
            on_gpu.encode(Operation::Backward, &mut pass);
        }
        gpu.queue().submit([encoder.finish()]);
        gpu.device().poll(wgpu::PollType::wait_indefinitely()).expect("the device finishes");
        start.elapsed().as_secs_f64() * 1e6
    };
    median((0..3 * rounds).map(sample).collect())
}

fn figure(value: Option<f64>, decimals: usize) -> String {
    value.map_or("–".into(), |value| format!("{value:.decimals$}"))
}

/// Theirs over ours: of the native kernels, of cuDNN, and of the better one.
type Ratios = [Option<f64>; 3];

fn case(
    gpu: &Gpu,
    timestamps: Option<&Timestamps>,
    (shape, kind): (&Shape, Kind),
    memory: &Memory,
    rounds: usize,
    rivals: &Rivals,
) -> Result<Vec<(&'static str, Ratios)>, String> {
    let geometry = shape.geometry();
    let on_gpu = OnGpu::new(gpu, planned(gpu, geometry, kind)?, kind, memory)?;
    let mut times =
        Operation::ALL.map(|op| operation(gpu, timestamps, &on_gpu, op, rounds)).to_vec();
    times.push(step(gpu, &on_gpu, rounds));
    let mut ratios = Vec::new();
    for (row, ours) in ROWS.into_iter().zip(times) {
        let key = [row, &shape.dims(), shape.layout(), kind.name()].map(String::from);
        let [native, cudnn] = rivals.get(&key).copied().unwrap_or_default();
        let over = |theirs: Option<f64>| theirs.map(|theirs| theirs / ours);
        let best = native.into_iter().chain(cudnn).reduce(f64::min);
        let all = [native, cudnn, best].map(over);
        // A step is both.
        let tensors = Operation::ALL.into_iter().find(|op| op.name() == row);
        let rate =
            tensors.map(|op| op.tensors(kind) as f64 * on_gpu.tensor_size as f64 / (ours * 1e3));
        println!(
            "| {row} | {} | {} | {} | {ours:.1} | {} | {} | {} | {} | {} |",
            shape.dims(),
            shape.layout(),
            kind.name(),
            figure(rate, 0),
            figure(native, 1),
            figure(cudnn, 1),
            figure(all[0], 2),
            figure(all[1], 2),
        );
        ratios.push((row, all));
    }
    Ok(ratios)
}

fn main() -> Result<(), String> {
    let mut options = options()?;
    if !common::measures() && !options.cases {
        options.shapes = vec![vec![2, 8, 8, 8], vec![2, 3, 5, 7]];
        (options.rounds, options.any_adapter) = (1, true);
    }
    if options.cases {
        for shape in shapes(&options) {
            for kind in KINDS {
                println!("{}\t{}\t{}", shape.dims(), shape.layout(), kind.name());
            }
        }
        return Ok(());
    }
    let skipped = match common::gpu() {
        None => "no adapter was found".to_string(),
        Some(gpu) if gpu.caps().class == Class::Software && !options.any_adapter => {
            format!("for hardware GPUs, and the best adapter here is {}", gpu.describe())
        }
        Some(gpu) => return compare(gpu, &options),
    };
    println!("SKIP: {skipped}");
    if options.required { Err(skipped) } else { Ok(()) }
}

/// Every shape, in both layouts.
fn shapes(options: &Options) -> impl Iterator<Item = Shape> {
    options.shapes.iter().flat_map(|shape| {
        [false, true].map(|channels_last| Shape { logical: shape.clone(), channels_last })
    })
}

/// Measures all cases, and prints the tables.
fn compare(gpu: Gpu, options: &Options) -> Result<(), String> {
    let (rivals, told) = match &options.rivals {
        Some(path) => rivals(path)?,
        None => (Rivals::new(), vec!["no figures of PyTorch's".into()]),
    };
    let gpu = with_timestamps(gpu);
    let timestamps = Timestamps::new(&gpu);
    let clock = if timestamps.is_some() { "GPU timestamps" } else { "differences of wall time" };
    println!("Ours: {}, {clock}, medians of {} rounds\n", gpu.describe(), options.rounds);
    told.iter().for_each(|line| println!("Theirs: {line}\n"));
    println!(
        "| op | shape | layout | dtype | ours, µs | GB/s | native, µs | cuDNN, µs | native/ours | \
         cuDNN/ours |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let mut ratios: Vec<([&str; 3], Ratios)> = Vec::new();
    let mut not_run = 0;
    for kind in KINDS {
        let mut shapes: Vec<Shape> = shapes(options).collect();
        shapes.sort_by_key(|shape| std::cmp::Reverse(shape.geometry().len()));
        // In the memory of the largest that there is room for, all others have room.
        let mut memory: Option<Memory> = None;
        for shape in &shapes {
            let measured = memory
                .take()
                .map_or_else(|| Memory::new(&gpu, shape.geometry().len(), kind), Ok)
                .and_then(|room| {
                    let rows = case(
                        &gpu,
                        timestamps.as_ref(),
                        (shape, kind),
                        memory.insert(room),
                        options.rounds,
                        &rivals,
                    )?;
                    let key = |row| [row, shape.layout(), kind.name()];
                    ratios.extend(rows.into_iter().map(|(row, all)| (key(row), all)));
                    Ok(())
                });
            if let Err(error) = measured {
                not_run += 1;
                println!("| – | {} | {} | not run: {error} |", shape.name(), kind.name());
            }
        }
    }
    if !rivals.is_empty() {
        print_means(&ratios);
    }
    match not_run {
        1.. if options.required => Err(format!("{not_run} cases were not run")),
        _ => Ok(()),
    }
}

/// Geometric means over shapes.
fn print_means(ratios: &[([&str; 3], Ratios)]) {
    println!("\nGeometric means of their time over ours; above 1, ours is faster:\n");
    println!("| op | layout | dtype | native | cuDNN | the better of both | shapes behind |");
    println!("|---|---|---|---|---|---|---|");
    for row in ROWS {
        for layout in ["NCHW", "NHWC"] {
            for kind in KINDS {
                let own = || ratios.iter().filter(|(key, _)| *key == [row, layout, kind.name()]);
                let means = [0, 1, 2].map(|i| {
                    let logs: Vec<f64> = own().filter_map(|(_, all)| all[i]).map(f64::ln).collect();
                    let count = logs.len();
                    (count > 0).then(|| (logs.into_iter().sum::<f64>() / count as f64).exp())
                });
                let behind = own().filter(|(_, all)| all[2].is_some_and(|ratio| ratio < 1.0));
                let [native, cudnn, best] = means.map(|mean| figure(mean, 2));
                let (behind, all) = (behind.count(), own().count());
                let kind = kind.name();
                println!(
                    "| {row} | {layout} | {kind} | {native} | {cudnn} | {best} | {behind} of {all} |"
                );
            }
        }
    }
}
