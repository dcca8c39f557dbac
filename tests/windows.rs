//! Tensors past one binding: the same results from windows over them, by a limit that is lowered on
//! purpose, and once by a tensor that no binding of the device can hold.

use wgpu_batchnorm::{
    Activation, Backward, Bind, Caps, ChannelAxis, Config, Element, FrozenBackward, Geometry,
    Gradients, Infer, InferBuffers, Mask, Memory, Moments, Operation, Plan, PlanError, Slot,
    Statistics, Train, TrainBuffers, Tuning, Update, wgpu,
};

use crate::common::check::{compare_frozen, compare_statistics, compare_training};
use crate::common::data::{Case, Data, small_tunings};
use crate::common::{compare, gpu, runner};

/// Shapes, and bindings that hold a few of their samples, less than one sample, and less than one
/// channel.
const CASES: [(&[usize], ChannelAxis, &[u64]); 6] = [
    (&[9, 5, 12], ChannelAxis::First, &[1536, 1024]),
    (&[6, 4, 600], ChannelAxis::First, &[20_480, 6144, 2048]),
    (&[3, 3, 1001], ChannelAxis::First, &[16_384, 5120, 2560]),
    (&[1, 1, 9000], ChannelAxis::First, &[8192, 2048]),
    (&[400, 7], ChannelAxis::Last, &[8192]),
    (&[240, 12], ChannelAxis::Last, &[8192]),
];

fn cases(config: &Config) -> Vec<Case> {
    let mut cases = Vec::new();
    let tunings = small_tunings();
    for (i, (shape, axis, bindings)) in CASES.iter().enumerate() {
        for (j, binding) in bindings.iter().enumerate() {
            let tuning = &tunings[(i + j) % 3];
            let mut case = Case::new(shape, *axis, config.clone()).tuned(tuning);
            case.binding = Some(*binding);
            cases.push(case);
        }
    }
    cases
}

fn check(config: &Config) {
    let Some(gpu) = gpu() else { return };
    for case in cases(config) {
        let g = case.geometry();
        let data = Data::random(g, 41, 3.0, 2.0).rounded(case.config.element);
        let plan = runner::plan::<Infer>(gpu, &case).unwrap();
        let cut = plan.slot_size(Slot::X) > case.binding.unwrap();
        assert_eq!(plan.stages().len() > 1, cut, "{case}");
        compare_training(&case, &data, &runner::train(gpu, &case, &data)).unwrap();
        compare_frozen(&case, &data, &runner::frozen(gpu, &case, &data)).unwrap();
        let moments = Moments::from_slot(&runner::statistics(gpu, &case, &data)).unwrap();
        compare_statistics(&case, &data, &moments).unwrap();
    }
}

#[test]
fn every_operation_in_windows() {
    for memory in [Memory::Separate, Memory::InPlace, Memory::Arena] {
        for update in [Update::Rate(0.1), Update::Cumulative, Update::None] {
            check(&Config { memory, update, ..Config::pytorch() });
        }
    }
}

#[test]
fn halves_in_windows() {
    for element in [Element::F16, Element::Bf16] {
        check(&Config { element, ..Config::pytorch() });
    }
}

#[test]
fn activations_and_residuals_in_windows() {
    for mask in [Mask::Auto, Mask::Recompute, Mask::Bits] {
        for z in [true, false] {
            let gradients = Gradients { z, ..Gradients::ALL };
            let activation = Activation::Relu;
            check(&Config { activation, residual: true, mask, gradients, ..Config::keras() });
        }
    }
}

/// Far from zero, with parts whose means lie apart, and with a channel that is not finite.
#[test]
fn hostile_windows() {
    let Some(gpu) = gpu() else { return };
    for case in cases(&Config::pytorch()) {
        let mut data = Data::random(case.geometry(), 43, 1e6, 1.0);
        let n = data.x.len();
        compare_training(&case, &data, &runner::train(gpu, &case, &data)).unwrap();
        data.x.iter_mut().enumerate().for_each(|(i, x)| *x += 1e4 * i as f32 / n as f32);
        compare_training(&case, &data, &runner::train(gpu, &case, &data)).unwrap();
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            data.x[n / 2] = value;
            compare_training(&case, &data, &runner::train(gpu, &case, &data)).unwrap();
        }
    }
}

/// Windows that are walked as columns, and a last one as rows: each takes its statistics relative to
/// values of the channel itself, whatever its neighbours hold.
#[test]
fn windows_walked_in_different_ways() {
    let Some(gpu) = gpu() else { return };
    let tuning = Tuning { min_odd_rows: 16, ..small_tunings()[0].clone() };
    let mut case = Case::new(&[47, 8, 7], ChannelAxis::First, Config::pytorch()).tuned(&tuning);
    case.binding = Some(5120);
    let plan = runner::plan::<Train>(gpu, &case).unwrap();
    let kernels: Vec<_> = plan.stages().iter().map(|s| s.variant.kernel.name()).collect();
    for walk in ["columns_statistics", "rows_statistics"] {
        assert!(kernels.contains(&walk), "{}", plan.explain());
    }
    let mut data = Data::random(case.geometry(), 47, 0.0, 1e-3);
    let channels = |i: usize| i / 7 % 8;
    for (i, x) in data.x.iter_mut().enumerate() {
        match channels(i) % 3 {
            0 => *x = 0.1,
            1 => *x = 1e6,
            _ => {}
        }
    }
    let results = runner::train(gpu, &case, &data);
    compare_training(&case, &data, &results).unwrap();
    let moments = Moments::from_slot(&runner::statistics(gpu, &case, &data)).unwrap();
    compare_statistics(&case, &data, &moments).unwrap();
    for (i, y) in results.y.iter().enumerate() {
        let c = channels(i);
        assert!(c % 3 == 2 || *y == data.beta[c], "constant channel {c}: {y}");
    }
}

/// Every window is within the limit and begins where it may, and together they are the tensor.
#[test]
fn windows_are_within_the_limits() {
    fn stages<O: Operation>(geometry: Geometry, config: &Config, caps: &Caps) {
        let plan = Plan::<O>::new(geometry, config, caps).unwrap();
        let size = plan.slot_size(Slot::X);
        let mut covered: Vec<_> = plan.stages().iter().filter_map(|s| s.window.clone()).collect();
        assert!(!covered.is_empty());
        covered.sort_by_key(|window| window.start);
        let mut end = 0;
        for window in covered {
            assert!(window.start.is_multiple_of(caps.storage_alignment.into()));
            // 32 values share a word of the mask.
            assert!(window.start.is_multiple_of(32 * config.element.size()));
            assert!(window.start <= end && window.end <= size);
            assert!(window.end - window.start <= caps.max_storage_binding_size);
            end = end.max(window.end);
        }
        assert_eq!(end, size);
        assert!(plan.binding_size(Slot::X) <= caps.max_storage_binding_size);
        assert!(plan.explain().contains("windows."), "{}", plan.explain());
    }
    // Past 2³² bytes and past 2³² elements, without such memory.
    for (shape, axis) in [
        (vec![64, 64, 512, 512], ChannelAxis::First),
        (vec![4, 3, 65_536, 8192], ChannelAxis::First),
        (vec![1 << 24, 96], ChannelAxis::Last),
        // Windows that end anywhere.
        (vec![8_000_003, 3, 7, 7], ChannelAxis::First),
    ] {
        for element in [Element::F32, Element::F16] {
            let geometry = Geometry::new(&shape, axis).unwrap();
            let config = Config { element, ..Config::pytorch() };
            for class in [wgpu_batchnorm::Class::Software, wgpu_batchnorm::Class::Hardware] {
                for limit in [128 << 20, 1 << 30, u64::MAX] {
                    let caps =
                        Caps { class, max_storage_binding_size: limit, ..Caps::webgpu_default() };
                    let caps = Caps { storage_alignment: 16, ..caps };
                    stages::<Train>(geometry, &config, &caps);
                    stages::<Infer>(geometry, &config, &caps);
                    stages::<Backward>(geometry, &config, &caps);
                    stages::<FrozenBackward>(geometry, &config, &caps);
                    stages::<Statistics>(geometry, &config, &caps);
                }
            }
        }
    }
}

/// What has no windows: values of channels, and the mask.
#[test]
fn other_slots_over_the_limit_are_named() {
    let caps = Caps::webgpu_default();
    let channels = Geometry::new(&[5, 1 << 30], ChannelAxis::Last).unwrap();
    match Plan::<Infer>::new(channels, &Config::pytorch(), &caps) {
        Err(PlanError::TooLarge { slot: Slot::Gamma, size, limit }) => {
            assert_eq!((size, limit), (4 << 30, 128 << 20));
        }
        other => panic!("{other:?}"),
    }
    let tensor = Geometry::new(&[64, 64, 1024, 1024], ChannelAxis::First).unwrap();
    let config = Config { activation: Activation::Relu, residual: true, ..Config::pytorch() };
    match Plan::<Train>::new(tensor, &config, &caps) {
        Err(PlanError::TooLarge { slot: Slot::Mask, size, .. }) => assert_eq!(size, 512 << 20),
        other => panic!("{other:?}"),
    }
    let config = Config { mask: Mask::Recompute, ..config };
    assert!(Plan::<Train>::new(tensor, &config, &caps).is_ok());
}

#[test]
fn a_limit_too_small_for_any_window_is_named() {
    let geometry = Geometry::new(&[100, 3], ChannelAxis::Last).unwrap();
    let caps = Caps { max_storage_binding_size: 300, ..Caps::webgpu_default() };
    match Plan::<Train>::new(geometry, &Config::pytorch(), &caps) {
        Err(PlanError::TooLarge { slot: Slot::X, limit: 300, .. }) => {}
        other => panic!("{other:?}"),
    }
}

/// More than 128 MiB, which is what WebGPU and lavapipe bind at most.
#[test]
fn a_tensor_past_the_device_s_binding() {
    let Some(gpu) = gpu() else { return };
    let limit = wgpu::Limits::default().max_storage_buffer_binding_size;
    let caps = Caps { max_storage_binding_size: limit, ..gpu.caps().clone() };
    // Two channels of ±1 around 1000 and −3, in 144 MiB.
    let geometry = Geometry::new(&[3, 2, 6 << 20], ChannelAxis::First).unwrap();
    let size = geometry.len() * 4;
    assert!(size > limit);
    let config = Config { update: Update::Rate(1.0), ..Config::keras() };
    let value = |i: u64| {
        let center = if (i / (6 << 20)).is_multiple_of(2) { 1000.0 } else { -3.0 };
        center + if i.count_ones().is_multiple_of(2) { 1.0 } else { -1.0f32 }
    };
    let x: Vec<u32> = (0..geometry.len()).map(|i| value(i).to_bits()).collect();
    let [x, y] = [runner::upload(gpu, &x), runner::upload(gpu, &x)];
    let tuning = Tuning::choose(&caps, &geometry, config.element);
    let plan = Plan::<Train>::with_tuning(geometry, &config, &caps, &tuning).unwrap();
    let slot = |slot| runner::upload(gpu, &vec![0; plan.slot_size(slot) as usize / 4]);
    let (saved, mean, var) = (slot(Slot::Saved), slot(Slot::RunningMean), slot(Slot::RunningVar));
    let (scratch, beta) = (slot(Slot::Scratch), slot(Slot::Beta));
    let gamma = runner::upload(gpu, &[2.0f32.to_bits(); 2]);
    let train = gpu.kernels().prepare(plan).unwrap();
    let bound = train
        .bind(&TrainBuffers {
            x: (&x).into(),
            y: (&y).into(),
            gamma: (&gamma).into(),
            beta: (&beta).into(),
            saved: (&saved).into(),
            running_mean: (&mean).into(),
            running_var: (&var).into(),
            scratch: (&scratch).into(),
            ..Default::default()
        })
        .unwrap();
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    bound.encode_into(&mut encoder);
    let plan = Plan::<Infer>::with_tuning(geometry, &config, &caps, &tuning).unwrap();
    let infer = gpu.kernels().prepare(plan).unwrap();
    let again = infer
        .bind(&<Infer as Bind>::Buffers::from(InferBuffers {
            x: (&x).into(),
            y: (&y).into(),
            gamma: (&gamma).into(),
            beta: (&beta).into(),
            running_mean: (&mean).into(),
            running_var: (&var).into(),
            ..Default::default()
        }))
        .unwrap();
    let [trained, saved, running_mean, running_var] =
        runner::read(gpu, encoder, &[y.clone(), saved, mean, var]).try_into().unwrap();
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    again.encode_into(&mut encoder);
    let inferred = runner::read(gpu, encoder, &[y]).remove(0);
    let centers = [1000.0, -3.0];
    let promises = centers.map(|center| compare::steps_promise(center, 2.0));
    let mean = compare::within(&runner::floats(&running_mean), &centers, &promises.map(|p| p[0]));
    assert!(mean.is_good(), "{mean:?}");
    let ones = [1.0; 2];
    let var = runner::floats(&running_var);
    let var = compare::within(&var, &ones, &compare::variance_promise(&ones));
    assert!(var.is_good(), "{var:?}");
    assert_eq!(runner::floats(&saved)[6..], [(18 << 20) as f32; 2]);
    let scale = 2.0 / (1.0f64 + config.epsilon).sqrt();
    for y in [runner::floats(&trained), runner::floats(&inferred)] {
        for (i, y) in y.iter().enumerate() {
            let channel = i / (6 << 20) % 2;
            let expected = scale * (f64::from(value(i as u64)) - centers[channel]);
            let bound = promises[channel][1];
            assert!((f64::from(*y) - expected).abs() < bound, "{i}: {y} for {expected}");
        }
    }
}
