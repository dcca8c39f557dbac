//! What all tests share: a device, a runner that surrounds every slot with canaries, data, golden
//! files and comparison.

pub mod allocations;
pub mod check;
pub mod compare;
pub mod data;
pub mod golden;
pub mod runner;
pub mod variants;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use wgpu_batchnorm::{Gpu, KernelOptions, wgpu};

/// The device under test, if there is one. Without one, a test says SKIP; under
/// `BATCHNORM_REQUIRE_GPU=1` it fails. Under `BATCHNORM_CHECKED=1` its kernels are compiled with
/// wgpu's bounds checks.
///
/// An error that reaches the device's handler has escaped from this crate, and fails the test that
/// caused it and every test that asks for the device afterwards.
pub fn gpu() -> Option<&'static Gpu> {
    static GPU: OnceLock<Result<Gpu, String>> = OnceLock::new();
    let gpu = GPU.get_or_init(|| {
        let gpu = Gpu::new_blocking().map_err(|error| error.to_string())?;
        watch(gpu.device());
        let checked = std::env::var("BATCHNORM_CHECKED").is_ok_and(|value| value == "1");
        eprintln!("testing on {}{}", gpu.describe(), if checked { ", checked" } else { "" });
        Ok(gpu.with_options(KernelOptions { checked, ..Default::default() }))
    });
    assert_nothing_escaped();
    match gpu {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            assert!(!gpu_required(), "BATCHNORM_REQUIRE_GPU is set, but: {error}");
            eprintln!("SKIP: {error}");
            None
        }
    }
}

static ESCAPED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Makes errors that no scope has caught fail the test. The list outlives a panic that something
/// catches, as the thread of `Gpu` that waits does.
pub fn watch(device: &wgpu::Device) {
    device.on_uncaptured_error(Arc::new(|error: wgpu::Error| {
        let error = error.to_string();
        ESCAPED.lock().unwrap_or_else(PoisonError::into_inner).push(error.clone());
        panic!("an error escaped to the caller's handler: {error}");
    }));
}

fn assert_nothing_escaped() {
    let escaped = ESCAPED.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(escaped.is_empty(), "errors escaped to the caller's handler: {escaped:?}");
}

/// Whether a missing device is a failure.
pub fn gpu_required() -> bool {
    std::env::var("BATCHNORM_REQUIRE_GPU").is_ok_and(|value| value == "1")
}
