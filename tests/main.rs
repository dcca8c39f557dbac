//! One test program, so that wgpu is linked once.

mod common;
mod exact;
mod golden;
mod shaders;
mod sweep;
