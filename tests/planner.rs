//! Plans are plain data: tested for devices that are not here.

use wgpu_batchnorm::{
    Backward, Caps, ChannelAxis, Class, Config, ConfigError, FrozenBackward, Geometry, Gradients,
    Infer, MAX_ITERATIONS, Memory, Operation, Plan, PlanError, SingleValue, Slot, Statistics,
    Train, Tuning, Update,
};

use crate::common::data::Random;

fn caps(class: Class) -> Caps {
    Caps { class, max_storage_binding_size: 4 << 30, ..Caps::webgpu_default() }
}

fn examine<O: Operation>(geometry: Geometry, caps: &Caps) {
    let config = Config { single_value: SingleValue::Allow, ..Config::pytorch() };
    let plan = match Plan::<O>::new(geometry, &config, caps) {
        Ok(plan) => plan,
        Err(PlanError::TooLarge { size, limit, .. }) => return assert!(size > limit),
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
        }
    }
}

#[test]
fn equal_questions_have_equal_plans() {
    let geometry = Geometry::new(&[8, 64, 56, 56], ChannelAxis::First).unwrap();
    let make = |class| Plan::<Train>::new(geometry, &Config::keras(), &caps(class)).unwrap();
    assert_eq!(make(Class::Software), make(Class::Software));
    assert_ne!(make(Class::Software), make(Class::Hardware));
    let batch = |n| {
        let geometry = Geometry::new(&[n, 64, 56, 56], ChannelAxis::First).unwrap();
        let plan = Plan::<Train>::new(geometry, &Config::keras(), &caps(Class::Hardware)).unwrap();
        plan.stages().iter().map(|stage| stage.variant).collect::<Vec<_>>()
    };
    assert_eq!(batch(32), batch(64), "a new batch size must not compile a pipeline");
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
        assert!(count(&[8, 2048, 7, 7], ChannelAxis::First, class) >= 128);
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
            if shape[1] > 0 { &[(Slot::Moments, 3 * 4 * shape[1] as u64)] } else { &[] };
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
                let (x, moments) = (4 * geometry.len(), 12 * geometry.channels());
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

#[test]
fn refusals_are_typed() {
    let caps = Caps::webgpu_default();
    let geometry = |shape: &[usize]| Geometry::new(shape, ChannelAxis::First).unwrap();
    let train =
        |shape: &[usize], config: &Config| Plan::<Train>::new(geometry(shape), config, &caps);
    let limit = 128 << 20;
    assert_eq!(
        train(&[32, 1 << 20, 2], &Config::pytorch()).unwrap_err(),
        PlanError::TooLarge { slot: Slot::X, size: 256 << 20, limit }
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
    // No number of a tuning makes planning panic.
    let zero = Tuning {
        workgroup_size: 8,
        workgroup_count: 0,
        min_loads: 0,
        min_column_loads: 0,
        fused_loads: 0,
        fused_column_loads: 0,
        fused_workgroups: 0,
        tiny_loads: 0,
        min_row: 0,
    };
    for shape in [&[2usize, 5, 1][..], &[64, 5, 7], &[3, 1, 1000], &[500, 3]] {
        Plan::<Backward>::with_tuning(geometry(shape), &Config::keras(), &caps, &zero).unwrap();
    }
    let nothing = Caps { max_workgroups_per_dimension: 0, ..caps.clone() };
    let plan = Plan::<Train>::new(geometry(&[2, 5000, 64]), &Config::keras(), &nothing);
    assert!(matches!(plan, Err(PlanError::Grid { max: 0, .. })));
    let endless = Caps { max_storage_binding_size: u64::MAX, ..caps.clone() };
    for shape in [[1, 100_000_000, 31], [1, 1 << 40, 1 << 15], [0, (1 << 59) - 1, 1]] {
        let geometry = Geometry::new(&shape, ChannelAxis::First).unwrap();
        let plan = Plan::<Train>::new(geometry, &Config::keras(), &endless);
        assert!(matches!(plan, Err(PlanError::TooLarge { .. })) || geometry.is_empty());
    }
    // Inference has no saved statistics to be too large.
    let wide = Geometry::new(&[2, 3, 2048, 2048], ChannelAxis::PerActivation).unwrap();
    assert!(Plan::<Infer>::new(wide, &Config::keras(), &caps).is_ok());
    assert_eq!(
        Plan::<Train>::new(wide, &Config::keras(), &caps).unwrap_err(),
        PlanError::TooLarge { slot: Slot::Saved, size: 3 * 4 * 3 * 2048 * 2048, limit }
    );
    assert_eq!(
        Plan::<Statistics>::new(wide, &Config::keras(), &caps).unwrap_err(),
        PlanError::TooLarge { slot: Slot::Moments, size: 3 * 4 * 3 * 2048 * 2048, limit }
    );
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
    let only = |x, gamma, beta| Gradients { x, gamma, beta, accumulate: false };
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
