//! The files that the example `digits` reads: whatever is in them, an error or data that keeps its
//! promises, without a panic and without memory that only a header asks for.

#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)] // The example uses the rest.
#[path = "../../examples/digits/checkpoint.rs"]
mod checkpoint;
#[allow(dead_code)] // The example uses the rest.
#[path = "../../examples/digits/data.rs"]
mod data;

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("batchnorm-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
});

fn load_checkpoint(bytes: &[u8]) {
    let (file, copy) = (FOLDER.join("a.safetensors"), FOLDER.join("b.safetensors"));
    fs::write(&file, bytes).unwrap();
    match checkpoint::Checkpoint::load(&file) {
        Err(error) => assert!(!error.to_string().is_empty()),
        // What is read and cannot be written again is only what no writer makes.
        Ok(loaded) => {
            for tensor in &loaded.tensors {
                assert_eq!(tensor.values.len(), tensor.shape.iter().product::<usize>());
            }
            if loaded.save(&copy).is_ok() {
                let again = checkpoint::Checkpoint::load(&copy).unwrap();
                assert_eq!(again.metadata, loaded.metadata);
                assert_eq!(again.tensors.len(), loaded.tensors.len());
            }
        }
    }
}

/// Two good files of one image each, of which `bytes` replaces one.
fn load_images(which: u8, bytes: &[u8]) {
    let words = |words: &[u32]| words.iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<u8>>();
    let images = [words(&[0x803, 1, 28, 28]), vec![7; 784]].concat();
    let labels = [words(&[0x801, 1]), vec![3]].concat();
    let packed = which & 2 > 0;
    for half in ["train", "t10k"] {
        for (stem, good) in [("images-idx3", &images), ("labels-idx1", &labels)] {
            let plain = FOLDER.join(format!("{half}-{stem}-ubyte"));
            let gz = plain.with_extension("gz");
            let _ = fs::remove_file(&plain);
            let _ = fs::remove_file(&gz);
            let chosen = half == "train" && stem.starts_with("images") == (which & 1 > 0);
            fs::write(
                if chosen && packed { &gz } else { &plain },
                if chosen { bytes } else { good },
            )
            .unwrap();
        }
    }
    match data::idx_folder(&FOLDER) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(set) => {
            assert_eq!(set.train.pixels.len(), set.train.labels.len() * data::SIDE * data::SIDE);
            assert!(set.train.pixels.iter().all(|pixel| (0.0..=1.0).contains(pixel)));
            assert!(set.train.labels.iter().all(|label| usize::from(*label) < data::CLASSES));
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    match bytes {
        [] => {}
        [which, bytes @ ..] if which & 4 > 0 => load_checkpoint(bytes),
        [which, bytes @ ..] => load_images(*which, bytes),
    }
});
