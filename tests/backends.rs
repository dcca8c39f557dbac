//! Every variant in every language that wgpu's backends speak, translated as wgpu does it.
//!
//! With `BATCHNORM_DUMP` the translations are written into that folder, where
//! `scripts/validate-shaders` hands them to compilers that are not naga.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use naga::back::{glsl, hlsl, msl, pipeline_constants, spv};
use naga::front::wgsl;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{ModuleInfo, ValidationFlags, Validator};
use naga::{Module, ResourceBinding, ShaderStage};
use wgpu_batchnorm::{Variant, shader};

use crate::common::variants;

/// Variants that differ in what is compiled, in the sample of `common/variants.rs`. The list cannot
/// shrink unnoticed: who changes kernels or planning changes these numbers on purpose.
const VARIANT_COUNT: usize = 18_416;
/// Of these, those that differ in more than the numbers `LANES` and `GROUP`: all there are.
const SOURCE_COUNT: usize = 12_687;

/// Variants by what is compiled: some differ only in the memory of slots they do not have. A software
/// adapter may load tensors by 64 bits, and two vectors at once; and a channel may be kept in registers.
fn distinct() -> Vec<(Variant, String)> {
    let mut known = HashSet::new();
    let all = variants::all();
    let software = |v: &&Variant| v.workgroup_size == 8 && variants::loads_tensors(v);
    let wide: Vec<_> = all.iter().filter(software).map(|v| Variant { wide: true, ..*v }).collect();
    let pairs = |v: &&Variant| v.kernel.walks_pairs() && !v.weighted;
    let paired: Vec<_> =
        wide.iter().filter(pairs).map(|v| Variant { paired: true, ..*v }).collect();
    let all: Vec<_> = all.into_iter().chain(wide).chain(paired).collect();
    let holds = |v: &&Variant| v.kernel.holds(v.slots) > 0 && !v.words;
    let held: Vec<_> = all.iter().filter(holds).map(|v| Variant { held: 2, ..*v }).collect();
    all.into_iter()
        .chain(held)
        .map(|variant| (variant, shader::source(&variant)))
        .filter(|(v, source)| known.insert((source.clone(), format!("{:?}", shader::constants(v)))))
        .collect()
}

/// Kernels that walk a tensor come in every width of the workgroup and of a load.
#[test]
fn no_width_is_missing() {
    let all = distinct();
    let mut widths: HashMap<&str, HashSet<(u32, u32)>> = HashMap::new();
    for (variant, _) in &all {
        let width = (variant.workgroup_size, variant.vector);
        widths.entry(variant.kernel.name()).or_default().insert(width);
    }
    assert_eq!(widths.len(), 21, "a kernel is never planned: {widths:?}");
    for (kernel, widths) in widths {
        assert_eq!(widths.len(), 4, "{kernel} is only planned as {widths:?}");
    }
}

#[test]
fn every_variant_in_every_language() {
    let all = distinct();
    let sources: HashSet<_> = all
        .iter()
        .map(|(v, source)| {
            let options = (v.accumulate, v.cumulative, v.keep_non_finite, v.renorm);
            (source, options, v.grouped, v.weighted, v.neighbours, v.runs)
        })
        .collect();
    assert_eq!((sources.len(), all.len()), (SOURCE_COUNT, VARIANT_COUNT));
    let folder = std::env::var_os("BATCHNORM_DUMP").map(PathBuf::from);
    let next = AtomicUsize::new(0);
    let take = || {
        let index = next.fetch_add(1, Ordering::Relaxed);
        all.get(index).map(|(variant, source)| (index, variant, source))
    };
    // Takes variants until there are none, and counts translations.
    let work = || {
        let mut count = 0;
        while let Some((index, variant, source)) = take() {
            for (file, bytes) in translations(variant, source) {
                assert!(!bytes.is_empty(), "{variant:?}: {file} is empty");
                count += 1;
                if let Some(folder) = &folder {
                    let name = format!("{index:04}_{}_{file}", variant.kernel.name());
                    std::fs::write(folder.join(name), bytes).unwrap();
                }
            }
        }
        count
    };
    let count: usize = std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).sum()
    });
    println!("{VARIANT_COUNT} variants of {SOURCE_COUNT} sources, {count} translations");
    // Three languages with and without wgpu's run-time checks, and GLSL, which has none and no words of
    // 64 bits.
    let wide = all.iter().filter(|(v, _)| v.wide).count();
    assert_eq!(count, VARIANT_COUNT * 7 - wide);
}

/// File names and contents. Overrides are resolved before the translation, as wgpu does it.
fn translations(variant: &Variant, source: &str) -> Vec<(&'static str, Vec<u8>)> {
    let fail = |stage: &str, error: &dyn std::fmt::Debug| -> ! {
        panic!("{stage}: {variant:?}: {error:?}\n{source}")
    };
    let module = wgsl::parse_str(source).unwrap_or_else(|e| fail("wgsl", &e));
    let info = Validator::new(ValidationFlags::all(), variants::capabilities(variant))
        .validate(&module)
        .unwrap_or_else(|e| fail("validation", &e));
    let constants =
        shader::constants(variant).iter().map(|&(name, value)| (name.into(), value)).collect();
    let entry = Some((ShaderStage::Compute, shader::ENTRY_POINT));
    let (module, info) = pipeline_constants::process_overrides(&module, &info, entry, &constants)
        .unwrap_or_else(|e| fail("overrides", &e));
    let mut files = Vec::new();
    for (checked, [spirv, metal, hlsl]) in [
        (false, ["unchecked.spv", "unchecked.metal", "unchecked.hlsl"]),
        (true, ["checked.spv", "checked.metal", "checked.hlsl"]),
    ] {
        let words = to_spirv(variant, &module, &info, checked).unwrap_or_else(|e| fail(spirv, &e));
        files.push((spirv, bytemuck::cast_slice(&words).to_vec()));
        let text = to_msl(variant, &module, &info, checked).unwrap_or_else(|e| fail(metal, &e));
        files.push((metal, text.into_bytes()));
        let text = to_hlsl(variant, &module, &info, checked).unwrap_or_else(|e| fail(hlsl, &e));
        // Words of 64 bits are of shader model 6, which only DXC knows.
        let name = match (variant.wide, checked) {
            (false, _) => hlsl,
            (true, false) => "unchecked.hlsl6",
            (true, true) => "checked.hlsl6",
        };
        files.push((name, text.into_bytes()));
    }
    if variant.wide {
        return files;
    }
    let text = to_glsl(variant, &module, &info).unwrap_or_else(|e| fail("glsl", &e));
    files.push(("plain.comp", text.into_bytes()));
    files
}

fn policies(checked: bool) -> BoundsCheckPolicies {
    let policy = if checked { BoundsCheckPolicy::Restrict } else { BoundsCheckPolicy::Unchecked };
    BoundsCheckPolicies {
        index: policy,
        buffer: policy,
        image_load: policy,
        binding_array: BoundsCheckPolicy::Unchecked,
    }
}

/// The uniform and the slots, as bindings of group 0, and whether they are written.
fn bindings(variant: &Variant) -> Vec<(ResourceBinding, bool)> {
    let slots = shader::bindings(variant).into_iter().map(|b| (b.number, !b.read_only));
    std::iter::once((0, false))
        .chain(slots)
        .map(|(binding, mutable)| (ResourceBinding { group: 0, binding }, mutable))
        .collect()
}

/// Vulkan 1.0's language, the oldest that wgpu writes.
fn to_spirv(
    variant: &Variant,
    module: &Module,
    info: &ModuleInfo,
    checked: bool,
) -> Result<Vec<u32>, spv::Error> {
    let wide = variant.wide.then_some(spv::Capability::Int64);
    let options = spv::Options {
        lang_version: (1, 0),
        flags: spv::WriterFlags::LABEL_VARYINGS | spv::WriterFlags::FORCE_POINT_SIZE,
        fake_missing_bindings: true,
        capabilities: Some([spv::Capability::Shader].into_iter().chain(wide).collect()),
        bounds_check_policies: policies(checked),
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: checked,
        emit_int_div_checks: checked,
        ..Default::default()
    };
    let entry = spv::PipelineOptions {
        entry_point: shader::ENTRY_POINT.into(),
        shader_stage: ShaderStage::Compute,
    };
    spv::write_vec(module, info, &options, Some(&entry))
}

/// Buffers are numbered in the order of the layout, then comes the buffer of their sizes.
fn to_msl(
    variant: &Variant,
    module: &Module,
    info: &ModuleInfo,
    checked: bool,
) -> Result<String, String> {
    let bindings = bindings(variant);
    let resources: BTreeMap<_, _> = bindings
        .iter()
        .enumerate()
        .map(|(i, &(binding, mutable))| {
            let buffer = Some(i as u8);
            (binding, msl::BindTarget { buffer, mutable, ..Default::default() })
        })
        .collect();
    let entry = msl::EntryPointResources {
        resources,
        immediates_buffer: None,
        sizes_buffer: Some(bindings.len() as u8),
    };
    let options = msl::Options {
        // 64 bits came later.
        lang_version: if variant.wide { (2, 3) } else { (2, 0) },
        per_entry_point_map: [(shader::ENTRY_POINT.to_string(), entry)].into_iter().collect(),
        fake_missing_bindings: false,
        bounds_check_policies: policies(checked),
        zero_initialize_workgroup_memory: false,
        force_loop_bounding: checked,
        emit_int_div_checks: checked,
        ..Default::default()
    };
    let pipeline = msl::PipelineOptions {
        entry_point: Some((ShaderStage::Compute, shader::ENTRY_POINT.into())),
        ..Default::default()
    };
    let (text, info) =
        msl::write_string(module, info, &options, &pipeline).map_err(|e| e.to_string())?;
    match &info.entry_point_names[..] {
        [Ok(_)] => Ok(text),
        other => Err(format!("{other:?}")),
    }
}

/// Registers are numbered by kind: the uniform, what is read, what is written.
fn to_hlsl(
    variant: &Variant,
    module: &Module,
    info: &ModuleInfo,
    checked: bool,
) -> Result<String, String> {
    let mut registers = [0; 2];
    let binding_map = bindings(variant)
        .into_iter()
        .map(|(binding, mutable)| {
            let register = match binding.binding {
                0 => 0,
                _ => {
                    registers[usize::from(mutable)] += 1;
                    registers[usize::from(mutable)] - 1
                }
            };
            (binding, hlsl::BindTarget { register, restrict_indexing: true, ..Default::default() })
        })
        .collect();
    let options = hlsl::Options {
        shader_model: match variant.wide {
            true => hlsl::ShaderModel::V6_0,
            false => hlsl::ShaderModel::V5_1,
        },
        binding_map,
        fake_missing_bindings: false,
        special_constants_binding: Some(hlsl::BindTarget { space: 1, ..Default::default() }),
        zero_initialize_workgroup_memory: false,
        restrict_indexing: checked,
        force_loop_bounding: checked,
        ..Default::default()
    };
    let pipeline = hlsl::PipelineOptions {
        entry_point: Some((ShaderStage::Compute, shader::ENTRY_POINT.into())),
    };
    let mut text = String::new();
    let reflection = hlsl::Writer::new(&mut text, &options, &pipeline)
        .write(module, info, None)
        .map_err(|e| e.to_string())?;
    // Namespaces of DXC's: naga takes them for free names.
    let mut names = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    if let Some(name) = names.find(|name| ["dx", "vk"].contains(name)) {
        return Err(format!("DXC has a namespace {name}"));
    }
    match &reflection.entry_point_names[..] {
        [Ok(_)] => Ok(text),
        other => Err(format!("{other:?}")),
    }
}

/// OpenGL ES 3.1, the oldest that has compute shaders.
fn to_glsl(variant: &Variant, module: &Module, info: &ModuleInfo) -> Result<String, glsl::Error> {
    let mut count = 0;
    let binding_map = bindings(variant)
        .into_iter()
        .map(|(binding, _)| {
            count += u8::from(binding.binding != 0);
            (binding, count.saturating_sub(1))
        })
        .collect();
    let options = glsl::Options {
        version: glsl::Version::Embedded { version: 310, is_webgl: false },
        writer_flags: glsl::WriterFlags::empty(),
        binding_map,
        zero_initialize_workgroup_memory: false,
    };
    let pipeline = glsl::PipelineOptions {
        shader_stage: ShaderStage::Compute,
        entry_point: shader::ENTRY_POINT.into(),
        multiview: None,
    };
    let mut text = String::new();
    glsl::Writer::new(&mut text, module, info, &options, &pipeline, policies(false))?.write()?;
    Ok(text)
}
