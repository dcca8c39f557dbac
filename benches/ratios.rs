//! The table of `cargo bench`: the kernels against a memcpy kernel on the same adapter and against the
//! CPU path, interleaved in one process, medians over rounds.
//!
//! `cargo bench --features cpu --bench ratios -- [--shapes 8x64x56x56,1024x512] [--layout
//! nchw|nhwc|both] [--kinds f32,f16,bf16,relu,add+relu] [--rounds 9] [--explain] [--copy]
//! [--refined] [--against held_values=0,join_rows=0]`. Bytes are those of a streaming implementation: 3
//! tensors forward, 2 inference, 5 backward, and one more with a residual. `/memcpy` is bytes per second
//! over the memcpy kernel's bytes per second, of tensors of the same size: above 1 means that a second
//! read came from a cache. `/cpu` is the time of the CPU path, plain and f32 whatever the kind, over ours;
//! without the feature `cpu` there is none. `--copy` measures geometries of the memcpy kernel instead.
//! `--refined` compares the tuning refined by what `Gpu::measure` measures with that of the device's
//! class, where they plan otherwise; `--against` one with other numbers in the given fields, where 0 and
//! 1 are no and yes.

#[allow(dead_code, reason = "the other benchmarks use the rest")]
mod common;

use std::time::{Duration, Instant};

use common::copy::Copy;
use common::{Kind, Memory, OnGpu, Operation, Shape, Subject, median, repetitions};
use wgpu_batchnorm::{Element, Geometry, Gpu, PlanError, Tuning};

const SHAPES: &str = "8x64x112x112,8x64x56x56,8x256x56x56,8x512x28x28,8x1024x14x14,8x2048x7x7,\
                      32x64x56x56,1024x512,65536x64,8x16x4x4,4x1x1024x1024,2x32x16x56x56";

struct Options {
    shapes: Vec<Vec<usize>>,
    layouts: Vec<bool>,
    kinds: Vec<Kind>,
    rounds: usize,
    explain: bool,
    copy: bool,
    refined: bool,
    against: Vec<(String, u32)>,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        shapes: parse_shapes(SHAPES)?,
        layouts: vec![false, true],
        kinds: vec![Kind::F32, Kind::F16, Kind::Bf16],
        rounds: 9,
        explain: false,
        copy: false,
        refined: false,
        against: Vec::new(),
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
            "--refined" => options.refined = true,
            "--against" => options.against = parse_changes(&value()?)?,
            "--bench" => {}
            other => return Err(format!("unknown argument {other}")),
        }
    }
    if !common::measures() {
        options.shapes = parse_shapes("2x8x8x8,64x12,2x3x5x7")?;
        options.kinds = Kind::ALL.to_vec();
        options.rounds = 1;
    }
    if options.refined && !options.against.is_empty() {
        return Err("--refined and --against compare with one tuning each".into());
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

fn parse_changes(text: &str) -> Result<Vec<(String, u32)>, String> {
    let change = |text: &str| {
        let (name, value) = text.split_once('=')?;
        Some((name.trim().to_string(), value.trim().parse().ok()?))
    };
    let changes = text
        .split(',')
        .map(|one| change(one).ok_or(format!("change {one}: a field of Tuning, =, and a number")));
    changes.collect()
}

/// The tuning with some fields changed.
fn changed(mut tuning: Tuning, changes: &[(String, u32)]) -> Result<Tuning, String> {
    macro_rules! assign {
        ($name:ident, $value:ident, [$($number:ident)*], [$($flag:ident)*]) => {
            match $name.as_str() {
                $(stringify!($number) => tuning.$number = *$value,)*
                $(stringify!($flag) => tuning.$flag = *$value != 0,)*
                _ => return Err(format!("{}: no field of Tuning", $name)),
            }
        };
    }
    for (name, value) in changes {
        assign!(
            name,
            value,
            [workgroup_size workgroup_count column_workgroup_count apply_workgroup_count min_loads
                min_column_loads min_apply_loads merge_loads fused_loads fused_column_loads column_block
                held_values fused_workgroups tiny_loads min_row short_row_loads many_rows min_odd_rows],
            [join_rows wide_loads from_end built_in_widen built_in_narrow mask_words]
        );
    }
    Ok(tuning)
}

fn main() -> Result<(), String> {
    let options = options()?;
    let Some(gpu) = common::gpu() else { return Ok(()) };
    println!("{}, medians of {} rounds", gpu.describe(), options.rounds);
    if options.copy {
        geometries_of_copy(&gpu, options.rounds);
        return Ok(());
    }
    if options.refined {
        return refined(&gpu, &options);
    }
    if !options.against.is_empty() {
        return compare(&gpu, &options, ["as it is", "changed"], |geometry, element| {
            let tuning = Tuning::choose(gpu.caps(), &geometry, element);
            Ok([tuning.clone(), changed(tuning, &options.against)?])
        });
    }
    println!();
    println!(
        "| op | shape | layout | dtype | CPU, ms | GPU, ms | GB/s | /memcpy | /cpu | dispatches |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let mut rows = Vec::new();
    for logical in &options.shapes {
        for &channels_last in &options.layouts {
            // [N, C] is the same in both orders.
            if channels_last && logical.len() == 2 {
                continue;
            }
            let shape = Shape { logical: logical.clone(), channels_last };
            for &kind in &options.kinds {
                match Subject::new(&gpu, &shape, kind) {
                    Ok(mut subject) => rows.extend(measure(&mut subject, &shape, kind, &options)),
                    Err(error) => println!("| – | {} | not run: {error} |", shape.name()),
                }
            }
        }
    }
    println!("\nGeometric means:\n");
    println!("| op | dtype | /memcpy | /cpu |");
    println!("|---|---|---|---|");
    for &kind in &options.kinds {
        for operation in Operation::ALL {
            let own = || rows.iter().filter(|row| (row.kind, row.operation) == (kind, operation));
            println!(
                "| {} | {} | {} | {} |",
                operation.name(),
                kind.name(),
                figure(geometric_mean(own().map(|row| row.to_memcpy)), 2),
                figure(geometric_mean(own().filter_map(|row| row.to_cpu)), 2)
            );
        }
    }
    Ok(())
}

/// What the means are made of.
struct Row {
    kind: Kind,
    operation: Operation,
    to_memcpy: f64,
    to_cpu: Option<f64>,
}

fn geometric_mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (n, sum) = values.fold((0, 0.0), |(n, sum), v| (n + 1, sum + v.ln()));
    (n > 0).then(|| (sum / f64::from(n)).exp())
}

fn figure(value: Option<f64>, decimals: usize) -> String {
    value.map_or("–".into(), |value| format!("{value:.decimals$}"))
}

fn measure(subject: &mut Subject, shape: &Shape, kind: Kind, options: &Options) -> Vec<Row> {
    let rounds = options.rounds;
    let repetitions = |once: Duration| match rounds {
        1 => 1,
        _ => repetitions(once, Duration::from_millis(20)),
    };
    let per = |time: Duration, count: u32| time.as_secs_f64() / f64::from(count);
    subject.on_gpu.run_copy(1);
    let copy_count = repetitions(subject.on_gpu.run_copy(1));
    let counts: Vec<(u32, Option<u32>)> = Operation::ALL
        .into_iter()
        .map(|operation| {
            subject.on_gpu.run(operation, 1);
            subject.run_cpu(operation, 1);
            let gpu = repetitions(subject.on_gpu.run(operation, 1));
            (gpu, subject.run_cpu(operation, 1).map(repetitions))
        })
        .collect();
    let mut copies = Vec::new();
    let mut times = vec![[Vec::new(), Vec::new()]; 3];
    for _ in 0..rounds {
        for operation in Operation::ALL {
            let (times, (gpu, cpu)) = (&mut times[operation as usize], counts[operation as usize]);
            copies.push(per(subject.on_gpu.run_copy(copy_count), copy_count));
            times[0].push(per(subject.on_gpu.run(operation, gpu), gpu));
            let cpu = cpu.and_then(|count| Some(per(subject.run_cpu(operation, count)?, count)));
            times[1].extend(cpu);
        }
    }
    let size = subject.on_gpu.tensor_size as f64;
    let copy_rate = subject.on_gpu.copy_bytes() as f64 / median(copies);
    let mut rows = Vec::new();
    for operation in Operation::ALL {
        let [ours, cpu] = times[operation as usize].each_ref().map(|samples| samples.clone());
        let ours = median(ours);
        let cpu = (!cpu.is_empty()).then(|| median(cpu));
        let rate = operation.tensors(kind) as f64 * size / ours;
        let row =
            Row { kind, operation, to_memcpy: rate / copy_rate, to_cpu: cpu.map(|cpu| cpu / ours) };
        println!(
            "| {} | {} | {} | {} | {} | {:.3} | {:.2} | {:.2} | {} | {} |",
            operation.name(),
            shape.dims(),
            shape.layout(),
            kind.name(),
            figure(cpu.map(|cpu| cpu * 1e3), 3),
            ours * 1e3,
            rate / 1e9,
            row.to_memcpy,
            figure(row.to_cpu, 2),
            subject.on_gpu.dispatches[operation as usize]
        );
        if options.explain {
            println!("{}", subject.on_gpu.explain[operation as usize]);
        }
        rows.push(row);
    }
    rows
}

/// The memcpy kernel in several geometries, interleaved.
fn geometries_of_copy(gpu: &Gpu, rounds: usize) {
    let count = 8 * 64 * 112 * 112;
    let (x, y) = (common::storage(gpu, &vec![1.0; count]), common::storage(gpu, &vec![0.0; count]));
    let mut geometries = Vec::new();
    for wide in [false, true].into_iter().filter(|wide| gpu.caps().int64 || !wide) {
        for lanes in [8, 64, 256] {
            for workgroups in [64, 256, 1024, 4096] {
                let copy = Copy::with_geometry(gpu, &x, &y, x.size(), wide, [lanes, workgroups]);
                let vector = if wide { "vec4<u64>" } else { "vec4<f32>" };
                geometries.push((vector, lanes, workgroups, copy, Vec::new()));
            }
        }
    }
    for _ in 0..=rounds {
        for (.., copy, samples) in &mut geometries {
            samples.push(common::time(gpu, 4, |pass| copy.encode(pass)).as_secs_f64() / 4.0);
        }
    }
    for (vector, lanes, workgroups, copy, samples) in geometries {
        let rate = 2.0 * copy.size as f64 / median(samples[1..].to_vec()) / 1e9;
        println!(
            "copy of {vector} with {lanes:>3} lanes, {workgroups:>4} workgroups: {rate:6.2} GB/s"
        );
    }
}

/// The class' tuning against the refined one.
fn refined(gpu: &Gpu, options: &Options) -> Result<(), String> {
    let start = Instant::now();
    let measured = gpu.measure_blocking().map_err(|error| error.to_string())?;
    println!("measured in {:.1?}: {measured}", start.elapsed());
    compare(gpu, options, ["by class", "refined"], |geometry, element| {
        let refined = Tuning::refined(gpu.caps(), &geometry, element, &measured);
        Ok([Tuning::choose(gpu.caps(), &geometry, element), refined])
    })
}

/// Two tunings, interleaved, where their plans differ.
fn compare(
    gpu: &Gpu,
    options: &Options,
    names: [&str; 2],
    tunings: impl Fn(Geometry, Element) -> Result<[Tuning; 2], String>,
) -> Result<(), String> {
    let [first, second] = names;
    println!();
    println!("| op | shape | layout | dtype | {first}, ms | {second}, ms | gain | dispatches |");
    println!("|---|---|---|---|---|---|---|---|");
    let mut gains = Vec::new();
    for (logical, &channels_last) in
        options.shapes.iter().flat_map(|shape| options.layouts.iter().map(move |l| (shape, l)))
    {
        let shape = Shape { logical: logical.clone(), channels_last };
        for &kind in &options.kinds {
            let geometry = shape.geometry();
            let text = |error: PlanError| error.to_string();
            let tunings = tunings(geometry, kind.config().element)?;
            let memory = Memory::new(gpu, geometry.len(), kind)?;
            let of = |tuning| common::plans(gpu, geometry, kind, tuning).map_err(text);
            let plans = [of(&tunings[0])?, of(&tunings[1])?];
            let [a, b] = &plans;
            let alike = [
                a.0.stages() == b.0.stages(),
                a.1.stages() == b.1.stages(),
                a.2.stages() == b.2.stages(),
            ];
            let [a, b] = plans.map(|plans| OnGpu::new(gpu, plans, kind, &memory));
            let both = [a?, b?];
            for operation in Operation::ALL {
                let i = operation as usize;
                if alike[i] {
                    continue;
                }
                let target = Duration::from_millis(20);
                for one in &both {
                    one.run(operation, 1);
                }
                let counts = both.each_ref().map(|one| repetitions(one.run(operation, 1), target));
                let mut times = [Vec::new(), Vec::new()];
                for _ in 0..options.rounds {
                    for ((one, times), count) in both.iter().zip(&mut times).zip(counts) {
                        let time = one.run(operation, count).as_secs_f64();
                        times.push(time * 1e3 / f64::from(count));
                    }
                }
                let [first, second] = times.map(median);
                gains.push(first / second);
                println!(
                    "| {} | {} | {} | {} | {first:.4} | {second:.4} | {:.2} | {} → {} |",
                    operation.name(),
                    shape.dims(),
                    shape.layout(),
                    kind.name(),
                    first / second,
                    both[0].dispatches[i],
                    both[1].dispatches[i]
                );
            }
        }
    }
    println!("\ngeometric mean of the gains: {}", figure(geometric_mean(gains.into_iter()), 3));
    Ok(())
}
