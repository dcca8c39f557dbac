//! No geometry, config, capability or tuning makes the planner panic or overflow, and a plan that
//! comes out keeps its promises.

#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use wgpu_batchnorm::{
    Activation, Affine, Backward, Caps, ChannelAxis, Class, Config, Element, Finalize,
    FrozenBackward, Geometry, Gradient, Gradients, GroupNorm, GroupNormBackward, Infer, Kernel,
    MAX_ITERATIONS, Mask, Memory, NonFinite, Normalize, Operation, Plan, Reduce, Renorm,
    RunningVariance, SingleValue, Slot, Statistics, Train, Tuning, Update, shader,
};

#[derive(Arbitrary, Debug)]
struct Question {
    dimensions: Vec<Dimension>,
    axis: Axis,
    epsilon: f64,
    weight: f64,
    choices: [u8; 4],
    renorm: Option<[f64; 2]>,
    groups: Groups,
    flags: u16,
    caps: [Size; 4],
    tuning: Option<[Size; 12]>,
}

/// Small numbers, powers of two and their neighbours, and anything.
#[derive(Arbitrary, Debug)]
enum Dimension {
    Small(u8),
    Near { exponent: u8, off: i8 },
    Any(usize),
}

#[derive(Arbitrary, Debug)]
enum Axis {
    First,
    Last,
    At(i8),
    Any(isize),
    PerActivation,
}

/// As many as there are channels, a number that may divide them, or anything.
#[derive(Arbitrary, Debug)]
enum Groups {
    Channels,
    Small(u8),
    Any(u64),
}

#[derive(Arbitrary, Debug)]
enum Size {
    Power(u8),
    Small(u8),
    Any(u32),
}

impl Dimension {
    fn get(&self) -> usize {
        match *self {
            Self::Small(n) => n.into(),
            Self::Near { exponent, off } => {
                (1usize << (exponent % 40)).saturating_add_signed(off.into())
            }
            Self::Any(n) => n,
        }
    }
}

impl Size {
    fn get(&self) -> u32 {
        match *self {
            Self::Power(exponent) => 1 << (exponent % 32),
            Self::Small(n) => n.into(),
            Self::Any(n) => n,
        }
    }
}

fn examine<O: Operation>(
    geometry: Geometry,
    config: &Config,
    caps: &Caps,
    tuning: Option<&Tuning>,
) {
    let plan = match tuning {
        Some(tuning) => Plan::<O>::with_tuning(geometry, config, caps, tuning),
        None => Plan::<O>::new(geometry, config, caps),
    };
    let plan = match plan {
        Ok(plan) => plan,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let text = plan.explain();
    assert!(text.contains(O::NAME));
    let slots = plan.slots();
    for (slot, size) in &slots {
        assert_eq!(*size, plan.slot_size(*slot));
        let bound = plan.binding_size(*slot);
        assert!(bound > 0 && bound <= *size, "{slot} binds {bound} of {size}: {text}");
        assert!(bound <= caps.max_storage_binding_size, "{slot} binds {bound}: {text}");
    }
    let size_of = |slot| slots.iter().find(|(s, _)| *s == slot).map_or(0, |(_, size)| *size);
    for stage in plan.stages() {
        let (p, v) = (&stage.params, &stage.variant);
        assert!(stage.iterations() <= u64::from(MAX_ITERATIONS), "{text}");
        let [x, y, z] = stage.grid.map(u64::from);
        let max = u64::from(caps.max_workgroups_per_dimension);
        assert!(x <= max && y <= max && z == 1, "{text}");
        let count = u64::from(p.workgroup_count);
        assert!(x * y >= count && x * y < count + y, "{text}");
        assert!(v.workgroup_size <= caps.max_workgroup_size && v.group_size <= v.workgroup_size);
        if let Some(window) = &stage.window {
            let size = geometry.len() * config.element.size();
            assert!(window.start < window.end && window.end <= size.next_multiple_of(4), "{text}");
            // Every device's alignment is a power of two.
            if caps.storage_alignment.is_power_of_two() {
                assert_eq!(window.start % u64::from(caps.storage_alignment), 0, "{text}");
            }
        }
        for binding in shader::bindings(v) {
            assert!(size_of(binding.slot) > 0, "{:?} binds {}: {text}", v.kernel, binding.slot);
        }
        // What the proof of the unchecked shaders builds on.
        if !geometry.is_empty() && v.slots.iter().any(|slot| slot.is_tensor()) {
            let runs = [p.run, p.per_run, p.strip];
            let divisors = [p.row_loads, p.chunk_count, p.per_chunk, p.channel_count];
            for divisor in divisors.into_iter().chain(runs) {
                assert!(divisor >= 1 || v.kernel.name() == "count_batch", "{text}");
            }
            let (steps, chunk) = (u64::from(p.step_count), u64::from(p.chunk));
            let long = steps + u64::from(p.tail > 0);
            assert!(u64::from(p.chunk_count) * chunk >= long, "chunks cover all steps: {text}");
            assert!(u64::from(p.chunk_count - 1) * chunk < long, "no chunk is empty: {text}");
            if v.held > 0 {
                let room = 4 * u64::from(v.workgroup_size) * u64::from(v.held);
                assert!(chunk == steps && steps <= room, "registers hold a channel: {text}");
            }
        }
        if v.slots.contains(Slot::Scratch) {
            assert!(plan.scratch_size() >= 8 * u64::from(p.plane), "{text}");
            // Rows are merged by runs of neighbours.
            let run = if v.kernel == Kernel::MergeRows { p.per_chunk } else { 1 };
            let planes = u64::from(p.chunk_count) * u64::from(p.width) * u64::from(run);
            // Gradients take merged sums alone, and are cut in their own way.
            let merged = matches!(v.kernel, Kernel::RowsGradient | Kernel::ColumnsGradient);
            assert!(merged || u64::from(p.plane) == planes, "{text}");
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(q) = Question::arbitrary(&mut Unstructured::new(bytes)) else { return };
    let shape: Vec<usize> = q.dimensions.iter().take(8).map(Dimension::get).collect();
    let axis = match q.axis {
        Axis::First => ChannelAxis::First,
        Axis::Last => ChannelAxis::Last,
        Axis::At(at) => ChannelAxis::At(at.into()),
        Axis::Any(at) => ChannelAxis::At(at),
        Axis::PerActivation => ChannelAxis::PerActivation,
    };
    let geometry = match Geometry::new(&shape, axis) {
        Ok(geometry) => geometry,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let flag = |bit: u16| q.flags & 1 << bit != 0;
    let config = Config {
        epsilon: if flag(0) { q.epsilon } else { 1e-5 },
        affine: Affine { gamma: flag(1), beta: flag(2) },
        update: match q.choices[0] % 4 {
            0 => Update::Rate(q.weight),
            1 => Update::Decay(q.weight),
            2 => Update::Cumulative,
            _ => Update::None,
        },
        running_variance: match flag(3) {
            true => RunningVariance::Unbiased,
            false => RunningVariance::Population,
        },
        single_value: if flag(4) { SingleValue::Allow } else { SingleValue::Error },
        non_finite: if flag(5) { NonFinite::Keep } else { NonFinite::Propagate },
        memory: [Memory::Separate, Memory::InPlace, Memory::Arena][usize::from(q.choices[1] % 3)],
        gradients: Gradients {
            x: flag(6),
            gamma: flag(7),
            beta: flag(8),
            z: flag(14),
            accumulate: flag(9),
        },
        element: [Element::F32, Element::F16, Element::Bf16][usize::from(q.choices[0] / 4 % 3)],
        activation: [Activation::None, Activation::Relu, Activation::RELU6, Activation::Silu]
            [usize::from(q.choices[1] / 3 % 4)],
        residual: flag(15),
        weights: q.choices[0] / 12 % 3 == 2,
        renorm: q.renorm.map(|[rmax, dmax]| Renorm { rmax, dmax }),
        groups: match q.groups {
            Groups::Channels => geometry.channels(),
            Groups::Small(groups) => groups.into(),
            Groups::Any(groups) => groups,
        },
        mask: [Mask::Auto, Mask::Bits, Mask::Recompute][usize::from(q.choices[1] / 12 % 3)],
        ..Config::pytorch()
    };
    let [binding, workgroups, lanes, alignment] = q.caps.each_ref().map(Size::get);
    let caps = Caps {
        class: if flag(10) { Class::Software } else { Class::Hardware },
        max_storage_binding_size: if flag(11) { u64::MAX } else { u64::from(binding) << 4 },
        max_workgroups_per_dimension: if flag(12) { 65_535 } else { workgroups },
        max_workgroup_size: if flag(13) { 256 } else { lanes },
        storage_alignment: alignment,
        int64: flag(14),
        ..Caps::webgpu_default()
    };
    let tuning = q.tuning.as_ref().map(|sizes| {
        let [size, count, loads, columns, fused, fused_columns, block, groups, tiny, row, odd, many] =
            sizes.each_ref().map(Size::get);
        Tuning {
            workgroup_size: size,
            workgroup_count: count,
            column_workgroup_count: groups,
            apply_workgroup_count: many,
            min_loads: loads,
            min_column_loads: columns,
            min_apply_loads: odd,
            merge_loads: row,
            fused_loads: fused,
            fused_column_loads: fused_columns,
            column_block: block,
            join_rows: flag(8),
            held_values: columns,
            fused_workgroups: groups,
            tiny_loads: tiny,
            min_row: row,
            short_row_loads: block,
            many_rows: many,
            min_odd_rows: odd,
            wide_loads: flag(14),
            from_end: flag(9),
            built_in_widen: flag(9),
            built_in_narrow: flag(8),
            mask_words: flag(9),
        }
    });
    let tuning = tuning.as_ref();
    examine::<Train>(geometry, &config, &caps, tuning);
    examine::<Infer>(geometry, &config, &caps, tuning);
    examine::<Backward>(geometry, &config, &caps, tuning);
    examine::<FrozenBackward>(geometry, &config, &caps, tuning);
    examine::<Statistics>(geometry, &config, &caps, tuning);
    examine::<Finalize>(geometry, &config, &caps, tuning);
    examine::<Normalize>(geometry, &config, &caps, tuning);
    examine::<Reduce>(geometry, &config, &caps, tuning);
    examine::<Gradient>(geometry, &config, &caps, tuning);
    examine::<GroupNorm>(geometry, &config, &caps, tuning);
    examine::<GroupNormBackward>(geometry, &config, &caps, tuning);
});
