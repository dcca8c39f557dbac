//! The caller's mistakes: typed errors with slot names and numbers, before anything is recorded, and
//! nothing changed. On wgpu's noop device, so that they are tested on every machine; no error may
//! reach its handler.

use std::sync::{Arc, Mutex};

use ndarray::{Array1, ArrayD};
use wgpu_batchnorm::fold::{FoldError, Layer, Norm, WeightLayout, fold};
use wgpu_batchnorm::{
    Activation, Affine, Backward, BackwardBuffers, BatchNorm, BindError, Caps, ChannelAxis, Config,
    ConfigError, Element, Finalize, FinalizeBuffers, FrozenBackward, FrozenBackwardBuffers,
    Geometry, GeometryError, Gpu, Gradient, GradientBuffers, Gradients, GroupNorm,
    GroupNormBackward, GroupNormBackwardBuffers, GroupNormBuffers, HostError, Infer, InferBuffers,
    Input, Kernel, Kernels, LayerState, MAX_ITERATIONS, Mask, Memory, Moments, MomentsError,
    Normalize, NormalizeBuffers, Operation, Plan, PlanError, PrepareError, Prepared, Reduce,
    ReduceBuffers, Renorm, RunningStatistics, RunningVariance, SavedStatistics, SingleValue, Slot,
    SlotMemory, Statistics, StatisticsBuffers, Train, TrainBuffers, Tuning, Update, wgpu,
};

struct Bench {
    device: wgpu::Device,
    queue: wgpu::Queue,
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
        Self { device, queue, kernels, escaped }
    }

    fn gpu(&self) -> Gpu {
        Gpu::from_device(self.device.clone(), self.queue.clone())
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

/// 4·3·40,008 values: three dispatches, with scratch.
fn geometry() -> Geometry {
    Geometry::new(&[4, 3, 40_008], ChannelAxis::First).unwrap()
}

const TENSOR: u64 = 4 * 3 * 40_008 * 4;
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
            saved: bench.buffer(4 * CHANNELS),
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
            ..Default::default()
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
        (TrainBuffers { saved: none(), ..b.train() }, missing(Slot::Saved, 4 * CHANNELS)),
        (TrainBuffers { running_mean: none(), ..b.train() }, missing(Slot::RunningMean, CHANNELS)),
        (TrainBuffers { running_var: none(), ..b.train() }, missing(Slot::RunningVar, CHANNELS)),
        (TrainBuffers { scratch: none(), ..b.train() }, missing(Slot::Scratch, scratch_size)),
        (TrainBuffers { x: (&small).into(), ..b.train() }, too_small(Slot::X, TENSOR, 8)),
        (TrainBuffers { y: (&small).into(), ..b.train() }, too_small(Slot::Y, TENSOR, 8)),
        (TrainBuffers { gamma: (&small).into(), ..b.train() }, too_small(Slot::Gamma, CHANNELS, 8)),
        (
            TrainBuffers { saved: (&b.mean).into(), ..b.train() },
            too_small(Slot::Saved, 4 * CHANNELS, CHANNELS),
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
            too_small(Slot::Saved, 4 * CHANNELS, CHANNELS),
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
    let only_beta = Gradients { x: false, gamma: false, beta: true, z: false, accumulate: false };
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
        ..Default::default()
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
        ..Default::default()
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
        ..Default::default()
    };
    statistics.bind(&good).unwrap();
    missing(statistics.bind(&StatisticsBuffers { x: none(), ..good.clone() }), Slot::X);
    missing(statistics.bind(&StatisticsBuffers { moments: none(), ..good.clone() }), Slot::Moments);
    missing(statistics.bind(&StatisticsBuffers { scratch: none(), ..good.clone() }), Slot::Scratch);
    let with = |moments| StatisticsBuffers { moments, ..good.clone() };
    assert_eq!(
        statistics.bind(&with((&b.mean).into())).unwrap_err(),
        BindError::TooSmall { slot: Slot::Moments, required: 4 * CHANNELS, available: CHANNELS }
    );
    let overlap = statistics.bind(&with((&b.x).into())).unwrap_err();
    assert!(matches!(overlap, BindError::Overlap { a: Slot::X, b: Slot::Moments, .. }));
    // One buffer for x and moments is what an arena is for.
    let arena = bench.buffer(TENSOR.next_multiple_of(256) + 4 * CHANNELS);
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

/// Weights are bound where statistics move with them, and nowhere else.
#[test]
fn memory_of_weights_is_checked() {
    let bench = Bench::new();
    let b = Buffers::new(&bench);
    let g = geometry();
    let config = Config { weights: true, ..Config::keras() };
    let caps = bench.kernels.caps();
    let size = 4 * g.values_per_channel();
    let (weights, small) = (bench.buffer(size), bench.buffer(size - 4));
    let plan = Plan::<Train>::new(g, &config, caps).unwrap();
    let scratch = bench.buffer(plan.scratch_size());
    let forward = bench.kernels.prepare(plan).unwrap();
    let good = TrainBuffers {
        weights: (&weights).into(),
        scratch: (&scratch).into(),
        batches: Default::default(),
        ..b.train()
    };
    forward.bind(&good).unwrap();
    let with = |weights| forward.bind(&TrainBuffers { weights, ..good.clone() }).unwrap_err();
    let missing = |required| BindError::Missing { slot: Slot::Weights, required };
    assert_eq!(with(SlotMemory::default()), missing(size));
    let too_small =
        BindError::TooSmall { slot: Slot::Weights, required: size, available: size - 4 };
    assert_eq!(with((&small).into()), too_small);
    assert!(matches!(with((&b.y).into()), BindError::Overlap { .. }));
    // Without weights in the config there is no use for them.
    let plain = Plan::<Train>::new(g, &Config::keras(), caps).unwrap();
    let plain = bench.kernels.prepare(plain).unwrap();
    let reason = "the config has no weights";
    assert_eq!(plain.bind(&good).unwrap_err(), BindError::Unused { slot: Slot::Weights, reason });
    let limited = Caps { max_storage_binding_size: size - 4, ..caps.clone() };
    let long = Geometry::new(&[2 * size as usize, 1], ChannelAxis::Last).unwrap();
    match Plan::<Train>::new(long, &config, &limited) {
        Err(PlanError::TooLarge { slot: Slot::Weights, .. }) => {}
        other => panic!("{other:?}"),
    }
}

/// Group normalization checks every slot too, and its saved statistics are those of every group.
#[test]
fn memory_of_groups_is_checked() {
    let bench = Bench::new();
    let b = Buffers::new(&bench);
    let g = geometry();
    let config = Config { groups: 1, ..Config::keras() };
    let saved_size = 16 * g.outer();
    let caps = bench.kernels.caps();
    let (saved, small) = (bench.buffer(saved_size), bench.buffer(saved_size - 16));
    let plan = Plan::<GroupNorm>::new(g, &config, caps).unwrap();
    let scratch = bench.buffer(plan.scratch_size());
    let forward = bench.kernels.prepare(plan).unwrap();
    let good = GroupNormBuffers {
        x: (&b.x).into(),
        y: (&b.y).into(),
        gamma: (&b.gamma).into(),
        beta: (&b.beta).into(),
        saved: (&saved).into(),
        scratch: (&scratch).into(),
        ..Default::default()
    };
    forward.bind(&good).unwrap();
    let error =
        forward.bind(&GroupNormBuffers { saved: (&small).into(), ..good.clone() }).unwrap_err();
    let (required, available) = (saved_size, saved_size - 16);
    assert_eq!(error, BindError::TooSmall { slot: Slot::Saved, required, available });
    let none = SlotMemory::default;
    let missing = |result: Result<wgpu_batchnorm::Bound, BindError>, expected| match result {
        Err(BindError::Missing { slot, .. }) => assert_eq!(slot, expected),
        other => panic!("{other:?}"),
    };
    missing(forward.bind(&GroupNormBuffers { x: none(), ..good.clone() }), Slot::X);
    missing(forward.bind(&GroupNormBuffers { scratch: none(), ..good.clone() }), Slot::Scratch);
    let unused = forward.bind(&GroupNormBuffers { z: (&b.x).into(), ..good }).unwrap_err();
    assert!(matches!(unused, BindError::Unused { slot: Slot::Z, .. }));

    let plan = Plan::<GroupNormBackward>::new(g, &config, caps).unwrap();
    let scratch = bench.buffer(plan.scratch_size());
    let backward = bench.kernels.prepare(plan).unwrap();
    let (dx, dgamma, dbeta) =
        (bench.buffer(TENSOR), bench.buffer(CHANNELS), bench.buffer(CHANNELS));
    let good = GroupNormBackwardBuffers {
        x: (&b.x).into(),
        dy: (&b.y).into(),
        dx: (&dx).into(),
        gamma: (&b.gamma).into(),
        dgamma: (&dgamma).into(),
        dbeta: (&dbeta).into(),
        saved: (&saved).into(),
        scratch: (&scratch).into(),
        ..Default::default()
    };
    backward.bind(&good).unwrap();
    missing(
        backward.bind(&GroupNormBackwardBuffers { saved: none(), ..good.clone() }),
        Slot::Saved,
    );
    missing(
        backward.bind(&GroupNormBackwardBuffers { dbeta: none(), ..good.clone() }),
        Slot::Dbeta,
    );
    let overlap = GroupNormBackwardBuffers { dx: (&b.y).into(), ..good };
    assert!(matches!(backward.bind(&overlap), Err(BindError::Overlap { .. })));
}

/// The operations of a batch in shards check every slot too.
#[test]
fn memory_of_shards_is_checked() {
    let bench = Bench::new();
    let b = Buffers::new(&bench);
    let config = Config::keras();
    let kernels = &bench.kernels;
    let too_small = |slot, required, available| BindError::TooSmall { slot, required, available };
    let missing = |slot, required| BindError::Missing { slot, required };
    let none = SlotMemory::default;
    let [dx, dy] = [bench.buffer(TENSOR), bench.buffer(TENSOR)];
    let [dgamma, dbeta] = [bench.buffer(CHANNELS), bench.buffer(CHANNELS)];
    let (sums, parts) = (bench.buffer(2 * CHANNELS), bench.buffer(5 * 4 * CHANNELS));

    let five = Geometry::new(&[5, 3], ChannelAxis::Last).unwrap();
    let six = Geometry::new(&[6, 3], ChannelAxis::Last).unwrap();
    let finalize = |geometry, config: &Config| {
        kernels.prepare(Plan::<Finalize>::new(geometry, config, kernels.caps()).unwrap()).unwrap()
    };
    let good = FinalizeBuffers {
        parts: (&parts).into(),
        saved: (&b.saved).into(),
        running_mean: (&b.mean).into(),
        running_var: (&b.var).into(),
        batches: none(),
    };
    finalize(five, &config).bind(&good).unwrap();
    let with = |buffers: FinalizeBuffers<'_>| finalize(five, &config).bind(&buffers).unwrap_err();
    assert_eq!(
        finalize(six, &config).bind(&good).unwrap_err(),
        too_small(Slot::Parts, 6 * 4 * CHANNELS, 5 * 4 * CHANNELS)
    );
    assert_eq!(
        with(FinalizeBuffers { parts: none(), ..good.clone() }),
        missing(Slot::Parts, 5 * 4 * CHANNELS)
    );
    assert_eq!(
        with(FinalizeBuffers { saved: (&b.mean).into(), ..good.clone() }),
        too_small(Slot::Saved, 4 * CHANNELS, CHANNELS)
    );
    let overlap = with(FinalizeBuffers { saved: (&parts).into(), ..good.clone() });
    assert!(matches!(overlap, BindError::Overlap { a: Slot::Saved, b: Slot::Parts, .. }));
    let still = Config { update: Update::None, ..config.clone() };
    let unused = finalize(five, &still).bind(&good).unwrap_err();
    assert!(matches!(unused, BindError::Unused { slot: Slot::RunningMean, .. }));
    let counting = Config { update: Update::Cumulative, ..config.clone() };
    assert_eq!(finalize(five, &counting).bind(&good).unwrap_err(), missing(Slot::Batches, 4));

    let plan = Plan::<Normalize>::new(geometry(), &config, kernels.caps()).unwrap();
    let normalize = kernels.prepare(plan).unwrap();
    let good = NormalizeBuffers {
        x: (&b.x).into(),
        y: (&b.y).into(),
        gamma: (&b.gamma).into(),
        beta: (&b.beta).into(),
        saved: (&b.saved).into(),
        ..Default::default()
    };
    normalize.bind(&good).unwrap();
    let error = normalize.bind(&NormalizeBuffers { saved: none(), ..good }).unwrap_err();
    assert_eq!(error, missing(Slot::Saved, 4 * CHANNELS));

    let reduce = |config: &Config| {
        let plan = Plan::<Reduce>::new(geometry(), config, kernels.caps()).unwrap();
        kernels.prepare(plan).unwrap()
    };
    let good = ReduceBuffers {
        x: (&b.x).into(),
        dy: (&dy).into(),
        dgamma: (&dgamma).into(),
        dbeta: (&dbeta).into(),
        saved: (&b.saved).into(),
        sums: (&sums).into(),
        scratch: (&b.scratch).into(),
        ..Default::default()
    };
    reduce(&config).bind(&good).unwrap();
    let small = ReduceBuffers { sums: (&dgamma).into(), dgamma: none(), ..good.clone() };
    let only_x = Gradients { gamma: false, ..Gradients::ALL };
    let error = reduce(&Config { gradients: only_x, ..config.clone() }).bind(&small).unwrap_err();
    assert_eq!(error, too_small(Slot::Sums, 2 * CHANNELS, CHANNELS));
    let no_x = Gradients { x: false, ..Gradients::ALL };
    let error = reduce(&Config { gradients: no_x, ..config.clone() }).bind(&good).unwrap_err();
    let reason = "the config does not ask for dx";
    assert_eq!(error, BindError::Unused { slot: Slot::Sums, reason });

    let plan = Plan::<Gradient>::new(geometry(), &config, kernels.caps()).unwrap();
    let gradient = kernels.prepare(plan).unwrap();
    let good = GradientBuffers {
        x: (&b.x).into(),
        dy: (&dy).into(),
        dx: (&dx).into(),
        gamma: (&b.gamma).into(),
        saved: (&b.saved).into(),
        sums: (&sums).into(),
        ..Default::default()
    };
    gradient.bind(&good).unwrap();
    let error = gradient.bind(&GradientBuffers { sums: none(), ..good.clone() }).unwrap_err();
    assert_eq!(error, missing(Slot::Sums, 2 * CHANNELS));
    let error = gradient.bind(&GradientBuffers { dx: (&dy).into(), ..good }).unwrap_err();
    assert!(matches!(error, BindError::Overlap { a: Slot::Dy, b: Slot::Dx, .. }));

    // More parts than one invocation may look through.
    let many = Geometry::new(&[200_000, 3], ChannelAxis::Last).unwrap();
    let error = Plan::<Finalize>::new(many, &config, kernels.caps()).unwrap_err();
    assert!(matches!(error, PlanError::Iterations { kernel: Kernel::MergeParts, .. }), "{error}");
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
        BindError::Missing { slot: Slot::Moments, required: 4 * CHANNELS }
    );
    let moments = bench.buffer(4 * CHANNELS);
    let moments = StatisticsBuffers { moments: (&moments).into(), ..Default::default() };
    statistics.bind(&moments).unwrap();
    let mut encoder = bench.device.create_command_encoder(&Default::default());
    bound.encode_into(&mut encoder);
    encoder.finish();
}

/// A mistake, the error it must be, and what its text must say: the slot and both numbers.
type Mistake = (&'static str, Result<(), HostError>, HostError, &'static [&'static str]);

fn mistake<T, E: Into<HostError>>(
    name: &'static str,
    result: Result<T, E>,
    expected: impl Into<HostError>,
    words: &'static [&'static str],
) -> Mistake {
    (name, result.map(drop).map_err(Into::into), expected.into(), words)
}

fn check(mistakes: Vec<Mistake>) {
    for (name, result, expected, words) in mistakes {
        let error = result.expect_err(name);
        // Debug text, as a NaN is not equal to itself.
        assert_eq!(format!("{error:?}"), format!("{expected:?}"), "{name}");
        let text = error.to_string();
        for word in words {
            assert!(text.contains(word), "{name}: {text:?} does not say {word:?}");
        }
        assert!(!text.contains("Slot") && !text.contains("Error"), "{name}: {text}");
    }
}

#[test]
fn shapes_that_cannot_be_seen() {
    let axis = |axis, rank| GeometryError::Axis { axis, rank };
    let new = |shape: &[usize], axis| Geometry::new(shape, axis);
    let overflow = |shape: &[usize]| GeometryError::Overflow { shape: shape.to_vec() };
    check(vec![
        mistake("no axis 1", new(&[3], ChannelAxis::First), axis(1, 1), &["1"]),
        mistake("a scalar", new(&[], ChannelAxis::Last), axis(-1, 0), &["-1", "0"]),
        mistake("a scalar per activation", new(&[], ChannelAxis::PerActivation), axis(0, 0), &[]),
        mistake("an axis too many", new(&[2, 3], ChannelAxis::At(2)), axis(2, 2), &["2"]),
        mistake("an axis too low", new(&[2, 3], ChannelAxis::At(-3)), axis(-3, 2), &["-3", "2"]),
        mistake(
            "the lowest axis",
            new(&[2, 3], ChannelAxis::At(isize::MIN)),
            axis(isize::MIN, 2),
            &["-9223372036854775808"],
        ),
        mistake(
            "more than 64 bits",
            new(&[1 << 40, 1 << 20, 8], ChannelAxis::First),
            overflow(&[1 << 40, 1 << 20, 8]),
            &["64 bits", "1099511627776"],
        ),
        mistake(
            "an overflow hidden by a zero",
            new(&[0, usize::MAX, 2], ChannelAxis::First),
            overflow(&[0, usize::MAX, 2]),
            &["18446744073709551615"],
        ),
        mistake(
            "bytes that overflow, elements that do not",
            new(&[1 << 31, 1 << 31], ChannelAxis::Last),
            overflow(&[1 << 31, 1 << 31]),
            &["2147483648"],
        ),
    ]);
}

#[test]
fn numbers_that_cannot_be_used() {
    let bench = Bench::new();
    let plan = |config: Config| Plan::<Train>::new(geometry(), &config, bench.kernels.caps());
    let epsilon = |epsilon| plan(Config { epsilon, ..Config::keras() });
    let update = |update| plan(Config { update, ..Config::keras() });
    let bad = |epsilon| PlanError::Config(ConfigError::Epsilon { epsilon });
    let weight = |field, value| PlanError::Config(ConfigError::Weight { field, value });
    let activation = |activation| plan(Config { activation, ..Config::keras() });
    let leaky = |slope| activation(Activation::LeakyRelu { slope });
    let clipped = |limit| activation(Activation::ClippedRelu { limit });
    let number = |field, value| PlanError::Config(ConfigError::Activation { field, value });
    let renorm =
        |rmax, dmax| plan(Config { renorm: Some(Renorm { rmax, dmax }), ..Config::keras() });
    let limit =
        |field, value, least| PlanError::Config(ConfigError::Renorm { field, value, least });
    let still = Config {
        renorm: Some(Renorm { rmax: 3.0, dmax: 5.0 }),
        update: Update::None,
        ..Config::keras()
    };
    let (rate, decay) = ("update rate", "update decay");
    let (nan, infinity) = (f64::NAN, f64::INFINITY);
    check(vec![
        mistake("epsilon NaN", epsilon(nan), bad(nan), &["epsilon", "NaN"]),
        mistake("epsilon infinite", epsilon(infinity), bad(infinity), &["epsilon", "inf"]),
        mistake("epsilon zero", epsilon(0.0), bad(0.0), &["epsilon", "0e0"]),
        mistake("epsilon negative", epsilon(-1e-5), bad(-1e-5), &["-1e-5"]),
        mistake("epsilon denormal in f32", epsilon(1e-39), bad(1e-39), &["1e-39", "1.17549"]),
        mistake("epsilon over f32", epsilon(1e39), bad(1e39), &["1e39"]),
        mistake(
            "rate negative",
            update(Update::Rate(-0.1)),
            weight(rate, -0.1),
            &["update rate", "-0.1"],
        ),
        mistake(
            "rate over 1",
            update(Update::Rate(1.5)),
            weight(rate, 1.5),
            &["update rate", "1.5", "1"],
        ),
        mistake("rate NaN", update(Update::Rate(nan)), weight(rate, nan), &["update rate", "NaN"]),
        mistake(
            "decay negative",
            update(Update::Decay(-1.0)),
            weight(decay, -1.0),
            &["update decay"],
        ),
        mistake("decay in percent", update(Update::Decay(99.0)), weight(decay, 99.0), &["99"]),
        mistake(
            "decay NaN",
            update(Update::Decay(nan)),
            weight(decay, nan),
            &["update decay", "NaN"],
        ),
        mistake("slope NaN", leaky(nan), number("slope", nan), &["slope", "NaN", "finite"]),
        mistake("slope over f32", leaky(1e39), number("slope", 1e39), &["slope", "finite"]),
        mistake("limit zero", clipped(0.0), number("limit", 0.0), &["limit 0", "> 0"]),
        mistake("limit negative", clipped(-6.0), number("limit", -6.0), &["limit -6", "> 0"]),
        mistake("limit zero in f32", clipped(1e-60), number("limit", 1e-60), &["limit", "> 0"]),
        mistake("limit infinite", clipped(infinity), number("limit", infinity), &["limit inf"]),
        mistake("rmax below 1", renorm(0.5, 0.0), limit("rmax", 0.5, 1.0), &["rmax", "0.5", "1"]),
        mistake("rmax NaN", renorm(nan, 0.0), limit("rmax", nan, 1.0), &["rmax", "NaN"]),
        mistake("dmax negative", renorm(1.0, -2.0), limit("dmax", -2.0, 0.0), &["dmax", "-2"]),
        mistake(
            "dmax infinite",
            renorm(1.0, infinity),
            limit("dmax", infinity, 0.0),
            &["dmax", "inf"],
        ),
        mistake(
            "renorm without an update",
            plan(still),
            PlanError::Config(ConfigError::RenormWithoutUpdate),
            &["Update::None", "Normalize"],
        ),
    ]);
    assert_eq!(bench.kernels.pipeline_count(), 0);
}

#[test]
fn work_that_cannot_be_planned() {
    let caps = Caps::webgpu_default();
    let first = |shape: &[usize]| Geometry::new(shape, ChannelAxis::First).unwrap();
    let limit = 128 << 20;
    let large = |slot, size| PlanError::TooLarge { slot, size, limit };
    let keras = Config::keras();
    fn plan<O: Operation>(g: Geometry, config: &Config) -> Result<(), PlanError> {
        Plan::<O>::new(g, config, &Caps::webgpu_default()).map(drop)
    }
    let huge = first(&[1 << 20, 2, 1 << 20]);
    let single = first(&[1, 5, 1]);
    let one = || PlanError::SingleValue { geometry: single };
    let per_activation = Geometry::new(&[1, 3, 4], ChannelAxis::PerActivation).unwrap();
    let wide = Geometry::new(&[2, 1 << 24], ChannelAxis::Last).unwrap();
    let good = Tuning::choose(&caps, &geometry(), keras.element);
    let tuned = |tuning: &Tuning, caps: &Caps| {
        Plan::<Train>::with_tuning(geometry(), &keras, caps, tuning).map(drop)
    };
    let lanes = |workgroup_size| tuned(&Tuning { workgroup_size, ..good.clone() }, &caps);
    let size = |workgroup_size| PlanError::Tuning { workgroup_size, max: 256 };
    let narrow = |max| Caps { max_workgroups_per_dimension: max, ..caps.clone() };
    let small = Caps { max_workgroup_size: 64, ..caps.clone() };
    // 512 strips of each channel in chunks of four rows: more partials than four lanes can merge.
    let long = first(&[1024, 4, 2046]);
    let crumbs = Tuning {
        workgroup_size: 4,
        column_workgroup_count: u32::MAX,
        min_column_loads: 1,
        fused_loads: 0,
        tiny_loads: 0,
        min_row: u32::MAX,
        ..good.clone()
    };
    let endless = Plan::<Train>::with_tuning(long, &keras, &caps, &crumbs).map(drop);
    check(vec![
        mistake(
            "x past all windows",
            plan::<Infer>(huge, &keras),
            PlanError::TooLarge {
                slot: Slot::X,
                size: 1 << 43,
                limit: (1 << 12) * ((1 << 27) - 256),
            },
            &["x", "8796093022208"],
        ),
        mistake(
            "saved over a binding",
            plan::<Train>(wide, &keras),
            large(Slot::Saved, 4 << 26),
            &["saved", "268435456", "134217728"],
        ),
        mistake(
            "moments over a binding",
            plan::<Statistics>(wide, &keras),
            large(Slot::Moments, 4 << 26),
            &["moments", "268435456"],
        ),
        mistake("one value per channel", plan::<Train>(single, &keras), one(), &["SingleValue"]),
        mistake("the same in the backward", plan::<Backward>(single, &keras), one(), &["5"]),
        mistake(
            "one value per activation",
            plan::<Train>(per_activation, &keras),
            PlanError::SingleValue { geometry: per_activation },
            &["12"],
        ),
        mistake("no lanes", lanes(0), size(0), &["0", "256"]),
        mistake("two lanes", lanes(2), size(2), &["2", "4 to 256"]),
        mistake("no power of two", lanes(96), size(96), &["96", "power of two"]),
        mistake("more lanes than the device has", lanes(512), size(512), &["512", "256"]),
        mistake(
            "more lanes than a small device has",
            tuned(&Tuning { workgroup_size: 128, ..good.clone() }, &small),
            PlanError::Tuning { workgroup_size: 128, max: 64 },
            &["128", "64"],
        ),
        mistake(
            "no grid at all",
            tuned(&good, &narrow(0)),
            PlanError::Grid { workgroup_count: 60, max: 0 },
            &["60", "0"],
        ),
        mistake(
            "more workgroups than fit a grid",
            Plan::<Train>::new(first(&[2, 5000, 64]), &keras, &narrow(2)),
            PlanError::Grid { workgroup_count: 5000, max: 4 },
            &["5000", "4"],
        ),
        mistake(
            "more iterations than every adapter has",
            endless,
            PlanError::Iterations {
                kernel: Kernel::FinalizeStatistics,
                iterations: 32_770,
                max: MAX_ITERATIONS,
            },
            &["finalize_statistics", "32770", "16384"],
        ),
        mistake(
            "more buffers than the device can bind",
            tuned(&good, &Caps { max_storage_buffers: 4, ..caps.clone() }),
            PlanError::Buffers { kernel: Kernel::FinalizeStatistics, needed: 5, limit: 4 },
            &["finalize_statistics", "5", "4", "max_storage_buffers_per_shader_stage"],
        ),
    ]);
    let allow = Config { single_value: SingleValue::Allow, ..keras };
    plan::<Train>(single, &allow).unwrap();
}

#[test]
fn plans_for_a_more_capable_device() {
    let bench = Bench::new();
    let capable = Caps {
        max_storage_binding_size: 1 << 32,
        max_workgroups_per_dimension: 1 << 20,
        max_workgroup_size: 1024,
        ..bench.kernels.caps().clone()
    };
    let folded = Caps { max_workgroups_per_dimension: 65_535, ..capable.clone() };
    let config = Config::keras();
    fn prepare<O: Operation>(bench: &Bench, plan: Plan<O>) -> Result<(), PrepareError> {
        bench.kernels.prepare(plan).map(drop)
    }
    let shape = |shape: &[usize], axis| Geometry::new(shape, axis).unwrap();
    let large = shape(&[1 << 24, 4], ChannelAxis::Last);
    let wide = shape(&[2, 1 << 24], ChannelAxis::Last);
    let many = shape(&[2, 100_000, 64], ChannelAxis::First);
    let lanes =
        Tuning { workgroup_size: 1024, ..Tuning::choose(&capable, &geometry(), config.element) };
    let limit = 128 << 20;
    let too_large = |slot, size| PrepareError::TooLarge { slot, size, limit };
    let too_many = |what, needed, limit| PrepareError::Limit { what, needed, limit };
    check(vec![
        mistake(
            "a larger binding, training",
            prepare(&bench, Plan::<Train>::new(large, &config, &capable).unwrap()),
            too_large(Slot::X, 256 << 20),
            &["x", "268435456", "134217728"],
        ),
        mistake(
            "a larger binding, frozen backward",
            prepare(&bench, Plan::<FrozenBackward>::new(large, &config, &capable).unwrap()),
            too_large(Slot::X, 256 << 20),
            &["x"],
        ),
        mistake(
            "a larger binding for saved",
            prepare(&bench, Plan::<Backward>::new(wide, &config, &folded).unwrap()),
            too_large(Slot::Saved, 4 << 26),
            &["saved", "268435456"],
        ),
        mistake(
            "more workgroups in a dimension",
            prepare(&bench, Plan::<Infer>::new(many, &config, &capable).unwrap()),
            too_many("workgroups in a dimension", 100_000, 65_535),
            &["100000", "65535"],
        ),
        mistake(
            "more invocations in a workgroup",
            prepare(
                &bench,
                Plan::<Infer>::with_tuning(geometry(), &config, &capable, &lanes).unwrap(),
            ),
            too_many("invocations per workgroup", 1024, 256),
            &["1024", "256"],
        ),
    ]);
    assert_eq!(bench.kernels.pipeline_count(), 0);
}

/// A program that prints an error's causes finds them.
#[test]
fn errors_have_their_causes() {
    use std::error::Error;
    fn depth(error: &dyn Error) -> usize {
        error.source().map_or(0, |cause| 1 + depth(cause))
    }
    let epsilon = || ConfigError::Epsilon { epsilon: 0.0 };
    let axis = || GeometryError::Axis { axis: 3, rank: 3 };
    let missing = BindError::Missing { slot: Slot::X, required: 4 };
    let limit = PrepareError::Limit { what: "lanes", needed: 2, limit: 1 };
    let single = PlanError::SingleValue { geometry: geometry() };
    let cases: [(&dyn Error, usize); 11] = [
        (&HostError::from(PlanError::from(epsilon())), 2),
        (&HostError::from(epsilon()), 2),
        (&HostError::from(single.clone()), 1),
        (&HostError::from(axis()), 1),
        (&HostError::from(missing), 1),
        (&HostError::from(limit), 1),
        (&HostError::from(MomentsError::Empty), 1),
        (&HostError::NoForward, 0),
        (&single, 0),
        (&FoldError::from(epsilon()), 1),
        (&FoldError::from(axis()), 1),
    ];
    for (error, causes) in cases {
        assert_eq!(depth(error), causes, "{error}");
    }
}

/// What would fail every other test here does.
#[test]
#[should_panic(expected = "errors escaped to the caller's handler")]
fn an_error_that_escapes_is_noticed() {
    Bench::new().buffer_for(4, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::MAP_WRITE);
}

/// What a residual, an activation and its mask need, and what has no use without them.
#[test]
fn memory_of_activations_and_residuals() {
    const MASK: u64 = TENSOR / 4 / 32 * 4;
    let bench = Bench::new();
    let b = Buffers::new(&bench);
    let [z, dx, dz] = [(); 3].map(|()| bench.buffer(TENSOR));
    let (mask, small) = (bench.buffer(MASK), bench.buffer(MASK - 4));
    let none = SlotMemory::default;
    let missing = |slot, required| BindError::Missing { slot, required };
    let unused = |slot, reason| BindError::Unused { slot, reason };
    let relu = Config { activation: Activation::Relu, ..Config::pytorch() };
    let added = Config { residual: true, ..relu.clone() };

    let forward = |buffers: TrainBuffers<'_>, config: &Config, expected: BindError| {
        assert_eq!(bench.train(config.clone()).bind(&buffers).unwrap_err(), expected);
    };
    let t = || TrainBuffers { z: (&z).into(), mask: (&mask).into(), ..b.train() };
    bench.train(added.clone()).bind(&t()).unwrap();
    forward(TrainBuffers { z: none(), ..t() }, &added, missing(Slot::Z, TENSOR));
    forward(TrainBuffers { mask: none(), ..t() }, &added, missing(Slot::Mask, MASK));
    let too_small = BindError::TooSmall { slot: Slot::Mask, required: MASK, available: MASK - 4 };
    forward(TrainBuffers { mask: (&small).into(), ..t() }, &added, too_small);
    forward(t(), &relu, unused(Slot::Z, "the config has no residual"));
    let no_mask = unused(Slot::Mask, "the activation's slope is computed again");
    forward(TrainBuffers { z: none(), ..t() }, &relu, no_mask.clone());
    let shared = BindError::SharedBuffer { a: Slot::Y, b: Slot::Z };
    let wide = bench.buffer(2 * TENSOR.next_multiple_of(256));
    let (y, other) = (wide.slice(..TENSOR), wide.slice(TENSOR.next_multiple_of(256)..));
    forward(TrainBuffers { y: y.into(), z: other.into(), ..t() }, &added, shared);

    let prepare = |config: &Config| {
        let plan = Plan::<Backward>::new(geometry(), config, bench.kernels.caps()).unwrap();
        bench.kernels.prepare(plan).unwrap()
    };
    let refuse = |buffers: BackwardBuffers<'_>, config: &Config, expected: BindError| {
        assert_eq!(prepare(config).bind(&buffers).unwrap_err(), expected);
    };
    let (dgamma, dbeta) = (bench.buffer(CHANNELS), bench.buffer(CHANNELS));
    let k = || BackwardBuffers {
        x: (&b.x).into(),
        dy: (&b.y).into(),
        dx: (&dx).into(),
        gamma: (&b.gamma).into(),
        dgamma: (&dgamma).into(),
        dbeta: (&dbeta).into(),
        saved: (&b.saved).into(),
        mask: (&mask).into(),
        dz: (&dz).into(),
        scratch: (&b.scratch).into(),
        ..Default::default()
    };
    prepare(&added).bind(&k()).unwrap();
    refuse(BackwardBuffers { mask: none(), ..k() }, &added, missing(Slot::Mask, MASK));
    refuse(BackwardBuffers { dz: none(), ..k() }, &added, missing(Slot::Dz, TENSOR));
    let no_dz = Gradients { z: false, ..Gradients::ALL };
    let without = Config { gradients: no_dz, ..added.clone() };
    refuse(k(), &without, unused(Slot::Dz, "the config does not ask for dz"));
    // Computed again, the slope takes what the forward took.
    let again = Config { mask: Mask::Recompute, ..added };
    let r = || BackwardBuffers { mask: none(), beta: (&b.beta).into(), z: (&z).into(), ..k() };
    prepare(&again).bind(&r()).unwrap();
    refuse(BackwardBuffers { beta: none(), ..r() }, &again, missing(Slot::Beta, CHANNELS));
    refuse(BackwardBuffers { z: none(), ..r() }, &again, missing(Slot::Z, TENSOR));
    refuse(BackwardBuffers { mask: (&mask).into(), ..r() }, &again, no_mask);
    let alone = BackwardBuffers { dz: none(), z: none(), beta: none(), ..r() };
    refuse(alone, &relu, missing(Slot::Beta, CHANNELS));
}

/// An odd count of halves takes whole words: 255 of them, 512 bytes.
#[test]
fn halves_that_do_not_fill_a_word() {
    let bench = Bench::new();
    let geometry = Geometry::new(&[3, 5, 17], ChannelAxis::First).unwrap();
    for element in [Element::F16, Element::Bf16] {
        let config = Config { element, ..Config::pytorch() };
        let plan = Plan::<Infer>::new(geometry, &config, bench.kernels.caps()).unwrap();
        let prepared = bench.kernels.prepare(plan).unwrap();
        let bind = |x_size, y_size| {
            let (x, y) = (bench.buffer(x_size), bench.buffer(y_size));
            let channels = [(); 4].map(|()| bench.buffer(20));
            let bound = prepared.bind(&InferBuffers {
                x: (&x).into(),
                y: (&y).into(),
                gamma: (&channels[0]).into(),
                beta: (&channels[1]).into(),
                running_mean: (&channels[2]).into(),
                running_var: (&channels[3]).into(),
                ..Default::default()
            });
            bound.map(drop)
        };
        let small = |slot, available| Err(BindError::TooSmall { slot, required: 512, available });
        assert_eq!(bind(512, 512), Ok(()));
        assert_eq!(bind(510, 512), small(Slot::X, 510));
        assert_eq!(bind(512, 508), small(Slot::Y, 508));
    }
}

/// What the other operations refuse; training stands above.
#[test]
fn memory_of_every_operation() {
    let bench = Bench::new();
    let b = Buffers::new(&bench);
    let caps = bench.kernels.caps();
    let none = SlotMemory::default;
    let (small, unfit) = (bench.buffer(8), bench.buffer_for(TENSOR, wgpu::BufferUsages::VERTEX));
    let double = bench.buffer(2 * TENSOR.next_multiple_of(256));
    let half = TENSOR.next_multiple_of(256);
    let (dx, dgamma, dbeta) =
        (bench.buffer(TENSOR), bench.buffer(CHANNELS), bench.buffer(CHANNELS));
    let missing = |slot, required| BindError::Missing { slot, required };
    let too_small = |slot, required, available| BindError::TooSmall { slot, required, available };
    let misaligned = |slot, offset| BindError::Misaligned {
        slot,
        offset,
        alignment: caps.storage_alignment.into(),
    };
    let shared = |a, b| BindError::SharedBuffer { a, b };

    fn prepare<O: Operation>(bench: &Bench, config: &Config) -> Prepared<O> {
        let plan = Plan::new(geometry(), config, bench.kernels.caps()).unwrap();
        bench.kernels.prepare(plan).unwrap()
    }
    let config = Config::onnx();
    let infer = prepare::<Infer>(&bench, &config);
    let i = || InferBuffers {
        x: (&b.x).into(),
        y: (&b.y).into(),
        gamma: (&b.gamma).into(),
        beta: (&b.beta).into(),
        running_mean: (&b.mean).into(),
        running_var: (&b.var).into(),
        ..Default::default()
    };
    let backward = prepare::<Backward>(&bench, &config);
    let scratch = backward.plan().scratch_size();
    let k = || BackwardBuffers {
        x: (&b.x).into(),
        dy: (&b.y).into(),
        dx: (&dx).into(),
        gamma: (&b.gamma).into(),
        dgamma: (&dgamma).into(),
        dbeta: (&dbeta).into(),
        saved: (&b.saved).into(),
        scratch: (&b.scratch).into(),
        ..Default::default()
    };
    backward.bind(&k()).unwrap();
    let frozen = prepare::<FrozenBackward>(&bench, &config);
    let f = || FrozenBackwardBuffers {
        x: (&b.x).into(),
        dy: (&b.y).into(),
        dx: (&dx).into(),
        gamma: (&b.gamma).into(),
        dgamma: (&dgamma).into(),
        dbeta: (&dbeta).into(),
        running_mean: (&b.mean).into(),
        running_var: (&b.var).into(),
        scratch: (&b.scratch).into(),
        ..Default::default()
    };
    let cumulative =
        prepare::<Train>(&bench, &Config { update: Update::Cumulative, ..config.clone() });
    let plain = prepare::<Train>(&bench, &Config { affine: Affine::NONE, ..config.clone() });
    let arena = prepare::<Train>(&bench, &Config { memory: Memory::Arena, ..config.clone() });
    let quiet = prepare::<Backward>(&bench, &Config { affine: Affine::NONE, ..config.clone() });
    let in_place = prepare::<Infer>(&bench, &Config { memory: Memory::InPlace, ..config });
    let unused = |slot, reason| BindError::Unused { slot, reason };
    let fits = TENSOR + 256;
    check(vec![
        mistake(
            "inference without y",
            infer.bind(&InferBuffers { y: none(), ..i() }),
            missing(Slot::Y, TENSOR),
            &["y", "1920384"],
        ),
        mistake(
            "inference without gamma",
            infer.bind(&InferBuffers { gamma: none(), ..i() }),
            missing(Slot::Gamma, 12),
            &["gamma", "12"],
        ),
        mistake(
            "inference without running_mean",
            infer.bind(&InferBuffers { running_mean: none(), ..i() }),
            missing(Slot::RunningMean, 12),
            &["running_mean"],
        ),
        mistake(
            "a running variance too small",
            infer.bind(&InferBuffers { running_var: (&small).into(), ..i() }),
            too_small(Slot::RunningVar, 12, 8),
            &["running_var", "12", "8"],
        ),
        mistake(
            "y in memory that cannot be bound",
            infer.bind(&InferBuffers { y: (&unfit).into(), ..i() }),
            BindError::Usage { slot: Slot::Y, usage: wgpu::BufferUsages::VERTEX },
            &["y", "STORAGE", "VERTEX"],
        ),
        mistake(
            "y over part of x",
            infer.bind(&InferBuffers {
                x: double.slice(..TENSOR).into(),
                y: double.slice(256..fits).into(),
                ..i()
            }),
            BindError::Overlap { a: Slot::X, a_range: 0..TENSOR, b: Slot::Y, b_range: 256..fits },
            &["x", "y", "1920640"],
        ),
        mistake(
            "x and y side by side",
            infer.bind(&InferBuffers {
                x: double.slice(..TENSOR).into(),
                y: double.slice(half..).into(),
                ..i()
            }),
            shared(Slot::X, Slot::Y),
            &["x", "y", "Memory::Arena"],
        ),
        mistake(
            "y over gamma",
            infer.bind(&InferBuffers { gamma: (&b.y).into(), ..i() }),
            BindError::Overlap { a: Slot::Y, a_range: 0..TENSOR, b: Slot::Gamma, b_range: 0..12 },
            &["y", "gamma"],
        ),
        mistake(
            "y in place",
            in_place.bind(&i()),
            unused(Slot::Y, "in place, y overwrites x"),
            &["y"],
        ),
        mistake(
            "a backward without saved",
            backward.bind(&BackwardBuffers { saved: none(), ..k() }),
            missing(Slot::Saved, 48),
            &["saved", "48"],
        ),
        mistake(
            "a mean for saved",
            backward.bind(&BackwardBuffers { saved: (&b.mean).into(), ..k() }),
            too_small(Slot::Saved, 48, 12),
            &["saved", "48", "12"],
        ),
        mistake(
            "scratch of a smaller shape",
            backward.bind(&BackwardBuffers { scratch: (&small).into(), ..k() }),
            too_small(Slot::Scratch, scratch, 8),
            &["scratch", "8"],
        ),
        mistake(
            "scratch that lacks its last byte",
            backward
                .bind(&BackwardBuffers { scratch: b.scratch.slice(..scratch - 4).into(), ..k() }),
            too_small(Slot::Scratch, scratch, scratch - 4),
            &["scratch"],
        ),
        mistake(
            "no scratch",
            backward.bind(&BackwardBuffers { scratch: none(), ..k() }),
            missing(Slot::Scratch, scratch),
            &["scratch"],
        ),
        mistake(
            "dx over dy",
            backward.bind(&BackwardBuffers { dx: (&b.y).into(), ..k() }),
            BindError::Overlap { a: Slot::Dy, a_range: 0..TENSOR, b: Slot::Dx, b_range: 0..TENSOR },
            &["dy", "dx"],
        ),
        mistake(
            "dgamma over dbeta",
            backward.bind(&BackwardBuffers { dbeta: (&dgamma).into(), ..k() }),
            BindError::Overlap { a: Slot::Dgamma, a_range: 0..12, b: Slot::Dbeta, b_range: 0..12 },
            &["dgamma", "dbeta"],
        ),
        mistake(
            "dgamma over gamma",
            backward.bind(&BackwardBuffers { dgamma: (&b.gamma).into(), ..k() }),
            BindError::Overlap { a: Slot::Gamma, a_range: 0..12, b: Slot::Dgamma, b_range: 0..12 },
            &["gamma", "dgamma"],
        ),
        mistake(
            "dgamma at 64 bytes",
            backward.bind(&BackwardBuffers { dgamma: dx.slice(64..).into(), dx: none(), ..k() }),
            missing(Slot::Dx, TENSOR),
            &["dx"],
        ),
        mistake(
            "dy at 4 bytes",
            backward.bind(&BackwardBuffers { dy: double.slice(4..).into(), ..k() }),
            misaligned(Slot::Dy, 4),
            &["dy", "4", "256"],
        ),
        mistake(
            "gamma that is not configured",
            quiet.bind(&k()),
            unused(Slot::Gamma, "the config has no gamma"),
            &["gamma"],
        ),
        mistake(
            "a frozen backward without its mean",
            frozen.bind(&FrozenBackwardBuffers { running_mean: none(), ..f() }),
            missing(Slot::RunningMean, 12),
            &["running_mean"],
        ),
        mistake(
            "a frozen backward without its variance",
            frozen.bind(&FrozenBackwardBuffers { running_var: none(), ..f() }),
            missing(Slot::RunningVar, 12),
            &["running_var"],
        ),
        mistake(
            "dbeta too small",
            frozen.bind(&FrozenBackwardBuffers { dbeta: (&small).into(), ..f() }),
            too_small(Slot::Dbeta, 12, 8),
            &["dbeta", "12", "8"],
        ),
        mistake(
            "scratch in x",
            frozen.bind(&FrozenBackwardBuffers { scratch: (&b.x).into(), ..f() }),
            BindError::Overlap {
                a: Slot::X,
                a_range: 0..TENSOR,
                b: Slot::Scratch,
                b_range: 0..frozen.plan().scratch_size(),
            },
            &["x", "scratch"],
        ),
        mistake(
            "a cumulative average without its count",
            cumulative.bind(&b.train()),
            missing(Slot::Batches, 4),
            &["batches", "4"],
        ),
        mistake(
            "a count at 4 bytes",
            cumulative.bind(&TrainBuffers { batches: b.x.slice(4..8).into(), ..b.train() }),
            misaligned(Slot::Batches, 4),
            &["batches"],
        ),
        mistake(
            "parameters that are not configured",
            plain.bind(&b.train()),
            unused(Slot::Gamma, "the config has no gamma"),
            &["gamma"],
        ),
        mistake(
            "an overlap in an arena",
            arena.bind(&TrainBuffers { gamma: b.x.slice(..CHANNELS).into(), ..b.train() }),
            BindError::Overlap { a: Slot::X, a_range: 0..TENSOR, b: Slot::Gamma, b_range: 0..12 },
            &["x", "gamma", "1920384"],
        ),
        mistake(
            "parameters that overlap in an arena",
            arena.bind(&TrainBuffers { beta: (&b.gamma).into(), ..b.train() }),
            BindError::Overlap { a: Slot::Gamma, a_range: 0..12, b: Slot::Beta, b_range: 0..12 },
            &["gamma", "beta"],
        ),
    ]);
}

/// Arrays that do not fit are refused before anything reaches the device, and change nothing.
#[test]
fn arrays_that_do_not_fit() {
    let bench = Bench::new();
    let gpu = bench.gpu();
    let x = ArrayD::<f32>::ones(vec![2, 3, 4]);
    let flat = ArrayD::<f32>::ones(vec![2, 12]);
    let (axis, config) = (ChannelAxis::First, Config::pytorch());
    let (two, three) = (Array1::<f32>::ones(2), Array1::<f32>::ones(3));
    let length = |slot, length| HostError::Length { slot, length, channels: 3 };
    let good = RunningStatistics::new(3);
    let train = |input: &Input<'_>, mut running: RunningStatistics| {
        let before = running.clone();
        let result = gpu.forward_train_blocking(input, &mut running, &config);
        assert_eq!(format!("{running:?}"), format!("{before:?}"), "an error changes nothing");
        result
    };
    let with = |change: fn(&mut RunningStatistics)| {
        let mut running = RunningStatistics::new(3);
        change(&mut running);
        running
    };
    let infer = |running: &RunningStatistics| {
        gpu.forward_infer_blocking(&Input::new(x.view(), axis), running, &config)
    };
    let variance = |value| HostError::RunningVariance { channel: 1, value };
    let saved = |lengths: [usize; 4]| {
        let [mean, rest, inv_std, count] = lengths.map(Array1::ones);
        let saved = SavedStatistics { mean, rest, inv_std, count, renorm: None };
        gpu.backward_blocking(&Input::new(x.view(), axis), x.view(), &saved, &config)
    };
    let fine = SavedStatistics {
        mean: three.clone(),
        rest: three.clone(),
        inv_std: three.clone(),
        count: three.clone(),
        renorm: None,
    };
    let at = |axis| Input::new(x.view(), axis);
    let gamma = Input { gamma: Some(two.view()), ..at(axis) };
    let beta = Input { gamma: Some(three.view()), beta: Some(two.view()), ..at(axis) };
    let outside = HostError::Geometry(GeometryError::Axis { axis: 3, rank: 3 });
    let shapes = || HostError::Shape { slot: Slot::Dy, x: vec![2, 3, 4], found: vec![2, 12] };
    check(vec![
        mistake(
            "gamma too short",
            train(&gamma, good.clone()),
            length(Slot::Gamma, 2),
            &["gamma", "2", "3"],
        ),
        mistake(
            "beta too short",
            train(&beta, good.clone()),
            length(Slot::Beta, 2),
            &["beta", "2", "3"],
        ),
        mistake(
            "a running mean too short",
            train(&at(axis), with(|r| r.mean = Array1::ones(1))),
            length(Slot::RunningMean, 1),
            &["running_mean", "1", "3"],
        ),
        mistake(
            "a running variance too long",
            train(&at(axis), with(|r| r.var = Array1::ones(9))),
            length(Slot::RunningVar, 9),
            &["running_var", "9", "3"],
        ),
        mistake(
            "a negative running variance in training",
            train(&at(axis), with(|r| r.var[1] = -1.0)),
            variance(-1.0),
            &["channel 1", "-1"],
        ),
        mistake(
            "no such axis",
            train(&at(ChannelAxis::At(3)), good.clone()),
            outside.clone(),
            &["3"],
        ),
        mistake(
            "a negative running variance",
            infer(&with(|r| r.var[1] = -0.5)),
            variance(-0.5),
            &["running_var", "channel 1", "-0.5"],
        ),
        mistake(
            "a running variance of NaN",
            infer(&with(|r| r.var[1] = f32::NAN)),
            variance(f32::NAN),
            &["channel 1", "NaN"],
        ),
        mistake(
            "an infinite running variance",
            infer(&with(|r| r.var[1] = f32::INFINITY)),
            variance(f32::INFINITY),
            &["channel 1", "inf"],
        ),
        mistake(
            "running statistics of other channels",
            infer(&RunningStatistics::new(4)),
            length(Slot::RunningMean, 4),
            &["running_mean", "4", "3"],
        ),
        mistake(
            "a saved mean too short",
            saved([2, 3, 3, 3]),
            length(Slot::Saved, 2),
            &["saved", "2", "3"],
        ),
        mistake("a saved rest too short", saved([3, 2, 3, 3]), length(Slot::Saved, 2), &["saved"]),
        mistake(
            "a saved inverse deviation too short",
            saved([3, 3, 0, 3]),
            length(Slot::Saved, 0),
            &["saved", "0"],
        ),
        mistake("saved counts too long", saved([3, 3, 3, 4]), length(Slot::Saved, 4), &["saved"]),
        mistake(
            "dy of another shape",
            gpu.backward_blocking(&Input::new(x.view(), axis), flat.view(), &fine, &config),
            shapes(),
            &["[2, 12]", "[2, 3, 4]"],
        ),
        mistake(
            "dy of another shape, frozen",
            gpu.frozen_backward_blocking(&Input::new(x.view(), axis), flat.view(), &good, &config),
            shapes(),
            &["dy"],
        ),
        mistake(
            "gamma too short, frozen",
            gpu.frozen_backward_blocking(&gamma, x.view(), &good, &config),
            length(Slot::Gamma, 2),
            &["gamma"],
        ),
        mistake(
            "statistics along no axis",
            gpu.statistics_blocking(&Input::new(x.view(), ChannelAxis::At(3))),
            outside,
            &["3"],
        ),
    ]);
    assert_eq!(gpu.kernels().pipeline_count(), 0, "nothing was made for any of them");
}

#[test]
fn layers_refuse_what_does_not_fit() {
    let bench = Bench::new();
    let gpu = bench.gpu();
    let mut layer = BatchNorm::new(&gpu, 3, Config::pytorch()).unwrap();
    let (x, other) = (ArrayD::<f32>::ones(vec![2, 3, 4]), ArrayD::<f32>::ones(vec![2, 4, 3]));
    let with = |change: fn(&mut LayerState)| {
        let mut state = LayerState::new(3);
        state.batches = 7;
        change(&mut state);
        state
    };
    let length = |slot, length| HostError::Length { slot, length, channels: 3 };
    let variance = |value| HostError::RunningVariance { channel: 2, value };
    let channels = || HostError::Channels { found: 4, expected: 3 };
    let shape = || HostError::Shape { slot: Slot::Dy, x: vec![2, 3, 4], found: vec![2, 4, 3] };
    let moments = |mean: f64, variance: f64, count| {
        Moments::new(count, vec![0.0, mean, 0.0], vec![1.0, variance, 1.0]).unwrap()
    };
    let not_finite = |mean, variance| MomentsError::NotFinite { channel: 1, mean, variance };
    let bad = Config { epsilon: f64::NAN, ..Config::pytorch() };
    let epsilon = PlanError::Config(ConfigError::Epsilon { epsilon: f64::NAN });
    let mistakes = vec![
        mistake("an epsilon of NaN", BatchNorm::new(&gpu, 3, bad), epsilon, &["epsilon", "NaN"]),
        mistake(
            "a backward before a forward",
            layer.backward_blocking(x.view()),
            HostError::NoForward,
            &["forward"],
        ),
        mistake(
            "gamma too short",
            layer.load(&with(|s| s.gamma = Array1::ones(2))),
            length(Slot::Gamma, 2),
            &["gamma", "2", "3"],
        ),
        mistake(
            "beta too long",
            layer.load(&with(|s| s.beta = Array1::ones(4))),
            length(Slot::Beta, 4),
            &["beta", "4", "3"],
        ),
        mistake(
            "a running mean too short",
            layer.load(&with(|s| s.running_mean = Array1::ones(0))),
            length(Slot::RunningMean, 0),
            &["running_mean", "0"],
        ),
        mistake(
            "a running variance too short",
            layer.load(&with(|s| s.running_var = Array1::ones(2))),
            length(Slot::RunningVar, 2),
            &["running_var", "2"],
        ),
        mistake(
            "a negative variance",
            layer.load(&with(|s| s.running_var[2] = -1.0)),
            variance(-1.0),
            &["channel 2", "-1"],
        ),
        mistake(
            "a variance of NaN",
            layer.load(&with(|s| s.running_var[2] = f32::NAN)),
            variance(f32::NAN),
            &["channel 2", "NaN"],
        ),
        mistake(
            "an infinite variance",
            layer.load(&with(|s| s.running_var[2] = f32::INFINITY)),
            variance(f32::INFINITY),
            &["inf"],
        ),
        mistake(
            "other channels in training",
            layer.forward_train_blocking(other.view()),
            channels(),
            &["4", "3"],
        ),
        mistake(
            "other channels in inference",
            layer.forward_infer_blocking(other.view()),
            channels(),
            &["4", "3"],
        ),
        mistake(
            "a frozen backward of two shapes",
            layer.frozen_backward_blocking(x.view(), other.view()),
            shape(),
            &["[2, 4, 3]"],
        ),
        mistake(
            "other channels in a re-estimation",
            layer.re_estimate_blocking([other.view()]),
            channels(),
            &["4", "3"],
        ),
        mistake(
            "a re-estimation of nothing",
            layer.re_estimate_blocking([x.view()].into_iter().take(0)),
            MomentsError::Empty,
            &["no value"],
        ),
        mistake(
            "moments of other channels",
            layer.set_running(&Moments::empty(4)),
            MomentsError::Channels { found: 4, expected: 3 },
            &["4", "3"],
        ),
        mistake(
            "moments of no value",
            layer.set_running(&Moments::empty(3)),
            MomentsError::Empty,
            &["no value"],
        ),
        mistake(
            "an infinite mean",
            layer.set_running(&moments(f64::INFINITY, 1.0, 5.0)),
            not_finite(f32::INFINITY, 1.25),
            &["channel 1", "inf"],
        ),
        mistake(
            "a variance over f32",
            layer.set_running(&moments(0.0, 1e39, 2.0)),
            not_finite(0.0, f32::INFINITY),
            &["channel 1", "inf"],
        ),
    ];
    check(mistakes);
    // No load took place: the count is as it was, and there is still no forward.
    assert_eq!(layer.backward_blocking(x.view()), Err(HostError::NoForward));
    assert_eq!(layer.state_blocking().unwrap().batches, 0);
}

#[test]
fn moments_that_do_not_fit() {
    let mut one = Moments::new(f64::MAX, vec![1.0], vec![2.0]).unwrap();
    let before = one.clone();
    let count = one.merge(&before);
    let channels = one.merge(&Moments::empty(2));
    check(vec![
        mistake(
            "more values than f64 counts",
            count,
            MomentsError::Count { count: f64::INFINITY },
            &["inf", ">= 0"],
        ),
        mistake(
            "other channels",
            channels,
            MomentsError::Channels { found: 2, expected: 1 },
            &["2", "1"],
        ),
        mistake(
            "more variances than means",
            Moments::new(1.0, vec![1.0], vec![1.0; 3]),
            MomentsError::Channels { found: 3, expected: 1 },
            &["3", "1"],
        ),
        mistake(
            "a negative variance",
            Moments::new(1.0, vec![1.0; 2], vec![1.0, -2.0]),
            MomentsError::Variance { channel: 1, value: -2.0 },
            &["channel 1", "-2"],
        ),
        mistake(
            "a slot of three",
            Moments::from_slot(&[0.0; 3]),
            MomentsError::Slot { length: 3 },
            &["3", "4"],
        ),
        mistake(
            "channels that count differently",
            Moments::from_slot(&[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 8.0, 9.0]),
            MomentsError::Counts { channel: 1, found: 9.0, expected: 8.0 },
            &["channel 1", "9", "8"],
        ),
        mistake(
            "running statistics of nothing",
            Moments::empty(1).running(RunningVariance::Unbiased),
            MomentsError::Empty,
            &["no value"],
        ),
    ]);
    assert_eq!(one, before, "an error changes nothing");
}

#[test]
fn layers_that_cannot_be_folded() {
    let layer = Layer {
        weight: &[1.0; 12],
        shape: &[2, 6],
        layout: WeightLayout::OutputFirst,
        bias: Some(&[0.0; 2]),
    };
    let norm = Norm {
        gamma: Some(&[1.0; 2]),
        beta: Some(&[0.0; 2]),
        running_mean: &[0.0; 2],
        running_var: &[1.0; 2],
        epsilon: 1e-5,
    };
    fold(&layer, &norm).unwrap();
    let length = |name, length| FoldError::Length { name, length, channels: 2 };
    let not_finite = |name, index, value| FoldError::NotFinite { name, index, value };
    let transposed = WeightLayout::Transposed { groups: 0 };
    let three = WeightLayout::Transposed { groups: 4 };
    let one = [1.0f32];
    let nan = [0.0, f32::NAN];
    let cases: Vec<(Layer<'_>, Norm<'_>, FoldError, &[&str])> = vec![
        (layer, Norm { gamma: Some(&one), ..norm }, length("gamma", 1), &["gamma", "1", "2"]),
        (layer, Norm { beta: Some(&one), ..norm }, length("beta", 1), &["beta"]),
        (layer, Norm { running_mean: &one, ..norm }, length("running_mean", 1), &["running_mean"]),
        (layer, Norm { running_var: &one, ..norm }, length("running_var", 1), &["running_var"]),
        (Layer { bias: Some(&one), ..layer }, norm, length("bias", 1), &["bias", "1", "2"]),
        (
            layer,
            Norm { running_var: &[1.0, -1.0], ..norm },
            FoldError::Variance { channel: 1, value: -1.0 },
            &["channel 1", "-1"],
        ),
        (
            layer,
            Norm { running_mean: &nan, ..norm },
            not_finite("running_mean", 1, f64::NAN),
            &["running_mean[1]", "NaN"],
        ),
        (
            layer,
            Norm { gamma: Some(&[1e38, 1e38]), running_var: &[0.0; 2], ..norm },
            not_finite("folded weight", 0, 1e38f32 as f64 / 1e-5f64.sqrt()),
            &["folded weight[0]"],
        ),
        (
            layer,
            Norm { epsilon: 0.0, ..norm },
            FoldError::Config(ConfigError::Epsilon { epsilon: 0.0 }),
            &["epsilon"],
        ),
        (
            Layer { weight: &[1.0; 11], ..layer },
            norm,
            FoldError::Weight { length: 11, shape: vec![2, 6] },
            &["11", "[2, 6]"],
        ),
        (
            Layer { layout: transposed, ..layer },
            norm,
            FoldError::Groups { groups: 0, inputs: 2 },
            &["0", "2"],
        ),
        (
            Layer { layout: three, ..layer },
            norm,
            FoldError::Groups { groups: 4, inputs: 2 },
            &["4", "2"],
        ),
        (
            Layer { shape: &[12], layout: WeightLayout::TransposedLast, ..layer },
            norm,
            FoldError::Geometry(GeometryError::Axis { axis: -2, rank: 1 }),
            &["-2", "1"],
        ),
    ];
    for (layer, norm, expected, words) in cases {
        let error = fold(&layer, &norm).unwrap_err();
        assert_eq!(format!("{error:?}"), format!("{expected:?}"));
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text:?}: {words:?}");
    }
}
