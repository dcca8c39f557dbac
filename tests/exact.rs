//! Data whose statistics are exact whatever the order of summation: the threshold is 0.

use std::collections::HashSet;

use wgpu_batchnorm::{
    Activation, Backward, ChannelAxis, Class, Config, Element, Mask, Memory, NonFinite, Renorm,
    SingleValue, Train, Tuning, Update,
};

use crate::common::compare::exactly;
use crate::common::data::{Case, Data, small_tunings};
use crate::common::{gpu, runner};

fn tunings(case: &Case) -> Vec<Tuning> {
    let choose = |class| {
        let caps = wgpu_batchnorm::Caps { class, ..wgpu_batchnorm::Caps::webgpu_default() };
        Tuning::choose(&caps, &case.geometry(), case.config.element)
    };
    let software = choose(Class::Software);
    let split = Tuning {
        fused_loads: 0,
        fused_column_loads: 0,
        tiny_loads: 0,
        min_loads: 4,
        ..software.clone()
    };
    vec![software, choose(Class::Hardware), split]
}

#[test]
fn mean_and_variance_of_exact_fill() {
    let Some(gpu) = gpu() else { return };
    let sizes: [(&[usize], ChannelAxis); 6] = [
        (&[8, 16, 4, 4], ChannelAxis::First),
        (&[4, 2, 64, 64], ChannelAxis::First),
        (&[1, 1, 65_536], ChannelAxis::First),
        (&[64, 32], ChannelAxis::Last),
        (&[16_384, 4], ChannelAxis::Last),
        (&[2, 8, 8, 128], ChannelAxis::Last),
    ];
    for (shape, axis) in sizes {
        // With ε = 3·4^k and spread 2^k the inverse deviation is 2^-(k+1).
        for (center, spread) in [(0.0f32, 1.0f32), (1e4, 1.0), (-65_536.0, 0.5), (3.0, 1024.0)] {
            let config = Config {
                epsilon: 3.0 * f64::from(spread).powi(2),
                update: Update::Rate(1.0),
                running_variance: wgpu_batchnorm::RunningVariance::Population,
                ..Config::pytorch()
            };
            let case = Case::new(shape, axis, config);
            let c = case.geometry().channels() as usize;
            let mean = |channel: usize| center + channel as f32;
            let data = Data::balanced(case.geometry(), mean, spread);
            for tuning in tunings(&case) {
                let case = case.clone().tuned(&tuning);
                let r = runner::train(gpu, &case, &data);
                let means: Vec<f32> = (0..c).map(mean).collect();
                assert!(exactly(&r.mean, &means).is_good(), "{case}: mean {:?}", r.mean);
                assert!(exactly(&r.rest, &vec![0.0; c]).is_good(), "{case}: rest {:?}", r.rest);
                assert!(exactly(&r.running_mean, &means).is_good(), "{case}");
                let variance = vec![spread * spread; c];
                let close = exactly(&r.running_var, &variance);
                assert!(close.is_good(), "{case}: variance {:?}", r.running_var);
                let alone = runner::statistics(gpu, &case, &data);
                let n = case.geometry().values_per_channel() as f32;
                let expected = [means, vec![0.0; c], variance, vec![n; c]].concat();
                assert!(exactly(&alone, &expected).is_good(), "{case}: moments {alone:?}");
            }
        }
    }
}

#[test]
fn constant_channels_give_exactly_beta() {
    let Some(gpu) = gpu() else { return };
    for (shape, axis) in [
        (vec![3, 5, 7, 9], ChannelAxis::First),
        (vec![2, 3, 64, 66], ChannelAxis::First),
        (vec![301, 7], ChannelAxis::Last),
        (vec![1, 1, 100_003], ChannelAxis::First),
    ] {
        let case = Case::new(&shape, axis, Config::pytorch());
        let g = case.geometry();
        let (c, inner) = (g.channels() as usize, g.inner() as usize);
        let mut data = Data::random(g, 6, 0.0, 1.0);
        for (i, x) in data.x.iter_mut().enumerate() {
            *x = [0.1, -1e4, 3.3e7, 1e-30, 1.1e19][i / inner % c % 5];
        }
        for tuning in tunings(&case) {
            let case = case.clone().tuned(&tuning);
            let r = runner::train(gpu, &case, &data);
            let betas: Vec<f32> = (0..g.len() as usize).map(|i| data.beta[i / inner % c]).collect();
            assert!(exactly(&r.y, &betas).is_good(), "{case}");
            let factor = 1.0 - 0.1;
            for (new, old) in r.running_var.iter().zip(&data.running_var) {
                assert_eq!(
                    *new,
                    (f64::from(*old) as f32) * factor as f32,
                    "{case}: variance not 0"
                );
            }
            let firsts: Vec<f32> = (0..c).map(|channel| data.x[channel * inner]).collect();
            let expected =
                [firsts, vec![0.0; 2 * c], vec![g.values_per_channel() as f32; c]].concat();
            let moments = runner::statistics(gpu, &case, &data);
            assert!(exactly(&moments, &expected).is_good(), "{case}: moments {moments:?}");
        }
    }
}

/// One value per channel: `y = β`, `dx = 0`, whatever `x` is.
#[test]
fn single_values() {
    let Some(gpu) = gpu() else { return };
    let config = Config { single_value: SingleValue::Allow, ..Config::pytorch() };
    for (shape, axis) in [(vec![1, 37], ChannelAxis::Last), (vec![1, 37, 1], ChannelAxis::First)] {
        let case = Case::new(&shape, axis, config.clone());
        let data = Data::random(case.geometry(), 6, 10.0, 1.0);
        let r = runner::train(gpu, &case, &data);
        assert!(exactly(&r.y, &data.beta).is_good());
        assert!(exactly(&r.mean, &data.x).is_good());
        assert!(exactly(&r.dx, &[0.0; 37]).is_good());
        assert!(exactly(&r.dbeta, &data.dy).is_good());
        assert!(r.running_var.iter().all(|v| v.is_finite()));
        // Statistics need no permission: there is nothing to normalize.
        let case = Case { config: Config::pytorch(), ..case };
        let expected = [data.x.clone(), vec![0.0; 2 * 37], vec![1.0; 37]].concat();
        assert!(exactly(&runner::statistics(gpu, &case, &data), &expected).is_good());
    }
}

/// Under `Keep`, a channel that is not finite leaves its running statistics alone and no other's.
#[test]
fn non_finite_channels_keep_running_statistics() {
    let Some(gpu) = gpu() else { return };
    for (shape, axis) in [(vec![4, 3, 50], ChannelAxis::First), (vec![200, 3], ChannelAxis::Last)] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let config = Config { non_finite: NonFinite::Keep, ..Config::pytorch() };
            let case = Case::new(&shape, axis, config);
            let clean = Data::random(case.geometry(), 6, 0.0, 1.0);
            let mut data = clean.clone();
            // The first value of channel 1, which is also its shift.
            let first = case.geometry().inner() as usize;
            data.x[first] = bad;
            for tuning in tunings(&case) {
                let case = case.clone().tuned(&tuning);
                let good = runner::train(gpu, &case, &clean);
                let r = runner::train(gpu, &case, &data);
                assert_eq!(r.running_mean[1], data.running_mean[1]);
                assert_eq!(r.running_var[1], data.running_var[1]);
                for c in [0, 2] {
                    assert_eq!(r.running_mean[c], good.running_mean[c], "{case}");
                    assert_eq!(r.inv_std[c], good.inv_std[c], "{case}");
                }
                assert!(r.inv_std[1].is_nan(), "{case}");
                let same = if bad.is_nan() { r.mean[1].is_nan() } else { r.mean[1] == bad };
                assert!(same, "{case}: mean {} for {bad}", r.mean[1]);
                // Statistics: the channel's own mean and variance, and nobody else's.
                let alone = runner::statistics(gpu, &case, &data);
                let mut expected = runner::statistics(gpu, &case, &clean);
                (expected[1], expected[4], expected[7]) = (bad, f32::NAN, f32::NAN);
                assert!(exactly(&alone, &expected).is_good(), "{case}: moments {alone:?}");
            }
        }
    }
}

/// What is kept in registers is what would be read again: the same bits, for every number of strides and
/// of values that are left, in vectors and pairs of them.
#[test]
fn channels_in_registers_give_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    let fused = &small_tunings()[1];
    let relu = Config { activation: Activation::Relu, ..Config::pytorch() };
    let added = Config { residual: true, ..relu.clone() };
    let renorm = Some(Renorm { rmax: 1.5, dmax: 0.5 });
    let configs = [
        Config { renorm, ..Config::pytorch() },
        Config { memory: Memory::InPlace, ..added.clone() },
        Config { memory: Memory::Arena, mask: Mask::Recompute, ..added.clone() },
        // dx is computed from dz as it is stored.
        Config { element: Element::Bf16, mask: Mask::Recompute, ..added },
        Config { element: Element::F16, activation: Activation::Silu, residual: true, ..relu },
    ];
    let mut seen = HashSet::new();
    // No whole stride; one and more; vectors; nothing left.
    for (outer, inner) in [(1, 3), (33, 5), (3, 8), (4, 36), (9, 40), (2, 256)] {
        for (config, wide_loads) in configs.iter().flat_map(|c| [(c, false), (c, true)]) {
            if wide_loads && inner % 8 != 0 {
                continue;
            }
            let case = Case::new(&[outer, 5, inner], ChannelAxis::First, config.clone());
            let data = Data::random(case.geometry(), 7, 3.0, 2.0).rounded(config.element);
            let results = [0, 512].map(|held_values| {
                let base = Tuning { wide_loads, mask_words: false, ..fused.clone() };
                let case = case.clone().tuned(&Tuning { held_values, min_row: 1, ..base });
                let plans = [
                    runner::plan::<Train>(gpu, &case).unwrap().stages()[0].variant,
                    runner::plan::<Backward>(gpu, &case).unwrap().stages()[0].variant,
                ];
                for variant in plans {
                    assert_eq!(variant.held > 0, held_values > 0, "{case}: {variant:?}");
                    seen.insert((variant.held, variant.vector, variant.paired));
                }
                runner::train(gpu, &case, &data).bits()
            });
            assert_eq!(results[0], results[1], "{case}, wide {wide_loads}");
        }
    }
    let pairs = gpu.caps().int64;
    for expected in [(1, 1, false), (8, 1, false), (1, 4, false), (2, 4, false), (4, 4, pairs)] {
        assert!(seen.contains(&expected), "{expected:?} is not among {seen:?}");
    }
}
