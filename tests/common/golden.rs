//! Golden files: results computed by PyTorch in float64, and the ONNX backend tests of
//! BatchNormalization (`tests/fixtures/README.md`).

use std::io::Read;
use std::path::Path;

use super::compare;
use file::Entry;
pub use file::Golden;

#[path = "../../examples/verify/golden.rs"]
#[allow(dead_code, reason = "the example prints more than the tests do")]
mod file;

/// The f32, unfused cases of a golden file: from the fixtures, or from the folder that
/// `BATCHNORM_GOLDEN` names, which may hold more.
pub fn read(file: &str) -> Vec<Golden> {
    let bytes = match std::env::var("BATCHNORM_GOLDEN") {
        Ok(folder) => {
            std::fs::read(Path::new(&folder).join(format!("{file}.safetensors"))).unwrap()
        }
        Err(_) => {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
            let packed = std::fs::read(folder.join(format!("{file}.safetensors.gz"))).unwrap();
            let mut bytes = Vec::new();
            flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut bytes).unwrap();
            bytes
        }
    };
    let supported = |entry| match entry {
        Entry::Case(case) => Some(*case),
        Entry::Unsupported { .. } => None,
    };
    let entries = file::parse(&bytes).unwrap();
    let mut all: Vec<Golden> = entries.into_iter().filter_map(supported).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(!all.is_empty(), "{file} holds no case");
    all
}
