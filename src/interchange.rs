//! A layer's state in safetensors files, under the names of PyTorch or Keras.
//!
//! ```
//! use safetensors::SafeTensors;
//! use wgpu_batchnorm::{Affine, LayerState, Names};
//! let state = LayerState::new(3);
//! let tensors = state.to_tensors("backbone.bn1", Names::PyTorch, Affine::BOTH);
//! let file = safetensors::serialize(tensors, None)?;
//! let tensors = SafeTensors::deserialize(&file)?;
//! assert_eq!(LayerState::from_tensors(&tensors, "backbone.bn1", Names::PyTorch)?, state);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::borrow::Cow;
use std::fmt;

use ndarray::Array1;
use safetensors::{Dtype, SafeTensors, View};

use crate::config::{Affine, RunningVariance};
use crate::layer::LayerState;

/// Whose names the tensors of a file have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Names {
    /// `weight`, `bias`, `running_mean`, `running_var`, and the i64 `num_batches_tracked`; a dot
    /// after the prefix.
    PyTorch,
    /// `gamma`, `beta`, `moving_mean`, `moving_variance`, and no count; a slash after the prefix.
    Keras,
}

impl Names {
    /// Of scale, shift, running mean and running variance.
    fn floats(self) -> [&'static str; 4] {
        match self {
            Self::PyTorch => ["weight", "bias", "running_mean", "running_var"],
            Self::Keras => ["gamma", "beta", "moving_mean", "moving_variance"],
        }
    }

    fn count(self) -> Option<&'static str> {
        match self {
            Self::PyTorch => Some("num_batches_tracked"),
            Self::Keras => None,
        }
    }

    /// `prefix` and `name` as one name.
    fn join(self, prefix: &str, name: &str) -> String {
        let separator = match self {
            Self::PyTorch => ".",
            Self::Keras => "/",
        };
        if prefix.is_empty() { name.into() } else { [prefix, separator, name].concat() }
    }
}

/// One tensor of a layer, for [`safetensors::serialize`].
#[derive(Debug, Clone, PartialEq)]
pub struct StateTensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for StateTensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.bytes.as_slice().into()
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

impl LayerState {
    /// The layer's tensors under `prefix`, to be serialized with those of other layers. `affine`
    /// says whether the framework's layer has a scale and a shift: one it has not is left out.
    pub fn to_tensors(
        &self,
        prefix: &str,
        names: Names,
        affine: Affine,
    ) -> Vec<(String, StateTensor)> {
        let floats = [&self.gamma, &self.beta, &self.running_mean, &self.running_var];
        let present = [affine.gamma, affine.beta, true, true];
        let mut tensors = Vec::new();
        for ((name, values), present) in names.floats().into_iter().zip(floats).zip(present) {
            if present {
                let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                let tensor = StateTensor { dtype: Dtype::F32, shape: vec![values.len()], bytes };
                tensors.push((names.join(prefix, name), tensor));
            }
        }
        if let Some(name) = names.count() {
            let bytes = i64::from(self.batches).to_le_bytes().to_vec();
            let tensor = StateTensor { dtype: Dtype::I64, shape: Vec::new(), bytes };
            tensors.push((names.join(prefix, name), tensor));
        }
        tensors
    }

    /// The layer under `prefix` in a file. A scale or a shift that is not there is 1 or 0, as in a
    /// layer without; a count that is not there is 0.
    ///
    /// # Errors
    /// [`InterchangeError`], naming the tensor. Whether the values can be normalized with is looked
    /// at by [`BatchNorm::load`](crate::BatchNorm::load).
    pub fn from_tensors(
        file: &SafeTensors<'_>,
        prefix: &str,
        names: Names,
    ) -> Result<Self, InterchangeError> {
        let [gamma, beta, mean, var] = names.floats().map(|name| names.join(prefix, name));
        let running_mean =
            floats(file, &mean)?.ok_or(InterchangeError::Missing { tensor: mean })?;
        let channels = running_mean.len();
        let checked = |tensor: &str| match floats(file, tensor)? {
            Some(values) if values.len() != channels => Err(InterchangeError::Shape {
                tensor: tensor.into(),
                shape: vec![values.len()],
                expected: vec![channels],
            }),
            values => Ok(values),
        };
        let running_var = checked(&var)?.ok_or(InterchangeError::Missing { tensor: var })?;
        Ok(Self {
            gamma: checked(&gamma)?.unwrap_or_else(|| Array1::ones(channels)),
            beta: checked(&beta)?.unwrap_or_else(|| Array1::zeros(channels)),
            running_mean,
            running_var,
            batches: match names.count() {
                Some(name) => count(file, &names.join(prefix, name))?.unwrap_or(0),
                None => 0,
            },
        })
    }

    /// The running variance in another convention: multiplied by the quotient of both
    /// [factors](RunningVariance::factor). Exact only if every batch had `n` values per channel; the
    /// file of a framework does not say.
    #[must_use]
    pub fn with_variance(&self, from: RunningVariance, to: RunningVariance, n: u64) -> Self {
        let factor = to.factor(n as f64) / from.factor(n as f64);
        let convert = |&variance: &f32| (f64::from(variance) * factor) as f32;
        Self { running_var: self.running_var.iter().map(convert).collect(), ..self.clone() }
    }
}

/// The values of a tensor `[C]`, if it is there.
fn floats(file: &SafeTensors<'_>, tensor: &str) -> Result<Option<Array1<f32>>, InterchangeError> {
    let Ok(view) = file.tensor(tensor) else { return Ok(None) };
    if view.dtype() != Dtype::F32 {
        let (dtype, expected) = (view.dtype(), Dtype::F32);
        return Err(InterchangeError::Dtype { tensor: tensor.into(), dtype, expected });
    }
    if view.shape().len() != 1 {
        return Err(InterchangeError::Shape {
            tensor: tensor.into(),
            shape: view.shape().to_vec(),
            expected: vec![view.shape().iter().product()],
        });
    }
    let value = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    Ok(Some(view.data().chunks_exact(4).map(value).collect()))
}

/// The value of an i64 scalar, if it is there.
fn count(file: &SafeTensors<'_>, tensor: &str) -> Result<Option<u32>, InterchangeError> {
    let Ok(view) = file.tensor(tensor) else { return Ok(None) };
    if view.dtype() != Dtype::I64 {
        let (dtype, expected) = (view.dtype(), Dtype::I64);
        return Err(InterchangeError::Dtype { tensor: tensor.into(), dtype, expected });
    }
    let Ok(bytes) = <[u8; 8]>::try_from(view.data()) else {
        let shape = view.shape().to_vec();
        return Err(InterchangeError::Shape { tensor: tensor.into(), shape, expected: Vec::new() });
    };
    let value = i64::from_le_bytes(bytes);
    let count = u32::try_from(value);
    count.map(Some).map_err(|_| InterchangeError::Count { tensor: tensor.into(), value })
}

/// Why a file holds no such layer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum InterchangeError {
    /// A layer has running statistics, and the file has none under this name.
    Missing {
        /// The name.
        tensor: String,
    },
    /// A tensor of another type.
    Dtype {
        /// The name.
        tensor: String,
        /// The type found.
        dtype: Dtype,
        /// The type it should have.
        expected: Dtype,
    },
    /// A tensor of another shape.
    Shape {
        /// The name.
        tensor: String,
        /// The shape found.
        shape: Vec<usize>,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// A count of batches that is negative or does not fit 32 bits.
    Count {
        /// The name.
        tensor: String,
        /// The value found.
        value: i64,
    },
}

impl fmt::Display for InterchangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { tensor } => write!(f, "there is no tensor {tensor}"),
            Self::Dtype { tensor, dtype, expected } => {
                write!(f, "tensor {tensor} is {dtype:?}; it should be {expected:?}")
            }
            Self::Shape { tensor, shape, expected } => {
                write!(f, "tensor {tensor} has the shape {shape:?}; it should have {expected:?}")
            }
            Self::Count { tensor, value } => {
                write!(f, "tensor {tensor} is {value}; a count of batches is 0 to {}", u32::MAX)
            }
        }
    }
}

impl std::error::Error for InterchangeError {}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    fn state() -> LayerState {
        LayerState {
            gamma: vec![1.5, -2.0].into(),
            beta: vec![0.25, f32::MIN_POSITIVE].into(),
            running_mean: vec![1e6, -0.0].into(),
            running_var: vec![3.0, 0.5].into(),
            batches: 7,
        }
    }

    fn file(tensors: Vec<(String, StateTensor)>) -> Vec<u8> {
        safetensors::serialize(tensors, None).unwrap()
    }

    #[test]
    fn states_come_back_under_both_names() {
        for (names, prefix, first) in [
            (Names::PyTorch, "features.0.bn", "features.0.bn.weight"),
            (Names::PyTorch, "", "weight"),
            (Names::Keras, "block1/bn", "block1/bn/gamma"),
        ] {
            let tensors = state().to_tensors(prefix, names, Affine::BOTH);
            assert_eq!(tensors[0].0, first);
            let bytes = file(tensors);
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let batches = if names == Names::Keras { 0 } else { 7 };
            let expected = LayerState { batches, ..state() };
            assert_eq!(LayerState::from_tensors(&tensors, prefix, names), Ok(expected));
        }
    }

    #[test]
    fn a_layer_without_scale_and_shift_has_neutral_ones() {
        let bytes = file(state().to_tensors("a", Names::PyTorch, Affine::NONE));
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.len(), 3);
        let expected =
            LayerState { gamma: vec![1.0, 1.0].into(), beta: vec![0.0, 0.0].into(), ..state() };
        assert_eq!(LayerState::from_tensors(&tensors, "a", Names::PyTorch), Ok(expected));
    }

    #[test]
    fn wrong_tensors_are_named() {
        let three = [0u8; 24];
        let view = |dtype, shape: &[usize]| {
            let size = shape.iter().product::<usize>() * dtype_size(dtype);
            TensorView::new(dtype, shape.to_vec(), &three[..size]).unwrap()
        };
        let good = || {
            vec![
                ("m.running_mean", view(Dtype::F32, &[2])),
                ("m.running_var", view(Dtype::F32, &[2])),
                ("m.num_batches_tracked", view(Dtype::I64, &[])),
            ]
        };
        let minus_one = (-1i64).to_le_bytes();
        let negative = TensorView::new(Dtype::I64, vec![], &minus_one).unwrap();
        let refusal = |tensors: Vec<(&str, TensorView<'_>)>| {
            let bytes = safetensors::serialize(tensors, None).unwrap();
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let state = LayerState::from_tensors(&tensors, "m", Names::PyTorch);
            state.map_or_else(|error| error.to_string(), |_| "accepted".into())
        };
        assert_eq!(refusal(good()), "accepted");
        let replaced = |at: usize, view| {
            let mut tensors = good();
            tensors[at].1 = view;
            refusal(tensors)
        };
        for (message, words) in [
            (refusal(good()[1..].to_vec()), "there is no tensor m.running_mean"),
            (refusal(good()[..1].to_vec()), "there is no tensor m.running_var"),
            (replaced(0, view(Dtype::F64, &[2])), "m.running_mean is F64; it should be F32"),
            (replaced(1, view(Dtype::F32, &[3])), "m.running_var has the shape [3]"),
            (replaced(1, view(Dtype::F32, &[2, 1])), "m.running_var has the shape [2, 1]"),
            (replaced(2, view(Dtype::I64, &[2])), "m.num_batches_tracked has the shape [2]"),
            (replaced(2, view(Dtype::F32, &[2])), "m.num_batches_tracked is F32"),
            (replaced(2, negative), "m.num_batches_tracked is -1"),
        ] {
            assert!(message.contains(words), "{message} lacks {words}");
        }
    }

    fn dtype_size(dtype: Dtype) -> usize {
        if dtype == Dtype::F32 { 4 } else { 8 }
    }

    #[test]
    fn variances_change_their_convention() {
        use RunningVariance::{Population, Unbiased};
        let unbiased = state().with_variance(Population, Unbiased, 5);
        assert_eq!(unbiased.running_var.to_vec(), [3.75, 0.625]);
        assert_eq!(unbiased.with_variance(Unbiased, Population, 5), state());
        assert_eq!(state().with_variance(Unbiased, Unbiased, 5), state());
    }
}
