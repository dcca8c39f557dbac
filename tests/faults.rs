//! What happens when the device fails: an error in bounded time, no hang, no panic, and running
//! statistics that are the old or the new ones.

use std::future::Future;
use std::pin::pin;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use ndarray::{Array1, ArrayD};
use wgpu_batchnorm::{
    BatchNorm, BindError, ChannelAxis, Config, Geometry, Gpu, HostError, Infer, InferBuffers,
    Input, LayerState, Moments, Plan, PrepareError, RunningStatistics, SavedStatistics, Train,
    Update, wgpu,
};

use crate::common::data::{Case, Data};
use crate::common::{gpu, runner};

const C: usize = 3;

/// Nothing here takes so long on any device.
const BOUND: Duration = Duration::from_secs(30);

/// A device of its own, to be broken.
fn own_gpu() -> Option<Gpu> {
    gpu().map(|_| Gpu::new_blocking().unwrap())
}

/// What `work` gives, or a failure when it panics or hangs.
fn bounded<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = channel();
    let thread = thread::spawn(move || {
        let _ = sender.send(work());
    });
    match receiver.recv_timeout(BOUND) {
        Ok(answer) => answer,
        Err(_) if thread.is_finished() => panic!("{what} panics"),
        Err(_) => panic!("{what} hangs"),
    }
}

/// Errors that reach the caller's handler instead of the caller.
fn escaped(gpu: &Gpu) -> Arc<Mutex<Vec<String>>> {
    let escaped = Arc::new(Mutex::new(Vec::new()));
    let sink = escaped.clone();
    gpu.device().on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
        sink.lock().unwrap().push(error.to_string());
    }));
    escaped
}

/// Everything the calls need.
struct World {
    gpu: Gpu,
    x: ArrayD<f32>,
    config: Config,
    running: RunningStatistics,
    saved: SavedStatistics,
    layer: BatchNorm,
}

impl World {
    fn new(gpu: &Gpu) -> Self {
        let x = ArrayD::from_shape_fn(vec![4, C, 50], |d| {
            ((d[0] * 150 + d[1] * 50 + d[2]) as f32 * 0.7).sin()
        });
        let config = Config { update: Update::Cumulative, ..Config::pytorch() };
        let mut layer = BatchNorm::new(gpu, C, config.clone()).unwrap();
        layer.forward_train_blocking(x.view()).unwrap();
        let saved = SavedStatistics {
            mean: Array1::zeros(C),
            rest: Array1::zeros(C),
            inv_std: Array1::ones(C),
            count: Array1::from_elem(C, 200.0),
            renorm: None,
        };
        let running = RunningStatistics::new(C);
        Self { gpu: gpu.clone(), x, config, running, saved, layer }
    }
}

type Call = fn(&mut World) -> Result<(), HostError>;

/// Every call that uses a device. A new one belongs here.
const CALLS: [(&str, Call); 16] = [
    ("Gpu::forward_train", |w| {
        let x = w.x.view();
        w.gpu
            .forward_train_blocking(&Input::new(x, ChannelAxis::First), &mut w.running, &w.config)
            .map(drop)
    }),
    ("Gpu::forward_infer", |w| {
        let x = w.x.view();
        w.gpu
            .forward_infer_blocking(&Input::new(x, ChannelAxis::First), &w.running, &w.config)
            .map(drop)
    }),
    ("Gpu::backward", |w| {
        let (x, axis) = (&w.x, ChannelAxis::First);
        w.gpu
            .backward_blocking(&Input::new(x.view(), axis), x.view(), &w.saved, &w.config)
            .map(drop)
    }),
    ("Gpu::frozen_backward", |w| {
        let (x, axis) = (&w.x, ChannelAxis::First);
        w.gpu
            .frozen_backward_blocking(&Input::new(x.view(), axis), x.view(), &w.running, &w.config)
            .map(drop)
    }),
    ("Gpu::statistics", |w| {
        w.gpu.statistics_blocking(&Input::new(w.x.view(), ChannelAxis::First)).map(drop)
    }),
    ("Gpu::self_test", |w| w.gpu.self_test_blocking().map(drop)),
    ("BatchNorm::new", |w| BatchNorm::new(&w.gpu, C, w.config.clone()).map(drop)),
    ("BatchNorm::with_axis", |w| {
        BatchNorm::with_axis(&w.gpu, C, ChannelAxis::Last, w.config.clone()).map(drop)
    }),
    ("BatchNorm::forward_train", |w| w.layer.forward_train_blocking(w.x.view()).map(drop)),
    ("BatchNorm::backward", |w| w.layer.backward_blocking(w.x.view()).map(drop)),
    ("BatchNorm::forward_infer", |w| w.layer.forward_infer_blocking(w.x.view()).map(drop)),
    ("BatchNorm::frozen_backward", |w| {
        w.layer.frozen_backward_blocking(w.x.view(), w.x.view()).map(drop)
    }),
    ("BatchNorm::state", |w| w.layer.state_blocking().map(drop)),
    ("BatchNorm::load", |w| w.layer.load(&LayerState::new(C))),
    ("BatchNorm::set_running", |w| {
        w.layer.set_running(&Moments::new(2.0, vec![0.0; C], vec![1.0; C]).unwrap())
    }),
    ("BatchNorm::re_estimate", |w| w.layer.re_estimate_blocking([w.x.view()]).map(drop)),
];

/// The device is lost before a call: every call is an error, at once.
#[test]
fn a_device_lost_before_a_call() {
    for (name, call) in CALLS {
        let Some(gpu) = own_gpu() else { return };
        let mut world = World::new(&gpu);
        let escaped = escaped(&gpu);
        gpu.device().destroy();
        let start = Instant::now();
        let (error, running) = bounded(name, move || (call(&mut world), world.running));
        let error = error.expect_err(name);
        assert_eq!(running, RunningStatistics::new(C), "{name}");
        assert!(start.elapsed() < Duration::from_secs(5), "{name} takes {:?}", start.elapsed());
        assert!(error.to_string().contains("lost"), "{name}: {error}");
        assert!(escaped.lock().unwrap().is_empty(), "{name}: {escaped:?}");
    }
}

/// The device is lost at any moment of a call, by another thread: calls succeed until they fail, and
/// the running statistics are those after the last that succeeded.
#[test]
fn a_device_lost_during_a_call() {
    let Some(healthy) = own_gpu() else { return };
    // The running statistics after each call.
    let mut world = World::new(&healthy);
    let mut after = vec![world.running.clone()];
    for _ in 0..400 {
        CALLS[0].1(&mut world).unwrap();
        after.push(world.running.clone());
    }
    let (mut calls, mut messages) = (0, std::collections::BTreeMap::<String, u32>::new());
    for (index, (name, call)) in CALLS.into_iter().enumerate() {
        for round in 0..6u64 {
            let gpu = own_gpu().unwrap();
            let mut world = World::new(&gpu);
            let device = gpu.device().clone();
            // From the first microseconds to some calls later.
            let delay = Duration::from_micros(20 * 4u64.pow(round as u32) + 37 * index as u64);
            let destroyer = thread::spawn(move || {
                thread::sleep(delay);
                device.destroy();
            });
            let (good, error, running) = bounded(name, move || {
                for good in 0..400 {
                    if let Err(error) = call(&mut world) {
                        return (good, Some(error), world.running);
                    }
                }
                (400, None, world.running)
            });
            destroyer.join().unwrap();
            let expected = if index == 0 { &after[good] } else { &after[0] };
            assert_eq!(running, *expected, "{name}: neither old nor new");
            calls += good;
            if let Some(error) = error {
                *messages.entry(error.to_string()).or_default() += 1;
            }
        }
    }
    println!("{calls} calls succeeded before their device was lost; then:");
    messages.iter().for_each(|(message, count)| println!("  {count}x {message}"));
    assert!(messages.values().sum::<u32>() > 60, "hardly any call met the loss");
}

/// A plan, a preparation, a binding and a recording each meet a lost device.
#[test]
fn embedding_on_a_lost_device() {
    let Some(gpu) = own_gpu() else { return };
    let geometry = Geometry::new(&[4, C, 50], ChannelAxis::First).unwrap();
    let infer = Plan::<Infer>::new(geometry, &Config::pytorch(), gpu.caps()).unwrap();
    let train = Plan::<Train>::new(geometry, &Config::pytorch(), gpu.caps()).unwrap();
    let prepared = gpu.kernels().prepare(infer.clone()).unwrap();
    let buffers = [600, 600, 3, 3, 3, 3].map(|n| runner::upload(&gpu, &vec![0; n]));
    let [x, y, gamma, beta, running_mean, running_var] = &buffers;
    let slots = InferBuffers {
        x: x.into(),
        y: y.into(),
        gamma: gamma.into(),
        beta: beta.into(),
        running_mean: running_mean.into(),
        running_var: running_var.into(),
        ..Default::default()
    };
    let bound = prepared.bind(&slots).unwrap();
    let escaped = escaped(&gpu);
    gpu.device().destroy();
    // A new pipeline and a new uniform buffer, then a new bind group.
    let error = gpu.kernels().prepare(train).unwrap_err();
    assert!(matches!(error, PrepareError::Device { .. }), "{error}");
    let error = gpu.kernels().prepare(infer).unwrap_err();
    assert!(matches!(error, PrepareError::Device { .. }), "{error}");
    // wgpu does not say that a bind group is of a lost device; recording it does not panic.
    let mut all = vec![bound];
    match prepared.bind(&slots) {
        Ok(bound) => all.push(bound),
        Err(error) => assert!(matches!(error, BindError::Device { .. }), "{error}"),
    }
    assert!(escaped.lock().unwrap().is_empty(), "{escaped:?}");
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    all.iter().for_each(|bound| bound.encode_into(&mut encoder));
    gpu.queue().submit([encoder.finish()]);
    println!("the caller's handler: {escaped:?}");
}

fn big() -> (Case, Data, ArrayD<f32>) {
    let case = Case::new(&[64, C, 20_000], ChannelAxis::First, Config::pytorch());
    let data = Data::random(case.geometry(), 71, 1.0, 1.0);
    let x = ArrayD::from_shape_vec(case.shape.clone(), data.x.clone()).unwrap();
    (case, data, x)
}

fn idle(gpu: &Gpu) {
    gpu.device().poll(wgpu::PollType::wait_indefinitely()).unwrap();
}

/// The wait is given up while the device works on: the layer is as it was, although the device
/// finishes its work later.
#[test]
fn a_wait_given_up_leaves_a_layer_as_it_was() {
    let Some(gpu) = own_gpu() else { return };
    let (_, _, x) = big();
    let small = ArrayD::from_shape_fn(vec![2, C, 5], |d| (d[0] * 15 + d[1] * 5 + d[2]) as f32);
    for update in [Update::Cumulative, Update::Rate(0.5), Update::None] {
        let config = Config { update, ..Config::pytorch() };
        let hasty = gpu.clone().with_timeout(Duration::from_micros(1));
        let mut layer = BatchNorm::new(&hasty, C, config.clone()).unwrap();
        // The same, by a layer that waits.
        let mut patient = BatchNorm::new(&gpu, C, config).unwrap();
        patient.forward_train_blocking(small.view()).unwrap();
        layer.load(&patient.state_blocking().unwrap()).unwrap();
        let mut given_up = 0;
        for _ in 0..5 {
            match layer.forward_train_blocking(x.view()) {
                Err(HostError::ReadBack { message }) => {
                    assert!(message.contains("waited"), "{message}");
                    given_up += 1;
                }
                Err(error) => panic!("{error}"),
                Ok(_) => drop(patient.forward_train_blocking(x.view()).unwrap()),
            }
            idle(&gpu);
            // A wait for so little may be given up too; not every time.
            let state = (0..1000).find_map(|_| layer.state_blocking().ok());
            let state = state.expect("a state that is read back");
            assert_eq!(state, patient.state_blocking().unwrap(), "{update:?}");
        }
        // GL's software adapter works while it is given the work.
        println!("{given_up} of 5 waits given up under {update:?}");
        assert!(given_up > 0 || is_synchronous(&gpu), "the device is faster than the wait");
    }
}

/// Whether the device works while it is given the work, so that no wait is long.
fn is_synchronous(gpu: &Gpu) -> bool {
    gpu.device().adapter_info().backend == wgpu::Backend::Gl
}

fn poll_once<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => Some(answer),
        Poll::Pending => None,
    }
}

/// A caller who stops waiting: the running statistics are as they were.
#[test]
fn a_call_that_is_dropped_leaves_everything_as_it_was() {
    let Some(gpu) = own_gpu() else { return };
    let (case, _, x) = big();
    for update in [Update::Cumulative, Update::Rate(0.5)] {
        let config = Config { update, ..Config::pytorch() };
        let mut running = RunningStatistics::new(C);
        let input = Input::new(x.view(), case.axis);
        // On a busy machine the device may be done before the poll: then once more.
        let dropped = (0..20).any(|_| {
            running = RunningStatistics::new(C);
            poll_once(gpu.forward_train(&input, &mut running, &config)).is_none()
        });
        if !dropped {
            assert!(is_synchronous(&gpu), "the device is faster than a poll");
            return;
        }
        assert_eq!(running, RunningStatistics::new(C));
        let layer = (0..20).find_map(|_| {
            let mut layer = BatchNorm::new(&gpu, C, config.clone()).unwrap();
            poll_once(layer.forward_train(x.view())).is_none().then_some(layer)
        });
        let mut layer = layer.expect("the device is faster than a poll");
        idle(&gpu);
        assert_eq!(layer.state_blocking().unwrap(), LayerState::new(C), "{update:?}");
        let error = layer.backward_blocking(x.view()).unwrap_err();
        assert_eq!(error, HostError::NoForward);
        // And it can go on.
        layer.forward_train_blocking(x.view()).unwrap();
        assert_eq!(layer.state_blocking().unwrap().batches, 1);
    }
}

/// A device whose buffers are smaller than what its bindings would allow.
fn narrow(max_buffer_size: u64) -> Option<Gpu> {
    gpu()?;
    let adapters = Gpu::adapters_blocking();
    let (device, queue) = adapters.iter().find_map(|adapter| {
        let required_limits = wgpu::Limits { max_buffer_size, ..Default::default() };
        let descriptor = wgpu::DeviceDescriptor { required_limits, ..Default::default() };
        pollster::block_on(adapter.request_device(&descriptor)).ok()
    })?;
    Some(Gpu::from_device(device, queue))
}

/// Memory that the device does not give: an error that says so, nothing has changed, and the device
/// is as good as before.
fn out_of_memory(gpu: &Gpu, too_large: &ArrayD<f32>) {
    let escaped = escaped(gpu);
    let mut world = World::new(gpu);
    let before = world.layer.state_blocking().unwrap();
    let small = std::mem::replace(&mut world.x, too_large.clone());
    let mut messages = Vec::new();
    for (name, call) in CALLS {
        // The layer's own memory and its last forward are small.
        let own = ["self_test", "new", "with_axis", "state", "load", "set_running"];
        if own.iter().any(|own| name.ends_with(own)) {
            continue;
        }
        match call(&mut world).expect_err(name) {
            HostError::Device { message } => messages.push(format!("{name}: {message}")),
            HostError::Shape { .. } if name == "BatchNorm::backward" => {}
            error => panic!("{name}: {error:?}"),
        }
        assert_eq!(world.running, RunningStatistics::new(C), "{name}");
        assert_eq!(world.layer.state_blocking().unwrap(), before, "{name}");
    }
    println!("{}", messages[0]);
    world.x = small;
    for (name, call) in CALLS {
        call(&mut world).expect(name);
    }
    assert!(escaped.lock().unwrap().is_empty(), "{escaped:?}");
}

#[test]
fn buffers_larger_than_the_device_allows() {
    let Some(gpu) = narrow(1 << 24) else { return };
    out_of_memory(&gpu, &ArrayD::zeros(vec![64, C, 40_000]));
}

/// The tensor fits a buffer, but not together with what else is read back.
#[test]
fn a_read_back_that_the_device_does_not_allow() {
    let size = 1 << 20;
    let Some(gpu) = narrow(size) else { return };
    let escaped = escaped(&gpu);
    let x = ArrayD::from_elem(vec![size as usize / 16, 4], 0.5f32);
    let (axis, config) = (ChannelAxis::Last, Config::pytorch());
    let mut running = RunningStatistics::new(4);
    let error =
        gpu.forward_train_blocking(&Input::new(x.view(), axis), &mut running, &config).unwrap_err();
    println!("{error}");
    assert!(matches!(error, HostError::Device { .. }), "{error}");
    assert_eq!(running, RunningStatistics::new(4));
    let mut layer = BatchNorm::with_axis(&gpu, 4, axis, config).unwrap();
    layer.forward_train_blocking(x.view()).unwrap();
    let before = layer.state_blocking().unwrap();
    let error = layer.backward_blocking(x.view()).unwrap_err();
    assert!(matches!(error, HostError::Device { .. }), "{error}");
    assert_eq!(layer.state_blocking().unwrap(), before);
    assert!(escaped.lock().unwrap().is_empty(), "{escaped:?}");
}

/// A budget of memory that is used up, where the adapter knows its own.
#[test]
fn a_memory_budget_that_is_used_up() {
    let Some(known) = gpu() else { return };
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    descriptor.memory_budget_thresholds.for_resource_creation = Some(1);
    let backends = descriptor.backends;
    let instance = wgpu::Instance::new(descriptor);
    let adapters = pollster::block_on(instance.enumerate_adapters(backends));
    let name = known.device().adapter_info().name;
    let Some(adapter) = adapters.iter().find(|adapter| adapter.get_info().name == name) else {
        return;
    };
    // Everything may be refused, from the device on; a device that is given works until it refuses.
    let gpu = match pollster::block_on(Gpu::from_adapter(adapter)) {
        Ok(gpu) => gpu,
        Err(error) => {
            assert!(matches!(error, HostError::RequestDevice { .. }), "{error}");
            println!("no device under the budget: {error}");
            return;
        }
    };
    let escaped = escaped(&gpu);
    let make = |size| {
        let scope = gpu.device().push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        });
        pollster::block_on(scope.pop()).is_none().then_some(buffer)
    };
    // Use the budget up, 64 MiB at a time and at most 2 GiB: memory that is never touched.
    let mut hoard = Vec::new();
    while let (Some(buffer), true) = (make(64 << 20), hoard.len() < 32) {
        hoard.push(buffer);
    }
    if hoard.len() == 32 {
        println!("the adapter knows no budget");
        return;
    }
    println!("refused after {} MiB", 64 * hoard.len());
    let x = ArrayD::<f32>::zeros(vec![16, C, 1 << 19]);
    let mut running = RunningStatistics::new(C);
    let config = Config::pytorch();
    let axis = ChannelAxis::First;
    let error =
        gpu.forward_train_blocking(&Input::new(x.view(), axis), &mut running, &config).unwrap_err();
    println!("{error}");
    assert!(matches!(error, HostError::Device { .. }), "{error}");
    assert_eq!(running, RunningStatistics::new(C));
    drop(hoard);
    idle(&gpu);
    // With the budget free again a small call works, unless the driver keeps more than that.
    let small = ArrayD::<f32>::zeros(vec![2, C, 5]);
    match gpu.forward_train_blocking(&Input::new(small.view(), axis), &mut running, &config) {
        Ok(_) => assert_eq!(running.batches, 1),
        Err(error) => assert!(matches!(error, HostError::Device { .. }), "{error}"),
    }
    assert!(escaped.lock().unwrap().is_empty(), "{escaped:?}");
}
