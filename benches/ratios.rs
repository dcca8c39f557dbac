//! The kernels against a memcpy kernel on the same adapter and against the CPU path, interleaved in
//! one process, medians over rounds.
//!
//! `cargo bench --features cpu --bench ratios -- [--shapes 8x64x56x56,1024x512] [--layout
//! nchw|nhwc|both] [--kinds f32,f16,bf16,relu,add+relu] [--rounds 9] [--explain] [--copy]`. Bytes are
//! those of a streaming implementation: 3 tensors forward, 2 inference, 5 backward, and one more with a
//! residual. `/memcpy` is bytes per second over the memcpy kernel's bytes per second, of tensors of the
//! same size: above 1 means that a second read came from a cache. `/cpu` is the time of the CPU path,
//! plain and f32, over ours. `--copy` measures geometries of the memcpy kernel instead.

mod common;

use std::time::Duration;

use common::copy::Copy;
use common::{Kind, Operation, Shape, Subject};
use wgpu_batchnorm::Gpu;

const SHAPES: &str = "8x64x112x112,8x64x56x56,8x256x56x56,8x512x28x28,8x1024x14x14,8x2048x7x7,\
                      32x64x56x56,1024x512,65536x64,8x16x4x4,4x1x1024x1024,2x32x16x56x56";

struct Options {
    shapes: Vec<Vec<usize>>,
    layouts: Vec<bool>,
    kinds: Vec<Kind>,
    rounds: usize,
    explain: bool,
    copy: bool,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        shapes: parse_shapes(SHAPES)?,
        layouts: vec![false, true],
        kinds: vec![Kind::F32],
        rounds: 9,
        explain: false,
        copy: false,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--shapes" => options.shapes = parse_shapes(&value()?)?,
            "--layout" => {
                options.layouts = match value()?.as_str() {
                    "nchw" => vec![false],
                    "nhwc" => vec![true],
                    "both" => vec![false, true],
                    other => return Err(format!("--layout {other}: nchw, nhwc or both")),
                }
            }
            "--kinds" => options.kinds = parse_kinds(&value()?)?,
            "--rounds" => {
                let text = value()?;
                options.rounds = text.parse().map_err(|_| format!("--rounds {text}: a number"))?;
            }
            "--explain" => options.explain = true,
            "--copy" => options.copy = true,
            "--bench" => {}
            other => return Err(format!("unknown argument {other}")),
        }
    }
    // `cargo bench` passes --bench, `cargo test --benches` does not: each operation once.
    if !std::env::args().any(|argument| argument == "--bench") {
        options.shapes = parse_shapes("2x8x8x8,64x12,2x3x5x7")?;
        options.kinds = Kind::ALL.to_vec();
        options.rounds = 1;
    }
    options.rounds = options.rounds.max(1);
    Ok(options)
}

fn parse_shapes(text: &str) -> Result<Vec<Vec<usize>>, String> {
    let shape = |shape: &str| -> Result<Vec<usize>, String> {
        let dims: Result<Vec<usize>, _> = shape.trim().split('x').map(str::parse).collect();
        match dims {
            Ok(dims) if dims.len() >= 2 && !dims.contains(&0) => Ok(dims),
            _ => Err(format!("shape {shape}: sizes joined by x, at least two")),
        }
    };
    text.split(',').map(shape).collect()
}

fn parse_kinds(text: &str) -> Result<Vec<Kind>, String> {
    let kind = |text: &str| {
        let found = Kind::ALL.into_iter().find(|kind| kind.name() == text.trim());
        found.ok_or(format!("kind {text}: {}", Kind::ALL.map(Kind::name).join(", ")))
    };
    text.split(',').map(kind).collect()
}

fn main() -> Result<(), String> {
    let options = options()?;
    let Some(gpu) = common::gpu() else { return Ok(()) };
    println!("{}, {} rounds", gpu.describe(), options.rounds);
    if options.copy {
        geometries_of_copy(&gpu, options.rounds);
        return Ok(());
    }
    println!(
        "{:<22} {:<8} {:<9} {:>9} {:>7} {:>8} {:>9} {:>7} {:>10}",
        "shape", "kind", "operation", "ms", "GB/s", "/memcpy", "cpu ms", "/cpu", "dispatches"
    );
    let mut ratios = Vec::new();
    for logical in &options.shapes {
        for &channels_last in &options.layouts {
            // [N, C] is the same in both orders.
            if channels_last && logical.len() == 2 {
                continue;
            }
            let shape = Shape { logical: logical.clone(), channels_last };
            for &kind in &options.kinds {
                match Subject::new(&gpu, &shape, kind) {
                    Ok(mut subject) => {
                        let rows = measure(&mut subject, &shape.name(), kind, &options);
                        ratios.extend(rows.into_iter().map(|(i, both)| (kind, i, both)));
                    }
                    Err(error) => println!("{:<22} not run: {error}", shape.name()),
                }
            }
        }
    }
    for &kind in &options.kinds {
        for (operation, index) in Operation::ALL.into_iter().zip(0..) {
            let mean = |pick: fn(&[f64; 2]) -> f64| {
                let own = ratios.iter().filter(|(k, i, _)| (*k, *i) == (kind, index));
                let logs = own.map(|(.., both)| pick(both).ln());
                let (n, sum) = logs.fold((0, 0.0), |(n, sum), v| (n + 1, sum + v));
                (sum / f64::from(n.max(1))).exp()
            };
            let (memcpy, cpu) = (mean(|r| r[0]), mean(|r| r[1]));
            println!(
                "geometric mean {:<8} {:<9}: /memcpy {memcpy:.2}, /cpu {cpu:.2}",
                kind.name(),
                operation.name()
            );
        }
    }
    Ok(())
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// Repetitions that take some 20 ms, after a warm-up.
fn repetitions(once: Duration, rounds: usize) -> u32 {
    if rounds == 1 {
        return 1;
    }
    (0.02 / once.as_secs_f64().max(1e-6)).clamp(1.0, 500.0) as u32
}

fn measure(
    subject: &mut Subject,
    name: &str,
    kind: Kind,
    options: &Options,
) -> Vec<(usize, [f64; 2])> {
    let rounds = options.rounds;
    let per = |time: Duration, count: u32| time.as_secs_f64() / f64::from(count);
    subject.run_copy(1);
    let copy_count = repetitions(subject.run_copy(1), rounds);
    let counts: Vec<[u32; 2]> = Operation::ALL
        .into_iter()
        .map(|operation| {
            subject.run_gpu(operation, 1);
            subject.run_cpu(operation, 1);
            [
                repetitions(subject.run_gpu(operation, 1), rounds),
                repetitions(subject.run_cpu(operation, 1), rounds),
            ]
        })
        .collect();
    let mut copies = Vec::new();
    let mut times = vec![[Vec::new(), Vec::new()]; 3];
    for _ in 0..rounds {
        for operation in Operation::ALL {
            let i = operation as usize;
            copies.push(per(subject.run_copy(copy_count), copy_count));
            times[i][0].push(per(subject.run_gpu(operation, counts[i][0]), counts[i][0]));
            times[i][1].push(per(subject.run_cpu(operation, counts[i][1]), counts[i][1]));
        }
    }
    let size = subject.tensor_size as f64;
    let copy_rate = 2.0 * size / median(copies);
    let mut ratios = Vec::new();
    for operation in Operation::ALL {
        let i = operation as usize;
        let [ours, cpu] = times[i].each_ref().map(|samples| median(samples.clone()));
        let rate = operation.tensors(kind) as f64 * size / ours;
        let both = [rate / copy_rate, cpu / ours];
        println!(
            "{name:<22} {:<8} {:<9} {:>9.3} {:>7.2} {:>8.2} {:>9.3} {:>7.2} {:>10}",
            kind.name(),
            operation.name(),
            ours * 1e3,
            rate / 1e9,
            both[0],
            cpu * 1e3,
            both[1],
            subject.dispatches[i]
        );
        if options.explain {
            println!("{}", subject.explain[i]);
        }
        ratios.push((i, both));
    }
    ratios
}

/// The memcpy kernel in several geometries, interleaved.
fn geometries_of_copy(gpu: &Gpu, rounds: usize) {
    let count = 8 * 64 * 112 * 112;
    let (x, y) = (common::storage(gpu, &vec![1.0; count]), common::storage(gpu, &vec![0.0; count]));
    let mut geometries = Vec::new();
    for lanes in [8, 64, 256] {
        for workgroups in [64, 256, 1024, 4096] {
            let copy = Copy::with_geometry(gpu, &x, &y, lanes, workgroups);
            geometries.push((lanes, workgroups, copy, Vec::new()));
        }
    }
    for _ in 0..=rounds {
        for (_, _, copy, samples) in &mut geometries {
            samples.push(common::time(gpu, 4, |pass| copy.encode(pass)).as_secs_f64() / 4.0);
        }
    }
    for (lanes, workgroups, _, samples) in geometries {
        let rate = 8.0 * count as f64 / median(samples[1..].to_vec()) / 1e9;
        println!("copy with {lanes:>3} lanes, {workgroups:>4} workgroups: {rate:6.2} GB/s");
    }
}
