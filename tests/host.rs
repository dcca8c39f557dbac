//! The host form, the layer, the adapters, and what happens when the device fails.

use std::process::Command;
use std::time::{Duration, Instant};

use ndarray::{Array1, ArrayD, ArrayView1, Axis, Slice, array};
use wgpu_batchnorm::{
    Activation, BackwardOutput, BatchNorm, ChannelAxis, Config, Element, Gpu, Gradients, HostError,
    Input, LayerState, Mask, Memory, PlanError, RunningStatistics, Slot, Update, wgpu,
};

use crate::common::check::{compare_frozen, compare_training};
use crate::common::compare::{DRIFT, ONE_STEP, exactly};
use crate::common::data::{Case, Data};
use crate::common::gpu;
use crate::common::runner::Results;

fn tensor(case: &Case, values: &[f32]) -> ArrayD<f32> {
    ArrayD::from_shape_vec(case.shape.clone(), values.to_vec()).unwrap()
}

fn flat(array: &ArrayD<f32>) -> Vec<f32> {
    array.iter().copied().collect()
}

#[test]
fn all_operations_on_arrays() {
    let Some(gpu) = gpu() else { return };
    for update in [Update::Rate(0.1), Update::Cumulative] {
        let config = Config { update, ..Config::pytorch() };
        let case = Case::new(&[4, 3, 5, 7], ChannelAxis::First, config);
        let data = Data::random(case.geometry(), 21, 2.0, 1.0);
        let (x, dy) = (tensor(&case, &data.x), tensor(&case, &data.dy));
        let (gamma, beta) = (Array1::from(data.gamma.clone()), Array1::from(data.beta.clone()));
        let input = Input {
            gamma: Some(gamma.view()),
            beta: Some(beta.view()),
            ..Input::new(x.view(), case.axis)
        };
        let before = RunningStatistics {
            mean: data.running_mean.clone().into(),
            var: data.running_var.clone().into(),
            batches: data.batches,
        };
        let mut running = before.clone();
        let config = &case.config;
        let out = gpu.forward_train_blocking(&input, &mut running, config).unwrap();
        let back = gpu.backward_blocking(&input, dy.view(), &out.saved, config).unwrap();
        assert_eq!(running.batches, data.batches + 1);
        let results = Results {
            y: flat(&out.y),
            mean: out.saved.mean.to_vec(),
            rest: out.saved.rest.to_vec(),
            inv_std: out.saved.inv_std.to_vec(),
            count: out.saved.count.to_vec(),
            running_mean: running.mean.to_vec(),
            running_var: running.var.to_vec(),
            batches: running.batches,
            dx: flat(back.dx.as_ref().unwrap()),
            dgamma: back.dgamma.unwrap().to_vec(),
            dbeta: back.dbeta.unwrap().to_vec(),
            ..Default::default()
        };
        compare_training(&case, &data, &results).unwrap();

        let y = gpu.forward_infer_blocking(&input, &before, config).unwrap();
        let back = gpu.frozen_backward_blocking(&input, dy.view(), &before, config).unwrap();
        let results = Results {
            y: flat(&y),
            dx: flat(&back.dx.unwrap()),
            dgamma: back.dgamma.unwrap().to_vec(),
            dbeta: back.dbeta.unwrap().to_vec(),
            ..Results::default()
        };
        compare_frozen(&case, &data, &results).unwrap();
    }
}

/// Views that are transposed, reversed or strided are read by their logical order.
#[test]
fn views_in_any_memory_order() {
    let Some(gpu) = gpu() else { return };
    let wide = ArrayD::from_shape_fn(vec![6, 8, 5], |d| (d[0] * 7 + d[1] * 3 + d[2]) as f32);
    let mut view = wide.view().permuted_axes(vec![2, 0, 1]);
    view.invert_axis(Axis(0));
    let view = view.slice_axis(Axis(2), Slice::new(1, None, 2));
    let plain = view.as_standard_layout().into_owned();
    let run = |x| {
        let mut running = RunningStatistics::new(6);
        let config = Config::keras();
        gpu.forward_train_blocking(&Input::new(x, ChannelAxis::First), &mut running, &config)
            .unwrap()
            .y
    };
    assert_eq!(run(view.view()), run(plain.view()));
}

#[test]
fn only_the_gradients_asked_for() {
    let Some(gpu) = gpu() else { return };
    let x = ArrayD::from_shape_fn(vec![4, 2], |d| (d[0] * 2 + d[1]) as f32);
    let running = RunningStatistics::new(2);
    let gradients = Gradients { x: false, gamma: true, beta: true, z: false, accumulate: true };
    let config = Config { gradients, memory: Memory::InPlace, ..Config::keras() };
    let beta = array![0.0f32, 1.0];
    let input = Input { beta: Some(beta.view()), ..Input::new(x.view(), ChannelAxis::Last) };
    let back = gpu.frozen_backward_blocking(&input, x.view(), &running, &config).unwrap();
    assert!(back.dx.is_none() && back.dgamma.is_none());
    assert!(exactly(&back.dbeta.unwrap().to_vec(), &[12.0, 16.0]).is_good());
}

#[test]
fn errors_change_nothing() {
    let Some(gpu) = gpu() else { return };
    let x = ArrayD::<f32>::ones(vec![2, 3, 4]);
    let config = Config::pytorch();
    let axis = ChannelAxis::First;
    let mut running = RunningStatistics::new(3);
    let mut train = |input: &Input<'_>, config: &Config| {
        let before = running.clone();
        let error = gpu.forward_train_blocking(input, &mut running, config).unwrap_err();
        assert_eq!(running, before);
        error
    };
    let wrong = array![1.0f32, 2.0];
    let at = |axis| Input::new(x.view(), axis);
    let gamma = Input { gamma: Some(wrong.view()), ..at(axis) };
    let length = |slot, length| HostError::Length { slot, length, channels: 3 };
    assert_eq!(train(&gamma, &config), length(Slot::Gamma, 2));
    assert_eq!(
        train(&at(ChannelAxis::Last), &config),
        HostError::Length { slot: Slot::RunningMean, length: 3, channels: 4 }
    );
    assert!(matches!(train(&at(ChannelAxis::At(9)), &config), HostError::Geometry(_)));
    let bad = Config { epsilon: 0.0, ..config.clone() };
    assert!(matches!(train(&at(axis), &bad), HostError::Plan(PlanError::Config(_))));
    let single = ArrayD::<f32>::ones(vec![1, 3]);
    let error = train(&Input::new(single.view(), axis), &config);
    assert!(matches!(error, HostError::Plan(PlanError::SingleValue { .. })), "{error}");

    for value in [-1.0, f32::NAN, f32::INFINITY] {
        let mut running = RunningStatistics::new(3);
        running.var[1] = value;
        let error =
            gpu.forward_infer_blocking(&Input::new(x.view(), axis), &running, &config).unwrap_err();
        assert!(matches!(error, HostError::RunningVariance { channel: 1, .. }), "{error}");
    }
    let dy = ArrayD::<f32>::ones(vec![2, 3, 5]);
    let good = RunningStatistics::new(3);
    let error = gpu
        .frozen_backward_blocking(&Input::new(x.view(), axis), dy.view(), &good, &config)
        .unwrap_err();
    assert_eq!(error, HostError::Shape { slot: Slot::Dy, x: vec![2, 3, 4], found: vec![2, 3, 5] });
}

#[test]
fn empty_tensors() {
    let Some(gpu) = gpu() else { return };
    for shape in [[0, 3, 4], [2, 3, 0], [2, 0, 4]] {
        let x = ArrayD::<f32>::zeros(shape.to_vec());
        let config = Config::pytorch();
        let mut running = RunningStatistics::new(shape[1]);
        let gamma = Array1::ones(shape[1]);
        let (gamma, beta) = (Some(gamma.view()), Some(gamma.view()));
        let input = Input { gamma, beta, ..Input::new(x.view(), ChannelAxis::First) };
        let out = gpu.forward_train_blocking(&input, &mut running, &config).unwrap();
        assert_eq!(out.y.shape(), shape);
        assert_eq!(running, RunningStatistics::new(shape[1]), "an empty batch moves nothing");
        let back = gpu.backward_blocking(&input, x.view(), &out.saved, &config).unwrap();
        assert_eq!(back.dgamma, Some(Array1::zeros(shape[1])));
        assert_eq!(back.dbeta, Some(Array1::zeros(shape[1])));
        let y = gpu.forward_infer_blocking(&input, &running, &config).unwrap();
        assert_eq!(y.shape(), shape);
    }
}

#[test]
fn a_layer_trains_and_infers() {
    let Some(gpu) = gpu() else { return };
    let config = Config { update: Update::Cumulative, ..Config::pytorch() };
    let case = Case::new(&[4, 3, 6], ChannelAxis::First, config.clone());
    let mut data = Data::random(case.geometry(), 22, 1.0, 2.0);
    let state = LayerState {
        gamma: data.gamma.clone().into(),
        beta: data.beta.clone().into(),
        running_mean: data.running_mean.clone().into(),
        running_var: data.running_var.clone().into(),
        batches: data.batches,
    };
    let mut layer = BatchNorm::new(gpu, 3, config).unwrap();
    assert_eq!(layer.state_blocking().unwrap(), LayerState::new(3));
    assert_eq!(layer.backward_blocking(tensor(&case, &data.dy).view()), Err(HostError::NoForward));
    layer.load(&state).unwrap();
    assert_eq!(layer.state_blocking().unwrap(), state);
    for step in 0..3 {
        data.x = Data::random(case.geometry(), 50 + step, 0.0, 1.0).x;
        let y = layer.forward_train_blocking(tensor(&case, &data.x).view()).unwrap();
        let back = layer.backward_blocking(tensor(&case, &data.dy).view()).unwrap();
        let state = layer.state_blocking().unwrap();
        // The layer does not hand out its saved statistics; the host form gives the same bits.
        let mut running = RunningStatistics {
            mean: data.running_mean.clone().into(),
            var: data.running_var.clone().into(),
            batches: data.batches,
        };
        let (gamma, beta) = (state.gamma.view(), state.beta.view());
        let x = tensor(&case, &data.x);
        let (gamma, beta) = (Some(gamma), Some(beta));
        let input = Input { gamma, beta, ..Input::new(x.view(), case.axis) };
        let out = gpu.forward_train_blocking(&input, &mut running, layer.config()).unwrap();
        let results = Results {
            y: flat(&y),
            mean: out.saved.mean.to_vec(),
            rest: out.saved.rest.to_vec(),
            inv_std: out.saved.inv_std.to_vec(),
            count: out.saved.count.to_vec(),
            running_mean: state.running_mean.to_vec(),
            running_var: state.running_var.to_vec(),
            batches: state.batches,
            dx: flat(&back.dx.unwrap()),
            dgamma: back.dgamma.unwrap().to_vec(),
            dbeta: back.dbeta.unwrap().to_vec(),
            ..Default::default()
        };
        compare_training(&case, &data, &results).unwrap();
        assert_eq!(results.running_mean, running.mean.to_vec());
        data.running_mean = results.running_mean;
        data.running_var = results.running_var;
        data.batches = results.batches;
    }
    let y = layer.forward_infer_blocking(tensor(&case, &data.x).view()).unwrap();
    let back = layer
        .frozen_backward_blocking(tensor(&case, &data.x).view(), tensor(&case, &data.dy).view())
        .unwrap();
    let results = Results {
        y: flat(&y),
        dx: flat(&back.dx.unwrap()),
        dgamma: back.dgamma.unwrap().to_vec(),
        dbeta: back.dbeta.unwrap().to_vec(),
        ..Results::default()
    };
    compare_frozen(&case, &data, &results).unwrap();
}

#[test]
fn a_layer_refuses_what_does_not_fit() {
    let Some(gpu) = gpu() else { return };
    let bad = Config { epsilon: f64::NAN, ..Config::pytorch() };
    assert!(matches!(BatchNorm::new(gpu, 3, bad), Err(HostError::Plan(PlanError::Config(_)))));
    let mut layer = BatchNorm::new(gpu, 3, Config::pytorch()).unwrap();
    let x = ArrayD::<f32>::ones(vec![2, 4, 5]);
    let error = layer.forward_train_blocking(x.view()).unwrap_err();
    assert_eq!(error, HostError::Channels { found: 4, expected: 3 });
    let mut state = LayerState::new(3);
    state.running_var[2] = -0.5;
    let error = layer.load(&state).unwrap_err();
    assert_eq!(error, HostError::RunningVariance { channel: 2, value: -0.5 });
    let error = layer.load(&LayerState::new(4)).unwrap_err();
    assert_eq!(error, HostError::Length { slot: Slot::Gamma, length: 4, channels: 3 });
    assert_eq!(layer.state_blocking().unwrap(), LayerState::new(3), "the layer is as it was");
    let x = ArrayD::<f32>::ones(vec![2, 3, 5]);
    layer.forward_train_blocking(x.view()).unwrap();
    let error = layer.backward_blocking(ArrayD::<f32>::ones(vec![3, 2, 5]).view()).unwrap_err();
    assert_eq!(error, HostError::Shape { slot: Slot::Dy, x: vec![2, 3, 5], found: vec![3, 2, 5] });
}

/// Every adapter there is, a second backend among them where GL is installed: known answers, or a
/// typed refusal.
#[test]
fn every_adapter_gives_known_answers_or_refuses() {
    if gpu().is_none() {
        return;
    }
    for adapter in Gpu::adapters_blocking() {
        match pollster::block_on(Gpu::from_adapter(&adapter)) {
            Ok(gpu) => {
                let test = gpu.self_test_thorough_blocking().unwrap();
                println!("{test}");
                assert!(test.passed(), "{test}");
            }
            Err(error) => {
                println!("{error}");
                assert!(matches!(error, HostError::RequestDevice { .. }), "{error}");
            }
        }
    }
}

#[test]
fn without_an_adapter_the_error_helps() {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "host::child_asks_for_an_adapter", "--nocapture"])
        .env("WGPU_ADAPTER_NAME", "no adapter has this name")
        .env("BATCHNORM_CHILD", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{text}");
    for part in ["WGPU_ADAPTER_NAME=no adapter has this name", "apt-get install", "Found"] {
        assert!(text.contains(part), "{text}");
    }
}

/// The child of `without_an_adapter_the_error_helps`; alone, it has nothing to do.
#[test]
fn child_asks_for_an_adapter() {
    if std::env::var("BATCHNORM_CHILD").is_ok() {
        let error = Gpu::new_blocking().unwrap_err();
        assert!(matches!(error, HostError::NoAdapter { .. }));
        println!("{error}");
    }
}

/// A device of its own, to be broken.
fn own_gpu() -> Option<Gpu> {
    gpu().map(|_| Gpu::new_blocking().unwrap())
}

#[test]
fn a_lost_device_is_an_error_in_bounded_time() {
    let Some(gpu) = own_gpu() else { return };
    let mut layer = BatchNorm::new(&gpu, 3, Config::pytorch()).unwrap();
    let x = ArrayD::<f32>::ones(vec![2, 3, 5]);
    layer.forward_train_blocking(x.view()).unwrap();
    gpu.device().destroy();
    let start = Instant::now();
    let mut running = RunningStatistics::new(3);
    let config = Config::pytorch();
    let error = gpu
        .forward_train_blocking(&Input::new(x.view(), ChannelAxis::First), &mut running, &config)
        .unwrap_err();
    println!("{error}");
    assert_eq!(running, RunningStatistics::new(3));
    layer.forward_train_blocking(x.view()).unwrap_err();
    layer.backward_blocking(x.view()).unwrap_err();
    gpu.statistics_blocking(&Input::new(x.view(), ChannelAxis::First)).unwrap_err();
    layer.state_blocking().unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_device_that_takes_too_long_is_an_error() {
    let Some(gpu) = own_gpu() else { return };
    let gpu = gpu.with_timeout(Duration::ZERO);
    let x = ArrayD::<f32>::ones(vec![64, 3, 500]);
    let running = RunningStatistics::new(3);
    let config = Config::pytorch();
    // Either it was done at once or the wait is given up; never a hang.
    let axis = ChannelAxis::First;
    match gpu.forward_infer_blocking(&Input::new(x.view(), axis), &running, &config) {
        Ok(y) => assert_eq!(y.shape(), x.shape()),
        Err(error) => assert!(matches!(error, HostError::ReadBack { .. }), "{error}"),
    }
}

/// Larger than any device: refused by the plan or by the device, not a crash.
#[test]
fn tensors_over_the_limits() {
    let Some(gpu) = gpu() else { return };
    let limit = gpu.caps().max_storage_binding_size;
    if limit > 1 << 30 {
        return;
    }
    let x = ArrayD::<f32>::zeros(vec![1, (limit / 4 + 1) as usize]);
    let running = RunningStatistics::new(x.shape()[1]);
    let error = gpu
        .forward_infer_blocking(
            &Input::new(x.view(), ChannelAxis::Last),
            &running,
            &Config::pytorch(),
        )
        .unwrap_err();
    let (slot, size) = (Slot::RunningMean, limit + 4);
    assert_eq!(error, HostError::Plan(PlanError::TooLarge { slot, size, limit }));
}

/// The caller's own device, with nothing but WebGPU's defaults.
#[test]
fn default_limits_and_no_features_suffice() {
    let Some(_) = gpu() else { return };
    let adapters = Gpu::adapters_blocking();
    let adapter = &adapters[0];
    let (device, queue) =
        pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default())).unwrap();
    let test = Gpu::from_device(device, queue).self_test_thorough_blocking().unwrap();
    assert!(test.passed(), "{test}");
}

/// Activation, residual and halves by host form and layer: what the embedding form gives.
#[test]
fn a_residual_and_an_activation_on_arrays() {
    let Some(gpu) = gpu() else { return };
    for element in [Element::F32, Element::F16, Element::Bf16] {
        for mask in [Mask::Auto, Mask::Recompute] {
            let activation = Activation::LeakyRelu { slope: 0.2 };
            let config = Config { element, activation, residual: true, mask, ..Config::pytorch() };
            let case = Case::new(&[3, 5, 3, 7], ChannelAxis::First, config);
            let data = Data::random(case.geometry(), 33, 1.0, 2.0).rounded(element);
            let [x, dy, z] = [&data.x, &data.dy, &data.z].map(|values| tensor(&case, values));
            let before = RunningStatistics {
                mean: data.running_mean.clone().into(),
                var: data.running_var.clone().into(),
                batches: data.batches,
            };
            let input = Input {
                gamma: Some(ArrayView1::from(&data.gamma)),
                beta: Some(ArrayView1::from(&data.beta)),
                z: Some(z.view()),
                ..Input::new(x.view(), case.axis)
            };
            let config = &case.config;
            let mut running = before.clone();
            let out = gpu.forward_train_blocking(&input, &mut running, config).unwrap();
            let back = gpu.backward_blocking(&input, dy.view(), &out.saved, config).unwrap();
            let y = gpu.forward_infer_blocking(&input, &before, config).unwrap();
            let frozen = gpu.frozen_backward_blocking(&input, dy.view(), &before, config).unwrap();
            let results = |y: &ArrayD<f32>, back: &BackwardOutput| Results {
                y: flat(y),
                mean: out.saved.mean.to_vec(),
                inv_std: out.saved.inv_std.to_vec(),
                count: out.saved.count.to_vec(),
                running_mean: running.mean.to_vec(),
                running_var: running.var.to_vec(),
                dx: flat(back.dx.as_ref().unwrap()),
                dgamma: back.dgamma.as_ref().unwrap().to_vec(),
                dbeta: back.dbeta.as_ref().unwrap().to_vec(),
                dz: flat(back.dz.as_ref().unwrap()),
                ..Default::default()
            };
            compare_training(&case, &data, &results(&out.y, &back)).unwrap();
            compare_frozen(&case, &data, &results(&y, &frozen)).unwrap();

            let mut layer = BatchNorm::with_axis(gpu, 5, case.axis, config.clone()).unwrap();
            let state = LayerState {
                gamma: data.gamma.clone().into(),
                beta: data.beta.clone().into(),
                running_mean: before.mean.clone(),
                running_var: before.var.clone(),
                batches: before.batches,
            };
            layer.load(&state).unwrap();
            let both = || (x.view(), z.view());
            assert_eq!(layer.forward_infer_blocking(both()).unwrap(), y);
            assert_eq!(layer.frozen_backward_blocking(both(), dy.view()).unwrap(), frozen);
            assert_eq!(layer.forward_train_blocking(both()).unwrap(), out.y);
            assert_eq!(layer.backward_blocking(dy.view()).unwrap(), back);
            assert_eq!(
                layer.forward_train_blocking(x.view()),
                Err(HostError::Residual { given: false })
            );
        }
    }
    let layer = BatchNorm::new(gpu, 5, Config::pytorch()).unwrap();
    let x = ArrayD::<f32>::ones(vec![2, 5]);
    let given = layer.forward_infer_blocking((x.view(), x.view()));
    assert_eq!(given, Err(HostError::Residual { given: true }));
}

/// Where a batch is what the running statistics are, they stay, but for roundings, which go both ways.
#[test]
fn running_statistics_do_not_drift() {
    const CHANNELS: usize = 4_096;
    let Some(gpu) = gpu() else { return };
    let mean = |c: usize| 1.0 + c as f32 / CHANNELS as f32;
    let x = ArrayD::from_shape_fn(vec![2, CHANNELS], |i| mean(i[1]) + i[0] as f32 - 0.5);
    let input = Input::new(x.view(), ChannelAxis::Last);
    for update in [Update::Decay(0.999), Update::Rate(1e-3)] {
        let config = Config { update, ..Config::pytorch() };
        let mut running = RunningStatistics::new(CHANNELS);
        running.mean = (0..CHANNELS).map(mean).collect();
        gpu.forward_train_blocking(&input, &mut running, &config).unwrap();
        let apart = |c: usize| f64::from(running.mean[c]) / f64::from(mean(c)) - 1.0;
        let drift = (0..CHANNELS).map(apart).sum::<f64>() / CHANNELS as f64;
        assert!(drift.abs() < DRIFT, "{update:?}: {drift:e}");
    }
}

/// An unbiased variance past f32's range moves the running one by its share, which is within.
#[test]
fn running_variance_does_not_overflow_before_it_must() {
    let Some(gpu) = gpu() else { return };
    let x = ArrayD::from_shape_fn(vec![2, 3], |i| if i[0] == 0 { 1.7e19 } else { -1.7e19f32 });
    let input = Input::new(x.view(), ChannelAxis::Last);
    for update in [Update::Decay(0.9), Update::Rate(0.1)] {
        let config = Config { update, ..Config::pytorch() };
        let mut running = RunningStatistics::new(3);
        gpu.forward_train_blocking(&input, &mut running, &config).unwrap();
        for var in running.var {
            let error = f64::from(var) / (0.1 * 2.0 * 1.7e19 * 1.7e19) - 1.0;
            assert!(error.abs() < ONE_STEP, "{update:?}: {error:e}");
        }
    }
}

/// The largest number of batches stays, and the next one weighs nearly nothing.
#[test]
fn the_count_of_batches_ends() {
    let Some(gpu) = gpu() else { return };
    let x = ArrayD::from_elem(vec![4, 2], 8.0f32);
    let input = Input::new(x.view(), ChannelAxis::Last);
    let config = Config { update: Update::Cumulative, ..Config::pytorch() };
    let mut running = RunningStatistics::new(2);
    running.batches = u32::MAX;
    gpu.forward_train_blocking(&input, &mut running, &config).unwrap();
    assert_eq!(running.batches, u32::MAX);
    // A share of 2⁻³² of 8.
    assert!(running.mean.iter().all(|mean| *mean < 2e-9), "{running:?}");
    assert!(running.var.iter().all(|var| *var < 1.0 + 2.0 * f32::EPSILON), "{running:?}");
}
