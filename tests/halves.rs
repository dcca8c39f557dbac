//! The conversions between halves and f32 that the kernels load and store tensors with, against the
//! `half` crate: every half, every tie between two of them, and a million other values.

use half::{bf16, f16};
use wgpu_batchnorm::{
    Caps, ChannelAxis, Class, Config, Element, Geometry, Gpu, Plan, SingleValue, Slot, Train,
    Tuning, Variant, shader, wgpu,
};

use crate::common::data::{Case, Data, Random, small_tunings};
use crate::common::gpu;
use crate::common::runner::{read, train, upload};

const ELEMENTS: [Element; 2] = [Element::F16, Element::Bf16];

/// Instead of the kernel's own: x, widened, to `saved`, and gamma, narrowed, to y.
const MAIN: &str = "
    @compute @workgroup_size(64)
    fn main(@builtin(global_invocation_id) id: vec3<u32>) {
        // Four vectors at once, or one after the other.
        let i = 4u * id.x;
        let at = Places(i, i + 1u, i + 2u, i + 3u);
        if i * WIDTH >= arrayLength(&slot_gamma) {
            return;
        }
        let v = Four(given(at.a), given(at.b), given(at.c), given(at.d));
        var x = load_x_four(at);
        if id.x % 2u == 0u {
            store_y_four(at, v);
        } else {
            x = Four(load_x(at.a), load_x(at.b), load_x(at.c), load_x(at.d));
            store_y(at.a, v.a);
            store_y(at.b, v.b);
            store_y(at.c, v.c);
            store_y(at.d, v.d);
        }
        keep(at.a, x.a);
        keep(at.b, x.b);
        keep(at.c, x.c);
        keep(at.d, x.d);
    }

    fn given(i: u32) -> V {
        var v = V(0.0);
        for (var c = 0u; c < WIDTH; c = c + 1u) {
            v = select(v, V(load_gamma(i * WIDTH + c)), COMPONENTS == U(c));
        }
        return v;
    }

    fn keep(i: u32, x: V) {
        for (var c = 0u; c < WIDTH; c = c + 1u) {
            store_saved(i * WIDTH + c, component(x, c));
        }
    }";

fn widened(element: Element, half: u16) -> f32 {
    match element {
        Element::F16 => f16::from_bits(half).to_f32(),
        _ => bf16::from_bits(half).to_f32(),
    }
}

fn narrowed(element: Element, value: f32) -> u16 {
    match element {
        Element::F16 => f16::from_f32(value).to_bits(),
        _ => bf16::from_f32(value).to_bits(),
    }
}

/// The bits of the largest finite half.
fn largest(element: Element) -> u16 {
    match element {
        Element::F16 => f16::MAX.to_bits(),
        _ => bf16::MAX.to_bits(),
    }
}

/// How a device can load and store halves: vectors of four, by 64 bits too, and two of these at once; and
/// one at a time. Then the same by the built-in conversions that it says are exact.
fn accesses(gpu: &Gpu, element: Element) -> Vec<Variant> {
    let all = [(4, false, false), (1, false, false), (4, true, false), (4, true, true)];
    let all = all.into_iter().filter(|(_, wide, _)| gpu.caps().int64 || !wide);
    let own: Vec<Variant> = all.map(|access| variant(element, access)).collect();
    let gpu = gpu.clone().with_f16_blocking().unwrap();
    let Caps { exact_widen, exact_narrow, .. } = *gpu.caps();
    println!("built-in conversions: widen exactly {exact_widen}, round {exact_narrow}");
    let built_in = own.iter().filter(|_| element == Element::F16).map(|variant| Variant {
        built_in_widen: exact_widen,
        built_in_narrow: exact_narrow,
        ..*variant
    });
    own.iter().copied().chain(built_in).collect()
}

/// A kernel that loads x and stores y so.
fn variant(element: Element, (vector, wide, paired): (u32, bool, bool)) -> Variant {
    let geometry = Geometry::new(&[2, 3, vector as usize], ChannelAxis::First).unwrap();
    let config = Config { element, single_value: SingleValue::Allow, ..Config::pytorch() };
    let plan = Plan::<Train>::new(geometry, &config, &Caps::webgpu_default()).unwrap();
    let all = [Slot::X, Slot::Y, Slot::Gamma, Slot::Saved];
    let fits = |v: &Variant| v.vector == vector && all.iter().all(|slot| v.slots.contains(*slot));
    let found = plan.stages().iter().map(|stage| stage.variant).find(fits);
    Variant { wide, paired, ..found.expect("one dispatch does it all") }
}

/// Every half as the kernels widen it, and every value as they narrow it.
fn convert(gpu: &Gpu, variant: &Variant, halves: &[u16], values: &[f32]) -> (Vec<f32>, Vec<u16>) {
    assert_eq!(halves.len(), values.len());
    let device = gpu.device();
    let source = shader::source(variant);
    let (shipped, _) = source.rsplit_once("@compute").unwrap();
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: None,
        source: wgpu::ShaderSource::Wgsl([shipped, MAIN].concat().into()),
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &module,
        entry_point: Some(shader::ENTRY_POINT),
        compilation_options: Default::default(),
        cache: None,
    });
    let words = |halves: &[u16]| -> Vec<u32> {
        halves.chunks(2).map(|h| u32::from(h[0]) | u32::from(h[1]) << 16).collect()
    };
    let poison = vec![0x1234u16; halves.len()];
    let slots = [
        (Slot::X, upload(gpu, &words(halves))),
        (Slot::Y, upload(gpu, &words(&poison))),
        (Slot::Gamma, upload(gpu, bytemuck::cast_slice(values))),
        (Slot::Saved, upload(gpu, &vec![0x7fc0_0001; values.len()])),
    ];
    // Of the parameters, the kernels' own accessors look at the first channel.
    let params = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: size_of::<wgpu_batchnorm::Params>() as u64,
        usage: wgpu::BufferUsages::UNIFORM,
        mapped_at_creation: false,
    });
    let bindings = shader::bindings(variant);
    let entries: Vec<_> = slots
        .iter()
        .map(|(slot, buffer)| wgpu::BindGroupEntry {
            binding: bindings.iter().find(|binding| binding.slot == *slot).unwrap().number,
            resource: buffer.as_entire_binding(),
        })
        .chain([wgpu::BindGroupEntry { binding: 0, resource: params.as_entire_binding() }])
        .collect();
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.get_bind_group_layout(0),
        entries: &entries,
    });
    let mut encoder = device.create_command_encoder(&Default::default());
    {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        let workgroups = (values.len() as u32 / variant.vector).div_ceil(4 * 64);
        pass.dispatch_workgroups(workgroups, 1, 1);
    }
    let [_, (_, y), _, (_, saved)] = slots;
    let contents = read(gpu, encoder, &[y, saved]);
    let halves = contents[0].iter().flat_map(|word| [*word as u16, (word >> 16) as u16]).collect();
    (contents[1].iter().map(|bits| f32::from_bits(*bits)).collect(), halves)
}

/// What is below f32's normal range may be taken for 0.
fn good_f32(actual: f32, expected: f32) -> bool {
    let flushed = expected.is_subnormal() && actual == 0.0;
    flushed || actual.to_bits() == expected.to_bits() || actual.is_nan() && expected.is_nan()
}

/// A NaN is any NaN; zeros have their sign.
fn good_half(element: Element, actual: u16, value: f32) -> bool {
    let flushed = value.is_subnormal() && actual & 0x7fff == 0;
    let actual_is_nan = widened(element, actual).is_nan();
    flushed || if value.is_nan() { actual_is_nan } else { actual == narrowed(element, value) }
}

#[test]
fn every_half_is_widened_and_narrowed_back() {
    let Some(gpu) = gpu() else { return };
    let halves: Vec<u16> = (0..=u16::MAX).collect();
    for element in ELEMENTS {
        let values: Vec<f32> = halves.iter().map(|half| widened(element, *half)).collect();
        for access in accesses(gpu, element) {
            let (wide, back) = convert(gpu, &access, &halves, &values);
            for (half, (wide, back)) in halves.iter().zip(wide.iter().zip(back)) {
                let value = widened(element, *half);
                assert!(good_f32(*wide, value), "{element:?} {half:#x}: {wide:e}, not {value:e}");
                let same = back == *half || value.is_nan() || value.is_subnormal();
                assert!(
                    same && good_half(element, back, value),
                    "{element:?} {half:#x}: {back:#x}"
                );
            }
        }
    }
}

/// Everything that rounding can get wrong, with both signs.
fn values(element: Element) -> Vec<f32> {
    let mut magnitudes = Vec::new();
    let mut add = |bits: u32| magnitudes.extend([bits.saturating_sub(1), bits, bits + 1]);
    for half in 0..=largest(element) {
        // From the largest on, to the power of two that the next half would be.
        let (low, high) = (
            f64::from(widened(element, half)),
            match half == largest(element) {
                true => 2.0 * 2f64.powf(f64::from(widened(element, half)).log2().floor()),
                false => f64::from(widened(element, half + 1)),
            },
        );
        let tie = ((low + high) / 2.0) as f32;
        assert_eq!(f64::from(tie), (low + high) / 2.0, "a tie is an f32");
        add(tie.to_bits());
        add((low as f32).to_bits());
    }
    magnitudes.extend([0, 1, 0x007f_ffff, 0x0080_0000, f32::MAX.to_bits(), 0x7f80_0000]);
    magnitudes.extend([0x7f80_0001, 0x7f80_2000, 0x7fbf_ffff, 0x7fc0_0000, 0x7fff_ffff]);
    magnitudes.extend([65_504.0f32, 65_519.996, 65_520.0, 65_536.0].map(f32::to_bits));
    let mut random = Random(5);
    let signed = magnitudes.into_iter().flat_map(|bits| [bits, bits | 0x8000_0000]);
    let random = (0..1 << 20).map(|_| random.bits() as u32);
    let mut all: Vec<f32> = signed.chain(random).map(f32::from_bits).collect();
    all.resize(all.len().next_multiple_of(16), 0.0);
    all
}

#[test]
fn every_tie_and_a_million_values_are_narrowed_to_the_nearest() {
    let Some(gpu) = gpu() else { return };
    for element in ELEMENTS {
        let values = values(element);
        let halves = vec![0; values.len()];
        for access in accesses(gpu, element) {
            let (_, narrow) = convert(gpu, &access, &halves, &values);
            for (value, half) in values.iter().zip(narrow) {
                let (bits, expected) = (value.to_bits(), narrowed(element, *value));
                assert!(
                    good_half(element, half, *value),
                    "{element:?} {value:e} ({bits:#x}): {half:#x}, not {expected:#x}"
                );
            }
        }
        println!("{element:?}: {} values", values.len());
    }
}

/// A device that has been asked plans with what it has, on every path.
#[test]
fn built_in_conversions_change_no_bit() {
    let Some(gpu) = gpu() else { return };
    let asked = gpu.clone().with_f16_blocking().unwrap();
    let Caps { exact_widen, exact_narrow, .. } = *asked.caps();
    let built_in = |class, element| {
        let caps = Caps { class, ..asked.caps().clone() };
        let geometry = Geometry::new(&[8, 8], ChannelAxis::Last).unwrap();
        Tuning::choose(&caps, &geometry, element)
    };
    for class in [Class::Software, Class::Hardware] {
        let chosen = built_in(class, Element::F16);
        let narrows = exact_narrow && class == Class::Hardware;
        assert_eq!((chosen.built_in_widen, chosen.built_in_narrow), (exact_widen, narrows));
        for (shape, axis) in [
            (&[6usize, 5, 4, 8][..], ChannelAxis::First),
            (&[6, 4, 3, 16], ChannelAxis::Last),
            (&[5, 3, 7], ChannelAxis::First),
            (&[33, 7], ChannelAxis::Last),
        ] {
            let config = Config { element: Element::F16, residual: true, ..Config::pytorch() };
            for tuning in small_tunings().into_iter().chain([chosen.clone()]) {
                let own =
                    Tuning { built_in_widen: false, built_in_narrow: false, ..tuning.clone() };
                let built_in =
                    Tuning { built_in_widen: exact_widen, built_in_narrow: exact_narrow, ..tuning };
                let case = Case::new(shape, axis, config.clone());
                let data = Data::random(case.geometry(), 11, 0.5, 2.0).rounded(Element::F16);
                let bits = |tuning| train(&asked, &case.clone().tuned(&tuning), &data).bits();
                assert_eq!(bits(own), bits(built_in), "{case} {class:?}");
            }
        }
    }
}

/// What the tests above compare with, by hand.
#[test]
fn the_expected_halves_are_those_of_the_standards() {
    let table = [
        (1.0, 0x3c00, 0x3f80),
        (-2.0, 0xc000, 0xc000),
        (-0.0, 0x8000, 0x8000),
        (65_504.0, 0x7bff, 0x4780),
        (65_519.996, 0x7bff, 0x4780),
        (65_520.0, 0x7c00, 0x4780),
        (f32::INFINITY, 0x7c00, 0x7f80),
        // The smallest denormal half, half of it (to even), and a little more than that.
        (5.960_464_5e-8, 0x0001, 0x3380),
        (2.980_232_2e-8, 0x0000, 0x3300),
        (2.980_232_6e-8, 0x0001, 0x3300),
        // Ties to even: down to 1, and up to 1 + 2/1024, 1 + 2/128.
        (1.0 + 1.0 / 2048.0, 0x3c00, 0x3f80),
        (1.0 + 3.0 / 2048.0, 0x3c02, 0x3f80),
        (1.0 + 1.0 / 256.0, 0x3c04, 0x3f80),
        (1.0 + 3.0 / 256.0, 0x3c0c, 0x3f82),
    ];
    for (value, half, brain) in table {
        assert_eq!(narrowed(Element::F16, value), half, "{value:e}");
        assert_eq!(narrowed(Element::Bf16, value), brain, "{value:e}");
    }
    let [half, brain] = ELEMENTS.map(|element| narrowed(element, f32::NAN));
    assert!(f16::from_bits(half).is_nan() && bf16::from_bits(brain).is_nan());
}
