//! Folding batch norm into the layer before it, so that inference needs no batch norm at all.
//!
//! With `s = γ/√(running_var+ε)` of each output channel: `w' = w·s`, `b' = (b − running_mean)·s + β`
//! (Jacob et al., 2018). Computed in f64, rounded to f32 once.
//!
//! Valid only for inference with running statistics, and only where the layer feeds the batch norm
//! directly (no activation, pooling or sum between them) and nothing else.

use std::fmt;

use crate::config::{ConfigError, check_epsilon};
use crate::geometry::{ChannelAxis, Geometry, GeometryError};

/// Where a weight has its output channels `O`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightLayout {
    /// `[O, …]`: convolutions (OIHW, in groups or not) and linear layers `[O, I]` of PyTorch, ONNX
    /// and their kin.
    OutputFirst,
    /// `[…, O]`: convolutions (HWIO) and dense layers `[I, O]` of Keras, TensorFlow and Flax.
    OutputLast,
    /// `[I, O/groups, …]`: transposed convolutions of PyTorch and ONNX.
    Transposed {
        /// Groups; they divide `I`.
        groups: usize,
    },
    /// `[…, O, I]`: transposed convolutions of Keras (HWOI).
    TransposedLast,
}

impl WeightLayout {
    fn axis(self) -> ChannelAxis {
        match self {
            Self::OutputFirst => ChannelAxis::At(0),
            Self::OutputLast => ChannelAxis::Last,
            Self::Transposed { .. } => ChannelAxis::First,
            Self::TransposedLast => ChannelAxis::At(-2),
        }
    }

    fn groups(self) -> usize {
        if let Self::Transposed { groups } = self { groups } else { 1 }
    }
}

/// The layer that feeds the batch norm: a convolution, a transposed one, or a linear layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Layer<'a> {
    /// Its weight, row-major.
    pub weight: &'a [f32],
    /// The weight's shape.
    pub shape: &'a [usize],
    /// Where that shape has the output channels.
    pub layout: WeightLayout,
    /// Its bias `[O]`; 0 if absent.
    pub bias: Option<&'a [f32]>,
}

/// The batch norm after it, `[O]` each.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm<'a> {
    /// Scale; 1 if absent.
    pub gamma: Option<&'a [f32]>,
    /// Shift; 0 if absent.
    pub beta: Option<&'a [f32]>,
    /// Running mean.
    pub running_mean: &'a [f32],
    /// Running variance.
    pub running_var: &'a [f32],
    /// The batch norm's own ε, as in [`Config::epsilon`](crate::Config::epsilon).
    pub epsilon: f64,
}

/// What replaces the layer and the batch norm.
#[derive(Debug, Clone, PartialEq)]
pub struct Folded {
    /// Weight, of the layer's shape.
    pub weight: Vec<f32>,
    /// Bias `[O]`, also where the layer had none.
    pub bias: Vec<f32>,
}

/// Folds the batch norm `norm` into `layer`, which must feed it directly and nothing else.
///
/// ```
/// use wgpu_batchnorm::fold::{Layer, Norm, WeightLayout, fold};
/// // A linear layer of two inputs and one output; with ε = 1, s = 2/√(3+1) = 1.
/// let layer = Layer {
///     weight: &[5.0, 6.0],
///     shape: &[1, 2],
///     layout: WeightLayout::OutputFirst,
///     bias: Some(&[3.0]),
/// };
/// let norm = Norm {
///     gamma: Some(&[2.0]),
///     beta: Some(&[0.5]),
///     running_mean: &[1.0],
///     running_var: &[3.0],
///     epsilon: 1.0,
/// };
/// let folded = fold(&layer, &norm)?;
/// assert_eq!((folded.weight, folded.bias), (vec![5.0, 6.0], vec![3.0 - 1.0 + 0.5]));
/// # Ok::<(), wgpu_batchnorm::fold::FoldError>(())
/// ```
///
/// # Errors
/// [`FoldError`]: sizes that do not fit, an ε that [`Config`](crate::Config) would refuse, a
/// negative variance, or a value that is not finite, before or after.
pub fn fold(layer: &Layer<'_>, norm: &Norm<'_>) -> Result<Folded, FoldError> {
    check_epsilon(norm.epsilon)?;
    let &Layer { weight, shape, layout, bias } = layer;
    let geometry = Geometry::new(shape, layout.axis())?;
    if geometry.len() != weight.len() as u64 {
        return Err(FoldError::Weight { length: weight.len(), shape: shape.to_vec() });
    }
    let (groups, outer) = (layout.groups(), geometry.outer() as usize);
    if groups == 0 || !outer.is_multiple_of(groups) {
        return Err(FoldError::Groups { groups, inputs: outer });
    }
    let (in_group, inner) = (geometry.channels() as usize, geometry.inner() as usize);
    let channels = in_group
        .checked_mul(groups)
        .ok_or_else(|| GeometryError::Overflow { shape: shape.to_vec() })?;
    let per_channel = |name, values: Option<&[f32]>, absent: f64| match values {
        None => Ok(vec![absent; channels]),
        Some(values) if values.len() == channels => finite(name, values),
        Some(values) => Err(FoldError::Length { name, length: values.len(), channels }),
    };
    let mean = per_channel("running_mean", Some(norm.running_mean), 0.0)?;
    let var = per_channel("running_var", Some(norm.running_var), 0.0)?;
    let (gamma, beta) =
        (per_channel("gamma", norm.gamma, 1.0)?, per_channel("beta", norm.beta, 0.0)?);
    let bias = per_channel("bias", bias, 0.0)?;
    if let Some(channel) = var.iter().position(|v| *v < 0.0) {
        return Err(FoldError::Variance { channel, value: norm.running_var[channel] });
    }
    let scale: Vec<f64> =
        gamma.iter().zip(&var).map(|(gamma, var)| gamma / (var + norm.epsilon).sqrt()).collect();
    // The weight as [groups, inputs of a group, outputs of a group, inner].
    let channel_of = |i: usize| {
        let strip = i / inner;
        strip / in_group / (outer / groups) * in_group + strip % in_group
    };
    let weight = finite("weight", weight)?;
    let weight = weight.iter().enumerate().map(|(i, w)| w * scale[channel_of(i)]);
    let bias = (0..channels).map(|c| (bias[c] - mean[c]) * scale[c] + beta[c]);
    Ok(Folded { weight: narrow("folded weight", weight)?, bias: narrow("folded bias", bias)? })
}

fn finite(name: &'static str, values: &[f32]) -> Result<Vec<f64>, FoldError> {
    match values.iter().position(|v| !v.is_finite()) {
        Some(index) => Err(FoldError::NotFinite { name, index, value: f64::from(values[index]) }),
        None => Ok(values.iter().map(|&v| f64::from(v)).collect()),
    }
}

/// Rounds to f32, which must have room for every value.
fn narrow(name: &'static str, values: impl Iterator<Item = f64>) -> Result<Vec<f32>, FoldError> {
    let round = |(index, value): (usize, f64)| match value as f32 {
        rounded if rounded.is_finite() => Ok(rounded),
        _ => Err(FoldError::NotFinite { name, index, value }),
    };
    values.enumerate().map(round).collect()
}

/// Why a batch norm cannot be folded.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum FoldError {
    /// A bad ε.
    Config(ConfigError),
    /// A shape without the layout's axis, or too large.
    Geometry(GeometryError),
    /// A weight that is not of its shape.
    Weight {
        /// Values given.
        length: usize,
        /// The shape.
        shape: Vec<usize>,
    },
    /// Groups that do not divide the input channels.
    Groups {
        /// Groups.
        groups: usize,
        /// Input channels.
        inputs: usize,
    },
    /// A per-channel array of the wrong length.
    Length {
        /// Which.
        name: &'static str,
        /// Its length.
        length: usize,
        /// Output channels of the weight.
        channels: usize,
    },
    /// A negative running variance.
    Variance {
        /// Its channel.
        channel: usize,
        /// Its value.
        value: f32,
    },
    /// A value that is not finite, or a result that f32 has no room for.
    NotFinite {
        /// Of which array.
        name: &'static str,
        /// Where in it.
        index: usize,
        /// The value.
        value: f64,
    },
}

impl fmt::Display for FoldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::Geometry(error) => error.fmt(f),
            Self::Weight { length, shape } => {
                write!(f, "weight has {length} values for the shape {shape:?}")
            }
            Self::Groups { groups, inputs } => {
                write!(f, "{groups} groups do not divide {inputs} input channels")
            }
            Self::Length { name, length, channels } => {
                write!(f, "{name} has {length} values for {channels} output channels")
            }
            Self::Variance { channel, value } => {
                write!(f, "running_var of channel {channel} is {value}; it must be >= 0")
            }
            Self::NotFinite { name, index, value } => {
                write!(f, "{name}[{index}] is {value:e}, which is not finite in f32")
            }
        }
    }
}

impl std::error::Error for FoldError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Config(error) => Some(error),
            Self::Geometry(error) => Some(error),
            _ => None,
        }
    }
}

impl From<ConfigError> for FoldError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<GeometryError> for FoldError {
    fn from(error: GeometryError) -> Self {
        Self::Geometry(error)
    }
}
