//! What is there: every adapter, its class, the tuning it would get, what it does with loops, NaN,
//! denormals and sums, and a self-test with known answers and hostile data; with `--thorough` that of
//! every kernel. `--list` only lists those that give a device. Exits with 1 when there is none, or one gives
//! wrong answers.

use std::process::ExitCode;

use wgpu_batchnorm::{ChannelAxis, Element, Geometry, Gpu, Tuning};

fn main() -> ExitCode {
    let adapters = Gpu::adapters_blocking();
    if adapters.is_empty() {
        // Asking for a device says what was looked for and what to install.
        if let Err(error) = Gpu::new_blocking() {
            eprintln!("{error}");
        }
        return ExitCode::FAILURE;
    }
    let asked = |option: &str| std::env::args().any(|argument| argument == option);
    let (mut devices, mut all_good) = (0, true);
    for adapter in &adapters {
        let gpu = match pollster::block_on(Gpu::from_adapter(adapter)) {
            Ok(gpu) => gpu,
            Err(error) => {
                println!("{error}\n");
                continue;
            }
        };
        devices += 1;
        if asked("--list") {
            let info = adapter.get_info();
            println!("{} ({:?}, {:?})", info.name, info.backend, info.device_type);
            continue;
        }
        println!("{}", gpu.describe());
        println!("  class   {:?}", gpu.caps().class);
        println!("  binding {} MiB at most", gpu.caps().max_storage_binding_size >> 20);
        if let Ok(geometry) = Geometry::new(&[8, 64, 56, 56], ChannelAxis::First) {
            println!("  tuning  {:?}", Tuning::choose(gpu.caps(), &geometry, Element::F32));
        }
        let start = std::time::Instant::now();
        let test = match asked("--thorough") {
            true => gpu.self_test_thorough_blocking(),
            false => gpu.self_test_blocking(),
        };
        match test {
            Ok(test) => {
                all_good &= test.passed();
                println!("  test    {test}\n  took    {:?}\n", start.elapsed());
            }
            Err(error) => {
                all_good = false;
                println!("  test    {error}\n");
            }
        }
    }
    // The last adapter unloads its driver, and OpenGL's may have left something to call at the exit.
    std::mem::forget(adapters);
    if devices > 0 && all_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
