//! Data that breaks careless kernels: large offsets, outliers, halves, constants, denormals, values
//! near the end of f32, and channels that are not finite.

use std::collections::BTreeMap;

use ndarray::ArrayD;
use wgpu_batchnorm::{
    Caps, ChannelAxis, Class, Config, Element, Geometry, Moments, RunningVariance, SingleValue,
    Tuning, reference,
};

use crate::common::check::{check, compare_frozen, compare_statistics, compare_training};
use crate::common::compare;
use crate::common::data::{Case, Data, Random};
use crate::common::{gpu, runner};

/// Rows and columns, with and without vectors, one channel and many, in both memory orders.
fn shapes() -> Vec<(Vec<usize>, ChannelAxis)> {
    vec![
        (vec![4, 3, 16, 12], ChannelAxis::First),
        (vec![4, 16, 12, 3], ChannelAxis::Last),
        (vec![3, 5, 7, 9], ChannelAxis::First),
        (vec![3, 7, 9, 5], ChannelAxis::Last),
        (vec![192, 8], ChannelAxis::Last),
        (vec![33, 2, 3], ChannelAxis::First),
        (vec![1, 1, 3001], ChannelAxis::First),
    ]
}

/// Both classes, and as many partial results as small tensors can have.
fn tunings(geometry: &Geometry) -> Vec<Tuning> {
    let choose = |class| {
        let caps = Caps { class, ..Caps::webgpu_default() };
        Tuning::choose(&caps, geometry, Config::pytorch().element)
    };
    let split = Tuning {
        fused_loads: 0,
        tiny_loads: 0,
        min_loads: 1,
        min_column_loads: 1,
        ..choose(Class::Software)
    };
    vec![choose(Class::Software), choose(Class::Hardware), split]
}

/// The value at one place of a channel of n values.
type Value = fn(place: usize, n: usize, random: &mut Random) -> f64;

/// Every distribution by name. A new one belongs here.
const DISTRIBUTIONS: [(&str, Value); 27] = [
    ("mean 1e4, deviation 1", |_, _, r| 1e4 + r.normal()),
    ("mean 1e7, deviation 1", |_, _, r| 1e7 + r.normal()),
    ("mean -1e7, deviation 10", |_, _, r| -1e7 + 10.0 * r.normal()),
    ("mean 1, deviation 1e-7", |_, _, r| 1.0 + 1e-7 * r.normal()),
    ("mean 1e3, deviation 1e-4", |_, _, r| 1e3 + 1e-4 * r.normal()),
    ("mean 1e14, deviation 1e7", |_, _, r| 1e14 + 1e7 * r.normal()),
    ("outlier 1e6 first", |i, _, r| if i == 0 { 1e6 } else { r.normal() }),
    ("outlier 1e6 last", |i, n, r| if i == n - 1 { 1e6 } else { r.normal() }),
    ("outlier 1e6 in the middle", |i, n, r| if i == n / 2 { 1e6 } else { r.normal() }),
    ("outlier 1e7 first, deviation 1e-3", |i, _, r| if i == 0 { 1e7 } else { 1e-3 * r.normal() }),
    ("outlier 0 first, mean 1e7", |i, _, r| if i == 0 { 0.0 } else { 1e7 + r.normal() }),
    ("outlier 0 last, mean 1e7", |i, n, r| if i == n - 1 { 0.0 } else { 1e7 + r.normal() }),
    ("half 1e4, half 1e4 + 1", |i, n, _| 1e4 + f64::from(u8::from(i >= n / 2))),
    ("1e4 and 1e4 + 1 in turn", |i, _, _| 1e4 + f64::from(u8::from(i % 2 == 1))),
    ("1e4 and -1e4 in turn", |i, _, _| if i % 2 == 0 { 1e4 } else { -1e4 }),
    ("constant 0", |_, _, _| 0.0),
    ("constant 0.1", |_, _, _| 0.1),
    ("constant -3e18", |_, _, _| -3e18),
    ("1 but for one unit in the last place", |i, n, _| {
        if i == n - 1 { 1.0 + f64::from(f32::EPSILON) } else { 1.0 }
    }),
    ("denormals", |_, _, r| 1e-40 * r.normal()),
    ("denormals around the smallest normal", |_, _, r| {
        f64::from(f32::MIN_POSITIVE) * (1.0 + 0.5 * r.normal())
    }),
    ("deviation 1e-20", |_, _, r| 1e-20 * r.normal()),
    ("deviation 1e18", |_, _, r| 1e18 * r.normal()),
    ("3e18 and -3e18 in turn", |i, _, _| if i % 2 == 0 { 3e18 } else { -3e18 }),
    ("mean 3e18, deviation 1e12", |_, _, r| 3e18 + 1e12 * r.normal()),
    ("every power of two from -40 to 40", |i, _, r| {
        r.normal().signum() * 2f64.powi((i % 81) as i32 - 40)
    }),
    ("a ramp", |i, n, _| 1e5 * i as f64 / n as f64),
];

fn fill(case: &Case, seed: u64, value: Value) -> Data {
    let g = case.geometry();
    let (c, inner) = (g.channels() as usize, g.inner() as usize);
    let n = g.values_per_channel() as usize;
    let mut random = Random(seed);
    let mut data = Data::random(g, seed, 0.0, 1.0);
    for (i, x) in data.x.iter_mut().enumerate() {
        let place = i / (inner * c) * inner + i % inner;
        *x = value(place, n, &mut random) as f32;
    }
    let mut data = data.rounded(case.config.element);
    // Running statistics as far from the data's as a deviation or two.
    let x = data.x.iter().map(|&x| f64::from(x)).collect();
    let x = ArrayD::from_shape_vec(case.shape.clone(), x).unwrap();
    let moments = reference::statistics(&reference::Input::new(x.view(), case.axis)).unwrap();
    let variance = moments.variance(RunningVariance::Population);
    for channel in 0..c {
        let (mean, variance) = (moments.mean()[channel], variance[channel]);
        data.running_mean[channel] = (mean + variance.sqrt() * random.normal()) as f32;
        data.running_var[channel] = (variance * (0.5 + random.unit())) as f32;
    }
    data
}

/// All five operations on every distribution against the oracle, and the variance within the
/// promise of one part in a million.
#[test]
fn every_distribution() {
    distributions(Element::F32);
}

/// The same of what the elements can hold.
#[test]
fn every_distribution_in_f16() {
    distributions(Element::F16);
}

#[test]
fn every_distribution_in_bf16() {
    distributions(Element::Bf16);
}

fn distributions(element: Element) {
    let Some(gpu) = gpu() else { return };
    let mut worst: BTreeMap<&str, f64> = BTreeMap::new();
    let (mut count, mut failures) = (0, Vec::new());
    for (name, value) in DISTRIBUTIONS {
        for (shape, axis) in shapes() {
            let case = Case::new(&shape, axis, Config { element, ..Config::pytorch() });
            let data = fill(&case, 7, value);
            if data.x.iter().any(|x| !x.is_finite()) {
                continue;
            }
            let x = data.x.iter().map(|&x| f64::from(x)).collect();
            let x = ArrayD::from_shape_vec(shape.clone(), x).unwrap();
            let exact = reference::statistics(&reference::Input::new(x.view(), axis)).unwrap();
            let exact = exact.variance(RunningVariance::Population);
            let promise = compare::variance_promise(&exact);
            for tuning in tunings(&case.geometry()) {
                let case = case.clone().tuned(&tuning);
                let mut note = |result: Result<(), String>| {
                    failures.extend(result.err().map(|error| format!("{name}: {error}")));
                };
                note(compare_training(&case, &data, &runner::train(gpu, &case, &data)));
                note(compare_frozen(&case, &data, &runner::frozen(gpu, &case, &data)));
                let slot = runner::statistics(gpu, &case, &data);
                let moments = Moments::from_slot(&slot).unwrap();
                note(compare_statistics(&case, &data, &moments));
                let variance = moments.variance(RunningVariance::Population);
                let result = compare::within(&variance, &exact, &promise);
                if !result.is_good() {
                    note(Err(format!("{case}: variance {result:?}")));
                }
                let entry = worst.entry(name).or_default();
                *entry = entry.max(result.ratio);
                count += 1;
            }
        }
    }
    println!("{count} cases; worst error of the variance, of the promise");
    worst.iter().for_each(|(name, ratio)| println!("  {name:<40} {ratio:6.3}"));
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// Which input of one channel is bad, and with which values.
#[derive(Debug, Clone, Copy)]
enum Bad {
    X,
    Dy,
    Gamma,
    Beta,
    RunningMean,
    RunningVar,
}

/// Every value of a result that belongs to another channel.
fn others(values: &[f32], bad: usize, channels: usize, inner: usize) -> Vec<u32> {
    let per_channel = if values.len().is_multiple_of(channels * inner) { inner } else { 1 };
    let other = |&(i, _): &(usize, &f32)| i / per_channel % channels != bad;
    values.iter().enumerate().filter(other).map(|(_, v)| v.to_bits()).collect()
}

/// A channel that is not finite leaves every other as it is, to the bit, in every result of every
/// operation; its own results are those of the oracle.
#[test]
fn a_channel_that_is_not_finite_stays_alone() {
    let Some(gpu) = gpu() else { return };
    let values =
        [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0x7f80_0001)];
    let mut count = 0;
    for (shape, axis) in shapes() {
        let config = Config { single_value: SingleValue::Allow, ..Config::pytorch() };
        let case = Case::new(&shape, axis, config);
        let g = case.geometry();
        let (c, inner) = (g.channels() as usize, g.inner() as usize);
        let n = g.values_per_channel() as usize;
        let clean = Data::random(g, 8, 1.0, 2.0);
        let at =
            |place: usize, channel: usize| (place / inner * c + channel) * inner + place % inner;
        for tuning in tunings(&g) {
            let case = case.clone().tuned(&tuning);
            let all = |data: &Data| {
                let (t, f) = (runner::train(gpu, &case, data), runner::frozen(gpu, &case, data));
                let s = runner::statistics(gpu, &case, data);
                let (mean, rest) = s.split_at(c);
                let (rest, variance) = rest.split_at(c);
                [
                    vec![t.y, t.mean, t.rest, t.inv_std, t.running_mean, t.running_var],
                    vec![t.dx, t.dgamma, t.dbeta, f.y, f.dx, f.dgamma, f.dbeta],
                    vec![mean.to_vec(), rest.to_vec(), variance.to_vec()],
                ]
                .concat()
            };
            let expected = all(&clean);
            let mut run = |bad: Bad, channel: usize, place: usize, value: f32| {
                let mut data = clean.clone();
                match bad {
                    Bad::X => data.x[at(place, channel)] = value,
                    Bad::Dy => data.dy[at(place, channel)] = value,
                    Bad::Gamma => data.gamma[channel] = value,
                    Bad::Beta => data.beta[channel] = value,
                    Bad::RunningMean => data.running_mean[channel] = value,
                    Bad::RunningVar => data.running_var[channel] = value,
                }
                for (i, (now, clean)) in all(&data).iter().zip(&expected).enumerate() {
                    let (now, clean) =
                        (others(now, channel, c, inner), others(clean, channel, c, inner));
                    assert!(now == clean, "{value} in {bad:?}[{channel}][{place}], {i}: {case}");
                }
                if matches!(bad, Bad::X) {
                    check(gpu, &case, &data);
                }
                count += 1;
            };
            for (i, &value) in values.iter().enumerate() {
                // The first place is the channel's shift.
                for place in [0, n / 2, n - 1] {
                    run(Bad::X, (i + place) % c, place, value);
                }
                run(Bad::Dy, i % c, n / 3, value);
                for bad in [Bad::Gamma, Bad::Beta, Bad::RunningMean, Bad::RunningVar] {
                    run(bad, i % c, 0, value);
                }
            }
            run(Bad::RunningVar, 0, 0, -1.0);
        }
    }
    println!("{count} cases");
}

/// Infinities of both signs, and values whose sum or spread overflows, in one channel.
#[test]
fn a_channel_that_overflows_stays_alone() {
    let Some(gpu) = gpu() else { return };
    for (shape, axis) in shapes() {
        let case = Case::new(&shape, axis, Config::pytorch());
        let g = case.geometry();
        let (c, inner) = (g.channels() as usize, g.inner() as usize);
        if c == 1 {
            continue;
        }
        let clean = Data::random(g, 9, 1.0, 2.0);
        for tuning in tunings(&g) {
            let case = case.clone().tuned(&tuning);
            let expected = runner::train(gpu, &case, &clean);
            for pair in [[f32::INFINITY, f32::NEG_INFINITY], [f32::MAX, f32::MIN], [2e38, 3e38]] {
                let mut data = clean.clone();
                for (i, x) in data.x.iter_mut().enumerate() {
                    if i / inner % c == 1 {
                        *x = pair[i / (inner * c) % 2];
                    }
                }
                let r = runner::train(gpu, &case, &data);
                for (now, clean) in [
                    (&r.y, &expected.y),
                    (&r.dx, &expected.dx),
                    (&r.mean, &expected.mean),
                    (&r.rest, &expected.rest),
                    (&r.inv_std, &expected.inv_std),
                    (&r.running_mean, &expected.running_mean),
                    (&r.running_var, &expected.running_var),
                    (&r.dgamma, &expected.dgamma),
                    (&r.dbeta, &expected.dbeta),
                ] {
                    let same = others(now, 1, c, inner) == others(clean, 1, c, inner);
                    assert!(same, "{pair:?} in channel 1: {case}");
                }
                // No finite number is made of what is not: the variance says so.
                assert!(!(r.running_var[1].is_finite() && r.running_var[1] < 1e30), "{case}");
            }
        }
    }
}
