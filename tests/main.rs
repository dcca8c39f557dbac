//! One test program, so that wgpu is linked once.

mod common;
mod embedding;
mod exact;
mod golden;
mod misuse;
mod planner;
mod shaders;
mod sweep;
