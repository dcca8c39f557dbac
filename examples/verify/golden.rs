//! Golden files: inputs and expected results of batch normalization in one safetensors file. The
//! format is in `README.md` beside this file.

use std::collections::HashMap;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use wgpu_batchnorm::{
    Activation, Affine, ChannelAxis, Config, Element, Geometry, RunningVariance, SingleValue,
    Update,
};

use super::compare::{Arithmetic, Bounds, Center, Given};

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

    /// The names of all expected results.
    pub fn results(&self) -> impl Iterator<Item = &str> {
        self.expected.keys().map(String::as_str)
    }

    /// How far each value of a result may be from the expected one. `None` for a result that is
    /// none of batch normalization's.
    pub fn bounds(&self, name: &str, arithmetic: Arithmetic) -> Option<Vec<f64>> {
        let input = |name| self.input(name).unwrap_or_default();
        let (mean, var) = (input("running_mean"), input("running_var"));
        let center = if self.train { Center::Batch } else { Center::Running { mean, var } };
        let b = Bounds::new(
            self.geometry,
            Given {
                x: input("x"),
                dy: self.input("dy").unwrap_or(input("x")),
                gamma: self.input("gamma"),
                beta: self.input("beta"),
                z: self.input("z"),
                weights: None,
            },
            &self.config,
            center,
            arithmetic,
        );
        let rate = match self.config.update {
            Update::Rate(rate) => rate,
            Update::Decay(decay) => 1.0 - decay,
            Update::Cumulative => 1.0 / (f64::from(self.batches_before) + 1.0),
            Update::None => 0.0,
        };
        let factor = self.config.running_variance.factor(self.geometry.values_per_channel() as f64);
        let mut bounds = match name {
            "y" => b.y(),
            "save_mean" => b.mean(),
            "save_invstd" => b.inv_std(),
            "running_mean_out" => b.running_mean(mean, rate),
            "running_var_out" => b.running_var(var, rate, factor, self.config.epsilon),
            "dx" => b.dx(),
            "dz" => b.dz(),
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
    let mut by_case: HashMap<&str, Vec<(&str, TensorView<'_>)>> = HashMap::new();
    let mut all = tensors.tensors();
    all.sort_by(|a, b| a.0.cmp(&b.0));
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
        let settings = Settings(settings);
        let entry = match unsupported(&settings) {
            Ok(Some(reason)) => Ok(Entry::Unsupported { name: name.clone(), reason }),
            Ok(None) => golden(name, &settings, &tensors).map(|case| Entry::Case(Box::new(case))),
            Err(error) => Err(error),
        };
        entries.push(entry.map_err(|error| format!("case {name}: {error}"))?);
    }
    if entries.is_empty() {
        return Err("there is no case".into());
    }
    Ok(entries)
}

/// A case's settings, each looked at by its type.
struct Settings<'a>(&'a Value);

impl<'a> Settings<'a> {
    fn get<T>(
        &self,
        key: &str,
        kind: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        match &self.0[key] {
            Value::Null => Ok(None),
            value => read(value).map(Some).ok_or(format!("{key:?} is {value}, not {kind}")),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, String> {
        self.get(key, "a text", Value::as_str)
    }

    fn number(&self, key: &str) -> Result<Option<f64>, String> {
        self.get(key, "a number", Value::as_f64)
    }

    /// One of two texts; the second without any.
    fn is_first(&self, key: &str, first: &str, second: &str) -> Result<bool, String> {
        match self.text(key)? {
            Some(text) if text == first => Ok(true),
            Some(text) if text != second => {
                Err(format!("{key:?} is {text:?}, neither {first} nor {second}"))
            }
            _ => Ok(false),
        }
    }

    fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, String> {
        value.ok_or(format!("there is no {key:?}"))
    }
}

fn unsupported(settings: &Settings<'_>) -> Result<Option<String>, String> {
    let dtype = settings.text("dtype")?.unwrap_or("f32");
    let fused = settings.text("fused")?.unwrap_or("none");
    Ok(match (dtype, fused) {
        ("f32" | "f16" | "bf16", "none" | "relu" | "add_relu") => None,
        ("f32" | "f16" | "bf16", other) => Some(format!("fused {other}")),
        (other, _) => Some(format!("dtype {other}")),
    })
}

const INPUTS: [&str; 7] = ["x", "dy", "z", "gamma", "beta", "running_mean", "running_var"];
const RESULTS: [&str; 5] = ["y", "dx", "dgamma", "dbeta", "dz"];
const TRAIN_RESULTS: [&str; 4] =
    ["save_mean", "save_invstd", "running_mean_out", "running_var_out"];

fn golden(
    name: &str,
    settings: &Settings<'_>,
    tensors: &[(&str, TensorView<'_>)],
) -> Result<Golden, String> {
    let dimension = |d: &Value| d.as_u64().and_then(|d| usize::try_from(d).ok());
    let sizes = |value: &Value| value.as_array().and_then(|d| d.iter().map(dimension).collect());
    let mut shape: Vec<usize> =
        settings.required("shape", settings.get("shape", "a list of sizes", sizes)?)?;
    settings.required("layout", settings.text("layout")?)?;
    let last = settings.is_first("layout", "nhwc", "nchw")?;
    if last && shape.len() >= 2 {
        let channels = shape.remove(1);
        shape.push(channels);
    }
    let axis = if last { ChannelAxis::Last } else { ChannelAxis::First };
    let geometry = Geometry::new(&shape, axis).map_err(|error| error.to_string())?;
    settings.required("mode", settings.text("mode")?)?;
    let train = settings.is_first("mode", "train", "eval")?;
    let onnx = settings.number("onnx_momentum")?;
    let update = match (onnx, settings.number("momentum")?) {
        (Some(decay), _) => Update::Decay(decay),
        (None, Some(rate)) => Update::Rate(rate),
        (None, None) => Update::Cumulative,
    };
    if update == Update::Cumulative && settings.0.get("momentum").is_none() {
        return Err("there is no \"momentum\"; null is the cumulative average".into());
    }
    let affine =
        settings.required("affine", settings.get("affine", "true or false", Value::as_bool)?)?;
    let fused = settings.text("fused")?;
    let residual = fused == Some("add_relu");
    let config = Config {
        element: match settings.text("dtype")? {
            Some("f16") => Element::F16,
            Some("bf16") => Element::Bf16,
            _ => Element::F32,
        },
        activation: match fused {
            Some("relu" | "add_relu") => Activation::Relu,
            _ => Activation::None,
        },
        residual,
        epsilon: settings.required("eps", settings.number("eps")?)?,
        update,
        running_variance: match settings.is_first("running_var", "biased", "unbiased")? {
            true => RunningVariance::Population,
            false => RunningVariance::Unbiased,
        },
        affine: if affine { Affine::BOTH } else { Affine::NONE },
        single_value: SingleValue::Allow,
        ..Config::pytorch()
    };
    config.validate().map_err(|error| error.to_string())?;
    let batch_count = |value: &Value| value.as_u64().and_then(|count| u32::try_from(count).ok());
    let batches_before = settings.get("batches_before", "a 32-bit count", batch_count)?;
    let mut inputs = HashMap::new();
    let mut expected = HashMap::new();
    for (tensor, view) in tensors {
        let whole = matches!(*tensor, "x" | "y" | "dy" | "dx" | "z" | "dz");
        let channels = [geometry.channels() as usize];
        let wanted = if whole { shape.as_slice() } else { &channels };
        if view.shape() != wanted {
            let found = view.shape();
            return Err(format!("{tensor} has the shape {found:?}; it should have {wanted:?}"));
        }
        let is_input = INPUTS.contains(tensor);
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
    if residual {
        required.push("z");
    }
    if affine {
        required.extend(["gamma", "beta"]);
    }
    let gradient =
        ["dx", "dgamma", "dbeta", "dz"].iter().any(|result| expected.contains_key(*result));
    if gradient {
        required.push("dy");
    }
    if let Some(missing) = required.into_iter().find(|input| !inputs.contains_key(*input)) {
        return Err(format!("there is no {missing}"));
    }
    if expected.is_empty() {
        return Err("there is no expected result".into());
    }
    for result in expected.keys().map(String::as_str) {
        let parameter = matches!(result, "dgamma" | "dbeta");
        let computed = (RESULTS.contains(&result) || train && TRAIN_RESULTS.contains(&result))
            && (affine || !parameter)
            && (residual || result != "dz");
        if !computed {
            return Err(format!("{result} is no result of this case"));
        }
    }
    let torch_error = settings
        .get("torch_max_abs_err", "an object", Value::as_object)?
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
        batches_before: batches_before.unwrap_or(0),
        torch_error,
        dist: settings.text("dist")?.unwrap_or_default().to_string(),
        rounded: onnx.is_some(),
        inputs,
        expected,
    })
}
