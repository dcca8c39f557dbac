#![doc = include_str!("../README.md")]
//!
//! # Where to start
//!
//! - Embedding: [`Geometry`] and [`Config`] make a [`Plan`]; [`Kernels::prepare`] compiles it;
//!   [`Prepared::bind`] checks [`TrainBuffers`], [`InferBuffers`], [`BackwardBuffers`],
//!   [`FrozenBackwardBuffers`] or those of another operation; [`Bound::encode`] records it.
//! - What every operation computes: [`Train`], [`Infer`], [`Backward`], [`FrozenBackward`],
//!   [`Statistics`].
//! - A batch in shards (synchronised batch norm, micro-batches): [`Statistics`] of each, [`Finalize`],
//!   [`Normalize`]; and back [`Reduce`] and [`Gradient`]. What travels between shards is yours.
//! - Group, layer and instance normalization: [`GroupNorm`], [`GroupNormBackward`].
//! - Exact statistics of many batches: [`Moments`].
//! - Batch norm folded into the layer before it: [`fold`].
//! - Devices: [`Caps`] and [`Tuning`] decide how work is cut.
#![cfg_attr(feature = "host", doc = "- Host form: [`Gpu`], and the layer [`BatchNorm`].")]
#![cfg_attr(feature = "cpu", doc = "- Without a device, on slices: [`cpu`].")]
#![cfg_attr(
    all(feature = "host", feature = "cpu"),
    doc = "- Whichever a machine has, on arrays: [`Backend`]."
)]
#![deny(unsafe_code)]
#![warn(missing_docs)]

#[cfg(all(feature = "host", feature = "cpu"))]
mod backend;
mod bind;
mod caps;
mod config;
#[cfg(feature = "cpu")]
pub mod cpu;
pub mod fold;
mod geometry;
#[cfg(feature = "host")]
mod host;
#[cfg(feature = "safetensors")]
mod interchange;
mod kernels;
#[cfg(feature = "host")]
mod layer;
#[cfg(all(feature = "host", not(target_family = "wasm")))]
mod measure;
mod moments;
mod plan;
#[cfg(feature = "reference")]
pub mod reference;
#[cfg(feature = "host")]
mod self_test;
pub mod shader;
mod tuning;

#[cfg(all(feature = "host", feature = "cpu"))]
pub use backend::{Backend, Cpu};
pub use bind::{
    BackwardBuffers, Bind, BindError, Bound, FinalizeBuffers, FrozenBackwardBuffers,
    GradientBuffers, GroupNormBackwardBuffers, GroupNormBuffers, InferBuffers, NormalizeBuffers,
    ReduceBuffers, SlotBuffers, SlotMemory, StatisticsBuffers, TrainBuffers,
};
pub use caps::{Caps, Class};
pub use config::{
    Activation, Affine, Config, ConfigError, Element, Gradients, Mask, Memory, NonFinite, Renorm,
    RunningVariance, SingleValue, Update,
};
pub use geometry::{ChannelAxis, Geometry, GeometryError};
#[cfg(feature = "host")]
pub use host::{
    BackwardOutput, Gpu, HostError, Input, RunningStatistics, SavedRenorm, SavedStatistics,
    TrainOutput,
};
#[cfg(feature = "safetensors")]
pub use interchange::{InterchangeError, Names, StateTensor};
pub use kernels::{KernelOptions, Kernels, PrepareError, Prepared};
#[cfg(feature = "host")]
pub use layer::{BatchNorm, LayerInput, LayerState};
pub use moments::{Moments, MomentsError};
pub use plan::{
    Backward, Epilogue, Finalize, FrozenBackward, Gradient, GroupNorm, GroupNormBackward, Infer,
    Kernel, Normalize, Operation, Params, Plan, PlanError, Reduce, Slot, Slots, Stage, Statistics,
    Train, Variant,
};
#[cfg(feature = "host")]
pub use self_test::{Check, SelfTest};
pub use tuning::{CopyRate, MAX_ITERATIONS, Measured, MeasuredError, Tuning};
pub use wgpu;
