//! The shader table and `Params` against what naga finds in the WGSL.

use std::collections::BTreeSet;
use std::mem::{offset_of, size_of};

use naga::front::wgsl;
use naga::valid::{Capabilities, ValidationFlags, Validator};
use wgpu_batchnorm::{
    Affine, Backward, Caps, ChannelAxis, Class, Config, FrozenBackward, Geometry, Gradients, Infer,
    Memory, NonFinite, Operation, Params, Plan, Stage, Statistics, Train, Update, Variant, shader,
};

/// Every variant that a wide sample of geometries and configs plans.
fn variants() -> Vec<Variant> {
    fn stages<O: Operation>(
        all: &mut Vec<Stage>,
        geometry: Geometry,
        config: &Config,
        class: Class,
    ) {
        let caps = Caps { class, ..Caps::webgpu_default() };
        all.extend_from_slice(Plan::<O>::new(geometry, config, &caps).unwrap().stages());
    }
    let shapes: [&[usize]; 8] = [
        &[0, 3],
        &[2, 3, 64, 64],
        &[2, 3, 63, 63],
        &[64, 64, 64, 64],
        &[4, 128, 4],
        &[5, 7, 33],
        &[70_000, 4],
        &[70_001, 5],
    ];
    let mut all = Vec::new();
    for shape in shapes {
        for axis in [ChannelAxis::First, ChannelAxis::Last] {
            let geometry = Geometry::new(shape, axis).unwrap();
            for memory in [Memory::Separate, Memory::InPlace, Memory::Arena] {
                for bits in 0..8 {
                    let gradients = Gradients {
                        x: bits & 1 > 0,
                        gamma: bits & 2 > 0,
                        beta: bits & 4 > 0,
                        accumulate: bits == 7,
                    };
                    let update = [Update::Rate(0.1), Update::Cumulative, Update::None][bits % 3];
                    let affine = Affine { gamma: bits % 4 != 1, beta: bits % 4 != 2 };
                    let non_finite = [NonFinite::Propagate, NonFinite::Keep][bits % 2];
                    let config =
                        Config { memory, gradients, update, affine, non_finite, ..Config::keras() };
                    for class in [Class::Software, Class::Hardware] {
                        stages::<Train>(&mut all, geometry, &config, class);
                        stages::<Infer>(&mut all, geometry, &config, class);
                        stages::<Backward>(&mut all, geometry, &config, class);
                        stages::<FrozenBackward>(&mut all, geometry, &config, class);
                        stages::<Statistics>(&mut all, geometry, &config, class);
                    }
                }
            }
        }
    }
    let unique: std::collections::HashSet<Variant> = all.iter().map(|s| s.variant).collect();
    unique.into_iter().collect()
}

#[test]
fn bindings_are_what_naga_finds() {
    let variants = variants();
    let kernels: BTreeSet<&str> = variants.iter().map(|v| v.kernel.name()).collect();
    assert_eq!(kernels.len(), 17, "a kernel is never planned: {kernels:?}");
    for variant in &variants {
        let source = shader::source(variant);
        let module = wgsl::parse_str(&source)
            .unwrap_or_else(|error| panic!("{variant:?}: {}", error.emit_to_string(&source)));
        let info = Validator::new(ValidationFlags::all(), Capabilities::default())
            .validate(&module)
            .unwrap_or_else(|error| panic!("{variant:?}: {}", error.emit_to_string(&source)));
        let entry = module.entry_points.iter().position(|e| e.name == shader::ENTRY_POINT).unwrap();
        let usage = info.get_entry_point(entry);
        let mut found = Vec::new();
        for (handle, global) in module.global_variables.iter() {
            let naga::AddressSpace::Storage { access } = global.space else { continue };
            let binding = global.binding.as_ref().unwrap();
            assert_eq!(binding.group, 0);
            assert!(!usage[handle].is_empty(), "{variant:?}: {:?} is never used", global.name);
            let used = usage[handle];
            let writes = used.contains(naga::valid::GlobalUse::WRITE);
            let read_only = !access.contains(naga::StorageAccess::STORE);
            found.push((binding.binding, global.name.clone().unwrap(), read_only, writes));
        }
        found.sort();
        let mut table: Vec<_> = shader::bindings(variant)
            .iter()
            .map(|b| {
                let writes = b.access == shader::Access::Write;
                (b.number, b.slot.name().to_string(), b.read_only, writes)
            })
            .collect();
        table.sort();
        assert_eq!(found, table, "{variant:?}");
        assert!(table.len() <= 8, "{variant:?} binds more than WebGPU's default allows");
        let overrides: BTreeSet<String> =
            module.overrides.iter().map(|(_, o)| o.name.clone().unwrap()).collect();
        let constants: BTreeSet<String> =
            shader::constants(variant).iter().map(|(name, _)| (*name).to_string()).collect();
        assert_eq!(overrides, constants);
    }
}

#[test]
fn params_twins_agree() {
    macro_rules! fields {
        ($($name:ident),* $(,)?) => { vec![$((stringify!($name), offset_of!(Params, $name))),*] };
    }
    let rust = fields![
        workgroup_count,
        channel_count,
        inner,
        step_count,
        chunk,
        chunk_count,
        width,
        tail,
        row_loads,
        row_stride,
        advance_place,
        advance_index,
        run,
        per_chunk,
        weight,
        plane,
        sums,
        value_count,
        rate,
        keep,
        variance_factor,
        epsilon,
        zero,
        padding,
    ];
    let module = wgsl::parse_str(&shader::source(&variants()[0])).unwrap();
    let (_, params) =
        module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some("Params")).unwrap();
    let naga::TypeInner::Struct { members, span } = &params.inner else { panic!("no struct") };
    let wgsl: Vec<(&str, usize)> =
        members.iter().map(|m| (m.name.as_deref().unwrap(), m.offset as usize)).collect();
    assert_eq!(wgsl, rust);
    assert_eq!(*span as usize, size_of::<Params>());
}
