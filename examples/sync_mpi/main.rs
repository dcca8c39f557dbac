//! Synchronised batch norm over MPI: every process has a device and a shard of the batch of its own.
//!
//! What travels are the moments of each shard (mean, remainder, variance, count) and the two sums of
//! each shard, a few floats per channel, gathered from all ranks in rank order. Shards are unequal,
//! and with three processes or more the last one's is empty. Every rank also computes the joined
//! batch alone and compares: outputs, running statistics and gradients.
//!
//! A rank that is silent for longer than `--deadline` seconds ends the job with an error.
//! `--die RANK` and `--hang RANK` show what then happens. `scripts/demo-mpi 3` runs it.

use std::collections::HashMap;
use std::error::Error;
use std::time::{Duration, Instant};

use mpi::Threading;
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use ndarray::{Array1, ArrayD, ArrayView1};
use wgpu_batchnorm::{
    Bind, Bound, ChannelAxis, Config, Finalize, Geometry, Gpu, Gradient, Input, Normalize, Plan,
    Reduce, RunningStatistics, Slot, SlotBuffers, Statistics, wgpu,
};

const CHANNELS: usize = 6;
const HEIGHT: usize = 7;
const WIDTH: usize = 5;
const STEPS: u64 = 3;

fn main() {
    let options = Options::parse().unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(2);
    });
    let Some((universe, _)) = mpi::initialize_with_threading(Threading::Funneled) else {
        eprintln!("MPI is initialized already");
        std::process::exit(2);
    };
    let world = universe.world();
    // An error of one rank ends all: the others would wait for it.
    if let Err(error) = run(&world, &options) {
        eprintln!("rank {}: {error}", world.rank());
        world.abort(1);
    }
}

struct Options {
    die: Option<i32>,
    hang: Option<i32>,
    deadline: Duration,
}

impl Options {
    fn parse() -> Result<Self, Box<dyn Error>> {
        use lexopt::prelude::*;
        let mut options = Self { die: None, hang: None, deadline: Duration::from_secs(60) };
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("die") => options.die = Some(parser.value()?.parse()?),
                Long("hang") => options.hang = Some(parser.value()?.parse()?),
                Long("deadline") => {
                    options.deadline = Duration::from_secs(parser.value()?.parse()?);
                }
                other => return Err(other.unexpected().into()),
            }
        }
        Ok(options)
    }
}

fn run(world: &SimpleCommunicator, options: &Options) -> Result<(), Box<dyn Error>> {
    let (rank, ranks) = (world.rank() as usize, world.size() as usize);
    let gpu = Gpu::new_blocking()?;
    let rows: Vec<usize> = (0..ranks).map(|r| row_count(r, ranks)).collect();
    println!(
        "rank {rank} of {ranks}: {} of {} images, on {}",
        rows[rank],
        rows.iter().sum::<usize>(),
        gpu.describe()
    );
    let config = Config::pytorch();
    let shard = Shard::new(&gpu, &config, rows[rank], ranks)?;
    // The same everywhere.
    let mut running = RunningStatistics::new(CHANNELS);
    let gamma: Vec<f32> = (0..CHANNELS).map(|c| 1.0 + 0.25 * c as f32).collect();
    let beta: Vec<f32> = (0..CHANNELS).map(|c| c as f32 - 2.0).collect();
    let parameters = [(Slot::Gamma, &gamma), (Slot::Beta, &beta)];
    let start = running.clone();
    let state = [(Slot::RunningMean, start.mean.to_vec()), (Slot::RunningVar, start.var.to_vec())];
    parameters.iter().for_each(|(slot, values)| shard.write(*slot, values));
    state.iter().for_each(|(slot, values)| shard.write(*slot, values));

    let mut bounds = Bounds::default();
    for step in 0..STEPS {
        let images: Vec<Images> =
            rows.iter().enumerate().map(|(r, &rows)| Images::new(step, r, rows)).collect();
        let own = &images[rank];
        shard.write(Slot::X, &own.x);
        shard.write(Slot::Dy, &own.dy);
        if step == 1 {
            stop_here(rank, options);
        }
        // Forward: moments out, everyone's in.
        let moments = shard.run(&[&shard.statistics], &[Slot::Moments])?.remove(0);
        let parts = gather(world, &moments, options.deadline, "moments");
        shard.write(Slot::Parts, &parts);
        shard.run(&[&shard.finalize, &shard.normalize], &[])?;
        // Backward: sums out, everyone's in. Added in rank order, so that all have the same bits.
        let out = shard.run(&[&shard.reduce], &[Slot::Sums, Slot::Dgamma, Slot::Dbeta])?;
        let all = gather(world, &out.concat(), options.deadline, "sums");
        let totals: Vec<f32> = (0..4 * CHANNELS)
            .map(|i| all.chunks(4 * CHANNELS).map(|rank| f64::from(rank[i])).sum::<f64>() as f32)
            .collect();
        shard.write(Slot::Sums, &totals[..2 * CHANNELS]);
        let slots = [Slot::Y, Slot::Dx, Slot::RunningMean, Slot::RunningVar];
        let mut out = shard.run(&[&shard.gradient], &slots)?;
        out.extend(totals[2 * CHANNELS..].chunks(CHANNELS).map(<[f32]>::to_vec));

        // The joined batch, in this process alone.
        let joined = |f: fn(&Images) -> &Vec<f32>| -> Result<ArrayD<f32>, ndarray::ShapeError> {
            let values: Vec<f32> = images.iter().flat_map(f).copied().collect();
            ArrayD::from_shape_vec(vec![rows.iter().sum(), CHANNELS, HEIGHT, WIDTH], values)
        };
        let (x, dy) = (joined(|i| &i.x)?, joined(|i| &i.dy)?);
        let before = running.clone();
        let input = Input {
            gamma: Some(ArrayView1::from(&gamma)),
            beta: Some(ArrayView1::from(&beta)),
            ..Input::new(x.view(), ChannelAxis::First)
        };
        let forward = gpu.forward_train_blocking(&input, &mut running, &config)?;
        let back = gpu.backward_blocking(&input, dy.view(), &forward.saved, &config)?;
        let begin = rows[..rank].iter().sum::<usize>() * CHANNELS * HEIGHT * WIDTH;
        let mine = |all: Option<ArrayD<f32>>| -> Vec<f32> {
            all.into_iter().flatten().skip(begin).take(own.x.len()).collect()
        };
        let flat = |values: Option<Array1<f32>>| values.map_or(Vec::new(), |v| v.to_vec());
        let expected = [
            mine(Some(forward.y)),
            mine(back.dx),
            running.mean.to_vec(),
            running.var.to_vec(),
            flat(back.dgamma),
            flat(back.dbeta),
        ];
        bounds = Bounds::new([&x, &dy], [&gamma, &beta], &before, ranks, &config, &bounds);
        let names = ["y", "dx", "running_mean", "running_var", "dgamma", "dbeta"];
        let mut report = format!("rank {rank}, step {step}: largest error, of its bound:");
        for (i, name) in names.into_iter().enumerate() {
            let (actual, expected) = (&out[i], &expected[i]);
            if actual.len() != expected.len() {
                return Err(format!("{name}: {} for {}", actual.len(), expected.len()).into());
            }
            let width = if i < 2 { HEIGHT * WIDTH } else { 1 };
            let mut worst = 0.0;
            for (j, (a, e)) in actual.iter().zip(expected).enumerate() {
                let error = f64::from(*a) - f64::from(*e);
                let ratio = error.abs() / bounds.of(i, j / width % CHANNELS);
                if ratio.is_nan() || ratio > 1.0 {
                    return Err(format!("{name}[{j}] is {a}, alone it is {e}: {report}").into());
                }
                worst = f64::max(worst, ratio);
            }
            report += &format!(" {name} {worst:.3}");
        }
        println!("{report}");
    }
    // Everyone agrees, or someone has ended the job.
    gather(world, &[1.0], options.deadline, "agreement");
    if rank == 0 {
        println!("{ranks} ranks give what one process gives for the joined batch.");
    }
    Ok(())
}

/// Unequal, and the last of three or more is empty.
fn row_count(rank: usize, ranks: usize) -> usize {
    if ranks >= 3 && rank == ranks - 1 { 0 } else { 4 + 7 * rank }
}

/// What `--die` and `--hang` ask for.
fn stop_here(rank: usize, options: &Options) {
    if options.die == Some(rank as i32) {
        // Without a word to MPI.
        std::process::abort();
    }
    if options.hang == Some(rank as i32) {
        loop {
            std::thread::park();
        }
    }
}

/// Every rank's values, in rank order. The exchange is non-blocking, so that a rank that is silent
/// ends the job and does not hold it.
fn gather(world: &SimpleCommunicator, own: &[f32], deadline: Duration, what: &str) -> Vec<f32> {
    let mut all = vec![0.0f32; own.len() * world.size() as usize];
    let start = Instant::now();
    mpi::request::scope(|scope| {
        let mut request = world.immediate_all_gather_into(scope, own, &mut all[..]);
        while let Err(pending) = request.test() {
            if start.elapsed() > deadline {
                eprintln!(
                    "rank {}: a rank has given no {what} for {deadline:?}; is it dead? Ending the job.",
                    world.rank()
                );
                world.abort(3);
            }
            request = pending;
            std::thread::sleep(Duration::from_micros(50));
        }
    });
    all
}

/// One rank's images and gradients, from a seed.
struct Images {
    x: Vec<f32>,
    dy: Vec<f32>,
}

impl Images {
    /// Means lie far apart between ranks: an average that forgets the counts would be far off.
    fn new(step: u64, rank: usize, rows: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(1000 * step + rank as u64);
        let count = rows * CHANNELS * HEIGHT * WIDTH;
        let mut values =
            |center: f32| (0..count).map(|_| center + 2.0 * random.f32() - 1.0).collect();
        Self { x: values(100.0 + 3.0 * rank as f32), dy: values(0.25) }
    }
}

/// This rank's operations and memory.
struct Shard<'a> {
    gpu: &'a Gpu,
    memory: HashMap<Slot, wgpu::Buffer>,
    statistics: Bound,
    finalize: Bound,
    normalize: Bound,
    reduce: Bound,
    gradient: Bound,
}

impl<'a> Shard<'a> {
    fn new(
        gpu: &'a Gpu,
        config: &Config,
        rows: usize,
        ranks: usize,
    ) -> Result<Self, Box<dyn Error>> {
        let images = Geometry::new(&[rows, CHANNELS, HEIGHT, WIDTH], ChannelAxis::First)?;
        let parts = Geometry::new(&[ranks, CHANNELS], ChannelAxis::Last)?;
        let (caps, mut memory) = (gpu.caps(), HashMap::new());
        Ok(Self {
            statistics: bind(gpu, Plan::<Statistics>::new(images, config, caps)?, &mut memory)?,
            finalize: bind(gpu, Plan::<Finalize>::new(parts, config, caps)?, &mut memory)?,
            normalize: bind(gpu, Plan::<Normalize>::new(images, config, caps)?, &mut memory)?,
            reduce: bind(gpu, Plan::<Reduce>::new(images, config, caps)?, &mut memory)?,
            gradient: bind(gpu, Plan::<Gradient>::new(images, config, caps)?, &mut memory)?,
            gpu,
            memory,
        })
    }

    /// Nothing for a slot that an empty shard does not have.
    fn write(&self, slot: Slot, values: &[f32]) {
        if let Some(buffer) = self.memory.get(&slot) {
            self.gpu.queue().write_buffer(buffer, 0, bytemuck::cast_slice(values));
        }
    }

    /// Runs operations in one submission, and reads slots back.
    fn run(&self, operations: &[&Bound], slots: &[Slot]) -> Result<Vec<Vec<f32>>, Box<dyn Error>> {
        let (device, queue) = (self.gpu.device(), self.gpu.queue());
        let mut encoder = device.create_command_encoder(&Default::default());
        operations.iter().for_each(|operation| operation.encode_into(&mut encoder));
        let mut staged = Vec::new();
        for slot in slots {
            staged.push(self.memory.get(slot).map(|buffer| {
                let staging = device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some("staging"),
                    size: buffer.size(),
                    usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                });
                encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, buffer.size());
                staging
            }));
        }
        let submission_index = Some(queue.submit([encoder.finish()]));
        for staging in staged.iter().flatten() {
            staging.map_async(wgpu::MapMode::Read, .., |_| {});
        }
        let timeout = Some(Duration::from_secs(30));
        device.poll(wgpu::PollType::Wait { submission_index, timeout })?;
        let values = |staging: Option<wgpu::Buffer>| match staging {
            Some(staging) => Ok(bytemuck::pod_collect_to_vec(&staging.get_mapped_range(..)?)),
            None => Ok(Vec::new()),
        };
        staged.into_iter().map(values).collect()
    }
}

/// Compiles a plan and binds it to memory that the operations of a shard share by slot.
fn bind<O: Bind>(
    gpu: &Gpu,
    plan: Plan<O>,
    memory: &mut HashMap<Slot, wgpu::Buffer>,
) -> Result<Bound, Box<dyn Error>> {
    let slots = plan.slots();
    for &(slot, size) in &slots {
        memory.entry(slot).or_insert_with(|| {
            gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some(slot.name()),
                // Scratch is as large as any operation here needs.
                size: if slot == Slot::Scratch { 1 << 20 } else { size },
                usage: wgpu::BufferUsages::STORAGE
                    | wgpu::BufferUsages::COPY_SRC
                    | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        });
    }
    let of = |slot| {
        let used = slots.iter().any(|(s, _)| *s == slot);
        memory.get(&slot).filter(|_| used).into()
    };
    Ok(gpu.kernels().prepare(plan)?.bind(&O::Buffers::from_slots(&of))?)
}

/// How far two correct results may lie apart, per channel, in the order they are compared in.
///
/// With u = 2⁻²⁴ and m = 16 + n/4 + 4P roundings in a row (four values an update; four roundings a
/// part), taken as independent with a margin of four, a mean of values in a range D is off by e·D,
/// e = u·(6 + 4·√(m/3)). In deviations (R = D·i) the mean is off by e·R and the deviation by
/// e·(1 + R), so x̂ is off by e·R·(2 + R) at most. By Cauchy and Schwarz mean|x̂| ≤ 1 and
/// |Σdy·x̂|/n ≤ G = max|dy|; to first order dx = γ·i·(dy − S₁/n − x̂·Σdy·x̂/n) is then off by
/// 4·γ·i·G·e·(1 + R)². Twice all that, as either side may be off. Running statistics carry what
/// was left of earlier steps' errors.
#[derive(Default)]
struct Bounds([Vec<f64>; 6]);

impl Bounds {
    fn new(
        [x, dy]: [&ArrayD<f32>; 2],
        [gamma, beta]: [&[f32]; 2],
        before: &RunningStatistics,
        ranks: usize,
        config: &Config,
        earlier: &Bounds,
    ) -> Self {
        let u = 2f64.powi(-24);
        let rate = 0.1;
        let mut all: [Vec<f64>; 6] = Default::default();
        for c in 0..CHANNELS {
            let channel = |values: &ArrayD<f32>| -> Vec<f64> {
                values.index_axis(ndarray::Axis(1), c).iter().map(|&v| f64::from(v)).collect()
            };
            let (x, dy) = (channel(x), channel(dy));
            let n = x.len() as f64;
            let mean = x.iter().sum::<f64>() / n;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            let largest = x.iter().fold(f64::MIN, |m, x| m.max(*x));
            let range = largest - x.iter().fold(f64::MAX, |m, x| m.min(*x));
            let i = 1.0 / (variance + config.epsilon).sqrt();
            let (reach, g) = (range * i, dy.iter().fold(0.0, |m: f64, dy| m.max(dy.abs())));
            let e = u * (6.0 + 4.0 * ((16.0 + n / 4.0 + 4.0 * ranks as f64) / 3.0).sqrt());
            let (gamma, beta) = (f64::from(gamma[c]).abs(), f64::from(beta[c]).abs());
            let moved = |old: f32, new: f64| 8.0 * u * (f64::from(old).abs() + rate * new.abs());
            let bounds = [
                gamma * e * (1.0 + reach).powi(2) + 2.0 * u * beta,
                4.0 * gamma * i * g * e * (1.0 + reach).powi(2),
                rate * e * range + moved(before.mean[c], mean),
                rate * 4.0 * e * (variance + range * variance.sqrt())
                    + moved(before.var[c], variance),
                2.0 * n * g * e * (1.0 + reach),
                n * g * e,
            ];
            for (result, (all, bound)) in all.iter_mut().zip(bounds).enumerate() {
                let carried = earlier.0[result].get(c).filter(|_| result == 2 || result == 3);
                all.push(2.0 * bound + carried.unwrap_or(&0.0));
            }
        }
        Self(all)
    }

    fn of(&self, result: usize, channel: usize) -> f64 {
        self.0[result][channel]
    }
}
