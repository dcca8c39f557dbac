//! A batch in shards: statistics of each, merged; sums of each, added. Whatever the cut, the results
//! are those of the whole batch. Random cuts of random cases: `shards_are_the_whole`.

use wgpu_batchnorm::{
    ChannelAxis, Config, Finalize, Gpu, Gradients, Memory, NonFinite, Plan, Reduce, SingleValue,
    Slot, Update,
};

use crate::common::check::{agree, compare_sharded, expected_sharded};
use crate::common::data::{Case, Data, shards, small_tunings};
use crate::common::gpu;
use crate::common::runner::{self, Contents, bits, floats};

const MEMORY: [Memory; 3] = [Memory::Separate, Memory::InPlace, Memory::Arena];

/// Unequal shards, an empty one first, in the middle and last, and one of a single row.
const CUTS: [usize; 6] = [0, 1, 3, 3, 16, 17];

fn cases() -> Vec<Case> {
    let [split, fused, wide] = small_tunings();
    let case = |shape: &[usize], axis| Case::new(shape, axis, Config::pytorch());
    vec![
        case(&[17, 3, 8, 5], ChannelAxis::First).tuned(&split),
        case(&[17, 3, 8, 5], ChannelAxis::First).tuned(&fused),
        case(&[17, 5, 7], ChannelAxis::First).tuned(&wide),
        case(&[17, 12], ChannelAxis::Last).tuned(&split),
        case(&[17, 7], ChannelAxis::Last).tuned(&fused),
        case(&[17, 7], ChannelAxis::Last),
    ]
}

fn with(case: &Case, change: impl FnOnce(&mut Config)) -> Case {
    let mut case = case.clone();
    change(&mut case.config);
    case
}

#[test]
fn unequal_shards_in_every_memory() {
    let Some(gpu) = gpu() else { return };
    for case in cases() {
        for memory in MEMORY {
            for update in [Update::Decay(0.9), Update::Cumulative, Update::None] {
                let case = with(&case, |config| {
                    (config.memory, config.update) = (memory, update);
                });
                let data = Data::random(case.geometry(), 71, 2.0, 3.0);
                let results = runner::sharded(gpu, &case, &data, &CUTS);
                compare_sharded(&case, &data, CUTS.len() + 1, &results).unwrap();
                let batches = if update == Update::Cumulative { data.batches + 1 } else { 0 };
                assert_eq!(results.batches, batches, "{case}");
            }
        }
    }
}

/// What no gradient of the mask needs is not bound, and the others have the same bits.
#[test]
fn every_mask() {
    let Some(gpu) = gpu() else { return };
    for case in cases() {
        let data = Data::random(case.geometry(), 72, -1.0, 1.0);
        let whole = runner::sharded(gpu, &case, &data, &CUTS);
        for mask in 0..8 {
            let gradients = Gradients {
                x: mask & 1 > 0,
                gamma: mask & 2 > 0,
                beta: mask & 4 > 0,
                z: false,
                accumulate: false,
            };
            let case = with(&case, |config| config.gradients = gradients);
            let some = runner::sharded(gpu, &case, &data, &CUTS);
            compare_sharded(&case, &data, CUTS.len() + 1, &some).unwrap();
            for name in ["dx", "dgamma", "dbeta"] {
                let same = bits(some.get(name)) == bits(whole.get(name));
                assert!(some.get(name).is_empty() || same, "{name}: {case}");
            }
        }
    }
}

/// Data on which averages of shards, or a variance that cancels, are far off.
#[test]
fn hostile_shards() {
    let Some(gpu) = gpu() else { return };
    for case in cases() {
        let g = case.geometry();
        let row = (g.channels() * g.inner()) as usize;
        type Kind = fn(usize, f32) -> f32;
        let kinds: [(&str, Kind); 4] = [
            ("a mean of a million deviations", |_, x| 1e6 + x),
            ("a constant shard", |row, x| if row < 3 { 7.0 } else { x }),
            ("all constant but for one value", |row, x| if row == 16 { x } else { -3.0 }),
            ("means far apart", |row, x| if row < 3 { x - 1e4 } else { 1e4 + x }),
        ];
        for (name, kind) in kinds {
            let mut data = Data::random(g, 73, 0.0, 1.0);
            for (i, x) in data.x.iter_mut().enumerate() {
                *x = kind(i / row, *x);
            }
            let results = runner::sharded(gpu, &case, &data, &CUTS);
            let result = compare_sharded(&case, &data, CUTS.len() + 1, &results);
            assert!(result.is_ok(), "{name}: {}", result.unwrap_err());
        }
    }
}

/// A constant batch has variance 0 and y = β to the bit, however it is cut.
#[test]
fn a_constant_batch_is_exact() {
    let Some(gpu) = gpu() else { return };
    for case in cases() {
        let mut data = Data::random(case.geometry(), 74, 0.0, 1.0);
        data.x.fill(0.1);
        let results = runner::sharded(gpu, &case, &data, &CUTS);
        let inner = case.geometry().inner() as usize;
        for (i, y) in results.y.iter().enumerate() {
            assert_eq!(*y, data.beta[i / inner % data.beta.len()], "{case}");
        }
        assert!(results.mean.iter().all(|mean| *mean == 0.1), "{case}");
        assert!(results.rest.iter().all(|rest| *rest == 0.0), "{case}");
    }
}

#[test]
fn every_cut_agrees() {
    let Some(gpu) = gpu() else { return };
    let every: Vec<usize> = (1..17).collect();
    for case in cases() {
        let data = Data::random(case.geometry(), 75, 50.0, 2.0);
        let of = |cuts: &[usize]| runner::sharded(gpu, &case, &data, cuts);
        let expected = || expected_sharded(&case, &data, every.len() + 1);
        agree(&case, &of(&CUTS), &of(&every), expected()).unwrap();
        agree(&case, &of(&[16]), &of(&every), expected()).unwrap();
        assert!(of(&CUTS) == of(&CUTS), "the same bits every time: {case}");
    }
}

/// One shard, and empty ones around it, is the whole batch to the bit: a mean and its remainder pass
/// through the merge as they are.
#[test]
fn one_shard_is_the_whole_to_the_bit() {
    let Some(gpu) = gpu() else { return };
    let [split, ..] = small_tunings();
    for case in cases() {
        let case = case.tuned(&split);
        let data = Data::random(case.geometry(), 76, 1e6, 1.0);
        let whole = runner::train(gpu, &case, &data);
        for cuts in [&[][..], &[0, 17, 17]] {
            let results = runner::sharded(gpu, &case, &data, cuts);
            assert!(results.bits() == whole.bits(), "{cuts:?}: {case}");
        }
    }
}

/// Shards of one value each; and one value in all, which has no variance.
#[test]
fn single_values() {
    let Some(gpu) = gpu() else { return };
    let case = Case::new(&[9, 5], ChannelAxis::Last, Config::pytorch());
    let data = Data::random(case.geometry(), 77, 3.0, 1.0);
    let cuts: Vec<usize> = (1..9).collect();
    compare_sharded(&case, &data, 9, &runner::sharded(gpu, &case, &data, &cuts)).unwrap();
    let allow = Config { single_value: SingleValue::Allow, ..Config::pytorch() };
    for config in [allow, Config::pytorch()] {
        let one = Case::new(&[1, 5], ChannelAxis::Last, config);
        let data = Data::random(one.geometry(), 78, 3.0, 1.0);
        let results = runner::sharded(gpu, &one, &data, &[0]);
        assert_eq!(results.y, data.beta);
        assert_eq!(results.count, [1.0; 5]);
        // By neither convention has one value a variance.
        let kept: Vec<f32> = data.running_var.iter().map(|v| v * 0.9).collect();
        assert_eq!(results.running_var, kept);
        assert!(results.dx.iter().all(|dx| *dx == 0.0));
    }
}

fn finalize(gpu: &Gpu, case: &Case, data: &Data, parts: &[[f32; 4]]) -> Contents {
    let mut inputs = runner::inputs(data);
    // One part after another, plane by plane; every channel is the same.
    let c = data.gamma.len();
    let values = parts.iter().flatten().flat_map(|v| vec![v.to_bits(); c]);
    inputs.insert(Slot::Parts, values.collect());
    let case = runner::parts_case(case, parts.len());
    let plan = runner::plan::<Finalize>(gpu, &case).unwrap();
    runner::run(gpu, gpu.kernels(), plan, &inputs)
}

/// Means 2 and 8, variances 1 and 11, counts 2 and 4: mean 6, variance 94/6, unbiased 94/5.
#[test]
fn by_hand() {
    let Some(gpu) = gpu() else { return };
    let config = Config { update: Update::Rate(1.0), ..Config::pytorch() };
    let case = Case::new(&[6, 3], ChannelAxis::Last, config);
    let data = Data::random(case.geometry(), 79, 0.0, 1.0);
    let nothing = [f32::NAN, f32::INFINITY, f32::NAN, 0.0];
    let parts = [nothing, [2.0, 0.0, 1.0, 2.0], nothing, [8.0, 0.0, 11.0, 4.0], nothing];
    let out = finalize(gpu, &case, &data, &parts);
    let saved = floats(&out[&Slot::Saved]);
    let near = |a: f32, e: f64| {
        // A division, a root and some products.
        assert!((f64::from(a) - e).abs() <= 16.0 * 2f64.powi(-24) * e, "{a} is not {e}");
    };
    for c in 0..3 {
        near(saved[c], 6.0);
        near(saved[6 + c], 1.0 / (94.0f64 / 6.0 + 1e-5).sqrt());
        assert_eq!(saved[9 + c], 6.0);
        near(floats(&out[&Slot::RunningMean])[c], 6.0);
        near(floats(&out[&Slot::RunningVar])[c], 94.0 / 5.0);
    }
}

/// Parts without values change nothing, whatever they hold; so does no part at all.
#[test]
fn empty_parts() {
    let Some(gpu) = gpu() else { return };
    for non_finite in [NonFinite::Propagate, NonFinite::Keep] {
        let config = Config { update: Update::Cumulative, non_finite, ..Config::pytorch() };
        let case = Case::new(&[0, 5], ChannelAxis::Last, config);
        let data = Data::random(case.geometry(), 80, 0.0, 1.0);
        for parts in [&[][..], &[[f32::NAN, f32::NAN, f32::INFINITY, 0.0]; 9]] {
            let out = finalize(gpu, &case, &data, parts);
            // Zeros of either sign: Mesa 25 gives −0 for remainders.
            assert_eq!(floats(&out[&Slot::Saved]), [0.0; 20]);
            assert_eq!(out[&Slot::RunningMean], bits(&data.running_mean));
            assert_eq!(out[&Slot::RunningVar], bits(&data.running_var));
            assert_eq!(out[&Slot::Batches], [data.batches]);
        }
    }
}

/// Infinite and NaN values go through the merge as through the kernels of the whole batch.
#[test]
fn bad_values() {
    let Some(gpu) = gpu() else { return };
    for case in cases() {
        for non_finite in [NonFinite::Propagate, NonFinite::Keep] {
            let case = with(&case, |config| config.non_finite = non_finite);
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for place in [0, 200 % case.geometry().len() as usize] {
                    let mut data = Data::random(case.geometry(), 81, 1.0, 1.0);
                    data.x[place] = value;
                    let results = runner::sharded(gpu, &case, &data, &CUTS);
                    compare_sharded(&case, &data, CUTS.len() + 1, &results).unwrap();
                }
            }
        }
    }
}

/// Thousands of parts, more than a workgroup has lanes for.
#[test]
fn thousands_of_parts() {
    let Some(gpu) = gpu() else { return };
    let case = Case::new(&[5003, 6], ChannelAxis::Last, Config::pytorch());
    let data = Data::random(case.geometry(), 82, 1000.0, 1.0);
    let shards = shards(&case, &data, &(1..5003).collect::<Vec<_>>());
    let mut inputs = runner::inputs(&data);
    let one = |(_, data): &(Case, Data)| {
        let zeros = vec![0.0; 6];
        bits(&[data.x.clone(), zeros.clone(), zeros, vec![1.0; 6]].concat())
    };
    inputs.insert(Slot::Parts, shards.iter().flat_map(one).collect());
    let [split, _, wide] = small_tunings();
    for tuning in [&split, &wide] {
        let merge = runner::parts_case(&case, 5003).tuned(tuning);
        let plan: Plan<Finalize> = runner::plan(gpu, &merge).unwrap();
        assert!(plan.stages()[0].variant.group_size > 1);
        let out = runner::run(gpu, gpu.kernels(), plan, &inputs);
        let saved = floats(&out[&Slot::Saved]);
        let planes: Vec<&[f32]> = saved.chunks(6).collect();
        for expected in expected_sharded(&case, &data, 5003) {
            let actual = match expected.name {
                "mean" => planes[0].to_vec(),
                "inv_std" => planes[2].to_vec(),
                "count" => planes[3].to_vec(),
                "running_mean" => floats(&out[&Slot::RunningMean]),
                "running_var" => floats(&out[&Slot::RunningVar]),
                _ => continue,
            };
            let compared =
                crate::common::compare::within(&actual, &expected.values, &expected.bounds);
            assert!(compared.is_good(), "{}: {compared:?}", expected.name);
        }
    }
}

/// An empty shard adds nothing to its parameter gradients, and its sums are zero.
#[test]
fn an_empty_shard_accumulates_nothing() {
    let Some(gpu) = gpu() else { return };
    let gradients = Gradients { accumulate: true, ..Gradients::ALL };
    let case = Case::new(&[0, 3, 4], ChannelAxis::First, Config { gradients, ..Config::pytorch() });
    let plan = runner::plan::<Reduce>(gpu, &case).unwrap();
    let out = runner::run(gpu, gpu.kernels(), plan, &Contents::new());
    assert_eq!(out.into_iter().collect::<Vec<_>>(), [(Slot::Sums, vec![0; 6])]);
}
