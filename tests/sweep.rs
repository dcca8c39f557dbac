//! Sizes around every boundary of the tuning, in both memory orders, on every path, against the
//! oracle; every option; and proof that the comparison notices an error.

use wgpu_batchnorm::{
    Activation, Affine, ChannelAxis, Config, Element, Gradients, Memory, NonFinite,
    RunningVariance, SingleValue, Tuning, Update,
};

use crate::common::check::{check, compare_frozen, compare_statistics, compare_training};
use crate::common::data::{Case, Data, Random, small_tunings};
use crate::common::{gpu, runner};

fn tunings() -> Vec<Tuning> {
    let [split, fused, wide] = small_tunings();
    let columns_only =
        Tuning { min_row: u32::MAX, workgroup_count: 40, column_block: 0, ..split.clone() };
    // Chunks of several blocks of more tiles and rows.
    let blocks = Tuning { column_block: 6_000, workgroup_count: 2, ..columns_only.clone() };
    vec![split, fused, wide, columns_only, blocks]
}

fn sizes() -> Vec<(Vec<usize>, ChannelAxis)> {
    let mut sizes = Vec::new();
    // Rows: the length of a row around the vector width, the workgroup and four workgroups.
    for inner in [1, 2, 3, 4, 5, 7, 8, 12, 28, 31, 32, 33, 36, 49, 124, 127, 128, 129, 132, 260] {
        for (outer, channels) in [(1, 1), (1, 3), (2, 5), (3, 2), (5, 4), (17, 4), (33, 3)] {
            sizes.push((vec![outer, channels, inner], ChannelAxis::First));
        }
    }
    // Columns: the width around the vector width and a workgroup's tile, rows around a chunk.
    for channels in [1, 2, 3, 4, 5, 7, 8, 30, 31, 32, 33, 36, 63, 64, 65, 257] {
        for outer in [2, 3, 4, 5, 8, 13, 16, 17, 61, 64, 67] {
            sizes.push((vec![outer, channels], ChannelAxis::Last));
        }
    }
    // Pairs of vectors whose columns are of three channels, and of two.
    for inner in [5, 9, 21] {
        sizes.push((vec![16, 8, inner], ChannelAxis::First));
    }
    sizes.push((vec![3, 4, 5, 6], ChannelAxis::At(-2)));
    sizes.push((vec![3, 4, 5, 6], ChannelAxis::At(0)));
    sizes.push((vec![6, 4, 5, 3], ChannelAxis::PerActivation));
    sizes.push((vec![3, 4099], ChannelAxis::Last));
    sizes.push((vec![2, 4099, 3], ChannelAxis::First));
    sizes
}

#[test]
fn every_size_on_every_path() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(1);
    let mut count = 0;
    for tuning in tunings() {
        for (shape, axis) in sizes() {
            // Every other size is enough for the wider tunings.
            let wider = tuning.workgroup_size != 8 || tuning.column_block > 4_000;
            if wider && random.bits().is_multiple_of(2) {
                continue;
            }
            let config = Config { single_value: SingleValue::Allow, ..Config::pytorch() };
            let case = Case::new(&shape, axis, config).tuned(&tuning);
            check(gpu, &case, &Data::random(case.geometry(), random.bits(), 2.0, 1.5));
            count += 1;
        }
    }
    println!("{count} cases");
}

/// Odd rows, channels and counts of halves, two of which share a word across rows, channels and
/// workgroups; with all that is stored as halves and as bits.
#[test]
fn odd_halves_on_every_path() {
    let Some(gpu) = gpu() else { return };
    let mut shapes = Vec::new();
    for inner in [1, 3, 4, 5, 7, 31, 33, 36, 127, 129] {
        for (outer, channels) in [(1, 1), (1, 3), (3, 5), (17, 3), (2, 4)] {
            shapes.push((vec![outer, channels, inner], ChannelAxis::First));
            shapes.push((vec![outer, inner, channels], ChannelAxis::Last));
        }
    }
    let mut count = 0;
    for (i, tuning) in tunings().iter().enumerate() {
        for (j, (shape, axis)) in shapes.iter().enumerate() {
            let config = Config {
                element: [Element::F16, Element::Bf16][(i + j) % 2],
                single_value: SingleValue::Allow,
                activation: [Activation::Relu, Activation::None, Activation::Silu][(i + j) % 3],
                residual: j % 4 < 2,
                memory: [Memory::Separate, Memory::InPlace, Memory::Arena][j % 3],
                ..Config::pytorch()
            };
            let case = Case::new(shape, *axis, config).tuned(tuning);
            let data = Data::random(case.geometry(), j as u64, 2.0, 1.5);
            check(gpu, &case, &data.rounded(case.config.element));
            count += 1;
        }
    }
    println!("{count} cases");
}

#[test]
fn default_tunings_on_common_shapes() {
    let Some(gpu) = gpu() else { return };
    let shapes: [(&[usize], ChannelAxis); 10] = [
        (&[8, 64, 28, 28], ChannelAxis::First),
        (&[8, 28, 28, 64], ChannelAxis::Last),
        (&[2, 512, 7, 7], ChannelAxis::First),
        (&[32, 130, 7, 7], ChannelAxis::First),
        (&[256, 128], ChannelAxis::First),
        (&[4096, 64], ChannelAxis::Last),
        (&[2, 1, 200, 300], ChannelAxis::First),
        (&[2, 3, 127, 129], ChannelAxis::First),
        (&[2, 127, 129, 3], ChannelAxis::Last),
        (&[27, 13, 12, 6], ChannelAxis::Last),
    ];
    for (shape, axis) in shapes {
        for class in [wgpu_batchnorm::Class::Software, wgpu_batchnorm::Class::Hardware] {
            let caps = wgpu_batchnorm::Caps { class, ..gpu.caps().clone() };
            let case = Case::new(shape, axis, Config::keras());
            let tuning = Tuning::choose(&caps, &case.geometry(), case.config.element);
            let case = case.tuned(&tuning);
            check(gpu, &case, &Data::random(case.geometry(), 5, -3.0, 2.0));
        }
    }
}

/// Every option on one shape of each path. A new value of an option belongs here.
#[test]
fn every_option() {
    let Some(gpu) = gpu() else { return };
    let shapes: [(&[usize], ChannelAxis); 3] = [
        (&[3, 5, 6, 8], ChannelAxis::First),
        (&[3, 5, 7, 9], ChannelAxis::First),
        (&[33, 12], ChannelAxis::Last),
    ];
    let mut configs = Vec::new();
    for bits in 0..4 {
        let affine = Affine { gamma: bits & 1 > 0, beta: bits & 2 > 0 };
        configs.push(Config { affine, ..Config::keras() });
    }
    for bits in 0..8 {
        let gradients = Gradients {
            x: bits & 1 > 0,
            gamma: bits & 2 > 0,
            beta: bits & 4 > 0,
            z: false,
            accumulate: false,
        };
        configs.push(Config { gradients, ..Config::onnx() });
    }
    for memory in [Memory::Separate, Memory::InPlace, Memory::Arena] {
        configs.push(Config { memory, ..Config::pytorch() });
    }
    for update in [Update::Rate(0.3), Update::Decay(0.7), Update::Cumulative, Update::None] {
        for running_variance in [RunningVariance::Population, RunningVariance::Unbiased] {
            configs.push(Config { update, running_variance, ..Config::flax() });
        }
    }
    configs.push(Config { non_finite: NonFinite::Keep, ..Config::burn() });
    for tuning in &tunings()[..2] {
        for (shape, axis) in shapes {
            for config in &configs {
                let case = Case::new(shape, axis, config.clone()).tuned(tuning);
                check(gpu, &case, &Data::random(case.geometry(), 9, 1.0, 1.0));
            }
        }
    }
}

#[test]
fn workgroups_fold_into_a_second_dimension() {
    let Some(gpu) = gpu() else { return };
    let caps = wgpu_batchnorm::Caps { max_workgroups_per_dimension: 8, ..gpu.caps().clone() };
    for (shape, axis) in [(vec![2, 45, 8], ChannelAxis::First), (vec![70, 200], ChannelAxis::Last)]
    {
        for tuning in tunings() {
            let case = Case::new(&shape, axis, Config::keras()).tuned(&tuning);
            let data = Data::random(case.geometry(), 3, 0.0, 1.0);
            let plan = wgpu_batchnorm::Plan::<wgpu_batchnorm::Train>::with_tuning(
                case.geometry(),
                &case.config,
                &caps,
                &tuning,
            )
            .unwrap();
            assert!(plan.stages().iter().all(|s| s.grid[0] <= 8), "{}", plan.explain());
            let folded = runner::run(gpu, gpu.kernels(), plan, &runner::inputs(&data));
            let flat = runner::train(gpu, &case, &data);
            let y = runner::floats(&folded[&wgpu_batchnorm::Slot::Y]);
            assert_eq!(runner::bits(&y), runner::bits(&flat.y), "{case}");
        }
    }
}

/// More channels than a dimension has workgroups.
#[test]
fn seventy_thousand_channels() {
    let Some(gpu) = gpu() else { return };
    for (shape, axis) in
        [(vec![2, 70_000, 33], ChannelAxis::First), (vec![3, 70_001], ChannelAxis::Last)]
    {
        let case = Case::new(&shape, axis, Config::pytorch());
        check(gpu, &case, &Data::random(case.geometry(), 4, 0.5, 2.0));
    }
}

/// A comparison that cannot fail would prove nothing.
#[test]
fn a_perturbed_result_is_noticed() {
    let Some(gpu) = gpu() else { return };
    let case = Case::new(&[4, 3, 6, 5], ChannelAxis::First, Config::pytorch());
    let data = Data::random(case.geometry(), 8, 1.0, 2.0);
    let good = runner::train(gpu, &case, &data);
    assert_eq!(compare_training(&case, &data, &good), Ok(()));
    let frozen = runner::frozen(gpu, &case, &data);
    assert_eq!(compare_frozen(&case, &data, &frozen), Ok(()));
    type Field = fn(&mut runner::Results) -> &mut Vec<f32>;
    let fields: [Field; 8] = [
        |r| &mut r.y,
        |r| &mut r.mean,
        |r| &mut r.inv_std,
        |r| &mut r.running_mean,
        |r| &mut r.running_var,
        |r| &mut r.dx,
        |r| &mut r.dgamma,
        |r| &mut r.dbeta,
    ];
    for field in fields {
        for change in [1.001, f32::NAN, f32::INFINITY] {
            let mut bad = good.clone();
            field(&mut bad)[1] *= change;
            assert!(compare_training(&case, &data, &bad).is_err());
        }
    }
    for field in [fields[0], fields[5], fields[6], fields[7]] {
        let mut bad = frozen.clone();
        field(&mut bad)[1] *= 1.001;
        assert!(compare_frozen(&case, &data, &bad).is_err());
    }
    let slot = runner::statistics(gpu, &case, &data);
    let compare = |slot: &[f32]| {
        compare_statistics(&case, &data, &wgpu_batchnorm::Moments::from_slot(slot).unwrap())
    };
    assert_eq!(compare(&slot), Ok(()));
    // A mean, a variance, and a remainder of a thousandth of the mean.
    for (at, value) in [(1, slot[1] * 1.001), (7, slot[7] * 1.001), (4, slot[1] * 0.001)] {
        for value in [value, f32::INFINITY] {
            let mut bad = slot.clone();
            bad[at] = value;
            // A remainder that is not finite is that of a mean that is not, and not looked at.
            assert_eq!(compare(&bad).is_err(), at != 4 || value.is_finite(), "{at}: {value}");
        }
    }
}
