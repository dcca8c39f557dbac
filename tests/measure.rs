//! What is measured of a device, and the tuning that follows from it.

use std::time::{Duration, Instant};

use wgpu_batchnorm::{
    Backward, Caps, ChannelAxis, Class, Config, CopyRate, Geometry, Gpu, MAX_ITERATIONS, Measured,
    Operation, Plan, Train, Tuning, Update,
};

use crate::common::data::{Case, Data};
use crate::common::{check, gpu, runner};

fn measured(dispatch_us: f64, alone: f64, copies: &[f64]) -> Measured {
    let copy = |(i, &gigabytes_per_second): (usize, &f64)| CopyRate {
        bytes: 1 << (16 + 2 * i),
        gigabytes_per_second,
    };
    Measured { dispatch_us, alone, copies: copies.iter().enumerate().map(copy).collect() }
}

fn caps(class: Class) -> Caps {
    Caps { class, ..Caps::webgpu_default() }
}

#[test]
fn text_keeps_every_bit() {
    for given in [
        measured(9.5, 6.25, &[8.0, 12.5]),
        measured(0.1 + 0.2, 1.0 / 3.0, &[1e-300, 1e300, 7.0f64.sqrt()]),
        measured(0.001, 1e9, &[]),
    ] {
        let line = given.to_string();
        assert!(!line.contains('\n'), "{line}");
        assert_eq!(line.parse::<Measured>().unwrap(), given, "{line}");
        assert_eq!(format!(" {line}\n").parse::<Measured>().unwrap(), given);
    }
}

#[test]
fn other_texts_are_errors() {
    let good = measured(9.5, 6.25, &[8.0]).to_string();
    let bad =
        ["", "9.5", "dispatch us, alone 1 GB/s, copies GB/s", &good[1..], &good[..good.len() - 1]];
    let more = [good.clone() + ", more", good.replace(':', " "), good.replace("6.25", "six")];
    for text in bad.into_iter().map(String::from).chain(more) {
        let error = text.parse::<Measured>().unwrap_err();
        assert_eq!(error.text, text);
        assert!(error.to_string().contains("is no measurement"), "{error}");
    }
}

/// 8 lanes of 16 bytes, read and written at 6.4 GB/s: 0.04 µs a load. Two workgroups at once: a second
/// dispatch, of 10 µs, pays from 10 / (0.04 · ½) = 500 loads on, which is nearest to 512.
#[test]
fn a_dispatch_is_weighed_against_loads() {
    let geometry = Geometry::new(&[8, 4, 100], ChannelAxis::First).unwrap();
    let element = Config::pytorch().element;
    let class = Tuning::choose(&caps(Class::Software), &geometry, element);
    let of = |m: &Measured| Tuning::refined(&caps(Class::Software), &geometry, element, m);
    let expected = Tuning { tiny_loads: 512, fused_workgroups: 2, ..class.clone() };
    assert_eq!(of(&measured(10.0, 6.4, &[10.0, 12.8, 12.0])), expected);
    // What differs a little is the same.
    assert_eq!(of(&measured(10.5, 6.3, &[10.0, 13.0, 12.0])), expected);
    let cheap = of(&measured(0.5, 6.4, &[12.8]));
    assert_eq!(cheap.tiny_loads, 32, "25 loads, nearest to 32 by ratio");
    let wide = of(&measured(10.0, 6.4, &[6.4 * 64.0]));
    assert_eq!((wide.fused_workgroups, wide.tiny_loads), (64, 256), "254 loads");
}

#[test]
fn nonsense_changes_nothing() {
    let geometry = Geometry::new(&[8, 4, 100], ChannelAxis::First).unwrap();
    let element = Config::pytorch().element;
    for class in [Class::Software, Class::Hardware] {
        let chosen = Tuning::choose(&caps(class), &geometry, element);
        for nonsense in [
            measured(f64::NAN, 6.4, &[12.8]),
            measured(0.0, 6.4, &[12.8]),
            measured(10.0, 0.0, &[12.8]),
            measured(10.0, -6.4, &[12.8]),
            measured(10.0, 6.4, &[]),
            measured(10.0, 6.4, &[f64::INFINITY]),
            measured(10.0, 6.4, &[f64::NAN]),
            // One workgroup alone ten thousand times as fast as many.
            measured(10.0, 262_144.0, &[25.0]),
        ] {
            let refined = Tuning::refined(&caps(class), &geometry, element, &nonsense);
            assert_eq!(refined, chosen, "{nonsense}");
        }
    }
}

/// Whatever a device is like, plans are within the bound on iterations, and a wrong measurement is no
/// wrong result.
#[test]
fn every_measurement_gives_plans() {
    fn within<O: Operation>(geometry: Geometry, caps: &Caps, tuning: &Tuning) {
        let plan = Plan::<O>::with_tuning(geometry, &Config::pytorch(), caps, tuning).unwrap();
        for stage in plan.stages() {
            assert!(stage.iterations() <= u64::from(MAX_ITERATIONS), "{tuning:?}: {stage:?}");
        }
    }
    let shapes: [&[usize]; 5] =
        [&[8, 64, 56, 56], &[4, 1, 2048, 2048], &[2, 3, 5, 7], &[1 << 16, 3], &[3, 1 << 17]];
    for (shape, class) in
        shapes.iter().flat_map(|shape| [Class::Software, Class::Hardware].map(|c| (shape, c)))
    {
        let geometry = Geometry::new(shape, ChannelAxis::At(1)).unwrap();
        for power in (-12..=12).step_by(3) {
            let scale = 10f64.powi(power);
            for m in [measured(scale, 1.0, &[2.0]), measured(10.0, 6.4, &[6.4 * scale])] {
                let caps = caps(class);
                let tuning = Tuning::refined(&caps, &geometry, Config::pytorch().element, &m);
                within::<Train>(geometry, &caps, &tuning);
                within::<Backward>(geometry, &caps, &tuning);
            }
        }
    }
}

#[test]
fn a_device_is_measured() {
    let Some(gpu) = gpu() else { return };
    let start = Instant::now();
    let measured = gpu.measure_blocking().unwrap();
    let took = start.elapsed();
    println!("{measured}, in {took:?}");
    // Tests run beside it; alone it takes some 100 ms.
    assert!(took < Duration::from_secs(10), "{took:?}");
    let rates = measured.copies.iter().map(|copy| copy.gigabytes_per_second);
    for number in [measured.dispatch_us, measured.alone].into_iter().chain(rates) {
        assert!(number.is_finite() && number > 0.0, "{measured}");
    }
    assert!(measured.copies.is_sorted_by_key(|copy| copy.bytes), "{measured}");
    assert_eq!(measured.to_string().parse::<Measured>().unwrap(), measured);
}

/// Refined tunings compute the same operations, and one of them the same bits every time.
#[test]
fn a_refined_tuning_is_right_and_deterministic() {
    let Some(gpu) = gpu() else { return };
    for (shape, axis) in [
        (&[4, 2, 40, 40][..], ChannelAxis::First),
        (&[2, 5, 65, 7][..], ChannelAxis::First),
        (&[3000, 6][..], ChannelAxis::Last),
    ] {
        let config = Config { update: Update::Rate(0.25), ..Config::pytorch() };
        let case = Case::new(shape, axis, config);
        let data = Data::random(case.geometry(), 91, 1.0, 2.0);
        for m in [measured(1e3, 6.4, &[12.8]), measured(1e-3, 6.4, &[640.0])] {
            let element = case.config.element;
            let tuning = Tuning::refined(gpu.caps(), &case.geometry(), element, &m);
            let case = case.clone().tuned(&tuning);
            check::check(gpu, &case, &data);
            let once = runner::train(gpu, &case, &data);
            assert_eq!(once.bits(), runner::train(gpu, &case, &data).bits(), "{case}");
        }
    }
}

#[test]
fn a_lost_device_is_an_error() {
    if gpu().is_none() {
        return;
    }
    let gpu = Gpu::new_blocking().unwrap();
    gpu.device().destroy();
    let start = Instant::now();
    let error = gpu.measure_blocking().unwrap_err();
    assert!(error.to_string().contains("lost"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
}
