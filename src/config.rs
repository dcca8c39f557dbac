//! What the user asks for, as plain data. Every field is public; presets follow the frameworks.

use std::fmt;

/// Element type of the tensors: `x`, `y`, `dy`, `dx`, `z` and `dz`. Parameters, statistics and their
/// gradients are always f32, and so is all arithmetic.
///
/// Halves lie as in any other program: two bytes each, without gaps, little-endian; a slot's size is
/// rounded up to whole words of four bytes, and what its last word holds past the last element stays
/// as it is. They need no feature of the device: a load of four reads two words, and conversions
/// are made by bits, so that they are exact everywhere. Results are rounded to the nearest, ties to
/// even; what is too large becomes infinite, and NaN stays NaN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Element {
    /// 32-bit IEEE floating point.
    F32,
    /// 16-bit IEEE floating point: 11 bits of precision, up to 65,504.
    F16,
    /// The upper half of an f32: 8 bits of precision, and f32's range.
    Bf16,
}

impl Element {
    /// Its name in the field.
    pub fn name(&self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// Bytes of one element.
    pub fn size(&self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
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
    /// What the population variance of `n` values is multiplied by: 1, or `max(n, 1) / max(n−1, 1)`, which
    /// is `n / (n−1)` from 2 on, and has no pole at the sums of weights that are near 1.
    pub fn factor(&self, n: f64) -> f64 {
        match self {
            Self::Unbiased => n.max(1.0) / (n - 1.0).max(1.0),
            Self::Population => 1.0,
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

/// What follows the normalization in the same pass: `y = activation(v)`, where `v` is the normalized,
/// scaled and shifted value, plus `z` if there is a residual.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `y = v`.
    None,
    /// `y = max(v, 0)`; the slope at 0 is 0.
    Relu,
    /// `y = v` for `v > 0`, else `slope·v`.
    LeakyRelu {
        /// Finite.
        slope: f64,
    },
    /// `y = min(max(v, 0), limit)`; the slope is 1 between, 0 at both ends.
    ClippedRelu {
        /// Finite and > 0.
        limit: f64,
    },
    /// `y = v / (1 + e^−v)`.
    Silu,
    /// Functions of your own, in WGSL: `fn activation(v: f32) -> f32` and its derivative
    /// `fn activation_derivative(v: f32) -> f32`, both functions of `v`. They are compiled, with all
    /// bounds checks, when a plan is prepared. Whether the derivative is that of the function is not
    /// checked. Names of further functions should have a prefix of yours. The oracle cannot compute
    /// them.
    Custom(&'static str),
}

impl Activation {
    /// `y = min(max(v, 0), 6)`.
    pub const RELU6: Self = Self::ClippedRelu { limit: 6.0 };

    /// Whether one bit per value tells the slope.
    pub(crate) fn has_mask(&self) -> bool {
        matches!(self, Self::Relu | Self::LeakyRelu { .. } | Self::ClippedRelu { .. })
    }

    /// The number that the kernels take.
    pub(crate) fn parameter(&self) -> f64 {
        match self {
            Self::LeakyRelu { slope } => *slope,
            Self::ClippedRelu { limit } => *limit,
            Self::None | Self::Relu | Self::Silu | Self::Custom(_) => 0.0,
        }
    }
}

/// How a backward knows the activation's slope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mask {
    /// By what moves fewer bytes in training. Without a residual, the slope is computed again from
    /// `x`, which is read anyway. With one, `z` would have to be read again, so ReLUs take a mask:
    /// one bit per value in a buffer of yours, written by the training forward. Frozen backwards
    /// compute the slope again, so that an inference writes no mask.
    Auto,
    /// ReLUs take a mask, in training and with frozen statistics.
    Bits,
    /// Always computed again from `x`, and from `z` if there is a residual.
    Recompute,
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
    /// `dz`, if there is a residual. With halves, `dx` is then computed from `dz` as it is stored, so
    /// it differs within `dz`'s rounding from a `dx` without. So may a frozen `dgamma` and `dbeta`, where
    /// the device binds too few buffers to make everything in one pass.
    pub z: bool,
    /// Add to what `dgamma` and `dbeta` hold instead of overwriting it.
    pub accumulate: bool,
}

impl Gradients {
    /// All, overwriting.
    pub const ALL: Self = Self { x: true, gamma: true, beta: true, z: true, accumulate: false };
}

/// Batch renormalization (Ioffe, 2017): training normalizes by what inference will, up to two limits.
/// With the running statistics before they move, `σ_run = √(running_var+ε)` and `σ = √(σ²+ε)`:
///
/// `r = clamp(σ/σ_run, 1/rmax, rmax)`, `d = clamp((μ−running_mean)/σ_run, −dmax, dmax)`,
/// `y = act(((x−μ)/σ·r + d)·γ + β + z)`.
///
/// The backward takes r and d as constants. With `rmax = 1` and `dmax = 0` this is batch norm. Both
/// limits are uniforms: to move them, as training goes on, compiles nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Renorm {
    /// Finite and ≥ 1.
    pub rmax: f64,
    /// Finite and ≥ 0.
    pub dmax: f64,
}

/// Everything a user chooses. Start from a preset and change fields:
///
/// ```
/// use wgpu_batchnorm::{Config, Update};
/// let config = Config { update: Update::Cumulative, ..Config::pytorch() };
/// ```
///
/// All presets: f32, `γ` and `β`, no activation, no residual, one group, no
/// renormalization, no weights, separate buffers, all gradients,
/// non-finite values propagate, and [`SingleValue::Error`].
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
    /// What follows the normalization.
    pub activation: Activation,
    /// Add a tensor `z`, shaped as `x`, before the activation. Its gradient is `dz`.
    pub residual: bool,
    /// How a backward knows the activation's slope.
    pub mask: Mask,
    /// Into how many groups group normalization parts the channels: 1 is layer normalization, as many
    /// as channels is instance normalization. Batch normalization does not look at it.
    pub groups: u64,
    /// Batch renormalization. Inference, its backward and group normalization do not look at it.
    pub renorm: Option<Renorm>,
    /// Weigh every position in the batch's statistics: the slot `weights`, `[outer, inner]`, f32 ≥ 0
    /// whatever the element. With W = Σw over the batch, `μ = Σw·x/W` and `σ² = Σw·(x−μ)²/W`, and W
    /// takes the place of n everywhere, also in the unbiased variance (W/(W−1) for W from 2 on, W below,
    /// but 1 at least: weights are frequencies). Positions of weight 0, such as padding, have no part in the statistics and may
    /// hold NaN; y is computed there as everywhere. W = 0 is an empty batch: nothing moves, y = β,
    /// dx = dγ = dβ = 0.
    ///
    /// The backward is the exact derivative: `dx = γ·i·(dy − w/W·(S₁ + (x−μ)·i²·S₂))`, with sums over
    /// all positions. A loss that does not look at padding has dy = 0 there, and such a position adds
    /// nothing, even if it holds NaN.
    ///
    /// Inference and its backward do not look at it. Group normalization refuses it. A
    /// weight that is negative or not finite is the caller's mistake, which the host form finds and
    /// the kernels cannot.
    pub weights: bool,
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
            activation: Activation::None,
            residual: false,
            mask: Mask::Auto,
            groups: 1,
            renorm: None,
            weights: false,
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
        self.check_activation()?;
        self.check_renorm()?;
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

impl Config {
    fn check_activation(&self) -> Result<(), ConfigError> {
        let value = self.activation.parameter();
        let narrow = value as f32;
        let (field, good) = match self.activation {
            Activation::LeakyRelu { .. } => ("slope", narrow.is_finite()),
            Activation::ClippedRelu { .. } => ("limit", narrow.is_finite() && narrow > 0.0),
            _ => return Ok(()),
        };
        if good { Ok(()) } else { Err(ConfigError::Activation { field, value }) }
    }

    fn check_renorm(&self) -> Result<(), ConfigError> {
        let Some(Renorm { rmax, dmax }) = self.renorm else { return Ok(()) };
        for (field, value, least) in [("rmax", rmax, 1.0), ("dmax", dmax, 0.0)] {
            if !((value as f32).is_finite() && value >= least) {
                return Err(ConfigError::Renorm { field, value, least });
            }
        }
        if self.update == Update::None { Err(ConfigError::RenormWithoutUpdate) } else { Ok(()) }
    }

    /// Planes of `[C]` that a training forward saves.
    pub(crate) fn saved_planes(&self) -> u64 {
        if self.renorm.is_some() { 6 } else { 4 }
    }

    /// Whether a training or (`frozen`) an inference forward writes the mask that its backward
    /// reads.
    pub(crate) fn uses_mask(&self, frozen: bool) -> bool {
        self.activation.has_mask()
            && match self.mask {
                Mask::Auto => self.residual && !frozen,
                Mask::Bits => true,
                Mask::Recompute => false,
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
    /// A leaky ReLU's slope must be finite, a clipped ReLU's limit finite and > 0.
    Activation {
        /// Which number.
        field: &'static str,
        /// The value given.
        value: f64,
    },
    /// A limit of batch renormalization must be finite, rmax at least 1, dmax at least 0.
    Renorm {
        /// Which limit.
        field: &'static str,
        /// The value given.
        value: f64,
        /// The least it may be.
        least: f64,
    },
    /// Batch renormalization under [`Update::None`]: r and d come from the running statistics before
    /// they move, so a second forward of the same batch would not repeat the first. That is
    /// [`Normalize`](crate::Normalize), with what was saved.
    RenormWithoutUpdate,
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
            Self::Activation { field: "slope", value } => {
                write!(f, "the activation's slope {value} must be finite")
            }
            Self::Activation { field, value } => {
                write!(f, "the activation's {field} {value} must be finite and > 0")
            }
            Self::Renorm { field, value, least } => {
                write!(f, "renorm's {field} {value} must be finite and at least {least}")
            }
            Self::RenormWithoutUpdate => f.write_str(
                "batch renormalization needs running statistics that move, not Update::None \
                 (to repeat a forward, use Normalize with what was saved)",
            ),
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
        for value in [f64::NAN, f64::INFINITY, 1e300] {
            for activation in
                [Activation::LeakyRelu { slope: value }, Activation::ClippedRelu { limit: value }]
            {
                assert!(Config { activation, ..Config::keras() }.validate().is_err(), "{value}");
            }
        }
        let activation = Activation::ClippedRelu { limit: 0.0 };
        assert!(Config { activation, ..Config::keras() }.validate().is_err());
        for (rmax, dmax, good) in [
            (1.0, 0.0, true),
            (3.0, 5.0, true),
            (0.999, 0.0, false),
            (1.0, -1e-9, false),
            (f64::NAN, 0.0, false),
            (1.0, f64::NAN, false),
            (f64::INFINITY, 0.0, false),
            (1.0, 1e300, false),
        ] {
            let config = Config { renorm: Some(Renorm { rmax, dmax }), ..Config::keras() };
            assert_eq!(config.validate().is_ok(), good, "{rmax} {dmax}");
            let still = Config { update: Update::None, ..config };
            assert!(still.validate().is_err(), "{rmax} {dmax}");
        }
        for value in [f64::NAN, -0.1, 1.1, f64::INFINITY] {
            for update in [Update::Rate(value), Update::Decay(value)] {
                assert!(Config { update, ..Config::keras() }.validate().is_err(), "{update:?}");
            }
        }
    }

    #[test]
    fn unbiased_factor_is_one_for_one_value() {
        assert_eq!(RunningVariance::Unbiased.factor(1.0), 1.0);
        assert_eq!(RunningVariance::Unbiased.factor(5.0), 1.25);
        assert_eq!(RunningVariance::Population.factor(5.0), 1.0);
    }
}
