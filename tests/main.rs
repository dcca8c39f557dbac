//! One test program, so that wgpu is linked once.

mod backends;
mod common;
mod concurrency;
#[cfg(feature = "cpu")]
mod cpu;
mod embedding;
mod epilogue;
mod exact;
mod faults;
mod fold;
mod ghost;
mod golden;
mod groups;
mod halves;
mod host;
mod hostile;
mod measure;
mod misuse;
mod moments;
mod planner;
mod properties;
mod reference;
mod renorm;
mod shaders;
mod sweep;
mod sync;
mod webgpu;
mod weights;
mod windows;

#[global_allocator]
static ALLOCATOR: common::allocations::Counting = common::allocations::Counting;
