//! Moments: by hand, merged, and as the running statistics of a layer.

use ndarray::{ArrayD, ArrayViewD, Axis, Slice};
use wgpu_batchnorm::{
    BatchNorm, ChannelAxis, Config, Gpu, HostError, Input, LayerState, Moments, MomentsError,
    RunningVariance, Update, reference,
};

use crate::common::check::{compare_statistics, given};
use crate::common::compare::{self, Arithmetic, Bounds, Center};
use crate::common::data::{Case, Data, Random};
use crate::common::gpu;

const POPULATION: RunningVariance = RunningVariance::Population;

/// One channel, of the given values.
fn of(values: &[f64]) -> Moments {
    let x = ArrayD::from_shape_vec(vec![values.len(), 1], values.to_vec()).unwrap();
    reference::statistics(&reference::Input::new(x.view(), ChannelAxis::Last)).unwrap()
}

fn merged<'a>(parts: impl IntoIterator<Item = &'a Moments>) -> Moments {
    let mut parts = parts.into_iter();
    let mut all = parts.next().unwrap().clone();
    parts.for_each(|part| all.merge(part).unwrap());
    all
}

#[test]
fn by_hand() {
    // Means 2 and 8, variances 1 and 11.
    let (a, b) = (of(&[1.0, 3.0]), of(&[5.0, 5.0, 9.0, 13.0]));
    assert_eq!((a.mean()[0], a.variance(POPULATION)[0]), (2.0, 1.0));
    assert_eq!((b.mean()[0], b.variance(POPULATION)[0]), (8.0, 11.0));
    let mut all = a.clone();
    all.merge(&b).unwrap();
    assert_eq!((all.count(), all.channels(), all.mean()[0]), (6.0, 1, 6.0));
    // Σ(x−6)² = 25 + 9 + 1 + 1 + 9 + 49 = 94.
    let near = |a: f64, b: f64| assert!((a - b).abs() <= 4.0 * f64::EPSILON * b, "{a} is not {b}");
    near(all.variance(POPULATION)[0], 94.0 / 6.0);
    near(all.variance(RunningVariance::Unbiased)[0], 94.0 / 5.0);
    let (mean, var) = all.running(RunningVariance::Unbiased).unwrap();
    assert_eq!((mean, var), (vec![6.0], vec![18.8]));
    // One value has no variance by either convention.
    let one = of(&[7.0]);
    assert_eq!(one.running(RunningVariance::Unbiased).unwrap(), (vec![7.0], vec![0.0]));
}

#[test]
fn a_slot_is_mean_remainder_variance_and_count() {
    let slot = [1.0f32, f32::INFINITY, 1e-9, f32::NAN, 2.0, f32::NAN, 4.0, 4.0];
    let moments = Moments::from_slot(&slot).unwrap();
    assert_eq!(moments.count(), 4.0);
    assert_eq!(moments.mean(), [1.0 + f64::from(1e-9f32), f64::INFINITY]);
    assert_eq!(moments.variance(POPULATION)[0], 2.0);
    assert!(moments.variance(POPULATION)[1].is_nan());
}

#[test]
fn merging_nothing_changes_nothing() {
    let bad = Moments::new(3.0, vec![f64::INFINITY, 0.1], vec![f64::NAN, 0.3]).unwrap();
    let mut all = bad.clone();
    all.merge(&Moments::empty(2)).unwrap();
    assert_eq!(format!("{all:?}"), format!("{bad:?}"));
    let exact = Moments::new(3.0, vec![1e300, 0.1], vec![0.7, 0.3]).unwrap();
    let mut all = Moments::empty(2);
    all.merge(&exact).unwrap();
    assert_eq!(all, exact);
    all.merge(&Moments::new(0.0, vec![5.0; 2], vec![5.0; 2]).unwrap()).unwrap();
    assert_eq!(all, exact);
}

#[test]
fn one_channel_never_touches_another() {
    let infinite =
        |sign: f64| Moments::new(2.0, vec![sign / 0.0, 1.0], vec![f64::NAN, 1.0]).unwrap();
    let mut all = infinite(1.0);
    all.merge(&Moments::new(2.0, vec![0.0, 3.0], vec![1.0, 1.0]).unwrap()).unwrap();
    assert_eq!((all.mean()[0], all.mean()[1]), (f64::INFINITY, 2.0));
    assert!(all.variance(POPULATION)[0].is_nan());
    assert_eq!(all.variance(POPULATION)[1], 2.0);
    all.merge(&infinite(1.0)).unwrap();
    assert_eq!(all.mean()[0], f64::INFINITY);
    all.merge(&infinite(-1.0)).unwrap();
    assert!(all.mean()[0].is_nan() && all.mean()[1].is_finite());
    let error = all.running(POPULATION).unwrap_err();
    assert!(matches!(error, MomentsError::NotFinite { channel: 0, .. }), "{error}");
}

#[test]
fn mistakes_are_typed() {
    assert_eq!(Moments::from_slot(&[0.0; 7]), Err(MomentsError::Slot { length: 7 }));
    assert_eq!(
        Moments::from_slot(&[0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 1.0, 1.0]),
        Err(MomentsError::Variance { channel: 1, value: -1.0 })
    );
    assert_eq!(
        Moments::from_slot(&[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0]),
        Err(MomentsError::Counts { channel: 1, found: 2.0, expected: 1.0 })
    );
    // Whatever no value's moments hold.
    let mut empty = Moments::new(0.0, vec![f64::NAN], vec![f64::NAN]).unwrap();
    empty.merge(&of(&[1.0, 3.0])).unwrap();
    assert_eq!(empty, of(&[1.0, 3.0]));
    // Sums of weights that were rounded in another order.
    let rounded = [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1e4, f32::from_bits(1e4f32.to_bits() + 3)];
    assert_eq!(Moments::from_slot(&rounded).unwrap().count(), 1e4);
    let other = [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1e4, 1e4 + 1.0];
    assert!(matches!(Moments::from_slot(&other), Err(MomentsError::Counts { channel: 1, .. })));
    for count in [-1.0, f64::INFINITY] {
        let error = Err(MomentsError::Count { count });
        assert_eq!(Moments::from_slot(&[0.0, 0.0, 0.0, count as f32]), error);
        assert_eq!(Moments::new(count, vec![0.0], vec![0.0]), error);
        assert_eq!(Moments::empty(1).with_count(count), error);
    }
    assert_eq!(of(&[5.0]).with_count(3.0).unwrap(), of(&[5.0, 5.0, 5.0]));
    assert_eq!(
        Moments::new(1.0, vec![0.0; 2], vec![0.0; 3]),
        Err(MomentsError::Channels { found: 3, expected: 2 })
    );
    let mut all = Moments::new(f64::MAX, vec![1.0], vec![2.0]).unwrap();
    let before = all.clone();
    let error = all.merge(&Moments::empty(2)).unwrap_err();
    assert_eq!(error, MomentsError::Channels { found: 2, expected: 1 });
    let error = all.merge(&before).unwrap_err();
    assert_eq!(error, MomentsError::Count { count: f64::INFINITY });
    assert_eq!(all, before, "an error changes nothing");
    assert_eq!(Moments::empty(3).running(POPULATION), Err(MomentsError::Empty));
    let wide = Moments::new(2.0, vec![0.0, 1e39], vec![1.0, 1.0]).unwrap();
    let error = wide.running(POPULATION).unwrap_err();
    assert_eq!(error, MomentsError::NotFinite { channel: 1, mean: f32::INFINITY, variance: 1.0 });
    assert!(error.to_string().contains("channel 1"), "{error}");
}

/// `x` cut along its first axis at random places, some parts empty.
fn cut<'a, T>(x: &ArrayViewD<'a, T>, random: &mut Random) -> Vec<ArrayViewD<'a, T>> {
    let n = x.shape()[0];
    let mut places: Vec<usize> = (0..4).map(|_| random.bits() as usize % (n + 1)).collect();
    places.extend([0, n]);
    places.sort_unstable();
    let piece = |pair: &[usize]| {
        let mut part = x.clone();
        part.slice_axis_inplace(Axis(0), Slice::from(pair[0]..pair[1]));
        part
    };
    places.windows(2).map(piece).collect()
}

/// Unequal batches, merged in any order and grouping, are the whole; averages of them are not.
#[test]
fn unequal_batches_are_the_whole() {
    let mut random = Random(41);
    let (mut noticed, mut worst) = (0, [0.0f64; 2]);
    for (shape, axis) in [
        (vec![64, 3, 7], ChannelAxis::First),
        (vec![97, 5], ChannelAxis::Last),
        (vec![33, 2, 5, 4], ChannelAxis::Last),
    ] {
        for round in 0..20 {
            let case = Case::new(&shape, axis, Config::pytorch());
            // The batches drift, so that their means lie apart.
            let mut data = Data::random(case.geometry(), round, 1000.0, 0.5);
            let last = data.x.len() as f32;
            for (i, x) in data.x.iter_mut().enumerate() {
                *x += 3.0 * i as f32 / last;
            }
            let x = data.x.iter().map(|&x| f64::from(x)).collect();
            let x = ArrayD::from_shape_vec(shape.clone(), x).unwrap();
            let whole = reference::statistics(&reference::Input::new(x.view(), axis)).unwrap();
            let parts: Vec<Moments> = cut(&x.view(), &mut random)
                .into_iter()
                .map(|part| reference::statistics(&reference::Input::new(part, axis)).unwrap())
                .collect();
            let bounds = Bounds::new(
                case.geometry(),
                given(&case, &data),
                &case.config,
                Center::Batch,
                Arithmetic::Oracle,
            );
            let is_whole = |all: &Moments| {
                let variance = |m: &Moments| m.variance(POPULATION);
                let mean = compare::within(all.mean(), whole.mean(), &bounds.whole_mean());
                let variance =
                    compare::within(&variance(all), &variance(&whole), &bounds.variance());
                all.count() == whole.count() && mean.is_good() && variance.is_good()
            };
            let first = merged(&parts);
            let relative = |a: f64, e: f64| (a - e).abs() / e;
            for c in 0..whole.channels() {
                let variance = |m: &Moments| m.variance(POPULATION)[c];
                worst[0] = worst[0].max(relative(first.mean()[c], whole.mean()[c]));
                worst[1] = worst[1].max(relative(variance(&first), variance(&whole)));
            }
            let ends = [merged(&parts[..2]), merged(&parts[2..])];
            assert!(is_whole(&first), "{case}");
            assert!(is_whole(&merged(parts.iter().rev())), "{case}");
            assert!(is_whole(&merged(&ends)), "{case}");
            // Parts that count the same: what averaging would give.
            let full: Vec<&Moments> = parts.iter().filter(|part| part.count() > 0.0).collect();
            let count = whole.count() / full.len() as f64;
            let equal: Vec<Moments> = full
                .iter()
                .map(|m| Moments::new(count, m.mean().to_vec(), m.variance(POPULATION)).unwrap())
                .collect();
            let averaged = merged(&equal);
            let averaged = Moments::new(
                whole.count(),
                averaged.mean().to_vec(),
                averaged.variance(POPULATION),
            );
            noticed += usize::from(!is_whole(&averaged.unwrap()));
        }
    }
    println!("worst relative error of merged means {:.1e}, variances {:.1e}", worst[0], worst[1]);
    assert!(noticed >= 55, "equal weights were noticed in {noticed} of 60 rounds only");
}

#[test]
fn statistics_of_arrays() {
    let Some(gpu) = gpu() else { return };
    for (shape, axis) in [
        (vec![4, 3, 5, 7], ChannelAxis::First),
        (vec![4, 5, 7, 3], ChannelAxis::Last),
        (vec![1, 6], ChannelAxis::Last),
        (vec![2, 5, 9, 11], ChannelAxis::PerActivation),
    ] {
        let case = Case::new(&shape, axis, Config::pytorch());
        let data = Data::random(case.geometry(), 42, 2.0, 1.0);
        let x = ArrayD::from_shape_vec(shape, data.x.clone()).unwrap();
        let moments = gpu.statistics_blocking(&Input::new(x.view(), axis)).unwrap();
        compare_statistics(&case, &data, &moments).unwrap();
        // The same values behind reversed strides.
        let mut mirrored = x.clone();
        mirrored.invert_axis(Axis(0));
        let mirrored = mirrored.as_standard_layout().into_owned();
        let mut view = mirrored.view();
        view.invert_axis(Axis(0));
        assert_eq!(gpu.statistics_blocking(&Input::new(view, axis)).unwrap(), moments);
    }
    for shape in [[0, 3, 4], [2, 3, 0]] {
        let x = ArrayD::<f32>::zeros(shape.to_vec());
        let moments = gpu.statistics_blocking(&Input::new(x.view(), ChannelAxis::First)).unwrap();
        assert_eq!(moments, Moments::empty(3), "{shape:?}");
    }
    let none = ArrayD::<f32>::zeros(vec![2, 0, 4]);
    assert_eq!(
        gpu.statistics_blocking(&Input::new(none.view(), ChannelAxis::First)).unwrap().channels(),
        0
    );
    let error = gpu.statistics_blocking(&Input::new(none.view(), ChannelAxis::At(3))).unwrap_err();
    assert!(matches!(error, HostError::Geometry(_)), "{error}");
}

/// Two batches of 16 values a channel and one of 32, of means c, c + 4, c + 6 and deviations 1, 2, 1.
fn batches() -> Vec<ArrayD<f32>> {
    let batch = |n: usize, shift: f32, spread: f32| {
        let case = Case::new(&[n, 3, 8], ChannelAxis::First, Config::pytorch());
        let data = Data::balanced(case.geometry(), |c| c as f32 + shift, spread);
        ArrayD::from_shape_vec(case.shape, data.x).unwrap()
    };
    vec![batch(2, 0.0, 1.0), batch(2, 4.0, 2.0), batch(4, 6.0, 1.0)]
}

fn views(batches: &[ArrayD<f32>]) -> impl Iterator<Item = ArrayViewD<'_, f32>> {
    batches.iter().map(|batch| batch.view())
}

#[test]
fn a_layer_takes_the_statistics_of_all_batches() {
    let Some(gpu) = gpu() else { return };
    for config in [Config::pytorch(), Config::keras()] {
        let mut layer = BatchNorm::new(gpu, 3, config.clone()).unwrap();
        let mut state = LayerState::new(3);
        state.gamma[1] = 2.0;
        state.batches = 7;
        layer.load(&state).unwrap();
        let x = &batches()[0];
        layer.forward_train_blocking(x.view()).unwrap();
        let before = layer.state_blocking().unwrap();
        let gradients = layer.backward_blocking(x.view()).unwrap();
        let all = layer.re_estimate_blocking(views(&batches())).unwrap();
        // 16 and 16: mean c + 2, variance (1 + 4)/2 + 2² = 6.5. And 32: mean c + 4, variance
        // (6.5 + 1)/2 + 2² = 7.75.
        assert_eq!((all.count(), all.mean()), (64.0, &[4.0, 5.0, 6.0][..]));
        assert_eq!(all.variance(POPULATION), [7.75; 3]);
        let variance = match config.running_variance {
            RunningVariance::Population => 7.75,
            RunningVariance::Unbiased => (7.75f64 * 64.0 / 63.0) as f32,
        };
        let after = layer.state_blocking().unwrap();
        let expected = LayerState {
            running_mean: vec![4.0, 5.0, 6.0].into(),
            running_var: vec![variance; 3].into(),
            ..before
        };
        assert_eq!(after, expected);
        assert_eq!(layer.backward_blocking(x.view()).unwrap(), gradients, "the backward is kept");
        // The same as the statistics of one joined tensor.
        let joined = ndarray::concatenate(Axis(0), &views(&batches()).collect::<Vec<_>>()).unwrap();
        assert_eq!(
            gpu.statistics_blocking(&Input::new(joined.view(), ChannelAxis::First)).unwrap(),
            all
        );
        layer.set_running(&Moments::new(4.0, vec![1.0; 3], vec![0.0; 3]).unwrap()).unwrap();
        let state = layer.state_blocking().unwrap();
        assert_eq!((state.running_mean[2], state.running_var[2]), (1.0, 0.0));
    }
}

/// The other choice weighs batches the same, and misses what lies between their means.
#[test]
fn a_cumulative_average_is_something_else() {
    let Some(gpu) = gpu() else { return };
    let config = Config { update: Update::Cumulative, ..Config::keras() };
    let mut layer = BatchNorm::new(gpu, 3, config).unwrap();
    for batch in views(&batches()) {
        layer.forward_train_blocking(batch).unwrap();
    }
    let state = layer.state_blocking().unwrap();
    let state = [state.running_mean.to_vec(), state.running_var.to_vec()].concat();
    let third = 10.0 / 3.0;
    let expected = [third, third + 1.0, third + 2.0, 2.0, 2.0, 2.0];
    // Three updates of values below 8: a division good to 2.5 units, and three roundings.
    let bounds = [3.0 * 8.0 * 8.0 * 2f64.powi(-24); 6];
    let result = compare::within(&state, &expected, &bounds);
    assert!(result.is_good(), "{result:?}");
}

#[test]
fn a_failed_re_estimation_changes_nothing() {
    let Some(gpu) = gpu() else { return };
    let mut layer = BatchNorm::new(gpu, 3, Config::pytorch()).unwrap();
    layer.forward_train_blocking(batches()[1].view()).unwrap();
    let before = layer.state_blocking().unwrap();
    let mut refused = |bad: Option<ArrayD<f32>>| {
        let all: Vec<ArrayD<f32>> = match bad {
            Some(bad) => [vec![batches().remove(0)], vec![bad]].concat(),
            None => Vec::new(),
        };
        let error = layer.re_estimate_blocking(views(&all)).unwrap_err();
        assert_eq!(layer.state_blocking().unwrap(), before, "{error}");
        error
    };
    let error = refused(Some(ArrayD::zeros(vec![2, 4, 8])));
    assert_eq!(error, HostError::Channels { found: 4, expected: 3 });
    assert!(matches!(refused(Some(ArrayD::zeros(vec![2]))), HostError::Geometry(_)));
    let mut bad = batches().remove(2);
    bad[[1, 2, 3]] = f32::NAN;
    let error = refused(Some(bad));
    let HostError::Moments(MomentsError::NotFinite { channel: 2, .. }) = error else {
        panic!("{error}");
    };
    assert_eq!(refused(None), HostError::Moments(MomentsError::Empty));
    assert_eq!(
        layer.set_running(&Moments::empty(2)).unwrap_err(),
        HostError::Moments(MomentsError::Channels { found: 2, expected: 3 })
    );
    assert_eq!(layer.state_blocking().unwrap(), before);
}

/// A device that fails between two batches.
#[test]
fn a_device_lost_on_the_way_is_an_error() {
    if gpu().is_none() {
        return;
    }
    let gpu = Gpu::new_blocking().unwrap();
    let mut layer = BatchNorm::new(&gpu, 3, Config::pytorch()).unwrap();
    let batches = batches();
    let lose = views(&batches).inspect(|x| {
        if x.shape()[0] == 4 {
            gpu.device().destroy();
        }
    });
    layer.re_estimate_blocking(lose).unwrap_err();
}
