//! What an operation costs beside the kernels' own time: recording it, and its allocations; planning,
//! compiling and binding it; the first call to its result; and device memory.
//!
//! `cargo bench --bench host_cost`. Medians. "Compile" is all pipelines of a plan with new `Kernels`,
//! where a driver may still find its own cache on disk; "prepare" is the same plan once they are there.
//! "First result" starts with new `Kernels`, plans, prepares, binds, records, submits and waits, on
//! memory that is there. "Record" is `encode` alone; wgpu checks and translates what was recorded when the
//! encoder is finished, and "finished" is an operation's share of everything from the new encoder to
//! its command buffer, of a hundred operations in one pass. Memory is all slots of the plan, tensors and scratch included; the crate
//! itself makes one uniform buffer, of one alignment (256 bytes) a dispatch. Allocations are those of
//! this thread in one recording: what is left where a pass of wgpu's makes room for more commands is
//! below one.

#[path = "../tests/common/allocations.rs"]
#[allow(dead_code, reason = "the tests count more")]
mod allocations;
#[allow(dead_code, reason = "the other benchmarks use the rest")]
mod common;

use std::time::{Duration, Instant};

use common::{Shape, median};
use wgpu_batchnorm::{
    Backward, Bind, Bound, Config, Infer, Kernels, Operation, Plan, Slot, SlotBuffers, SlotMemory,
    Statistics, Train, wgpu,
};

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

/// (shape, channels-last): one dispatch and several, rows and columns.
const SHAPES: [(&[usize], bool); 5] = [
    (&[8, 16, 4, 4], false),
    (&[8, 64, 56, 56], false),
    (&[8, 64, 56, 56], true),
    (&[1024, 512], false),
    (&[4, 1, 1024, 1024], false),
];
const RECORDINGS: u32 = 2_000;
/// In one pass, to its end.
const FINISHED: u32 = 100;

fn main() -> Result<(), String> {
    let Some(gpu) = common::gpu() else { return Ok(()) };
    let rounds = if common::measures() { 9 } else { 1 };
    println!("{}, medians of {rounds} rounds\n", gpu.describe());
    println!(
        "| op | shape | layout | dispatches | record, µs | finished, µs | allocations | plan, µs | compile, ms | \
         prepare, µs | bind, µs | first result, ms | memory, MiB | of it scratch, KiB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    for (logical, channels_last) in SHAPES {
        let shape = Shape { logical: logical.to_vec(), channels_last };
        row::<Train>(&gpu, &shape, rounds)?;
        row::<Infer>(&gpu, &shape, rounds)?;
        row::<Backward>(&gpu, &shape, rounds)?;
        row::<Statistics>(&gpu, &shape, rounds)?;
    }
    Ok(())
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = std::hint::black_box(work());
    (start.elapsed(), result)
}

fn row<O: Bind>(gpu: &wgpu_batchnorm::Gpu, shape: &Shape, rounds: usize) -> Result<(), String> {
    fn text(error: impl std::error::Error) -> String {
        error.to_string()
    }
    let geometry = shape.geometry();
    let config = Config::pytorch();
    let plan = || Plan::<O>::new(geometry, &config, gpu.caps()).map_err(text);
    let first = plan()?;
    let slots = first.slots();
    let memory: Vec<(Slot, wgpu::Buffer)> =
        slots.iter().map(|&(slot, size)| (slot, common::empty(gpu, size))).collect();
    let find = |slot| memory.iter().find(|(s, _)| *s == slot).map(|(_, buffer)| buffer);
    let buffers = || O::Buffers::from_slots(&|slot| SlotMemory::from(find(slot)));
    let prepare = |kernels: &Kernels| kernels.prepare(first.clone()).map_err(text);
    let warm = Kernels::new(gpu.device());
    let prepared = prepare(&warm)?;
    let bound = prepared.bind(&buffers()).map_err(text)?;
    // New memory is zeroed when it is first used.
    run(gpu, &bound)?;
    let mut samples: [Vec<f64>; 7] = Default::default();
    let mut allocated = 0;
    for _ in 0..rounds {
        let (planning, _) = timed(plan);
        let cold = Kernels::new(gpu.device());
        let (compiling, made) = timed(|| prepare(&cold));
        made?;
        let (preparing, _) = timed(|| prepare(&warm));
        let (binding, made) = timed(|| prepared.bind(&buffers()));
        made.map_err(text)?;
        let (calling, called) = timed(|| -> Result<(), String> {
            let kernels = Kernels::new(gpu.device());
            let bound = kernels.prepare(plan()?).map_err(text)?.bind(&buffers()).map_err(text)?;
            run(gpu, &bound)
        });
        called?;
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default());
        let record = |pass: &mut wgpu::ComputePass<'_>| {
            (0..RECORDINGS).for_each(|_| bound.encode(pass));
        };
        // What the pass grows by at first is not the steady state.
        record(&mut pass);
        let mut recording = Duration::ZERO;
        allocated = allocations::during(|| recording = timed(|| record(&mut pass)).0);
        drop(pass);
        // Not submitted: this is about the recording.
        drop(encoder);
        let (finishing, _) = timed(|| {
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            let mut pass = encoder.begin_compute_pass(&Default::default());
            (0..FINISHED).for_each(|_| bound.encode(&mut pass));
            drop(pass);
            encoder.finish()
        });
        let (recording, finishing) = (recording / RECORDINGS, finishing / FINISHED);
        let all = [recording, finishing, planning, compiling, preparing, binding, calling];
        for (samples, time) in samples.iter_mut().zip(all) {
            samples.push(time.as_secs_f64() * 1e6);
        }
    }
    let [record, finished, plan, compile, prepare, bind, call] = samples.map(median);
    let total: u64 = slots.iter().map(|(_, size)| size).sum();
    println!(
        "| {} | {} | {} | {} | {record:.2} | {finished:.2} | {:.3} | {plan:.1} | {:.2} | {prepare:.1} | {bind:.1} | \
         {:.2} | {:.2} | {:.1} |",
        <O as Operation>::NAME,
        shape.dims(),
        shape.layout(),
        first.stages().len(),
        allocated as f64 / f64::from(RECORDINGS),
        compile / 1e3,
        call / 1e3,
        total as f64 / 1024.0 / 1024.0,
        first.scratch_size() as f64 / 1024.0,
    );
    Ok(())
}

fn run(gpu: &wgpu_batchnorm::Gpu, bound: &Bound) -> Result<(), String> {
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    bound.encode_into(&mut encoder);
    let submission_index = Some(gpu.queue().submit([encoder.finish()]));
    let timeout = Some(Duration::from_secs(60));
    let wait = wgpu::PollType::Wait { submission_index, timeout };
    gpu.device().poll(wait).map(drop).map_err(|error| error.to_string())
}
