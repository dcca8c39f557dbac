//! What the user asks for, as plain data. Every field is public; presets follow the frameworks.

use std::fmt;

/// Element type of `x`, `y`, `dy` and `dx`. Parameters, statistics and their gradients are always
/// f32, and so is all arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Element {
    /// 32-bit IEEE floating point.
    F32,
}

impl Element {
    /// Bytes of one element.
    pub fn size(&self) -> u64 {
        match self {
            Self::F32 => 4,
        }
    }
}

/// How the running statistics move towards a batch's statistics `b`. There is no bare `momentum`:
/// frameworks use that word both for the weight of the new value and for the weight of the old.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Update {
    /// `r ← (1 − rate)·r + rate·b`: the weight of the new value (PyTorch's `momentum`).
    Rate(f64),
    /// `r ← decay·r + (1 − decay)·b`: the weight of the old value (Keras' and ONNX' `momentum`).
    Decay(f64),
    /// The plain average over all batches so far: factor `1 / count`, where `count` includes this
    /// batch (PyTorch's `momentum=None`). The count is the `batches` slot, one `u32` in a buffer
    /// of yours. Batches weigh the same whatever their size, and the spread between their means is
    /// missed; [`Moments`](crate::Moments) give the exact statistics of several batches.
    Cumulative,
    /// Leave the running statistics alone; their buffers are not even bound. For a forward pass
    /// that is computed a second time (activation checkpointing).
    None,
}

/// Which variance goes into `running_var`. The batch itself is always normalised with the
/// population variance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunningVariance {
    /// `Σ(x−μ)²/n`.
    Population,
    /// `Σ(x−μ)²/max(n−1, 1)`.
    Unbiased,
}

impl RunningVariance {
    /// What the population variance of `n` values is multiplied by: 1, or `n / max(n−1, 1)`.
    pub fn factor(&self, n: u64) -> f64 {
        match self {
            Self::Population => 1.0,
            Self::Unbiased => n as f64 / n.saturating_sub(1).max(1) as f64,
        }
    }
}

/// Training on one value per channel (`n = 1`): the variance is 0 and `y = β` whatever `x` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SingleValue {
    /// Refuse to plan it, as PyTorch does.
    Error,
    /// Compute it: `σ² = 0`, `y = β`, `dx = 0`.
    Allow,
}

/// What a batch with NaN or infinite statistics does to the running statistics of its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NonFinite {
    /// It makes them NaN or infinite too, as every framework does.
    Propagate,
    /// It leaves that channel's running mean and variance as they were. A cumulative count still
    /// counts the batch.
    Keep,
}

/// Which of `γ` and `β` are bound. Absent means 1 and 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Affine {
    /// Scale by `gamma`.
    pub gamma: bool,
    /// Add `beta`.
    pub beta: bool,
}

impl Affine {
    /// Both.
    pub const BOTH: Self = Self { gamma: true, beta: true };
    /// Neither.
    pub const NONE: Self = Self { gamma: false, beta: false };
}

/// How the tensors lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Memory {
    /// A buffer that holds a slot the operation writes holds no other slot, but for the pairs
    /// `running_mean` and `running_var`, `dgamma` and `dbeta`. Slots that are only read may share.
    Separate,
    /// `y` overwrites `x`, and `dx` overwrites `dy`: the slots `y` and `dx` are not given. A
    /// backward after an in-place forward needs the original `x`, so this is for inference, for
    /// training without backward, and for the gradient. Otherwise as `Separate`.
    InPlace,
    /// Any slots may share one buffer, in ranges that do not overlap: everything is bound
    /// read-write. For pipelines that sub-allocate all tensors from one arena.
    Arena,
}

/// Which gradients a backward operation produces, and how parameter gradients are written. What
/// is not asked for is neither computed nor bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Gradients {
    /// `dx`.
    pub x: bool,
    /// `dgamma`.
    pub gamma: bool,
    /// `dbeta`.
    pub beta: bool,
    /// Add to what `dgamma` and `dbeta` hold instead of overwriting it.
    pub accumulate: bool,
}

impl Gradients {
    /// All three, overwriting.
    pub const ALL: Self = Self { x: true, gamma: true, beta: true, accumulate: false };
}

/// Everything a user chooses. Start from a preset and change fields:
///
/// ```
/// use wgpu_batchnorm::{Config, Update};
/// let config = Config { update: Update::Cumulative, ..Config::pytorch() };
/// ```
///
/// All presets: f32, `γ` and `β`, separate buffers, all gradients, non-finite values propagate,
/// and [`SingleValue::Error`].
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Element type of the tensors.
    pub element: Element,
    /// Added to the variance inside the square root; finite, and a normal f32 > 0 (≥ 1.2e-38).
    pub epsilon: f64,
    /// Which of `γ`, `β` exist.
    pub affine: Affine,
    /// How running statistics move.
    pub update: Update,
    /// Which variance the running variance averages.
    pub running_variance: RunningVariance,
    /// Policy for one value per channel.
    pub single_value: SingleValue,
    /// Policy for running statistics of channels that are not finite.
    pub non_finite: NonFinite,
    /// How the tensors lie in memory.
    pub memory: Memory,
    /// What backward operations produce.
    pub gradients: Gradients,
}

impl Config {
    fn preset(epsilon: f64, update: Update, running_variance: RunningVariance) -> Self {
        Self {
            element: Element::F32,
            epsilon,
            affine: Affine::BOTH,
            update,
            running_variance,
            single_value: SingleValue::Error,
            non_finite: NonFinite::Propagate,
            memory: Memory::Separate,
            gradients: Gradients::ALL,
        }
    }

    /// PyTorch (also cuDNN, MIOpen and MLX): ε 1e-5, rate 0.1, unbiased running variance.
    pub fn pytorch() -> Self {
        Self::preset(1e-5, Update::Rate(0.1), RunningVariance::Unbiased)
    }

    /// Keras 3: ε 1e-3, decay 0.99, population running variance.
    pub fn keras() -> Self {
        Self::preset(1e-3, Update::Decay(0.99), RunningVariance::Population)
    }

    /// TensorFlow's fused batch norm (4-D and 5-D): ε 1e-3, decay 0.99, unbiased running variance.
    pub fn tensorflow() -> Self {
        Self::preset(1e-3, Update::Decay(0.99), RunningVariance::Unbiased)
    }

    /// ONNX opset 15: ε 1e-5, decay 0.9, population running variance.
    pub fn onnx() -> Self {
        Self::preset(1e-5, Update::Decay(0.9), RunningVariance::Population)
    }

    /// Flax: ε 1e-5, decay 0.99, population running variance.
    pub fn flax() -> Self {
        Self::preset(1e-5, Update::Decay(0.99), RunningVariance::Population)
    }

    /// Burn: ε 1e-5, rate 0.1, population running variance.
    pub fn burn() -> Self {
        Self::preset(1e-5, Update::Rate(0.1), RunningVariance::Population)
    }

    /// candle and tinygrad: ε 1e-5, rate 0.1, unbiased running variance.
    pub fn candle() -> Self {
        Self::pytorch()
    }

    /// Checks every number. Planning calls this.
    ///
    /// # Errors
    /// [`ConfigError`] naming the field and its value.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check_epsilon(self.epsilon)?;
        let (field, value) = match self.update {
            Update::Rate(rate) => ("update rate", rate),
            Update::Decay(decay) => ("update decay", decay),
            Update::Cumulative | Update::None => return Ok(()),
        };
        // A NaN is in no range.
        if (0.0..=1.0).contains(&value) {
            Ok(())
        } else {
            Err(ConfigError::Weight { field, value })
        }
    }
}

/// A GPU may take what is below the normal range for 0.
pub(crate) fn check_epsilon(epsilon: f64) -> Result<(), ConfigError> {
    let narrow = epsilon as f32;
    if narrow.is_finite() && narrow >= f32::MIN_POSITIVE {
        Ok(())
    } else {
        Err(ConfigError::Epsilon { epsilon })
    }
}

/// A number in a [`Config`] that cannot be used.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ConfigError {
    /// ε must be finite and at least 1.2e-38, the smallest normal f32.
    Epsilon {
        /// The value given.
        epsilon: f64,
    },
    /// A weight must lie in 0..=1.
    Weight {
        /// Which weight.
        field: &'static str,
        /// The value given.
        value: f64,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Epsilon { epsilon } => {
                write!(f, "epsilon {epsilon:e} must be finite and at least {:e}", f32::MIN_POSITIVE)
            }
            Self::Weight { field, value } => {
                write!(f, "{field} {value} must lie between 0 and 1")
            }
        }
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid_and_bad_numbers_are_not() {
        let presets = [
            Config::pytorch(),
            Config::keras(),
            Config::tensorflow(),
            Config::onnx(),
            Config::flax(),
            Config::burn(),
            Config::candle(),
        ];
        for preset in &presets {
            assert_eq!(preset.validate(), Ok(()));
        }
        for epsilon in [f64::NAN, f64::INFINITY, 0.0, -1e-5, 1e-60, 1e-40, 1e60] {
            assert!(Config { epsilon, ..Config::keras() }.validate().is_err(), "{epsilon}");
        }
        for value in [f64::NAN, -0.1, 1.1, f64::INFINITY] {
            for update in [Update::Rate(value), Update::Decay(value)] {
                assert!(Config { update, ..Config::keras() }.validate().is_err(), "{update:?}");
            }
        }
    }

    #[test]
    fn unbiased_factor_is_one_for_one_value() {
        assert_eq!(RunningVariance::Unbiased.factor(1), 1.0);
        assert_eq!(RunningVariance::Unbiased.factor(5), 1.25);
        assert_eq!(RunningVariance::Population.factor(5), 1.0);
    }
}
