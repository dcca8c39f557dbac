//! Shader modules, layouts and pipelines, by a complete key: one set per device.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::num::NonZeroU64;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::caps::Caps;
use crate::plan::{Epilogue, Operation, Params, Plan, Slot, Stage, Variant};
use crate::shader;

/// How [`Kernels`] are made.
#[derive(Debug, Clone, Default)]
pub struct KernelOptions {
    /// Compile with wgpu's bounds checks and loop bounds. Slower; the results are the same. The
    /// default leaves them out, which is sound because binding proves every size.
    pub checked: bool,
    /// A cache of compiled pipelines that you load and save.
    pub pipeline_cache: Option<wgpu::PipelineCache>,
    /// A broken adapter: WGSL text and what to put in its place. Compiled with all checks.
    #[cfg(test)]
    pub(crate) broken: Option<[&'static str; 2]>,
}

/// The pipelines of one device, made when first needed. Cheap to clone, and shared by its clones
/// and by threads.
#[derive(Clone)]
pub struct Kernels {
    shared: Arc<Shared>,
}

struct Shared {
    device: wgpu::Device,
    caps: Caps,
    options: KernelOptions,
    pipelines: Mutex<HashMap<Variant, Compiled>>,
}

#[derive(Clone)]
struct Compiled {
    pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernels")
            .field("caps", &self.shared.caps)
            .field("options", &self.shared.options)
            .finish_non_exhaustive()
    }
}

impl Kernels {
    /// Kernels for `device`. Nothing is compiled yet.
    pub fn new(device: &wgpu::Device) -> Self {
        Self::with_options(device, KernelOptions::default())
    }

    /// Kernels for `device` with options.
    pub fn with_options(device: &wgpu::Device, options: KernelOptions) -> Self {
        Self::with_caps(device, options, Caps::of(device))
    }

    /// Kernels for `device`, of which more is known than it says.
    pub(crate) fn with_caps(device: &wgpu::Device, options: KernelOptions, caps: Caps) -> Self {
        let pipelines = Mutex::default();
        #[allow(clippy::arc_with_non_send_sync, reason = "in a browser, nothing of wgpu is Send")]
        Self { shared: Arc::new(Shared { device: device.clone(), caps, options, pipelines }) }
    }

    /// Features that must be enabled for every operation to work: none.
    pub fn required_features() -> wgpu::Features {
        wgpu::Features::empty()
    }

    /// Features that are used where they are enabled: 64-bit integers, by which software adapters
    /// load tensors faster.
    pub fn wanted_features() -> wgpu::Features {
        wgpu::Features::SHADER_INT64
    }

    /// Limits that must be granted: WebGPU's defaults. Ask for a larger
    /// `max_storage_buffer_binding_size` where tensors are larger than 128 MiB, which are else cut
    /// into windows, and for more `max_storage_buffers_per_shader_stage` where an activation or a
    /// residual is fused, which is else split into more dispatches. One thing cannot be split, and needs
    /// nine buffers: the backward with weights and a residual, whose activation's slope is computed
    /// again, without [`Gradients::z`](crate::Gradients::z) and not in place.
    pub fn required_limits() -> wgpu::Limits {
        wgpu::Limits::default()
    }

    /// The device these kernels are for.
    pub fn device(&self) -> &wgpu::Device {
        &self.shared.device
    }

    /// What that device can do.
    pub fn caps(&self) -> &Caps {
        &self.shared.caps
    }

    /// What they are compiled with.
    #[cfg(feature = "host")]
    pub(crate) fn options(&self) -> &KernelOptions {
        &self.shared.options
    }

    /// How many pipelines have been compiled.
    pub fn pipeline_count(&self) -> usize {
        self.shared.pipelines.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Compiles what the plan needs and is not compiled yet, and writes its uniforms.
    ///
    /// # Errors
    /// [`PrepareError::Limit`] and [`PrepareError::TooLarge`] when the plan was made for a more
    /// capable device, [`PrepareError::Device`] when the device refuses a shader, a pipeline or the uniform buffer:
    /// it is lost or out of memory.
    pub fn prepare<O: Operation>(&self, plan: Plan<O>) -> Result<Prepared<O>, PrepareError> {
        self.check_limits(&plan)?;
        let device = &self.shared.device;
        let mut compiled = Vec::with_capacity(plan.stages().len());
        for stage in plan.stages() {
            compiled.push(self.compiled(&stage.variant, O::NAME)?);
        }
        let scopes = Scopes::push(device);
        let uniforms = self.uniforms(plan.stages());
        if let Some(message) = scopes.pop() {
            return Err(PrepareError::Device { message });
        }
        let (uniforms, stride) =
            uniforms.map_err(|error| PrepareError::Device { message: unmapped(error) })?;
        let stages = plan
            .stages()
            .iter()
            .zip(compiled)
            .enumerate()
            .map(|(i, (stage, compiled))| PreparedStage {
                pipeline: compiled.pipeline,
                layout: compiled.layout,
                params_offset: i as u64 * stride,
                label: label(O::NAME, stage.variant.kernel.name()),
            })
            .collect();
        Ok(Prepared { kernels: self.clone(), plan, uniforms, stages, operation: PhantomData })
    }

    /// What wgpu would only notice when dispatching, or not at all.
    fn check_limits<O: Operation>(&self, plan: &Plan<O>) -> Result<(), PrepareError> {
        let caps = &self.shared.caps;
        let check = |what, needed: u64, limit: u64| {
            if needed > limit { Err(PrepareError::Limit { what, needed, limit }) } else { Ok(()) }
        };
        for stage in plan.stages() {
            let invocations = u64::from(stage.variant.workgroup_size);
            check("invocations per workgroup", invocations, caps.max_workgroup_size.into())?;
            let widest = stage.grid.iter().copied().max().unwrap_or(0).into();
            check(
                "storage buffers",
                stage.variant.buffer_count().into(),
                caps.max_storage_buffers.into(),
            )?;
            check("64-bit integers", stage.variant.wide.into(), caps.int64.into())?;
            let start = stage.window.as_ref().map_or(0, |window| window.start);
            let alignment = u64::from(caps.storage_alignment);
            if !start.is_multiple_of(alignment) {
                check("bytes of alignment", alignment, start & start.wrapping_neg())?;
            }
            check("workgroups in a dimension", widest, caps.max_workgroups_per_dimension.into())?;
        }
        for (slot, size) in plan.slots() {
            let (size, limit) = (plan.binding_size(slot).min(size), caps.max_storage_binding_size);
            if size > limit {
                return Err(PrepareError::TooLarge { slot, size, limit });
            }
        }
        Ok(())
    }

    /// From the cache, which holds only what compiled without an error.
    fn compiled(&self, variant: &Variant, operation: &str) -> Result<Compiled, PrepareError> {
        let mut cache = self.shared.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(compiled) = cache.get(variant) {
            return Ok(compiled.clone());
        }
        let scopes = Scopes::push(&self.shared.device);
        let compiled = self.compile(variant, operation);
        if let Some(message) = scopes.pop() {
            return Err(match variant.activation {
                Epilogue::Custom(_) => PrepareError::Activation { message },
                _ => PrepareError::Device { message },
            });
        }
        cache.insert(*variant, compiled.clone());
        Ok(compiled)
    }

    fn compile(&self, variant: &Variant, operation: &str) -> Compiled {
        let device = &self.shared.device;
        let label = label(operation, variant.kernel.name());
        let label = Some(label.as_str());
        let (source, checked) = self.as_compiled(shader::source(variant));
        // What a caller wrote is not proven.
        let checked = checked || matches!(variant.activation, Epilogue::Custom(_));
        let descriptor =
            wgpu::ShaderModuleDescriptor { label, source: wgpu::ShaderSource::Wgsl(source.into()) };
        let module = if checked {
            device.create_shader_module(descriptor)
        } else {
            trusted(device, descriptor)
        };
        let mut entries = vec![wgpu::BindGroupLayoutEntry {
            binding: 0,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Uniform,
                has_dynamic_offset: false,
                min_binding_size: NonZeroU64::new(size_of::<Params>() as u64),
            },
            count: None,
        }];
        entries.extend(shader::bindings(variant).iter().map(|b| wgpu::BindGroupLayoutEntry {
            binding: b.number,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only: b.read_only },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        }));
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label,
            entries: &entries,
        });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(shader::ENTRY_POINT),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &shader::constants(variant),
                zero_initialize_workgroup_memory: false,
            },
            cache: self.shared.options.pipeline_cache.as_ref(),
        });
        Compiled { pipeline, layout }
    }

    /// WGSL as it is compiled, and whether with checks.
    pub(crate) fn as_compiled(&self, source: String) -> (String, bool) {
        #[cfg(test)]
        if let Some([from, to]) = self.shared.options.broken {
            return (source.replace(from, to), true);
        }
        (source, self.shared.options.checked)
    }

    /// All stages' parameters in one buffer, filled while it is created: no queue is touched.
    fn uniforms(
        &self,
        stages: &[Stage],
    ) -> Result<(Option<wgpu::Buffer>, u64), wgpu::MapRangeError> {
        let alignment = u64::from(self.shared.caps.uniform_alignment);
        let stride = (size_of::<Params>() as u64).next_multiple_of(alignment);
        if stages.is_empty() {
            return Ok((None, stride));
        }
        let buffer = self.shared.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("batchnorm::params"),
            size: stride * stages.len() as u64,
            usage: wgpu::BufferUsages::UNIFORM,
            mapped_at_creation: true,
        });
        for (i, stage) in stages.iter().enumerate() {
            let start = i as u64 * stride;
            let bytes = bytemuck::bytes_of(&stage.params);
            let mut view = buffer.get_mapped_range_mut(start..start + bytes.len() as u64)?;
            view.copy_from_slice(bytes);
        }
        buffer.unmap();
        Ok((Some(buffer), stride))
    }
}

/// Compiles without injected bounds checks, loop bounds and division checks.
#[allow(unsafe_code)] // The only unsafe code of the crate; the proof stands below.
pub(crate) fn trusted(
    device: &wgpu::Device,
    descriptor: wgpu::ShaderModuleDescriptor<'_>,
) -> wgpu::ShaderModule {
    // SAFETY: only sources made by `shader::source` and `shader::copy` come here. The copy is indexed
    // below `length`, which `measure` makes of bytes that both of its buffers have; its LANES are ≥ 1.
    // A pipeline of the others runs only by `Bound::encode`, after `bind` has bound every slot with
    // exactly the size that its plan asks for. Within those sizes:
    // - tensors are indexed by `walk_from`/`advance` (rows) or row·row_loads + place (columns);
    //   both stay below row_loads·step_count·channels (+ tail), which is the tensor's size, as
    //   loops end at `Range::end` or `Strip::end` and idle lanes do nothing; what is kept in registers is
    //   a whole channel, of which strides are loaded and stored that lie whole before `Range::end`, and
    //   single vectors before it (`Builder::held`); a channel's shift is read
    //   where its first step begins, and `middle` and `last` further, where another two do; blocks are
    //   touched below row_loads·step_count (+ tail); of a tensor in windows, the same holds of a window,
    //   which begins at `base` in what is bound;
    // - vectors are taken in pairs only where rows (columns: rows and the tail) are whole pairs and
    //   the window begins with one (`Builder::pair_of`), so that the second of a pair is the tensor's
    //   where the first is;
    // - the mask is bound whole, and indexed below a 32nd of all values, rounded up;
    // - per-channel slots are indexed below channel_count (moments: 4·channel_count, saved: as
    //   many and 6·channel_count under RENORM, sums: 2·channel_count), and parts below
    //   chunk_count·4·width; four neighbouring channels' at a time only under NEIGHBOURS, where channels
    //   are whole vectors, so that planes and what is before them are whole vectors;
    // - weights are bound whole, and indexed by the number of a row's vector load (rows) or by
    //   row·per_chunk plus the place of a column's sample and position (columns), from weights_base:
    //   below outer·inner, as the tensor's own index is below outer·channels·inner; what they hold
    //   decides no index and no loop;
    // - in group normalization, channels are rows: statistics are indexed below 4·group_count, as
    //   row / per_group is below group_count, and parameters below parameter_count;
    // - the scratch is indexed below 2·plane (a strip's two partials below chunk_count·width, as width is
    //   twice the strips; `place_of` counts no columns of strips past a run's end, and what counts none
    //   is not read), and below sums + sums_plane + channel_count in backward operations, which reserve
    //   it; weighted statistics leave chunk_count·4·width; what windows leave is indexed below
    //   partials + 2·plane (sums) and partials + chunk_count·4·width (parts); in group normalization, by
    //   2·group_count more, of which `merge_rows` writes each, and the sums of rows before it are below
    //   sums + 2·plane of its own;
    // - what a workgroup joins lies below row_loads·WIDTH in workgroup memory, which has room for
    //   LANES·COLUMNS, as `Builder::joins` asks, and it leaves the first `width` of it.
    // Every loop advances by a constant ≥ 1 towards a bound, or halves a number above 1 until it is 1, so
    // it ends. Divisors are LANES, GROUP, LANES / GROUP, row_loads, width, chunk_count, parts, per_chunk,
    // per_run, run, strip, channel_count and, where GROUPED, per_group and parameter_count, which are ≥ 1
    // wherever a workgroup has work (an empty batch merges no partials and divides by none of them).
    unsafe {
        device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
    }
}

fn label(operation: &str, kernel: &str) -> String {
    format!("batchnorm::{operation}::{kernel}")
}

/// A plan whose pipelines are compiled, ready to be bound to memory any number of times.
#[derive(Clone)]
pub struct Prepared<O: Operation> {
    pub(crate) kernels: Kernels,
    pub(crate) plan: Plan<O>,
    pub(crate) uniforms: Option<wgpu::Buffer>,
    pub(crate) stages: Vec<PreparedStage>,
    operation: PhantomData<O>,
}

#[derive(Clone)]
pub(crate) struct PreparedStage {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
    pub(crate) params_offset: u64,
    pub(crate) label: String,
}

impl<O: Operation> Prepared<O> {
    /// The plan.
    pub fn plan(&self) -> &Plan<O> {
        &self.plan
    }
}

impl<O: Operation> fmt::Debug for Prepared<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared").field("plan", &self.plan).finish_non_exhaustive()
    }
}

/// Error scopes around calls that create GPU objects, so that no validation error of ours reaches
/// the caller's error handler.
///
/// Scopes end in the reverse order of their beginning; fields are dropped in this order.
pub(crate) struct Scopes {
    internal: wgpu::ErrorScopeGuard,
    memory: wgpu::ErrorScopeGuard,
    validation: wgpu::ErrorScopeGuard,
}

impl Scopes {
    pub(crate) fn push(device: &wgpu::Device) -> Self {
        let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
        Self { internal, memory, validation }
    }

    /// The first error. Native backends know it at once; in a browser it is known later, and then
    /// the use of the broken object reports it.
    pub(crate) fn pop(self) -> Option<String> {
        fn now(future: impl Future<Output = Option<wgpu::Error>>) -> Option<String> {
            match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(error) => error.map(|error| error.to_string()),
                Poll::Pending => None,
            }
        }
        let internal = now(self.internal.pop());
        let memory = now(self.memory.pop());
        now(self.validation.pop()).or(memory).or(internal)
    }
}

/// What it means that memory which was just made cannot be mapped: no error scope hears of a device
/// that is lost.
pub(crate) fn unmapped(error: impl fmt::Display) -> String {
    format!("it gave no memory, as if it were lost ({error})")
}

/// Why a plan cannot be prepared on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PrepareError {
    /// The plan was made for a more capable device.
    Limit {
        /// Of what the plan needs more.
        what: &'static str,
        /// How much it needs.
        needed: u64,
        /// How much the device has.
        limit: u64,
    },
    /// The plan was made for a device with larger storage bindings.
    TooLarge {
        /// The slot.
        slot: Slot,
        /// Bytes it needs.
        size: u64,
        /// Bytes a binding can have.
        limit: u64,
    },
    /// The device refused a kernel with the caller's activation.
    Activation {
        /// What wgpu says; line numbers are of the whole shader.
        message: String,
    },
    /// The device refused to create a shader, pipeline or uniform buffer.
    Device {
        /// What wgpu says.
        message: String,
    },
}

impl fmt::Display for PrepareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit { what, needed, limit } => {
                write!(f, "the plan needs {needed} {what}, this device has {limit}")
            }
            Self::TooLarge { slot, size, limit } => {
                write!(f, "{slot} needs {size} bytes, this device can bind {limit}")
            }
            Self::Activation { message } => {
                write!(f, "the custom activation does not compile: {message}")
            }
            Self::Device { message } => {
                write!(f, "the device cannot prepare this plan: {message}")
            }
        }
    }
}

impl std::error::Error for PrepareError {}
