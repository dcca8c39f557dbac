//! The caller's mistakes: typed errors with slot names and numbers, before anything is recorded. On
//! wgpu's noop device, so that they are tested on every machine.

use std::sync::{Arc, Mutex};

use wgpu_batchnorm::{
    Affine, Backward, BackwardBuffers, BindError, ChannelAxis, Config, FrozenBackwardBuffers,
    Geometry, Gradients, Infer, InferBuffers, Kernels, Memory, Plan, PrepareError, Prepared, Slot,
    SlotMemory, Statistics, StatisticsBuffers, Train, TrainBuffers, Update, wgpu,
};

struct Bench {
    device: wgpu::Device,
    _queue: wgpu::Queue,
    kernels: Kernels,
    escaped: Arc<Mutex<Vec<String>>>,
}

impl Bench {
    fn new() -> Self {
        Self::with(wgpu::Device::noop(&wgpu::DeviceDescriptor::default()))
    }

    fn with((device, queue): (wgpu::Device, wgpu::Queue)) -> Self {
        let escaped = Arc::new(Mutex::new(Vec::new()));
        let sink = escaped.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            sink.lock().unwrap().push(error.to_string());
        }));
        let kernels = Kernels::new(&device);
        Self { device, _queue: queue, kernels, escaped }
    }

    fn buffer(&self, size: u64) -> wgpu::Buffer {
        self.buffer_for(size, wgpu::BufferUsages::STORAGE)
    }

    fn buffer_for(&self, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        let mapped_at_creation = false;
        let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation };
        self.device.create_buffer(&descriptor)
    }

    fn train(&self, config: Config) -> Prepared<Train> {
        self.kernels.prepare(Plan::new(geometry(), &config, self.kernels.caps()).unwrap()).unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let escaped = self.escaped.lock().unwrap();
        if !std::thread::panicking() {
            assert!(escaped.is_empty(), "errors escaped to the caller's handler: {escaped:?}");
        }
    }
}

/// 4·3·1000 values: three dispatches, with scratch.
fn geometry() -> Geometry {
    Geometry::new(&[4, 3, 5000], ChannelAxis::First).unwrap()
}

const TENSOR: u64 = 4 * 3 * 5000 * 4;
const CHANNELS: u64 = 12;

struct Buffers {
    x: wgpu::Buffer,
    y: wgpu::Buffer,
    gamma: wgpu::Buffer,
    beta: wgpu::Buffer,
    saved: wgpu::Buffer,
    mean: wgpu::Buffer,
    var: wgpu::Buffer,
    batches: wgpu::Buffer,
    scratch: wgpu::Buffer,
}

impl Buffers {
    fn new(bench: &Bench) -> Self {
        Self {
            x: bench.buffer(TENSOR),
            y: bench.buffer(TENSOR),
            gamma: bench.buffer(CHANNELS),
            beta: bench.buffer(CHANNELS),
            saved: bench.buffer(3 * CHANNELS),
            mean: bench.buffer(CHANNELS),
            var: bench.buffer(CHANNELS),
            batches: bench.buffer(4),
            scratch: bench.buffer(1 << 20),
        }
    }

    fn train(&self) -> TrainBuffers<'_> {
        TrainBuffers {
            x: (&self.x).into(),
            y: (&self.y).into(),
            gamma: (&self.gamma).into(),
            beta: (&self.beta).into(),
            saved: (&self.saved).into(),
            running_mean: (&self.mean).into(),
            running_var: (&self.var).into(),
            batches: SlotMemory::default(),
            scratch: (&self.scratch).into(),
        }
    }
}

#[test]
fn the_right_memory_is_accepted() {
    let bench = Bench::new();
    let b = Buffers::new(&bench);
    let bound = bench.train(Config::pytorch()).bind(&b.train()).unwrap();
    let mut encoder = bench.device.create_command_encoder(&Default::default());
    bound.encode_into(&mut encoder);
    encoder.finish();
    // More memory than needed, in a piece at an offset.
    let large = bench.buffer(TENSOR + 512 + 7 * 4);
    let x = large.slice(256..).into();
    bench.train(Config::pytorch()).bind(&TrainBuffers { x, ..b.train() }).unwrap();
    // One buffer for what is only read.
    let piece = bench.buffer(256 + CHANNELS);
    let gamma = piece.slice(..CHANNELS).into();
    let beta = piece.slice(256..).into();
    bench.train(Config::pytorch()).bind(&TrainBuffers { gamma, beta, ..b.train() }).unwrap();
}

#[test]
fn wrong_memory_is_refused() {
    let bench = Bench::new();
    let b = Buffers::new(&bench);
    let none = SlotMemory::default;
    let small = bench.buffer(8);
    let uniform = bench.buffer_for(TENSOR, wgpu::BufferUsages::UNIFORM);
    let readable =
        bench.buffer_for(TENSOR, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
    let twice = bench.buffer(2 * TENSOR);
    let beyond = wgpu::BufferBinding { buffer: &small, offset: 1 << 20, size: None };
    let lying = wgpu::BufferBinding {
        buffer: &b.mean,
        offset: 0,
        size: std::num::NonZeroU64::new(1 << 30),
    };
    let missing = |slot, required| BindError::Missing { slot, required };
    let too_small = |slot, required, available| BindError::TooSmall { slot, required, available };
    let shared = |a, b| BindError::SharedBuffer { a, b };
    let overlap = |a, a_range, b, b_range| BindError::Overlap { a, a_range, b, b_range };
    let scratch_size = bench.train(Config::pytorch()).plan().scratch_size();
    assert!(scratch_size > 8);
    let cases: Vec<(TrainBuffers<'_>, BindError)> = vec![
        (TrainBuffers { x: none(), ..b.train() }, missing(Slot::X, TENSOR)),
        (TrainBuffers { y: none(), ..b.train() }, missing(Slot::Y, TENSOR)),
        (TrainBuffers { gamma: none(), ..b.train() }, missing(Slot::Gamma, CHANNELS)),
        (TrainBuffers { beta: none(), ..b.train() }, missing(Slot::Beta, CHANNELS)),
        (TrainBuffers { saved: none(), ..b.train() }, missing(Slot::Saved, 3 * CHANNELS)),
        (TrainBuffers { running_mean: none(), ..b.train() }, missing(Slot::RunningMean, CHANNELS)),
        (TrainBuffers { running_var: none(), ..b.train() }, missing(Slot::RunningVar, CHANNELS)),
        (TrainBuffers { scratch: none(), ..b.train() }, missing(Slot::Scratch, scratch_size)),
        (TrainBuffers { x: (&small).into(), ..b.train() }, too_small(Slot::X, TENSOR, 8)),
        (TrainBuffers { y: (&small).into(), ..b.train() }, too_small(Slot::Y, TENSOR, 8)),
        (TrainBuffers { gamma: (&small).into(), ..b.train() }, too_small(Slot::Gamma, CHANNELS, 8)),
        (
            TrainBuffers { saved: (&b.mean).into(), ..b.train() },
            too_small(Slot::Saved, 3 * CHANNELS, CHANNELS),
        ),
        (
            TrainBuffers { scratch: (&small).into(), ..b.train() },
            too_small(Slot::Scratch, scratch_size, 8),
        ),
        (
            TrainBuffers { x: b.x.slice(..TENSOR - 4).into(), ..b.train() },
            too_small(Slot::X, TENSOR, TENSOR - 4),
        ),
        (TrainBuffers { beta: beyond.into(), ..b.train() }, too_small(Slot::Beta, CHANNELS, 0)),
        (
            TrainBuffers { saved: lying.into(), ..b.train() },
            too_small(Slot::Saved, 3 * CHANNELS, CHANNELS),
        ),
        (
            TrainBuffers { x: twice.slice(4..).into(), ..b.train() },
            BindError::Misaligned { slot: Slot::X, offset: 4, alignment: 256 },
        ),
        (
            TrainBuffers { x: twice.slice(128..).into(), ..b.train() },
            BindError::Misaligned { slot: Slot::X, offset: 128, alignment: 256 },
        ),
        (
            TrainBuffers { x: (&uniform).into(), ..b.train() },
            BindError::Usage { slot: Slot::X, usage: wgpu::BufferUsages::UNIFORM },
        ),
        (
            TrainBuffers { y: (&readable).into(), ..b.train() },
            BindError::Usage {
                slot: Slot::Y,
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            },
        ),
        (
            TrainBuffers { y: (&b.x).into(), ..b.train() },
            overlap(Slot::X, 0..TENSOR, Slot::Y, 0..TENSOR),
        ),
        (
            TrainBuffers {
                x: twice.slice(..TENSOR).into(),
                y: twice.slice(256..).into(),
                ..b.train()
            },
            overlap(Slot::X, 0..TENSOR, Slot::Y, 256..256 + TENSOR),
        ),
        (
            TrainBuffers {
                x: twice.slice(..TENSOR).into(),
                y: twice.slice(TENSOR.next_multiple_of(256)..).into(),
                ..b.train()
            },
            too_small(Slot::Y, TENSOR, 2 * TENSOR - TENSOR.next_multiple_of(256)),
        ),
        (
            TrainBuffers { running_var: (&b.mean).into(), ..b.train() },
            overlap(Slot::RunningMean, 0..CHANNELS, Slot::RunningVar, 0..CHANNELS),
        ),
        (
            TrainBuffers { running_mean: (&b.gamma).into(), ..b.train() },
            overlap(Slot::Gamma, 0..CHANNELS, Slot::RunningMean, 0..CHANNELS),
        ),
        (
            TrainBuffers { scratch: (&b.y).into(), ..b.train() },
            overlap(Slot::Y, 0..TENSOR, Slot::Scratch, 0..scratch_size),
        ),
        (
            TrainBuffers { batches: (&b.batches).into(), ..b.train() },
            BindError::Unused {
                slot: Slot::Batches,
                reason: "only Update::Cumulative counts batches",
            },
        ),
    ];
    let prepared = bench.train(Config::pytorch());
    for (buffers, expected) in cases {
        let error = prepared.bind(&buffers).unwrap_err();
        assert_eq!(error, expected);
        let text = error.to_string();
        assert!(!text.is_empty() && !text.contains("Slot"), "{text}");
    }
    // Disjoint pieces of one buffer, one read and one written in the same dispatch.
    let wide = bench.buffer(2 * TENSOR + 512);
    let x = wide.slice(..TENSOR).into();
    let y = wide.slice(TENSOR.next_multiple_of(256)..).into();
    let buffers = TrainBuffers { x, y, ..b.train() };
    assert_eq!(prepared.bind(&buffers).unwrap_err(), shared(Slot::X, Slot::Y));
    // The same for what meets in no dispatch of this path.
    let saved = wide.slice(TENSOR.next_multiple_of(256)..).into();
    let x = wide.slice(..TENSOR).into();
    let apart = TrainBuffers { x, saved, ..b.train() };
    assert_eq!(prepared.bind(&apart).unwrap_err(), shared(Slot::X, Slot::Saved));
    // A pair that is always written together may share.
    let pair = bench.buffer(512);
    let running_mean = pair.slice(..CHANNELS).into();
    let running_var = pair.slice(256..).into();
    prepared.bind(&TrainBuffers { running_mean, running_var, ..b.train() }).unwrap();
    // Which is what an arena is for.
    bench.train(Config { memory: Memory::Arena, ..Config::pytorch() }).bind(&buffers).unwrap();
}

#[test]
fn memory_without_use_is_refused() {
    let bench = Bench::new();
    let b = Buffers::new(&bench);
    let base = Config::pytorch();
    let refused = |config: Config, buffers: TrainBuffers<'_>, slot| match bench
        .train(config)
        .bind(&buffers)
        .unwrap_err()
    {
        BindError::Unused { slot: found, reason } => {
            assert_eq!(found, slot);
            assert!(!reason.is_empty());
        }
        other => panic!("{other}"),
    };
    refused(
        Config { affine: Affine { gamma: false, beta: true }, ..base.clone() },
        b.train(),
        Slot::Gamma,
    );
    refused(
        Config { affine: Affine { gamma: true, beta: false }, ..base.clone() },
        b.train(),
        Slot::Beta,
    );
    refused(Config { memory: Memory::InPlace, ..base.clone() }, b.train(), Slot::Y);
    refused(Config { update: Update::None, ..base.clone() }, b.train(), Slot::RunningMean);

    let plan = |config: &Config| Plan::<Backward>::new(geometry(), config, bench.kernels.caps());
    let only_beta = Gradients { x: false, gamma: false, beta: true, accumulate: false };
    let config = Config { gradients: only_beta, ..base.clone() };
    let prepared = bench.kernels.prepare(plan(&config).unwrap()).unwrap();
    let backward = BackwardBuffers {
        dy: (&b.x).into(),
        dbeta: (&b.beta).into(),
        scratch: (&b.scratch).into(),
        ..Default::default()
    };
    prepared.bind(&backward).unwrap();
    let with = |buffers: BackwardBuffers<'_>| prepared.bind(&buffers).unwrap_err();
    let unused = |error| matches!(error, BindError::Unused { .. });
    assert!(unused(with(BackwardBuffers { dx: (&b.y).into(), ..backward.clone() })));
    assert!(unused(with(BackwardBuffers { dgamma: (&b.gamma).into(), ..backward.clone() })));
    let config = Config { memory: Memory::InPlace, ..base };
    let prepared = bench.kernels.prepare(plan(&config).unwrap()).unwrap();
    let dx = BackwardBuffers { dx: (&b.y).into(), ..backward };
    assert!(unused(prepared.bind(&dx).unwrap_err()));
}

#[test]
fn every_operation_checks_every_slot() {
    let bench = Bench::new();
    let b = Buffers::new(&bench);
    let caps = bench.kernels.caps();
    let config = Config::keras();
    let infer =
        bench.kernels.prepare(Plan::<Infer>::new(geometry(), &config, caps).unwrap()).unwrap();
    let good = InferBuffers {
        x: (&b.x).into(),
        y: (&b.y).into(),
        gamma: (&b.gamma).into(),
        beta: (&b.beta).into(),
        running_mean: (&b.mean).into(),
        running_var: (&b.var).into(),
    };
    infer.bind(&good).unwrap();
    let missing =
        |result: Result<_, BindError>, expected| match result.map(|_: wgpu_batchnorm::Bound| ()) {
            Err(BindError::Missing { slot, .. }) => assert_eq!(slot, expected),
            other => panic!("{other:?}"),
        };
    let none = SlotMemory::default;
    missing(infer.bind(&InferBuffers { running_var: none(), ..good.clone() }), Slot::RunningVar);
    missing(infer.bind(&InferBuffers { x: none(), ..good }), Slot::X);

    let plan = Plan::<wgpu_batchnorm::FrozenBackward>::new(geometry(), &config, caps).unwrap();
    let frozen = bench.kernels.prepare(plan).unwrap();
    let (dx, dgamma, dbeta) =
        (bench.buffer(TENSOR), bench.buffer(CHANNELS), bench.buffer(CHANNELS));
    let good = FrozenBackwardBuffers {
        x: (&b.x).into(),
        dy: (&b.y).into(),
        dx: (&dx).into(),
        gamma: (&b.gamma).into(),
        dgamma: (&dgamma).into(),
        dbeta: (&dbeta).into(),
        running_mean: (&b.mean).into(),
        running_var: (&b.var).into(),
        scratch: (&b.scratch).into(),
    };
    frozen.bind(&good).unwrap();
    missing(frozen.bind(&FrozenBackwardBuffers { dy: none(), ..good.clone() }), Slot::Dy);
    missing(frozen.bind(&FrozenBackwardBuffers { dbeta: none(), ..good.clone() }), Slot::Dbeta);
    let overlap = FrozenBackwardBuffers { dbeta: (&dgamma).into(), ..good.clone() };
    assert!(matches!(frozen.bind(&overlap), Err(BindError::Overlap { .. })));
    let overlap = FrozenBackwardBuffers { dx: (&b.y).into(), ..good };
    assert!(matches!(frozen.bind(&overlap), Err(BindError::Overlap { .. })));

    let prepare = |config: &Config| {
        bench.kernels.prepare(Plan::<Statistics>::new(geometry(), config, caps).unwrap()).unwrap()
    };
    let statistics = prepare(&config);
    let good = StatisticsBuffers {
        x: (&b.x).into(),
        moments: (&b.saved).into(),
        scratch: (&b.scratch).into(),
    };
    statistics.bind(&good).unwrap();
    missing(statistics.bind(&StatisticsBuffers { x: none(), ..good.clone() }), Slot::X);
    missing(statistics.bind(&StatisticsBuffers { moments: none(), ..good.clone() }), Slot::Moments);
    missing(statistics.bind(&StatisticsBuffers { scratch: none(), ..good.clone() }), Slot::Scratch);
    let with = |moments| StatisticsBuffers { moments, ..good.clone() };
    assert_eq!(
        statistics.bind(&with((&b.mean).into())).unwrap_err(),
        BindError::TooSmall { slot: Slot::Moments, required: 3 * CHANNELS, available: CHANNELS }
    );
    let overlap = statistics.bind(&with((&b.x).into())).unwrap_err();
    assert!(matches!(overlap, BindError::Overlap { a: Slot::X, b: Slot::Moments, .. }));
    // One buffer for x and moments is what an arena is for.
    let arena = bench.buffer(TENSOR.next_multiple_of(256) + 3 * CHANNELS);
    let together = StatisticsBuffers {
        x: arena.slice(..TENSOR).into(),
        moments: arena.slice(TENSOR.next_multiple_of(256)..).into(),
        ..good.clone()
    };
    assert_eq!(
        statistics.bind(&together).unwrap_err(),
        BindError::SharedBuffer { a: Slot::X, b: Slot::Moments }
    );
    prepare(&Config { memory: Memory::Arena, ..config.clone() }).bind(&together).unwrap();
}

#[test]
fn a_buffer_of_another_device_is_refused() {
    // wgpu can tell two devices of one instance apart.
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::NOOP,
        backend_options: wgpu::BackendOptions {
            noop: wgpu::NoopBackendOptions { enable: true, ..Default::default() },
            ..Default::default()
        },
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let open = || {
        let adapter = pollster::block_on(instance.request_adapter(&Default::default())).unwrap();
        Bench::with(pollster::block_on(adapter.request_device(&Default::default())).unwrap())
    };
    let (bench, other) = (open(), open());
    let b = Buffers::new(&bench);
    let foreign = other.buffer(TENSOR);
    let buffers = TrainBuffers { x: (&foreign).into(), ..b.train() };
    let error = bench.train(Config::pytorch()).bind(&buffers).unwrap_err();
    assert!(matches!(error, BindError::Device { .. }), "{error}");
}

/// A plan made for a larger device than the one that prepares it.
#[test]
fn a_plan_for_another_device_is_refused() {
    let bench = Bench::new();
    let caps = wgpu_batchnorm::Caps { max_workgroup_size: 1024, ..bench.kernels.caps().clone() };
    let tuning = wgpu_batchnorm::Tuning {
        workgroup_size: 1024,
        ..wgpu_batchnorm::Tuning::choose(&caps, &geometry(), Config::keras().element)
    };
    let plan = Plan::<Train>::with_tuning(geometry(), &Config::keras(), &caps, &tuning).unwrap();
    let too_much = |what, needed, limit| PrepareError::Limit { what, needed, limit };
    assert_eq!(
        bench.kernels.prepare(plan).unwrap_err(),
        too_much("invocations per workgroup", 1024, 256)
    );
    let caps = wgpu_batchnorm::Caps {
        max_storage_binding_size: 1 << 30,
        max_workgroups_per_dimension: 1 << 20,
        ..bench.kernels.caps().clone()
    };
    let geometry = Geometry::new(&[1 << 26, 2], ChannelAxis::Last).unwrap();
    let plan = Plan::<Train>::new(geometry, &Config::keras(), &caps).unwrap();
    assert_eq!(
        bench.kernels.prepare(plan).unwrap_err(),
        PrepareError::TooLarge { slot: Slot::X, size: 512 << 20, limit: 128 << 20 }
    );
    let geometry = Geometry::new(&[2, 100_000, 64], ChannelAxis::First).unwrap();
    let plan = Plan::<Train>::new(geometry, &Config::keras(), &caps).unwrap();
    assert_eq!(
        bench.kernels.prepare(plan).unwrap_err(),
        too_much("workgroups in a dimension", 100_000, 65_535)
    );
    assert_eq!(bench.kernels.pipeline_count(), 0);
}

/// An empty batch needs no memory and records nothing, but for outputs that are zero then.
#[test]
fn an_empty_batch_needs_no_memory() {
    let bench = Bench::new();
    let geometry = Geometry::new(&[0, 3, 8], ChannelAxis::First).unwrap();
    let plan = Plan::<Train>::new(geometry, &Config::pytorch(), bench.kernels.caps()).unwrap();
    let bound = bench.kernels.prepare(plan).unwrap().bind(&TrainBuffers::default()).unwrap();
    let plan = Plan::<Statistics>::new(geometry, &Config::pytorch(), bench.kernels.caps()).unwrap();
    let statistics = bench.kernels.prepare(plan).unwrap();
    assert_eq!(
        statistics.bind(&StatisticsBuffers::default()).unwrap_err(),
        BindError::Missing { slot: Slot::Moments, required: 3 * CHANNELS }
    );
    let moments = bench.buffer(3 * CHANNELS);
    let moments = StatisticsBuffers { moments: (&moments).into(), ..Default::default() };
    statistics.bind(&moments).unwrap();
    let mut encoder = bench.device.create_command_encoder(&Default::default());
    bound.encode_into(&mut encoder);
    encoder.finish();
}
