//! lib
#![deny(unsafe_code)]
#![warn(missing_docs)]

mod bind;
mod caps;
mod config;
mod geometry;
mod kernels;
mod plan;
pub mod shader;
mod tuning;

pub use bind::{
    BackwardBuffers, Bind, BindError, Bound, FrozenBackwardBuffers, InferBuffers, SlotMemory,
    TrainBuffers,
};
pub use caps::{Caps, Class};
pub use config::{
    Affine, Config, ConfigError, Element, Gradients, Memory, NonFinite, RunningVariance,
    SingleValue, Update,
};
pub use geometry::{ChannelAxis, Geometry, GeometryError};
pub use kernels::{KernelOptions, Kernels, PrepareError, Prepared};
pub use plan::{
    Backward, FrozenBackward, Infer, Kernel, Operation, Params, Plan, PlanError, Slot, Slots,
    Stage, Train, Variant,
};
pub use tuning::{MAX_ITERATIONS, Tuning};
pub use wgpu;
