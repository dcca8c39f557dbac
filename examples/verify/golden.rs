//! Golden files: inputs and expected results of batch normalization in one safetensors file. The
//! format is in `README.md` beside this file.

use std::collections::HashMap;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use wgpu_batchnorm::{Affine, ChannelAxis, Config, Geometry, RunningVariance, SingleValue, Update};

use crate::compare::{Arithmetic, Bounds, Center};

/// What a file holds.
pub enum Entry {
    Case(Box<Golden>),
    /// A case that this crate does not compute, and why.
    Unsupported {
        name: String,
        reason: String,
    },
}

/// One case.
pub struct Golden {
    pub name: String,
    pub train: bool,
    /// In memory order.
    pub shape: Vec<usize>,
    pub axis: ChannelAxis,
    pub geometry: Geometry,
    pub config: Config,
    pub batches_before: u32,
    /// How far PyTorch's own f32 kernels are from the expected values, by tensor.
    pub torch_error: HashMap<String, f64>,
    pub dist: String,
    /// Whether the expected results were rounded to f32.
    rounded: bool,
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

    /// How far each value of a result may be from the expected one. `None` for a result that is
    /// none of batch normalization's.
    pub fn bounds(&self, name: &str, arithmetic: Arithmetic) -> Option<Vec<f64>> {
        let input = |name| self.input(name).unwrap_or_default();
        let (mean, var) = (input("running_mean"), input("running_var"));
        let center = if self.train { Center::Batch } else { Center::Running { mean, var } };
        let b = Bounds::new(
            self.geometry,
            input("x"),
            self.input("dy").unwrap_or(input("x")),
            (self.input("gamma"), self.input("beta")),
            self.config.epsilon,
            center,
            arithmetic,
        );
        let rate = match self.config.update {
            Update::Rate(rate) => rate,
            Update::Decay(decay) => 1.0 - decay,
            Update::Cumulative => 1.0 / f64::from(self.batches_before + 1),
            Update::None => 0.0,
        };
        let factor = self.config.running_variance.factor(self.geometry.values_per_channel());
        let mut bounds = match name {
            "y" => b.y(),
            "save_mean" => b.mean(),
            "save_invstd" => b.inv_std(),
            "running_mean_out" => b.running_mean(mean, rate),
            "running_var_out" => b.running_var(var, rate, factor, self.config.epsilon),
            "dx" => b.dx(),
            "dgamma" => b.dgamma(),
            "dbeta" => b.dbeta(),
            _ => return None,
        };
        if self.rounded {
            // Half a unit in the last place.
            for (bound, expected) in bounds.iter_mut().zip(self.expected(name)?) {
                *bound += expected.abs() * 2f64.powi(-24);
            }
        }
        Some(bounds)
    }
}

/// The cases of a file, by name.
///
/// # Errors
/// What is wrong with the file, and in which case.
pub fn parse(bytes: &[u8]) -> Result<Vec<Entry>, String> {
    let broken = |error: safetensors::SafeTensorError| format!("no safetensors file: {error}");
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(broken)?;
    let tensors = SafeTensors::deserialize(bytes).map_err(broken)?;
    let cases = header.metadata().as_ref().and_then(|metadata| metadata.get("cases"));
    let cases = cases.ok_or("the header's metadata has no \"cases\"")?;
    let cases: serde_json::Map<String, Value> =
        serde_json::from_str(cases).map_err(|error| format!("\"cases\" is no object: {error}"))?;
    let mut by_case: HashMap<&str, Vec<(&str, safetensors::tensor::TensorView<'_>)>> =
        HashMap::new();
    let all = tensors.tensors();
    for (path, view) in &all {
        let (case, tensor) =
            path.rsplit_once('/').ok_or_else(|| format!("tensor {path:?} belongs to no case"))?;
        if !cases.contains_key(case) {
            return Err(format!("tensor {path:?} belongs to no case of \"cases\""));
        }
        by_case.entry(case).or_default().push((tensor, view.clone()));
    }
    let mut entries = Vec::new();
    for (name, settings) in &cases {
        let tensors = by_case.remove(name.as_str()).unwrap_or_default();
        let entry = match unsupported(settings) {
            Some(reason) => Entry::Unsupported { name: name.clone(), reason },
            None => {
                let golden = golden(name, settings, &tensors);
                Entry::Case(Box::new(golden.map_err(|error| format!("case {name}: {error}"))?))
            }
        };
        entries.push(entry);
    }
    if entries.is_empty() {
        return Err("there is no case".into());
    }
    Ok(entries)
}

fn unsupported(settings: &Value) -> Option<String> {
    let not = |key: &str, supported: &str| match &settings[key] {
        Value::String(value) if value != supported => Some(format!("{key} {value}")),
        _ => None,
    };
    not("dtype", "f32").or_else(|| not("fused", "none"))
}

fn golden(
    name: &str,
    settings: &Value,
    tensors: &[(&str, safetensors::tensor::TensorView<'_>)],
) -> Result<Golden, String> {
    let text = |key: &str| settings[key].as_str();
    let dimension = |d: &Value| d.as_u64().and_then(|d| usize::try_from(d).ok());
    let shape: Option<Vec<usize>> =
        settings["shape"].as_array().and_then(|dims| dims.iter().map(dimension).collect());
    let mut shape = shape.ok_or("\"shape\" is no list of sizes")?;
    let axis = match text("layout") {
        Some("nchw") => ChannelAxis::First,
        Some("nhwc") if shape.len() >= 2 => {
            let channels = shape.remove(1);
            shape.push(channels);
            ChannelAxis::Last
        }
        _ => return Err("\"layout\" is neither nchw nor nhwc".into()),
    };
    let geometry = Geometry::new(&shape, axis).map_err(|error| error.to_string())?;
    let train = match text("mode") {
        Some("train") => true,
        Some("eval") => false,
        _ => return Err("\"mode\" is neither train nor eval".into()),
    };
    let update = match (settings["onnx_momentum"].as_f64(), settings["momentum"].as_f64()) {
        (Some(decay), _) => Update::Decay(decay),
        (None, Some(rate)) => Update::Rate(rate),
        (None, None) => Update::Cumulative,
    };
    let affine = settings["affine"].as_bool().ok_or("\"affine\" is neither true nor false")?;
    let config = Config {
        epsilon: settings["eps"].as_f64().ok_or("\"eps\" is no number")?,
        update,
        running_variance: match text("running_var") {
            Some("biased") => RunningVariance::Population,
            _ => RunningVariance::Unbiased,
        },
        affine: if affine { Affine::BOTH } else { Affine::NONE },
        single_value: SingleValue::Allow,
        ..Config::pytorch()
    };
    config.validate().map_err(|error| error.to_string())?;
    let mut inputs = HashMap::new();
    let mut expected = HashMap::new();
    for (tensor, view) in tensors {
        let whole = matches!(*tensor, "x" | "y" | "dy" | "dx");
        let count = if whole { geometry.len() } else { geometry.channels() };
        let found = view.shape().iter().product::<usize>() as u64;
        if found != count {
            return Err(format!("{tensor} has {found} values; there should be {count}"));
        }
        let is_input =
            matches!(*tensor, "x" | "dy" | "gamma" | "beta" | "running_mean" | "running_var");
        match (view.dtype(), is_input) {
            (Dtype::F32, true) => {
                inputs.insert(tensor.to_string(), bytemuck::pod_collect_to_vec(view.data()));
            }
            (Dtype::F64, false) => {
                expected.insert(tensor.to_string(), bytemuck::pod_collect_to_vec(view.data()));
            }
            (other, _) => {
                let wanted = if is_input { "f32 as an input" } else { "f64 as a result" };
                return Err(format!("{tensor} is {other:?}; it should be {wanted}"));
            }
        }
    }
    let mut required = vec!["x", "running_mean", "running_var"];
    if affine {
        required.extend(["gamma", "beta"]);
    }
    if let Some(missing) = required.into_iter().find(|input| !inputs.contains_key(*input)) {
        return Err(format!("there is no {missing}"));
    }
    if expected.is_empty() {
        return Err("there is no expected result".into());
    }
    let torch = settings["torch_max_abs_err"].as_object();
    let torch_error = torch
        .into_iter()
        .flatten()
        .filter_map(|(tensor, error)| Some((tensor.clone(), error.as_f64()?)))
        .collect();
    Ok(Golden {
        name: name.to_string(),
        train,
        shape,
        axis,
        geometry,
        config,
        batches_before: settings["batches_before"].as_u64().unwrap_or(0) as u32,
        torch_error,
        dist: text("dist").unwrap_or_default().to_string(),
        rounded: !settings["onnx_momentum"].is_null(),
        inputs,
        expected,
    })
}
