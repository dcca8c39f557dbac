//! Plans are plain data: tested for devices that are not here.

use wgpu_batchnorm::{
    Activation, Affine, Backward, Caps, ChannelAxis, Class, Config, ConfigError, Element, Finalize,
    FrozenBackward, Geometry, Gradient, Gradients, GroupNorm, GroupNormBackward, Infer, Kernel,
    MAX_ITERATIONS, Mask, Memory, Normalize, Operation, Plan, PlanError, Reduce, SingleValue, Slot,
    Stage, Statistics, Train, Tuning, Update,
};

use crate::common::data::Random;

fn caps(class: Class) -> Caps {
    // As these adapters are: with words of 64 bits in software.
    let int64 = class == Class::Software;
    Caps { class, int64, max_storage_binding_size: 4 << 30, ..Caps::webgpu_default() }
}

fn examine<O: Operation>(geometry: Geometry, caps: &Caps) {
    let config = Config { single_value: SingleValue::Allow, ..Config::pytorch() };
    let plan = match Plan::<O>::new(geometry, &config, caps) {
        Ok(plan) => plan,
        Err(PlanError::TooLarge { size, limit, .. }) => return assert!(size > limit),
        // More rows than the lanes of a workgroup can add up, which it says.
        Err(PlanError::Iterations { kernel: Kernel::MergeRows, iterations, max }) => {
            let rows = geometry.outer().max(geometry.channels());
            return assert!(rows > 8 * 16_000 && iterations > u64::from(max), "{geometry:?}");
        }
        Err(error) => panic!("{geometry:?}: {error}"),
    };
    let max = caps.max_workgroups_per_dimension;
    for stage in plan.stages() {
        assert!(stage.iterations() <= u64::from(MAX_ITERATIONS), "{}", plan.explain());
        let [x, y, z] = stage.grid;
        assert!(x <= max && y <= max && z == 1, "{}", plan.explain());
        let (grid, count) = (u64::from(x) * u64::from(y), u64::from(stage.params.workgroup_count));
        assert!(grid >= count && grid < count + u64::from(y), "{}", plan.explain());
        let partials = u64::from(stage.params.plane) * 8;
        let needs = stage.variant.slots.contains(Slot::Scratch);
        assert!(!needs || plan.scratch_size() >= partials, "{}", plan.explain());
        if stage.variant.held > 0 {
            let p = &stage.params;
            let room = 4 * stage.variant.workgroup_size * stage.variant.held;
            assert!(p.chunk_count == 1 && p.chunk == p.step_count, "{}", plan.explain());
            assert!(p.step_count <= room, "{}", plan.explain());
        }
    }
}

#[test]
fn iterations_and_grids_are_bounded_for_any_geometry() {
    let mut random = Random(7);
    let size = |random: &mut Random, limit: u64| {
        let bits = random.unit() * (limit as f64).log2();
        (bits.exp2() as u64 + random.bits() % 3).max(1)
    };
    for _ in 0..3_000 {
        // Up to 2^30 elements, in every proportion.
        let outer = size(&mut random, 1 << 30);
        let channels = size(&mut random, ((1 << 30) / outer).max(1));
        let inner = size(&mut random, ((1 << 30) / outer / channels).max(1));
        let shape = [outer as usize, channels as usize, inner as usize];
        let geometry = Geometry::new(&shape, ChannelAxis::First).unwrap();
        for class in [Class::Software, Class::Hardware] {
            examine::<Train>(geometry, &caps(class));
            examine::<Infer>(geometry, &caps(class));
            examine::<Backward>(geometry, &caps(class));
            examine::<FrozenBackward>(geometry, &caps(class));
            examine::<Statistics>(geometry, &caps(class));
            examine::<Normalize>(geometry, &caps(class));
            examine::<Reduce>(geometry, &caps(class));
            examine::<Gradient>(geometry, &caps(class));
            examine::<GroupNorm>(geometry, &caps(class));
            examine::<GroupNormBackward>(geometry, &caps(class));
        }
    }
}

#[test]
fn equal_questions_have_equal_plans() {
    let geometry = Geometry::new(&[8, 64, 56, 56], ChannelAxis::First).unwrap();
    let make = |class| Plan::<Train>::new(geometry, &Config::keras(), &caps(class)).unwrap();
    assert_eq!(make(Class::Software), make(Class::Software));
    assert_ne!(make(Class::Software), make(Class::Hardware));
    let batch = |n, channels, size| {
        let geometry = Geometry::new(&[n, channels, size, size], ChannelAxis::First).unwrap();
        let plan = Plan::<Train>::new(geometry, &Config::keras(), &caps(Class::Hardware)).unwrap();
        plan.stages().iter().map(|stage| stage.variant).collect::<Vec<_>>()
    };
    let reason = "a new batch size must not compile a pipeline";
    assert_eq!(batch(32, 64, 56), batch(64, 64, 56), "{reason}");
    // Nor where a channel is kept in registers, but for twice the registers.
    assert_eq!(batch(13, 128, 28), batch(16, 128, 28), "{reason}");
    assert_eq!([16, 8].map(|n| batch(n, 128, 28)[0].held), [4, 2]);
    let epsilon = |epsilon| {
        let config = Config { epsilon, ..Config::keras() };
        let plan = Plan::<Train>::new(geometry, &config, &caps(Class::Hardware)).unwrap();
        plan.stages().iter().map(|stage| stage.variant).collect::<Vec<_>>()
    };
    assert_eq!(epsilon(1e-3), epsilon(1e-5), "epsilon is no part of a pipeline's key");
}

#[test]
fn work_is_split_by_shape() {
    let count = |shape: &[usize], axis, class| {
        let geometry = Geometry::new(shape, axis).unwrap();
        let plan = Plan::<Train>::new(geometry, &Config::keras(), &caps(class)).unwrap();
        plan.stages()[0].params.workgroup_count
    };
    for class in [Class::Software, Class::Hardware] {
        assert!(count(&[4, 1, 1024, 1024], ChannelAxis::First, class) >= 128);
        assert!(count(&[2, 3, 1024, 1024], ChannelAxis::First, class) >= 128);
        assert!(count(&[65_536, 64], ChannelAxis::Last, class) >= 128);
        assert!(count(&[1 << 20, 3], ChannelAxis::Last, class) >= 128);
        // As columns: in one chunk, and up to 32 tiles in a workgroup.
        assert!(count(&[8, 2048, 7, 7], ChannelAxis::First, class) >= 32);
    }
}

#[test]
fn explanations_name_the_path_and_the_numbers() {
    let geometry = Geometry::new(&[4, 1, 1024, 1024], ChannelAxis::First).unwrap();
    let plan = Plan::<Train>::new(geometry, &Config::keras(), &caps(Class::Hardware)).unwrap();
    let text = plan.explain();
    for part in ["batchnorm::forward", "rows_statistics", "finalize_statistics", "rows_normalize"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(text.contains(&format!("scratch {} bytes", plan.scratch_size())), "{text}");
    assert!(text.contains(&format!("move {} bytes", plan.bytes_moved())), "{text}");
    let tensors = plan.bytes_moved() as f64 / (4 * geometry.len()) as f64;
    assert!(text.contains(&format!("({tensors:.2} tensors)")), "{text}");
}

/// Halves take half of the bytes, in whole words, and nothing else of the plan changes.
#[test]
fn halves_are_half_the_bytes() {
    let caps = Caps::webgpu_default();
    for (element, name) in [(Element::F16, "f16"), (Element::Bf16, "bf16")] {
        let shapes = [([3, 5, 17], ChannelAxis::First), ([1, 3, 1], ChannelAxis::First)];
        for (shape, axis) in shapes.into_iter().chain([([7, 11, 9], ChannelAxis::Last)]) {
            let geometry = Geometry::new(&shape, axis).unwrap();
            let base = Config {
                activation: Activation::Relu,
                residual: true,
                single_value: SingleValue::Allow,
                ..Config::pytorch()
            };
            let half = Config { element, ..base.clone() };
            let plan = |config: &Config| Plan::<Backward>::new(geometry, config, &caps).unwrap();
            let (whole, half) = (plan(&base), plan(&half));
            let len = geometry.len();
            assert_eq!(len % 2, 1);
            for (slot, size) in half.slots() {
                let expected = if slot.is_tensor() { 2 * len + 2 } else { whole.slot_size(slot) };
                assert_eq!((size, size % 4), (expected, 0), "{slot}");
            }
            let slots = |plan: &Plan<Backward>| -> Vec<Slot> {
                plan.slots().into_iter().map(|(slot, _)| slot).collect()
            };
            assert_eq!(slots(&half), slots(&whole));
            for (half, whole) in half.stages().iter().zip(whole.stages()) {
                assert_eq!((half.grid, half.params), (whole.grid, whole.params));
                assert_eq!(half.variant.vector, whole.variant.vector);
            }
            // x, dy, dz written; x, dz, dx. Mask and partials are what they were.
            let saved = whole.bytes_moved() - half.bytes_moved();
            assert_eq!(saved, 6 * 2 * len, "{}", half.explain());
            assert!(half.explain().contains(&format!(" {name} per load")), "{}", half.explain());
            assert!(whole.explain().contains(" f32 per load"), "{}", whole.explain());
        }
    }
}

#[test]
fn empty_tensors_plan_nothing_but_zeros() {
    let caps = Caps::webgpu_default();
    for shape in [[0usize, 3, 4], [2, 3, 0], [2, 0, 4], [0, 0, 0]] {
        let geometry = Geometry::new(&shape, ChannelAxis::First).unwrap();
        let config = Config::pytorch();
        assert!(Plan::<Train>::new(geometry, &config, &caps).unwrap().stages().is_empty());
        assert!(Plan::<Infer>::new(geometry, &config, &caps).unwrap().stages().is_empty());
        let backward = Plan::<Backward>::new(geometry, &config, &caps).unwrap();
        let slots: Vec<Slot> = backward.slots().iter().map(|(slot, _)| *slot).collect();
        let expected: &[Slot] = if shape[1] > 0 { &[Slot::Dgamma, Slot::Dbeta] } else { &[] };
        assert_eq!(slots, expected, "{shape:?}");
        let statistics = Plan::<Statistics>::new(geometry, &config, &caps).unwrap();
        let expected: &[_] =
            if shape[1] > 0 { &[(Slot::Moments, 4 * 4 * shape[1] as u64)] } else { &[] };
        assert_eq!(statistics.slots(), expected, "{shape:?}");
        assert_eq!(statistics.scratch_size(), 0);
    }
}

/// Statistics read the tensor once, on every path, and bind nothing but what they need.
#[test]
fn statistics_are_one_read() {
    let shapes: [(&[usize], ChannelAxis); 5] = [
        (&[8, 64, 56, 56], ChannelAxis::First),
        (&[4, 1, 1024, 1024], ChannelAxis::First),
        (&[2, 3, 4, 4], ChannelAxis::First),
        (&[65_536, 64], ChannelAxis::Last),
        (&[1, 5], ChannelAxis::Last),
    ];
    for (shape, axis) in shapes {
        let geometry = Geometry::new(shape, axis).unwrap();
        for class in [Class::Software, Class::Hardware] {
            for memory in [Memory::Separate, Memory::InPlace, Memory::Arena] {
                let config = Config { memory, update: Update::Cumulative, ..Config::pytorch() };
                let plan = Plan::<Statistics>::new(geometry, &config, &caps(class)).unwrap();
                let (x, moments) = (4 * geometry.len(), 16 * geometry.channels());
                let expected =
                    [(Slot::X, x), (Slot::Moments, moments), (Slot::Scratch, plan.scratch_size())];
                assert_eq!(plan.slots(), expected, "{}", plan.explain());
                // Partials are written, then read.
                assert_eq!(plan.bytes_moved(), x + 2 * plan.scratch_size(), "{}", plan.explain());
                assert!(plan.explain().contains("batchnorm::statistics"), "{}", plan.explain());
            }
        }
    }
}

/// A batch in shards takes the stages of the whole, taken apart, and binds what each needs.
#[test]
fn shards_are_the_stages_of_the_whole() {
    let names = |plan: &[Stage]| plan.iter().map(|s| s.variant.kernel.name()).collect::<Vec<_>>();
    let caps = caps(Class::Hardware);
    let slots =
        |slots: Vec<(Slot, u64)>| slots.into_iter().map(|(slot, _)| slot).collect::<Vec<_>>();
    let config = Config { update: Update::Cumulative, ..Config::pytorch() };
    let parts = Geometry::new(&[100, 64], ChannelAxis::Last).unwrap();
    let plan = Plan::<Finalize>::new(parts, &config, &caps).unwrap();
    assert_eq!(names(plan.stages()), ["merge_parts", "count_batch"]);
    assert_eq!(plan.slot_size(Slot::Parts), 100 * 4 * 64 * 4);
    assert_eq!(plan.stages()[0].bytes_moved, 100 * 4 * 64 * 4);
    assert_eq!(
        slots(plan.slots()),
        [Slot::Saved, Slot::RunningMean, Slot::RunningVar, Slot::Batches, Slot::Parts]
    );
    let large = Geometry::new(&[16, 64, 56, 56], ChannelAxis::First).unwrap();
    let small = Geometry::new(&[2, 64, 4, 4], ChannelAxis::First).unwrap();
    for (geometry, reduce) in
        [(large, &["rows_reduce", "finalize_gradients"][..]), (small, &["rows_backward"][..])]
    {
        let plan = Plan::<Normalize>::new(geometry, &config, &caps).unwrap();
        assert_eq!(names(plan.stages()), ["rows_normalize"]);
        assert_eq!(slots(plan.slots()), [Slot::X, Slot::Y, Slot::Gamma, Slot::Beta, Slot::Saved]);
        assert_eq!(plan.bytes_moved(), 2 * 4 * geometry.len());
        let plan = Plan::<Reduce>::new(geometry, &config, &caps).unwrap();
        assert_eq!(names(plan.stages()), reduce);
        assert!(!slots(plan.slots()).contains(&Slot::Dx));
        assert_eq!(plan.slot_size(Slot::Sums), 2 * 64 * 4);
        let plan = Plan::<Gradient>::new(geometry, &config, &caps).unwrap();
        assert_eq!(names(plan.stages()), ["rows_gradient"]);
        assert_eq!(
            slots(plan.slots()),
            [Slot::X, Slot::Dy, Slot::Dx, Slot::Gamma, Slot::Saved, Slot::Sums]
        );
        assert_eq!(plan.scratch_size(), 0);
    }
    // One value in a shard is no batch of one value.
    let one = Geometry::new(&[1, 64], ChannelAxis::Last).unwrap();
    assert!(Plan::<Finalize>::new(one, &config, &caps).is_ok());
    assert!(Plan::<Reduce>::new(one, &config, &caps).is_ok());
    assert!(Plan::<Gradient>::new(one, &config, &caps).is_ok());
    // Without a part, or without a value, there are only zeros to write.
    let none = Geometry::new(&[0, 64], ChannelAxis::Last).unwrap();
    let plan = Plan::<Finalize>::new(none, &Config::pytorch(), &caps).unwrap();
    assert_eq!(slots(plan.slots()), [Slot::Saved, Slot::RunningMean, Slot::RunningVar]);
    let plan = Plan::<Reduce>::new(none, &Config::pytorch(), &caps).unwrap();
    assert_eq!(slots(plan.slots()), [Slot::Dgamma, Slot::Dbeta, Slot::Sums]);
    assert!(Plan::<Normalize>::new(none, &config, &caps).unwrap().stages().is_empty());
    assert!(Plan::<Gradient>::new(none, &config, &caps).unwrap().stages().is_empty());
}

#[test]
fn refusals_are_typed() {
    let caps = Caps::webgpu_default();
    let geometry = |shape: &[usize]| Geometry::new(shape, ChannelAxis::First).unwrap();
    let train =
        |shape: &[usize], config: &Config| Plan::<Train>::new(geometry(shape), config, &caps);
    let limit = 128 << 20;
    assert_eq!(
        train(&[32, 1 << 24, 2], &Config::pytorch()).unwrap_err(),
        PlanError::TooLarge { slot: Slot::Saved, size: 256 << 20, limit }
    );
    let error = train(&[1, 5, 1], &Config::pytorch()).unwrap_err();
    assert_eq!(error, PlanError::SingleValue { geometry: geometry(&[1, 5, 1]) });
    assert!(Plan::<Infer>::new(geometry(&[1, 5, 1]), &Config::pytorch(), &caps).is_ok());
    let config = Config { epsilon: -1.0, ..Config::pytorch() };
    assert_eq!(
        train(&[2, 5, 1], &config).unwrap_err(),
        PlanError::Config(ConfigError::Epsilon { epsilon: -1.0 })
    );
    let config = Config { update: Update::Decay(1.5), ..Config::pytorch() };
    assert!(matches!(train(&[2, 5, 1], &config), Err(PlanError::Config(_))));
    let good = Tuning::choose(&caps, &geometry(&[2, 5, 1]), Config::keras().element);
    for workgroup_size in [0, 1, 2, 3, 100, 512] {
        let tuning = Tuning { workgroup_size, ..good.clone() };
        assert_eq!(
            Plan::<Train>::with_tuning(geometry(&[2, 5, 1]), &Config::keras(), &caps, &tuning),
            Err(PlanError::Tuning { workgroup_size, max: 256 })
        );
    }
    // Found by fuzzing: a chunk of so many lanes does not fit u32.
    let unreal = Caps { max_workgroup_size: u32::MAX, ..caps.clone() };
    let tuning = Tuning { workgroup_size: 1 << 31, ..good.clone() };
    assert_eq!(
        Plan::<Infer>::with_tuning(geometry(&[1, 9, 1]), &Config::keras(), &unreal, &tuning),
        Err(PlanError::Tuning { workgroup_size: 1 << 31, max: 1 << 16 })
    );
    // No number of a tuning makes planning panic.
    let zero = Tuning {
        workgroup_size: 8,
        workgroup_count: 0,
        column_workgroup_count: 0,
        apply_workgroup_count: 0,
        min_loads: 0,
        min_column_loads: 0,
        min_apply_loads: 0,
        merge_loads: 0,
        fused_loads: 0,
        fused_column_loads: 0,
        column_block: 0,
        join_rows: true,
        held_values: 64,
        fused_workgroups: 0,
        tiny_loads: 0,
        min_row: 0,
        short_row_loads: u32::MAX,
        many_rows: 0,
        min_odd_rows: 0,
        from_end: true,
        built_in_widen: false,
        built_in_narrow: false,
        wide_loads: false,
        mask_words: false,
    };
    for shape in [&[2usize, 5, 1][..], &[64, 5, 7], &[3, 1, 1000], &[500, 3]] {
        Plan::<Backward>::with_tuning(geometry(shape), &Config::keras(), &caps, &zero).unwrap();
    }
    let nothing = Caps { max_workgroups_per_dimension: 0, ..caps.clone() };
    let plan = Plan::<Train>::new(geometry(&[2, 5000, 64]), &Config::keras(), &nothing);
    assert!(matches!(plan, Err(PlanError::Grid { max: 0, .. })));
    let endless = Caps { max_storage_binding_size: u64::MAX, ..caps.clone() };
    for shape in [[1, 1 << 40, 1 << 15], [1 << 20, 3, 1 << 36], [0, (1 << 59) - 1, 1]] {
        let geometry = Geometry::new(&shape, ChannelAxis::First).unwrap();
        let plan = Plan::<Train>::new(geometry, &Config::keras(), &endless);
        assert!(matches!(plan, Err(PlanError::TooLarge { .. })) || geometry.is_empty());
    }
    // Inference has no saved statistics to be too large.
    let wide = Geometry::new(&[2, 3, 2048, 2048], ChannelAxis::PerActivation).unwrap();
    assert!(Plan::<Infer>::new(wide, &Config::keras(), &caps).is_ok());
    assert_eq!(
        Plan::<Train>::new(wide, &Config::keras(), &caps).unwrap_err(),
        PlanError::TooLarge { slot: Slot::Saved, size: 4 * 4 * 3 * 2048 * 2048, limit }
    );
    assert_eq!(
        Plan::<Statistics>::new(wide, &Config::keras(), &caps).unwrap_err(),
        PlanError::TooLarge { slot: Slot::Moments, size: 4 * 4 * 3 * 2048 * 2048, limit }
    );
    // Loops and a grid that just fit are planned: 253 chunks of 259 partials for four lanes, and
    // the two steps of their tree.
    let crumbs = Tuning {
        workgroup_size: 4,
        column_workgroup_count: u32::MAX,
        min_column_loads: 1,
        min_row: u32::MAX,
        short_row_loads: u32::MAX,
        ..zero
    };
    let merge = |outer| {
        let geometry = geometry(&[outer, 4, 1033]);
        Plan::<Train>::with_tuning(geometry, &Config::keras(), &caps, &crumbs)
    };
    assert_eq!(merge(253 * 4).unwrap().stages()[1].iterations(), u64::from(MAX_ITERATIONS));
    assert!(matches!(merge(254 * 4), Err(PlanError::Iterations { iterations: 16_449, .. })));
    let square = Caps { max_workgroups_per_dimension: 2, ..caps.clone() };
    for (channels, fits) in [(4, true), (5, false)] {
        let plan = Plan::<Train>::new(geometry(&[2, channels, 64]), &Config::keras(), &square);
        assert_eq!(plan.is_ok(), fits, "{channels} channels");
    }
    let narrow = Caps { max_workgroups_per_dimension: 2, ..caps.clone() };
    assert!(matches!(
        Plan::<Train>::new(geometry(&[2, 5000, 64]), &Config::keras(), &narrow),
        Err(PlanError::Grid { max: 4, .. })
    ));
}

#[test]
fn what_is_not_asked_for_is_not_bound() {
    let geometry = Geometry::new(&[4, 3, 50], ChannelAxis::First).unwrap();
    let caps = Caps::webgpu_default();
    let slots = |gradients, memory| {
        let config = Config { gradients, memory, ..Config::keras() };
        let plan = Plan::<FrozenBackward>::new(geometry, &config, &caps).unwrap();
        plan.slots().iter().map(|(slot, _)| *slot).collect::<Vec<_>>()
    };
    let only = |x, gamma, beta| Gradients { x, gamma, beta, z: false, accumulate: false };
    assert_eq!(
        slots(only(true, false, false), Memory::Separate),
        [Slot::Dy, Slot::Dx, Slot::Gamma, Slot::RunningVar]
    );
    assert_eq!(
        slots(only(false, false, true), Memory::Separate),
        [Slot::Dy, Slot::Dbeta, Slot::Scratch]
    );
    assert!(!slots(Gradients::ALL, Memory::InPlace).contains(&Slot::Dx));
    assert_eq!(slots(only(false, false, false), Memory::Separate), []);
    let config = Config { update: Update::None, ..Config::keras() };
    let plan = Plan::<Train>::new(geometry, &config, &caps).unwrap();
    assert!(plan.slots().iter().all(|(slot, _)| *slot != Slot::RunningMean));
}

/// How often the busiest invocation loops, counted as the kernels are written.
fn loops(stage: &Stage) -> u64 {
    let p = &stage.params;
    let (lanes, width) = (u64::from(stage.variant.workgroup_size), u64::from(stage.variant.vector));
    let long = u64::from(p.step_count) + u64::from(p.tail > 0);
    let chunk = u64::from(p.chunk).min(long);
    let pair = 1 + u64::from(stage.variant.paired);
    let columns = pair * width;
    // Fours of vectors, then the lane's own one or two at a time, by a loop.
    let (mut rows, mut step) = (0, 0);
    while step + (4 - pair) * lanes + pair - 1 < chunk {
        (rows, step) = (rows + 1, step + 4 * lanes);
    }
    rows += (chunk - chunk.min(step)).div_ceil(pair * lanes) * (1 + pair);
    // Statistics take four rows at a time, the others as many as make four vectors.
    let quads = |rows: u64| rows / 4 + rows % 4;
    let fours = |rows: u64| rows / (4 / pair) + rows % (4 / pair);
    let tree = |lanes: u64| u64::from(lanes.ilog2());
    // Of columns: the blocks of the first chunk, the touches of each, its strips.
    let blocks = |of_rows: &dyn Fn(u64) -> u64| {
        let [loads, tiles, line] = [p.row_loads, p.tiles, p.line].map(u64::from);
        let tiles = tiles.min(loads.div_ceil(lanes * pair));
        let mut count = 0;
        for begin in (0..chunk).step_by(p.block as usize) {
            let rows = u64::from(p.block).min(chunk - begin);
            if line > 0 && loads <= tiles * lanes * pair {
                count += 1 + (rows * loads).div_ceil(lanes * line);
            } else if line > 0 {
                count += rows * (1 + (tiles * pair).div_ceil(line));
            }
            count += 1 + tiles * (1 + of_rows(rows) + 2 * columns);
        }
        count
    };
    match stage.variant.kernel {
        Kernel::CountBatch => 0,
        Kernel::FinalizeStatistics | Kernel::FinalizeGradients | Kernel::MergeRows => {
            let group = u64::from(stage.variant.group_size);
            let partials = u64::from(p.chunk_count) * u64::from(p.per_chunk);
            partials.div_ceil(group) + tree(group)
        }
        Kernel::MergeParts => {
            let group = u64::from(stage.variant.group_size);
            let parts = u64::from(p.chunk_count) * u64::from(p.per_chunk);
            2 * (parts.div_ceil(group) + tree(group))
        }
        Kernel::RowsWeightedStatistics => chunk.div_ceil(lanes) + 2 * (tree(lanes) + width),
        Kernel::ColumnsWeightedStatistics => chunk + width,
        Kernel::RowsStatistics | Kernel::RowsReduce | Kernel::RowsFrozen => rows + tree(lanes),
        Kernel::RowsNormalize | Kernel::RowsGradient => rows,
        Kernel::RowsForward | Kernel::RowsBackward => 2 * rows + tree(lanes),
        Kernel::ColumnsStatistics => blocks(&quads),
        Kernel::ColumnsNormalize
        | Kernel::ColumnsReduce
        | Kernel::ColumnsGradient
        | Kernel::ColumnsFrozen => blocks(&fours),
        Kernel::ColumnsForward => quads(chunk) + fours(chunk) + 3 * columns,
        Kernel::ColumnsBackward => 2 * fours(chunk) + 2 * columns,
    }
}

/// The bound that planning keeps below every adapter's limit is one, and not a wild one.
#[test]
fn iterations_bound_what_kernels_loop() {
    let shapes: [(&[usize], ChannelAxis); 8] = [
        (&[8, 64, 56, 56], ChannelAxis::First),
        (&[4, 1, 1024, 1024], ChannelAxis::First),
        (&[2, 9, 333, 333], ChannelAxis::First),
        (&[700, 12, 7, 3], ChannelAxis::First),
        (&[1 << 16, 64], ChannelAxis::Last),
        (&[(1 << 18) + 1, 5], ChannelAxis::Last),
        (&[900, 4099], ChannelAxis::Last),
        (&[6, 33], ChannelAxis::Last),
    ];
    let mut kernels = std::collections::HashSet::new();
    let mut examine = |stages: &[Stage], text: String| {
        for stage in stages {
            let (real, bound) = (loops(stage), stage.iterations());
            let kernel = stage.variant.kernel;
            // Blocks and chunks need not be full.
            let slack = 72 + real / 2;
            assert!(real <= bound && bound <= real + slack, "{kernel:?}: {real} loops\n{text}");
            kernels.insert(kernel);
        }
    };
    let config = Config { update: Update::Cumulative, ..Config::pytorch() };
    for (shape, axis) in shapes {
        let g = Geometry::new(shape, axis).unwrap();
        for class in [Class::Software, Class::Hardware] {
            let caps = caps(class);
            let own = Tuning::choose(&caps, &g, config.element);
            let fused = Tuning {
                fused_loads: u32::MAX,
                fused_column_loads: u32::MAX,
                fused_workgroups: 1,
                ..own.clone()
            };
            for tuning in [own, fused] {
                macro_rules! each {
                    ($($operation:ty),*) => { $(
                        let plan = Plan::<$operation>::with_tuning(g, &config, &caps, &tuning);
                        let plan = plan.unwrap();
                        examine(plan.stages(), plan.explain());
                    )* };
                }
                each!(Train, Infer, Backward, FrozenBackward, Statistics);
                each!(Normalize, Reduce, Gradient);
                let weighted = Config { weights: true, ..config.clone() };
                let plan = Plan::<Train>::with_tuning(g, &weighted, &caps, &tuning).unwrap();
                examine(plan.stages(), plan.explain());
            }
        }
    }
    for parts in [1usize, 7, 64, 5000, 8000] {
        let g = Geometry::new(&[parts, 9], ChannelAxis::Last).unwrap();
        for class in [Class::Software, Class::Hardware] {
            let plan = Plan::<Finalize>::new(g, &config, &caps(class)).unwrap();
            examine(plan.stages(), plan.explain());
        }
    }
    assert_eq!(kernels.len(), 20, "a kernel is never planned: {kernels:?}");
}

/// Every operation's bytes, by hand: a tensor is e, the partials of a pass are p.
#[test]
fn bytes_are_counted_by_hand() {
    let (caps, base) = (caps(Class::Hardware), Config::keras());
    let only = |x, gamma, beta| Gradients { x, gamma, beta, z: false, accumulate: false };
    // One dispatch that reads twice, one that keeps what it has read, three.
    for (shape, held_values, fused) in
        [([2usize, 100, 16], 0, true), ([2, 100, 16], 64, true), ([64, 5, 4096], 64, false)]
    {
        let g = Geometry::new(&shape, ChannelAxis::First).unwrap();
        let kept = fused && held_values > 0;
        let tuning = Tuning { held_values, ..Tuning::choose(&caps, &g, base.element) };
        let train_with = |config| Plan::<Train>::with_tuning(g, &config, &caps, &tuning).unwrap();
        let e = 4 * g.len();
        let train = train_with(base.clone());
        assert_eq!(train.stages().len(), if fused { 1 } else { 3 });
        assert_eq!(train.explain().contains("registers"), kept, "{}", train.explain());
        let p = train.scratch_size();
        assert_eq!(train.bytes_moved(), if kept { 2 * e } else { 3 * e + 2 * p });
        let counted = train_with(Config { update: Update::Cumulative, ..base.clone() });
        assert_eq!(counted.bytes_moved(), train.bytes_moved() + 12);
        assert_eq!(Plan::<Infer>::new(g, &base, &caps).unwrap().bytes_moved(), 2 * e);
        // The merged sums take two floats a channel, and are not counted.
        let sums = 8 * g.channels();
        let all = if kept { 3 } else { 5 };
        let masks = [
            (only(true, true, true), all, 3),
            (only(true, false, false), all, 2),
            (only(false, true, false), 2, 2),
            (only(false, false, true), 1, 1),
        ];
        for (gradients, trained, frozen) in masks {
            let config = Config { gradients, ..base.clone() };
            let plan = Plan::<Backward>::with_tuning(g, &config, &caps, &tuning).unwrap();
            let p = plan.scratch_size().saturating_sub(sums);
            assert_eq!(plan.bytes_moved(), trained * e + 2 * p, "{}", plan.explain());
            assert_eq!(p > 0, !fused);
            let plan = Plan::<FrozenBackward>::new(g, &config, &caps).unwrap();
            let p = plan.scratch_size().saturating_sub(sums);
            assert_eq!(plan.bytes_moved(), frozen * e + 2 * p, "{}", plan.explain());
            assert_eq!(p > 0, gradients.gamma || gradients.beta);
        }
    }
}

/// Gradients of nothing: zeros, where there is something to be zero.
#[test]
fn an_empty_batch_has_the_gradients_it_can_have() {
    let caps = Caps::webgpu_default();
    let g = Geometry::new(&[0, 3, 4], ChannelAxis::First).unwrap();
    let cases = [
        (true, true, true, false, Affine::BOTH, 1),
        (true, true, true, true, Affine::BOTH, 0),
        (true, false, false, false, Affine::BOTH, 0),
        (false, true, false, false, Affine::BOTH, 1),
        (false, false, true, true, Affine::BOTH, 0),
        (true, true, true, false, Affine::NONE, 0),
    ];
    for (x, gamma, beta, accumulate, affine, stages) in cases {
        let gradients = Gradients { x, gamma, beta, z: false, accumulate };
        let config = Config { gradients, affine, ..Config::keras() };
        let plan = Plan::<Backward>::new(g, &config, &caps).unwrap();
        assert_eq!(plan.stages().len(), stages, "{gradients:?} {affine:?}");
        let plan = Plan::<FrozenBackward>::new(g, &config, &caps).unwrap();
        assert_eq!(plan.stages().len(), stages, "{gradients:?} {affine:?}");
    }
}

/// However short rows a tuning walks as columns, one of more than 512 partials is a row.
#[test]
fn long_runs_are_rows() {
    let caps = caps(Class::Hardware);
    for (inner, weights, kernel) in [
        // Strips of four, of which an odd row may begin or end one more.
        (2048, false, Kernel::ColumnsNormalize),
        (2045, false, Kernel::ColumnsNormalize),
        (2046, false, Kernel::ColumnsNormalize),
        (2047, false, Kernel::RowsNormalize),
        (2052, false, Kernel::RowsNormalize),
        // With weights every column has its own.
        (512, true, Kernel::ColumnsNormalize),
        (513, true, Kernel::RowsNormalize),
    ] {
        let g = Geometry::new(&[64, 3, inner], ChannelAxis::First).unwrap();
        let own = Tuning::choose(&caps, &g, Config::keras().element);
        let tuning = Tuning { min_row: u32::MAX, tiny_loads: 0, ..own };
        let config = Config { weights, ..Config::keras() };
        let plan = Plan::<Infer>::with_tuning(g, &config, &caps, &tuning).unwrap();
        assert_eq!(plan.stages()[0].variant.kernel, kernel, "{}", plan.explain());
    }
}

/// Bits of a mask are counted by u32, though more would fit a binding.
#[test]
fn a_mask_that_cannot_be_counted() {
    let caps = Caps { max_storage_binding_size: 1 << 33, ..caps(Class::Hardware) };
    let plan = |outer: usize, mask| {
        let g = Geometry::new(&[outer, 1, 1 << 16], ChannelAxis::First).unwrap();
        let config = Config { activation: Activation::Relu, mask, ..Config::keras() };
        let plan = Plan::<Train>::new(g, &config, &caps)?;
        Ok(plan.slots().into_iter().find(|(slot, _)| *slot == Slot::Mask).map(|(_, size)| size))
    };
    assert_eq!(plan(1 << 16, Mask::Bits), Ok(Some(1 << 29)));
    let (size, limit) = ((1 << 29) + (1 << 13), 1 << 29);
    assert_eq!(
        plan((1 << 16) + 1, Mask::Bits),
        Err(PlanError::TooLarge { slot: Slot::Mask, size, limit })
    );
    assert_eq!(plan((1 << 16) + 1, Mask::Recompute), Ok(None));
}
