//! Many threads, two devices, and thousands of recordings without growth.

use std::process::Command;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use ndarray::ArrayD;
use wgpu_batchnorm::{
    Backward, BatchNorm, Bind, Bound, ChannelAxis, Config, FrozenBackward, Gpu, Infer, Input,
    Kernels, Memory, Plan, Prepared, RunningStatistics, Slot, Statistics, Train, Update, wgpu,
};

use crate::common::data::{Case, Data};
use crate::common::runner::{self, Arranged, Contents, bits};
use crate::common::{allocations, gpu};

const THREADS: usize = 8;

/// Every path: rows and columns, one dispatch and several, all memories.
fn cases() -> Vec<Case> {
    let with = |shape: &[usize], axis, memory, update| {
        Case::new(shape, axis, Config { memory, update, ..Config::pytorch() })
    };
    let (first, last) = (ChannelAxis::First, ChannelAxis::Last);
    vec![
        with(&[4, 16, 8, 8], first, Memory::Separate, Update::Rate(0.1)),
        with(&[2, 3, 65, 67], first, Memory::Arena, Update::Cumulative),
        with(&[2, 2, 100, 101], first, Memory::InPlace, Update::Decay(0.9)),
        with(&[64, 40], last, Memory::Separate, Update::None),
        with(&[500, 6], last, Memory::Arena, Update::Cumulative),
        with(&[40, 5, 3], first, Memory::Separate, Update::Rate(0.5)),
    ]
}

/// Every slot after an operation, but for the garbage in the scratch.
fn one<O: Bind>(gpu: &Gpu, kernels: &Kernels, case: &Case, inputs: &Contents) -> Vec<u32> {
    let mut contents = runner::run(gpu, kernels, runner::plan::<O>(gpu, case).unwrap(), inputs);
    contents.remove(&Slot::Scratch);
    Slot::ALL.into_iter().filter_map(|slot| contents.remove(&slot)).flatten().collect()
}

/// All operations of a case, planned, prepared, bound and encoded from nothing.
fn all(gpu: &Gpu, kernels: &Kernels, case: &Case) -> Vec<u32> {
    let data = Data::random(case.geometry(), 81, 1.0, 2.0);
    let mut inputs = runner::inputs(&data);
    let forward = one::<Train>(gpu, kernels, case, &inputs);
    let saved = data.x.iter().take(4 * data.gamma.len());
    let frozen = [
        one::<Infer>(gpu, kernels, case, &inputs),
        one::<FrozenBackward>(gpu, kernels, case, &inputs),
        one::<Statistics>(gpu, kernels, case, &inputs),
    ]
    .concat();
    inputs.insert(Slot::Saved, saved.map(|v| v.to_bits()).collect());
    [forward, frozen, one::<Backward>(gpu, kernels, case, &inputs)].concat()
}

#[test]
fn what_is_shared_can_be_shared() {
    fn shared<T: Clone + Send + Sync>() {}
    shared::<Kernels>();
    shared::<Plan<Train>>();
    shared::<Prepared<Train>>();
    shared::<Bound>();
    shared::<Gpu>();
    fn sent<T: Send + Sync>() {}
    sent::<BatchNorm>();
}

/// Eight threads with one set of kernels, each in its own order, so that they compile the same and
/// different pipelines at the same time: one thread's results, and each pipeline once.
#[test]
fn threads_share_kernels() {
    let Some(gpu) = gpu() else { return };
    let (cases, alone) = (cases(), Kernels::new(gpu.device()));
    let expected: Vec<Vec<u32>> = cases.iter().map(|case| all(gpu, &alone, case)).collect();
    let kernels = Kernels::new(gpu.device());
    let start = Barrier::new(THREADS);
    thread::scope(|scope| {
        for t in 0..THREADS {
            let (kernels, cases, expected, start) = (kernels.clone(), &cases, &expected, &start);
            scope.spawn(move || {
                start.wait();
                for i in 0..cases.len() {
                    let i = (i + t) % cases.len();
                    let same = all(gpu, &kernels, &cases[i]) == expected[i];
                    assert!(same, "thread {t}: {}", cases[i]);
                }
            });
        }
    });
    assert_eq!(kernels.pipeline_count(), alone.pipeline_count());
}

/// Eight threads bind one prepared operation to memory of their own.
#[test]
fn threads_share_prepared_operations() {
    fn share<O: Bind>(gpu: &Gpu, case: &Case) {
        let data = Data::random(case.geometry(), 82, 1.0, 2.0);
        let mut inputs = runner::inputs(&data);
        let saved = data.x.iter().cycle().take(4 * data.gamma.len());
        if O::NAME == Backward::NAME {
            inputs.insert(Slot::Saved, saved.map(|v| v.to_bits()).collect());
        }
        let expected = one::<O>(gpu, gpu.kernels(), case, &inputs);
        let prepared = gpu.kernels().prepare(runner::plan::<O>(gpu, case).unwrap()).unwrap();
        let start = Barrier::new(THREADS);
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    start.wait();
                    let memory = Arranged::new(gpu, prepared.plan(), &inputs);
                    let bound = prepared.bind(&memory.buffers::<O>()).unwrap();
                    let mut encoder = gpu.device().create_command_encoder(&Default::default());
                    bound.encode_into(&mut encoder);
                    let mut contents = memory.read(gpu, encoder);
                    contents.remove(&Slot::Scratch);
                    let slots = Slot::ALL.into_iter().filter_map(|slot| contents.remove(&slot));
                    assert!(slots.flatten().eq(expected.iter().copied()), "{}: {case}", O::NAME);
                });
            }
        });
    }
    use wgpu_batchnorm::Operation;
    let Some(gpu) = gpu() else { return };
    for case in cases() {
        share::<Train>(gpu, &case);
        share::<Infer>(gpu, &case);
        share::<Backward>(gpu, &case);
        share::<FrozenBackward>(gpu, &case);
        share::<Statistics>(gpu, &case);
    }
}

/// Eight threads record one bound operation, each into encoders of its own: the device runs every
/// recording once, and the last leaves the right results.
#[test]
fn threads_share_bound_operations() {
    let Some(gpu) = gpu() else { return };
    const TIMES: u32 = 25;
    for case in cases() {
        let config = Config { update: Update::Cumulative, memory: Memory::Separate, ..case.config };
        let case = Case { config, ..case };
        let data = Data::random(case.geometry(), 83, 1.0, 2.0);
        let expected = runner::train(gpu, &case, &data);
        let plan = runner::plan::<Train>(gpu, &case).unwrap();
        let memory = Arranged::new(gpu, &plan, &runner::inputs(&data));
        let prepared = gpu.kernels().prepare(plan).unwrap();
        let bound = prepared.bind(&memory.buffers::<Train>()).unwrap();
        let start = Barrier::new(THREADS);
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..TIMES {
                        let mut encoder = gpu.device().create_command_encoder(&Default::default());
                        bound.encode_into(&mut encoder);
                        gpu.queue().submit([encoder.finish()]);
                    }
                });
            }
        });
        let contents = memory.read(gpu, gpu.device().create_command_encoder(&Default::default()));
        assert_eq!(contents[&Slot::Batches][0], data.batches + THREADS as u32 * TIMES, "{case}");
        assert!(contents[&Slot::Y] == bits(&expected.y), "{case}");
        assert!(contents[&Slot::Saved] == bits(&expected.saved()), "{case}");
    }
}

/// Two devices in one process, at the same time: the same bits from both, and the end of one is not
/// the other's.
#[test]
fn two_devices() {
    let Some(gpu) = gpu() else { return };
    let two = [Gpu::new_blocking().unwrap(), Gpu::new_blocking().unwrap()];
    let cases = cases();
    let expected: Vec<Vec<u32>> = cases.iter().map(|case| all(gpu, gpu.kernels(), case)).collect();
    thread::scope(|scope| {
        for own in &two {
            let (cases, expected) = (&cases, &expected);
            scope.spawn(move || {
                for (case, expected) in cases.iter().zip(expected) {
                    assert!(all(own, own.kernels(), case) == *expected, "{case}");
                }
            });
        }
    });
    for (case, expected) in cases.iter().zip(&expected) {
        for own in &two {
            assert!(all(own, own.kernels(), case) == *expected, "in turn: {case}");
        }
    }
    assert_eq!(two[0].kernels().pipeline_count(), two[1].kernels().pipeline_count());
    let [ends, stays] = two;
    ends.device().destroy();
    drop(ends);
    assert!(all(&stays, stays.kernels(), &cases[0]) == expected[0]);
}

/// Recording allocates nothing of ours: once the pass has room, nothing at all.
#[test]
fn recording_allocates_nothing() {
    let Some(gpu) = gpu() else { return };
    for case in cases() {
        let data = Data::random(case.geometry(), 84, 1.0, 2.0);
        let plan = runner::plan::<Train>(gpu, &case).unwrap();
        let memory = Arranged::new(gpu, &plan, &runner::inputs(&data));
        let prepared = gpu.kernels().prepare(plan).unwrap();
        let bound = prepared.bind(&memory.buffers::<Train>()).unwrap();
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default());
        // The pass keeps its commands in memory that grows by doubling; between two such growths
        // nothing may be allocated.
        let mut windows = [0u64; 64];
        for window in &mut windows {
            *window = allocations::during(|| {
                for _ in 0..32 {
                    bound.encode(&mut pass);
                }
            });
        }
        let silent = windows[32..].iter().filter(|&&count| count == 0).count();
        assert!(silent >= 28, "{case}: allocations of 32 recordings each: {windows:?}");
        // Not submitted: this is about the recording.
        drop(pass);
        drop(encoder);
    }
    // The counter counts.
    assert_eq!(allocations::during(|| drop(std::hint::black_box(vec![1u8; 100]))), 1);
}

/// Memory of this process in RAM, where that can be known.
fn resident() -> Option<i64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(pages.split_whitespace().nth(1)?.parse::<i64>().ok()? * 4096)
}

/// Thousands of recordings, submissions and calls in a process of their own, where nothing else
/// allocates.
#[test]
fn thousands_of_recordings_do_not_grow() {
    if gpu().is_none() {
        return;
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "concurrency::child_records_thousands", "--nocapture"])
        .env("BATCHNORM_CHILD_RECORDS", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout);
    let errors = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{text}\n{errors}");
    assert!(text.contains("recordings:") && text.contains("calls:"), "{text}\n{errors}");
    text.lines().filter(|line| line.contains("grow")).for_each(|line| println!("{line}"));
}

/// What `work` leaves allocated when it is done `times` times more, after it was done as often to
/// warm up: less than any allocation each time would, once the threads that are just ending have
/// ended. A leak grows in every round; a table of wgpu's that is enlarged once, as more threads end
/// late on a busy machine, does not. A driver's own memory may go up and down by some pages.
fn grows(what: &str, times: usize, mut work: impl FnMut()) {
    const ROUNDS: usize = 4;
    (0..times).for_each(|_| work());
    let round = |work: &mut dyn FnMut()| {
        let (live, before) = (allocations::live(), resident());
        (0..times).for_each(|_| work());
        let grown = || allocations::live() - live;
        let deadline = Instant::now() + Duration::from_secs(5);
        while grown() >= 4096 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        let resident = resident().zip(before).map(|(now, before)| now - before);
        println!(
            "{what}: {times} more grow by {} bytes allocated, {resident:?} bytes resident",
            grown()
        );
        grown() < 4096 && resident.is_none_or(|grown| grown < 2 << 20)
    };
    assert!((0..ROUNDS).any(|_| round(&mut work)), "{what} leak in every one of {ROUNDS} rounds");
}

/// The child of `thousands_of_recordings_do_not_grow`; alone, it has nothing to do.
#[test]
fn child_records_thousands() {
    if std::env::var("BATCHNORM_CHILD_RECORDS").is_err() {
        return;
    }
    let Some(gpu) = gpu() else { return };
    let case = Case::new(&[4, 3, 65, 7], ChannelAxis::First, Config::pytorch());
    let data = Data::random(case.geometry(), 85, 1.0, 2.0);
    let plan = runner::plan::<Train>(gpu, &case).unwrap();
    let memory = Arranged::new(gpu, &plan, &runner::inputs(&data));
    let prepared = gpu.kernels().prepare(plan).unwrap();
    let bound = prepared.bind(&memory.buffers::<Train>()).unwrap();
    // What a buffer starts with is on its way until something is submitted.
    let wait = || {
        gpu.queue().submit([]);
        gpu.device().poll(wgpu::PollType::wait_indefinitely()).unwrap();
    };
    // Ten recordings a submission.
    grows("recordings", 500, || {
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        for _ in 0..10 {
            bound.encode_into(&mut encoder);
        }
        gpu.queue().submit([encoder.finish()]);
        wait();
    });
    grows("bindings", 1000, || {
        drop(prepared.bind(&memory.buffers::<Train>()).unwrap());
        wait();
    });
    grows("preparations", 1000, || {
        let plan = runner::plan::<Train>(gpu, &case).unwrap();
        drop(gpu.kernels().prepare(plan).unwrap());
        wait();
    });
    let x = ArrayD::from_shape_vec(case.shape.clone(), data.x.clone()).unwrap();
    let mut running = RunningStatistics::new(3);
    grows("calls", 300, || {
        gpu.forward_train_blocking(&Input::new(x.view(), case.axis), &mut running, &case.config)
            .unwrap();
        wait();
    });
    let mut layer = BatchNorm::new(gpu, 3, Config::keras()).unwrap();
    grows("layer calls", 300, || {
        layer.forward_train_blocking(x.view()).unwrap();
        layer.backward_blocking(x.view()).unwrap();
        wait();
    });
}
