//! Choices made by the device: a pure function of capabilities, geometry and element, as a plain
//! struct that the caller can change and hand to [`Plan::with_tuning`](crate::Plan::with_tuning).
//!
//! Results depend on these numbers in their last bits (they decide the order of summation), and on
//! nothing else: the same tuning gives the same bits.

use crate::caps::{Caps, Class};
use crate::config::Element;
use crate::geometry::Geometry;

/// No invocation loops more often than this. lavapipe silently ends every loop after 65,535
/// iterations, summed over all loops of an invocation.
pub const MAX_ITERATIONS: u32 = 16_384;

/// How a plan cuts its work. "Load" is one vector load (4 elements, or 1 where 4 do not fit).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tuning {
    /// Invocations per workgroup; a power of two from 4 to 65,536.
    pub workgroup_size: u32,
    /// How many workgroups a pass over a tensor is split into when one per channel is too few.
    pub workgroup_count: u32,
    /// A channel is not split into pieces of fewer loads per invocation than this.
    pub min_loads: u32,
    /// The same for columns, where every lane writes partials of its own.
    pub min_column_loads: u32,
    /// One dispatch for everything when a channel, walked as rows, takes at most this many loads per
    /// invocation and there are `fused_workgroups` of work.
    pub fused_loads: u32,
    /// The same for columns, which jump a whole row from load to load: a long one leaves the cache
    /// before its second pass.
    pub fused_column_loads: u32,
    /// See `fused_loads`.
    pub fused_workgroups: u32,
    /// One dispatch, however few workgroups, when a channel takes at most this many loads per
    /// invocation: a second dispatch would cost more than it saves.
    pub tiny_loads: u32,
    /// Shortest `inner` that is walked as rows (one channel per workgroup); shorter ones are
    /// walked as columns (lanes over channels), unless the tensor is tiny.
    pub min_row: u32,
}

impl Tuning {
    /// The choice for a device and a shape.
    pub fn choose(caps: &Caps, _geometry: &Geometry, _element: Element) -> Self {
        match caps.class {
            Class::Software => Self {
                workgroup_size: 8,
                workgroup_count: 256,
                min_loads: 64,
                min_column_loads: 64,
                fused_loads: 8_192,
                // lavapipe 22.3, 8x512x28x28 channels-last (6,272 loads), against 8,192: backward
                // 79 → 37 ms, forward 36 → 13 ms. Against 256, 8x2048x7x7 (392 loads): backward 4.4 →
                // 2.9 ms. More workgroups (1,024 or 4,096) and shorter chunks for the passes without
                // partials (8 to 64 rows) brought nothing.
                fused_column_loads: 1_024,
                fused_workgroups: 8,
                tiny_loads: 256,
                min_row: 32,
            },
            Class::Hardware => Self {
                workgroup_size: 1 << caps.max_workgroup_size.clamp(4, 256).ilog2(),
                workgroup_count: 1_024,
                min_loads: 8,
                min_column_loads: 32,
                fused_loads: 16,
                fused_column_loads: 16,
                fused_workgroups: 64,
                tiny_loads: 8,
                min_row: 32,
            },
        }
    }
}
