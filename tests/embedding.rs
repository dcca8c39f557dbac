//! The embedding contract: the caller's encoder, pass, buffers and offsets, and the same bits
//! whatever the memory, the checks and the load.

use std::collections::HashMap;

use wgpu_batchnorm::{
    Activation, Backward, ChannelAxis, Config, Element, FrozenBackward, Gradients, Infer,
    KernelOptions, Kernels, Memory, Plan, Slot, SlotBuffers, Statistics, Train, TrainBuffers,
    Tuning, Update, wgpu,
};

use crate::common::compare::exactly;
use crate::common::data::{Case, Data, small_tunings};
use crate::common::runner::{self, Arranged, bits, floats};
use crate::common::{gpu, runner::Contents};

fn cases() -> Vec<Case> {
    let shapes: [(&[usize], ChannelAxis); 5] = [
        (&[4, 16, 8, 8], ChannelAxis::First),
        (&[4, 3, 65, 67], ChannelAxis::First),
        (&[2, 2, 128, 128], ChannelAxis::First),
        (&[64, 40], ChannelAxis::Last),
        (&[3, 70, 50, 6], ChannelAxis::Last),
    ];
    shapes.iter().map(|(shape, axis)| Case::new(shape, *axis, Config::pytorch())).collect()
}

#[test]
fn every_memory_gives_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    for case in cases() {
        let data = Data::random(case.geometry(), 11, 3.0, 2.0);
        let with = |memory| {
            let case = Case { config: Config { memory, ..case.config.clone() }, ..case.clone() };
            let (a, b) = (runner::train(gpu, &case, &data), runner::frozen(gpu, &case, &data));
            [a.bits(), b.bits(), bits(&runner::statistics(gpu, &case, &data))].concat()
        };
        let separate = with(Memory::Separate);
        assert!(separate == with(Memory::InPlace), "in place: {case}");
        assert!(separate == with(Memory::Arena), "arena: {case}");
    }
}

/// Tensors of an odd count of halves that lie word by word in one arena, in place and not: each is
/// what it is alone, and the half past its end stays.
#[test]
fn neighbouring_halves_do_not_disturb_each_other() {
    let Some(gpu) = gpu() else { return };
    // 255 halves and one that is nobody's are 512 bytes, so that no gap is left between tensors.
    for (shape, axis) in [([3, 5, 17], ChannelAxis::First), ([17, 3, 5], ChannelAxis::Last)] {
        for (element, tuning) in [Element::F16, Element::Bf16]
            .into_iter()
            .flat_map(|element| small_tunings().map(|tuning| (element, tuning)))
        {
            let config = Config {
                element,
                activation: Activation::Relu,
                residual: true,
                memory: Memory::Arena,
                ..Config::pytorch()
            };
            let case = Case::new(&shape, axis, config).tuned(&tuning);
            let data = Data::random(case.geometry(), 19, 1.0, 1.0).rounded(element);
            let apart = runner::train(gpu, &case, &data);
            let inputs = runner::inputs(&data);
            let forward = runner::plan::<Train>(gpu, &case).unwrap();
            let size = forward.slot_size(Slot::X);
            assert_eq!((case.geometry().len(), size), (255, 512));
            // The tensors first, then what is f32, at the next aligned offsets.
            let mut slots = forward.slots();
            slots.sort_by_key(|(slot, _)| !slot.is_tensor());
            let (mut arena, mut places) = (Vec::new(), HashMap::new());
            for (slot, size) in slots {
                places.insert(slot, (arena.len() as u64 * 4, size));
                let mut words = match inputs.get(&slot) {
                    Some(content) if slot.is_tensor() => runner::pack(content, element),
                    Some(content) => content.clone(),
                    None => vec![0xffff_ffff; size as usize / 4],
                };
                assert_eq!(words.len() as u64 * 4, size, "{slot}");
                words.resize(words.len().next_multiple_of(64), 0x7fc0_abcd);
                arena.extend(words);
            }
            let buffer = runner::upload(gpu, &arena);
            let memory = |slot| {
                let place: Option<&(u64, u64)> = places.get(&slot);
                place.map(|(begin, size)| buffer.slice(*begin..begin + size)).into()
            };
            let forward = gpu.kernels().prepare(forward).unwrap();
            let bound = forward.bind(&TrainBuffers::from_slots(&memory)).unwrap();
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            bound.encode_into(&mut encoder);
            let now = runner::read(gpu, encoder, std::slice::from_ref(&buffer)).remove(0);
            for (slot, &(begin, size)) in places.iter().filter(|(slot, _)| slot.is_tensor()) {
                let range = begin as usize / 4..(begin + size) as usize / 4;
                let (before, after) = (&arena[range.clone()], &now[range]);
                if *slot == Slot::Y {
                    let y = floats(&runner::unpack(after, element, 255));
                    assert!(exactly(&y, &apart.y).is_good(), "{case}");
                    assert_eq!(after[127] >> 16, before[127] >> 16, "past the end of y: {case}");
                } else {
                    assert_eq!(after, before, "{slot}: {case}");
                }
            }
        }
    }
}

#[test]
fn checked_shaders_give_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    let options = KernelOptions { checked: true, ..Default::default() };
    let checked = Kernels::with_options(gpu.device(), options);
    for case in cases() {
        let data = Data::random(case.geometry(), 12, 0.0, 1.0);
        let mut inputs = runner::inputs(&data);
        let train = |kernels, inputs: &Contents| {
            runner::run(gpu, kernels, runner::plan::<Train>(gpu, &case).unwrap(), inputs)
        };
        let (fast, slow) = (train(gpu.kernels(), &inputs), train(&checked, &inputs));
        let defined = |contents: &Contents| {
            let mut contents = contents.clone();
            contents.remove(&Slot::Scratch);
            contents
        };
        assert!(defined(&fast) == defined(&slow), "{case}");
        inputs.insert(Slot::Saved, fast[&Slot::Saved].clone());
        let backward = |kernels| {
            runner::run(gpu, kernels, runner::plan::<Backward>(gpu, &case).unwrap(), &inputs)
        };
        assert!(defined(&backward(gpu.kernels())) == defined(&backward(&checked)), "{case}");
        let frozen = |kernels| {
            runner::run(gpu, kernels, runner::plan::<FrozenBackward>(gpu, &case).unwrap(), &inputs)
        };
        assert!(defined(&frozen(gpu.kernels())) == defined(&frozen(&checked)), "{case}");
        let statistics = |kernels| {
            runner::run(gpu, kernels, runner::plan::<Statistics>(gpu, &case).unwrap(), &inputs)
        };
        assert!(defined(&statistics(gpu.kernels())) == defined(&statistics(&checked)), "{case}");
    }
}

/// A hundred runs, some of them while other threads keep the machine busy.
#[test]
fn the_same_bits_run_to_run() {
    let Some(gpu) = gpu() else { return };
    let case = &cases()[2];
    let data = Data::random(case.geometry(), 13, 1.0, 1.0);
    let first = runner::train(gpu, case, &data).bits();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    std::hint::black_box((0..10_000u64).sum::<u64>());
                }
            });
        }
        for run in 0..100 {
            let same = runner::train(gpu, case, &data).bits() == first;
            if !same {
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            assert!(same, "run {run} differs: {case}");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn forward_and_backward_in_one_pass() {
    let Some(gpu) = gpu() else { return };
    for case in cases() {
        let data = Data::random(case.geometry(), 14, -1.0, 2.0);
        let apart = runner::train(gpu, &case, &data);
        // All slots of both operations in one set of buffers; scratch is shared.
        let inputs = runner::inputs(&data);
        let forward = runner::plan::<Train>(gpu, &case).unwrap();
        let backward = runner::plan::<Backward>(gpu, &case).unwrap();
        let memory = Arranged::new(gpu, &forward, &inputs);
        let mut more = inputs.clone();
        more.remove(&Slot::X);
        let other = Arranged::new(
            gpu,
            &backward,
            &HashMap::from_iter(more.into_iter().chain([
                (Slot::X, bits(&data.x)),
                (Slot::Saved, vec![0; forward.slot_size(Slot::Saved) as usize / 4]),
            ])),
        );
        let forward = gpu.kernels().prepare(forward).unwrap();
        let backward = gpu.kernels().prepare(backward).unwrap();
        let bound = forward.bind(&memory.buffers::<Train>()).unwrap();
        let mut buffers = other.buffers::<Backward>();
        buffers.saved = memory.buffers::<Train>().saved;
        buffers.x = memory.buffers::<Train>().x;
        let bound_backward = backward.bind(&buffers).unwrap();
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            bound.encode(&mut pass);
            bound_backward.encode(&mut pass);
            // Encoding again gives the same again: scratch is garbage, inputs are untouched.
            bound_backward.encode(&mut pass);
        }
        let contents = other.read(gpu, encoder);
        assert!(exactly(&floats(&contents[&Slot::Dx]), &apart.dx).is_good(), "{case}");
        assert!(exactly(&floats(&contents[&Slot::Dgamma]), &apart.dgamma).is_good(), "{case}");
    }
}

/// The statistics of a training forward are the statistics alone, to the bit where they share their
/// path.
#[test]
fn statistics_alone_are_those_of_training() {
    let Some(gpu) = gpu() else { return };
    let mut compared = 0;
    for case in cases() {
        let plan = runner::plan::<Train>(gpu, &case).unwrap();
        let alone = runner::plan::<Statistics>(gpu, &case).unwrap();
        assert!(alone.bytes_moved() < 2 * plan.slot_size(Slot::X), "more than one read: {case}");
        if plan.scratch_size() == 0 {
            continue;
        }
        let data = Data::random(case.geometry(), 30, 2.0, 1.0);
        let train = runner::train(gpu, &case, &data);
        let moments = runner::statistics(gpu, &case, &data);
        let c = train.mean.len();
        assert!(exactly(&moments[..c], &train.mean).is_good(), "{case}");
        assert!(exactly(&moments[c..2 * c], &train.rest).is_good(), "{case}");
        compared += 1;
    }
    assert!(compared > 0, "no case takes the path");
}

/// An empty batch overwrites the poison with the moments of no value.
#[test]
fn statistics_of_an_empty_batch_are_zeros() {
    let Some(gpu) = gpu() else { return };
    for (shape, axis) in [
        (vec![0, 3, 4], ChannelAxis::First),
        (vec![2, 300, 0], ChannelAxis::First),
        (vec![0, 5], ChannelAxis::Last),
    ] {
        for memory in [Memory::Separate, Memory::InPlace, Memory::Arena] {
            let config = Config { memory, ..Config::pytorch() };
            let case = Case::new(&shape, axis, config);
            let data = Data::random(case.geometry(), 1, 0.0, 1.0);
            let moments = runner::statistics(gpu, &case, &data);
            let zeros = vec![0u32; 4 * case.geometry().channels() as usize];
            assert_eq!(bits(&moments), zeros, "{case}");
        }
    }
}

#[test]
fn accumulating_twice_is_adding() {
    let Some(gpu) = gpu() else { return };
    for case in cases() {
        let data = Data::random(case.geometry(), 15, 0.0, 1.0);
        let once = runner::train(gpu, &case, &data);
        let gradients = Gradients { accumulate: true, ..Gradients::ALL };
        let case = Case { config: Config { gradients, ..case.config.clone() }, ..case };
        let mut inputs = runner::inputs(&data);
        inputs.insert(Slot::Saved, bits(&once.saved()));
        inputs.insert(Slot::Dgamma, bits(&once.dgamma));
        inputs.insert(Slot::Dbeta, bits(&once.dbeta));
        let plan = runner::plan::<Backward>(gpu, &case).unwrap();
        let twice = runner::run(gpu, gpu.kernels(), plan, &inputs);
        let double = |values: &[f32]| values.iter().map(|v| v + v).collect::<Vec<f32>>();
        let sums = [(Slot::Dgamma, &once.dgamma), (Slot::Dbeta, &once.dbeta)];
        for (slot, values) in sums {
            assert!(exactly(&floats(&twice[&slot]), &double(values)).is_good(), "{slot}: {case}");
        }
    }
}

#[test]
fn a_forward_computed_again_moves_nothing() {
    let Some(gpu) = gpu() else { return };
    for case in cases() {
        let data = Data::random(case.geometry(), 16, 0.0, 1.0);
        let first = runner::train(gpu, &case, &data);
        let config = Config { update: Update::None, ..case.config.clone() };
        let again = runner::train(gpu, &Case { config, ..case.clone() }, &data);
        assert!(exactly(&again.y, &first.y).is_good() && exactly(&again.dx, &first.dx).is_good());
        assert!(again.running_mean.is_empty() && again.batches == 0, "{case}");
    }
}

#[test]
fn cumulative_average_of_several_batches() {
    let Some(gpu) = gpu() else { return };
    for case in cases() {
        let config = Config { update: Update::Cumulative, ..case.config.clone() };
        let case = Case { config, ..case };
        let mut data = Data::random(case.geometry(), 17, 0.0, 1.0);
        data.batches = 0;
        let mut means = vec![0.0f64; case.geometry().channels() as usize];
        for batch in 0..4u32 {
            data.x = Data::random(case.geometry(), 100 + u64::from(batch), 5.0, 1.0).x;
            let r = runner::train(gpu, &case, &data);
            assert_eq!(r.batches, batch + 1);
            for (sum, mean) in means.iter_mut().zip(&r.mean) {
                *sum += f64::from(*mean);
            }
            (data.running_mean, data.running_var, data.batches) =
                (r.running_mean, r.running_var, r.batches);
        }
        // Four roundings of values around 5.
        let bounds = vec![4.0 * 3.0 * 5.0 * 2f64.powi(-24); means.len()];
        let means: Vec<f64> = means.iter().map(|sum| sum / 4.0).collect();
        let result = crate::common::compare::within(&data.running_mean, &means, &bounds);
        assert!(result.is_good(), "{case}: {result:?}");
    }
}

/// One channel of 30 million elements: far more than 65,535 iterations for one invocation, which is
/// where lavapipe silently stops. The sum is known in closed form.
#[test]
fn thirty_million_elements_in_one_channel() {
    let Some(gpu) = gpu() else { return };
    let n = 30_000_000usize;
    let case = Case::new(&[1, 1, n], ChannelAxis::First, Config::pytorch());
    let data = {
        let mut data = Data::random(
            Case::new(&[1, 1, 4], ChannelAxis::First, Config::pytorch()).geometry(),
            1,
            0.0,
            1.0,
        );
        // 0, 1, 2, 3, 0, … : mean 1.5, variance 1.25. dy = x: S₁ = 1.5·n, S₂ = 1.25·n.
        data.x = (0..n).map(|i| (i % 4) as f32).collect();
        data.dy = data.x.clone();
        data
    };
    let inputs = runner::inputs(&data);
    let plan = runner::plan::<Train>(gpu, &case).unwrap();
    let forward = runner::run(gpu, gpu.kernels(), plan, &inputs);
    let saved = floats(&forward[&Slot::Saved]);
    assert_eq!((saved[0], saved[1]), (1.5, 0.0));
    let inv_std = 1.0 / (1.25f64 + 1e-5).sqrt();
    assert!(
        (f64::from(saved[2]) - inv_std).abs() <= 4.0 * 2f64.powi(-24) * inv_std,
        "{}",
        saved[2]
    );
    let y = floats(&forward[&Slot::Y]);
    assert_eq!(y[n - 4..], y[..4]);
    let (gamma, beta) = (f64::from(data.gamma[0]), f64::from(data.beta[0]));
    for (i, y) in y[n - 4..].iter().enumerate() {
        let expected = (i as f64 - 1.5) * inv_std * gamma + beta;
        assert!((f64::from(*y) - expected).abs() <= 8.0 * 2f64.powi(-24) * 3.0, "{y} {expected}");
    }
    let mut inputs = inputs;
    inputs.insert(Slot::Saved, forward[&Slot::Saved].clone());
    let plan = runner::plan::<Backward>(gpu, &case).unwrap();
    let backward = runner::run(gpu, gpu.kernels(), plan, &inputs);
    let near = |slot, expected: f64| {
        let value = f64::from(floats(&backward[&slot])[0]);
        // A lane adds n/(lanes·workgroups·4) values in a row, each addition rounding its sum.
        let bound = 2f64.powi(-24) * 64.0 * expected;
        assert!((value - expected).abs() <= bound, "{slot}: {value}, not {expected}");
    };
    near(Slot::Dbeta, 1.5 * n as f64);
    near(Slot::Dgamma, 1.25 * n as f64 * inv_std);
}

/// Eight threads share one prepared operation and encode into encoders of their own.
#[test]
fn threads_share_prepared_operations() {
    let Some(gpu) = gpu() else { return };
    let case = &cases()[0];
    let data = Data::random(case.geometry(), 18, 0.0, 1.0);
    let expected = runner::frozen(gpu, case, &data);
    let prepared = gpu.kernels().prepare(runner::plan::<Infer>(gpu, case).unwrap()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let plan = runner::plan::<Infer>(gpu, case).unwrap();
                let memory = Arranged::new(gpu, &plan, &runner::inputs(&data));
                let bound = prepared.bind(&memory.buffers::<Infer>()).unwrap();
                let mut encoder = gpu.device().create_command_encoder(&Default::default());
                bound.encode_into(&mut encoder);
                let contents = memory.read(gpu, encoder);
                assert!(exactly(&floats(&contents[&Slot::Y]), &expected.y).is_good());
            });
        }
    });
}

/// A caller's own dispatch before and after, in one pass: see also examples/embed.rs.
#[test]
fn lives_between_a_callers_dispatches() {
    let Some(gpu) = gpu() else { return };
    let device = gpu.device();
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: None,
        source: wgpu::ShaderSource::Wgsl(
            "@group(0) @binding(0) var<storage, read_write> v: array<f32>;
             @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
                 if id.x < arrayLength(&v) { v[id.x] = v[id.x] * 2.0; }
             }"
            .into(),
        ),
    });
    let double = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &module,
        entry_point: None,
        compilation_options: Default::default(),
        cache: None,
    });
    let group = |buffer: &wgpu::Buffer| {
        device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &double.get_bind_group_layout(0),
            entries: &[wgpu::BindGroupEntry { binding: 0, resource: buffer.as_entire_binding() }],
        })
    };
    let case = Case::new(&[4, 2, 8], ChannelAxis::First, Config::keras());
    let data = Data::random(case.geometry(), 19, 1.0, 1.0);
    let upload = |values: &[f32]| runner::upload(gpu, &bits(values));
    let (x, y) = (upload(&data.x), upload(&[0.0; 64]));
    let (gamma, beta) = (upload(&data.gamma), upload(&data.beta));
    let (mean, var) = (upload(&data.running_mean), upload(&data.running_var));
    let saved = upload(&[0.0; 8]);
    let prepared = gpu.kernels().prepare(runner::plan::<Train>(gpu, &case).unwrap()).unwrap();
    let bound = prepared
        .bind(&TrainBuffers {
            x: (&x).into(),
            y: (&y).into(),
            gamma: (&gamma).into(),
            beta: (&beta).into(),
            saved: (&saved).into(),
            running_mean: (&mean).into(),
            running_var: (&var).into(),
            ..Default::default()
        })
        .unwrap();
    let (before, after) = (group(&x), group(&y));
    let mut encoder = device.create_command_encoder(&Default::default());
    {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        for group in [&before, &after] {
            if std::ptr::eq(group, &after) {
                bound.encode(&mut pass);
            }
            pass.set_pipeline(&double);
            pass.set_bind_group(0, group, &[]);
            pass.dispatch_workgroups(1, 1, 1);
        }
    }
    let result = runner::read(gpu, encoder, &[y]).remove(0);
    let doubled = Data { x: data.x.iter().map(|x| 2.0 * x).collect(), ..data };
    let expected: Vec<f32> =
        runner::train(gpu, &case, &doubled).y.iter().map(|y| 2.0 * y).collect();
    assert!(exactly(&floats(&result), &expected).is_good());
}

/// The same tuning gives the same bits in plans that fold their grid differently; another class may
/// differ in last bits only.
#[test]
fn a_plan_can_be_made_with_a_tuning_of_ones_own() {
    let Some(gpu) = gpu() else { return };
    let case = &cases()[1];
    let data = Data::random(case.geometry(), 20, 0.0, 1.0);
    let tuning = Tuning::choose(gpu.caps(), &case.geometry(), case.config.element);
    let own =
        Plan::<Train>::with_tuning(case.geometry(), &case.config, gpu.caps(), &tuning).unwrap();
    assert_eq!(own, runner::plan::<Train>(gpu, case).unwrap());
    let half = Tuning { workgroup_count: tuning.workgroup_count / 2, ..tuning };
    let case = case.clone().tuned(&half);
    crate::common::check::check(gpu, &case, &data);
}
