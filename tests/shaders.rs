//! The shader table and `Params` against what naga finds in the WGSL.

use std::collections::BTreeSet;
use std::mem::{offset_of, size_of};

use naga::front::wgsl;
use naga::valid::{ValidationFlags, Validator};
use wgpu_batchnorm::{Epilogue, Params, Variant, shader};

use crate::common::variants;

#[test]
fn bindings_are_what_naga_finds() {
    let variants = variants::all();
    let kernels: BTreeSet<&str> = variants.iter().map(|v| v.kernel.name()).collect();
    assert_eq!(kernels.len(), 21, "a kernel is never planned: {kernels:?}");
    // WebGPU has no words of 64 bits, so that no other shader compiler is shown these.
    let loads = variants.iter().filter(|v| variants::loads_tensors(v));
    let wide: Vec<Variant> = loads.map(|v| Variant { wide: true, ..*v }).collect();
    assert!(!wide.is_empty() && variants.iter().all(|v| !v.wide));
    for variant in variants.iter().chain(&wide) {
        let source = shader::source(variant);
        let module = wgsl::parse_str(&source)
            .unwrap_or_else(|error| panic!("{variant:?}: {}", error.emit_to_string(&source)));
        let info = Validator::new(ValidationFlags::all(), variants::capabilities(variant))
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
                (b.number, format!("slot_{}", b.slot), b.read_only, writes)
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

/// `Stage::iterations` counts what kernels loop and knows no activation: none may loop.
#[test]
fn an_activation_adds_no_loop() {
    let loops = |variant: &Variant| -> usize {
        let source = shader::source(variant);
        ["for (", "while ", "loop {"].iter().map(|word| source.matches(word).count()).sum()
    };
    let mut seen = BTreeSet::new();
    for variant in variants::all().iter().filter(|v| v.activation != Epilogue::None) {
        let plain = Variant { activation: Epilogue::None, ..*variant };
        assert_eq!(loops(variant), loops(&plain), "{variant:?}");
        seen.insert((format!("{:?}", variant.activation), variant.vector));
    }
    assert_eq!(seen.len(), 2 * 5, "not every activation at every width: {seen:?}");
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
        middle,
        last,
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
        per_run,
        per_chunk,
        strip,
        weight,
        plane,
        sums,
        unbiased,
        rate,
        keep,
        epsilon,
        zero,
        activation,
        base,
        mask_base,
        first_channel,
        channels_here,
        partials,
        sums_plane,
        rmin,
        rmax,
        dmax,
        group_count,
        per_group,
        parameter_count,
        weights_base,
        tiles,
        block,
        line,
        parts,
        from_end,
    ];
    let module = wgsl::parse_str(&shader::source(&variants::all()[0])).unwrap();
    let (_, params) =
        module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some("Params")).unwrap();
    let naga::TypeInner::Struct { members, span } = &params.inner else { panic!("no struct") };
    let wgsl: Vec<(&str, usize)> =
        members.iter().map(|m| (m.name.as_deref().unwrap(), m.offset as usize)).collect();
    assert_eq!(wgsl, rust);
    assert_eq!(*span as usize, size_of::<Params>());
}
