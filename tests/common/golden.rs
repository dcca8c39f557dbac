//! Golden files: results computed by PyTorch in float64, and the ONNX backend tests of
//! BatchNormalization (`tests/fixtures/README.md`).

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use wgpu_batchnorm::{Affine, ChannelAxis, Config, RunningVariance, Update};

/// One case of a golden file.
pub struct Golden {
    pub name: String,
    pub train: bool,
    /// In memory order.
    pub shape: Vec<usize>,
    pub axis: ChannelAxis,
    pub config: Config,
    pub batches_before: u32,
    /// How far PyTorch's own f32 kernels are from the expected values, by tensor.
    pub torch_error: HashMap<String, f64>,
    pub dist: String,
    inputs: HashMap<String, Vec<f32>>,
    expected: HashMap<String, Vec<f64>>,
}

impl Golden {
    pub fn input(&self, name: &str) -> Option<&[f32]> {
        self.inputs.get(name).map(Vec::as_slice)
    }

    pub fn expected(&self, name: &str) -> Option<&[f64]> {
        self.expected.get(name).map(Vec::as_slice)
    }
}

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
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let cases = header.metadata().as_ref().unwrap()["cases"].clone();
    let cases: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&cases).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<Golden> = cases
        .iter()
        .filter(|(_, case)| case["dtype"] == "f32" && case["fused"] == "none")
        .map(|(name, case)| golden(name, case, &tensors))
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(!all.is_empty(), "{file} holds no case");
    all
}

fn golden(name: &str, case: &serde_json::Value, tensors: &SafeTensors<'_>) -> Golden {
    let mut shape: Vec<usize> =
        case["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
    let last = case["layout"] == "nhwc";
    if last {
        let channels = shape.remove(1);
        shape.push(channels);
    }
    let update = match (&case["onnx_momentum"], &case["momentum"]) {
        (serde_json::Value::Number(decay), _) => Update::Decay(decay.as_f64().unwrap()),
        (_, serde_json::Value::Number(rate)) => Update::Rate(rate.as_f64().unwrap()),
        _ => Update::Cumulative,
    };
    let biased = case["running_var"] == "biased";
    let affine = case["affine"] == true;
    let config = Config {
        epsilon: case["eps"].as_f64().unwrap(),
        update,
        running_variance: if biased {
            RunningVariance::Population
        } else {
            RunningVariance::Unbiased
        },
        affine: if affine { Affine::BOTH } else { Affine::NONE },
        ..Config::pytorch()
    };
    let mut inputs = HashMap::new();
    let mut expected = HashMap::new();
    for (tensor, view) in tensors.tensors() {
        let Some(tensor) = tensor.strip_prefix(&format!("{name}/")) else { continue };
        match view.dtype() {
            Dtype::F32 => {
                inputs.insert(tensor.to_string(), bytemuck::pod_collect_to_vec(view.data()));
            }
            Dtype::F64 => {
                expected.insert(tensor.to_string(), bytemuck::pod_collect_to_vec(view.data()));
            }
            other => panic!("{name}/{tensor} is {other:?}"),
        }
    }
    let torch = case["torch_max_abs_err"].as_object();
    let torch_error = torch
        .into_iter()
        .flatten()
        .filter_map(|(tensor, error)| Some((tensor.clone(), error.as_f64()?)))
        .collect();
    Golden {
        name: name.to_string(),
        train: case["mode"] == "train",
        shape,
        axis: if last { ChannelAxis::Last } else { ChannelAxis::First },
        config,
        batches_before: case["batches_before"].as_u64().unwrap_or(0) as u32,
        torch_error,
        dist: case["dist"].as_str().unwrap_or_default().to_string(),
        inputs,
        expected,
    }
}
