//! What a device can do, as plain data: the planner needs no device.

use wgpu::{DeviceType, Features, Limits};

/// The kind of processor behind an adapter; it decides the shape of every dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// A GPU: wide workgroups with neighbouring lanes on neighbouring memory.
    Hardware,
    /// A software adapter (lavapipe, llvmpipe, SwiftShader, WARP): one SIMD unit per workgroup,
    /// each on its own contiguous range.
    Software,
}

/// Limits and class of a device. Build it by [`Caps::of`], or by hand to plan for a device that
/// is not here.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Caps {
    /// What kind of adapter it is.
    pub class: Class,
    /// Largest storage binding, in bytes.
    pub max_storage_binding_size: u64,
    /// Most workgroups in one dimension of a dispatch.
    pub max_workgroups_per_dimension: u32,
    /// Most invocations in a workgroup (the smaller of WebGPU's total and x limits).
    pub max_workgroup_size: u32,
    /// Most storage buffers that one dispatch can bind.
    pub max_storage_buffers: u32,
    /// Required alignment of a storage binding's offset, in bytes.
    pub storage_alignment: u32,
    /// Required alignment of a uniform binding's offset, in bytes.
    pub uniform_alignment: u32,
    /// Whether 64-bit integers are enabled (`Features::SHADER_INT64`).
    pub int64: bool,
    /// Whether the built-in `unpack2x16float` is known to widen every f16 without an error, those that are
    /// denormal or not finite too, which WGSL does not promise. `Gpu::with_f16` finds out.
    pub exact_widen: bool,
    /// Whether the built-in `pack2x16float` is known to round every f32 to the nearest f16, ties to even.
    /// `Gpu::with_f16` finds out.
    pub exact_narrow: bool,
}

impl Caps {
    /// The capabilities of `device`: its enabled limits and features, and its adapter's class.
    pub fn of(device: &wgpu::Device) -> Self {
        let class = match device.adapter_info().device_type {
            DeviceType::Cpu => Class::Software,
            _ => Class::Hardware,
        };
        let int64 = device.features().contains(Features::SHADER_INT64);
        Self { int64, ..Self::from_limits(&device.limits(), class) }
    }

    /// What WebGPU guarantees everywhere, on a GPU.
    pub fn webgpu_default() -> Self {
        Self::from_limits(&Limits::default(), Class::Hardware)
    }

    /// The given limits on an adapter of the given class, without features.
    pub fn from_limits(limits: &Limits, class: Class) -> Self {
        Self {
            class,
            max_storage_binding_size: limits.max_storage_buffer_binding_size,
            max_workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
            max_workgroup_size: limits
                .max_compute_workgroup_size_x
                .min(limits.max_compute_invocations_per_workgroup),
            max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
            storage_alignment: limits.min_storage_buffer_offset_alignment,
            uniform_alignment: limits.min_uniform_buffer_offset_alignment,
            int64: false,
            exact_widen: false,
            exact_narrow: false,
        }
    }
}
