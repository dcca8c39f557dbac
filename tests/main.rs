//! One test program, so that wgpu is linked once.

mod common;
mod golden;
mod shaders;
