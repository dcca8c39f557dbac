//! What all tests share: a device, a runner that surrounds every slot with canaries, data, golden
//! files and comparison.

pub mod allocations;
pub mod check;
pub mod compare;
pub mod data;
pub mod golden;
pub mod runner;
pub mod variants;

use std::sync::OnceLock;

use wgpu_batchnorm::Gpu;

/// The device under test, if there is one. Without one, a test says SKIP; under
/// `BATCHNORM_REQUIRE_GPU=1` it fails.
pub fn gpu() -> Option<&'static Gpu> {
    static GPU: OnceLock<Result<Gpu, String>> = OnceLock::new();
    let gpu = GPU.get_or_init(|| {
        let gpu = Gpu::new_blocking().map_err(|error| error.to_string())?;
        eprintln!("testing on {}", gpu.describe());
        Ok(gpu)
    });
    match gpu {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            assert!(!gpu_required(), "BATCHNORM_REQUIRE_GPU is set, but: {error}");
            eprintln!("SKIP: {error}");
            None
        }
    }
}

/// Whether a missing device is a failure.
pub fn gpu_required() -> bool {
    std::env::var("BATCHNORM_REQUIRE_GPU").is_ok_and(|value| value == "1")
}
