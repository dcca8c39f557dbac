//! The pieces of the caller's memory, by name.

use std::fmt;

/// A piece of the caller's memory, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Slot {
    /// Input tensor.
    X,
    /// Output tensor.
    Y,
    /// Gradient of the output.
    Dy,
    /// Gradient of the input.
    Dx,
    /// Scale, `[C]`.
    Gamma,
    /// Shift, `[C]`.
    Beta,
    /// Gradient of the scale, `[C]`.
    Dgamma,
    /// Gradient of the shift, `[C]`.
    Dbeta,
    /// `[4, C]`: mean, its rounding remainder, inverse standard deviation, count of values. `[6, C]`
    /// under [`Renorm`](crate::Renorm): also r and d. In group normalization `[4, outer·groups]`.
    Saved,
    /// `[C]`.
    RunningMean,
    /// `[C]`.
    RunningVar,
    /// One `u32`: batches seen, for [`Update::Cumulative`](crate::Update::Cumulative).
    Batches,
    /// `[4, C]`: mean, its rounding remainder, population variance, count of values.
    Moments,
    /// Residual tensor, added before the activation.
    Z,
    /// Gradient of the residual.
    Dz,
    /// One bit per value, 32 in a `u32`, for the activation's slope. What the last word holds past
    /// the last value stays as it is.
    Mask,
    /// `[P, 4, C]`: the moments of P parts.
    Parts,
    /// `[2, C]`: `Σdy` and `Σdy·(x−μ)`.
    Sums,
    /// `[outer, inner]`: the weight of every position in the batch's statistics, f32 ≥ 0.
    Weights,
    /// Working memory, garbage before and after.
    Scratch,
}

impl Slot {
    /// All slots, in binding order.
    pub const ALL: [Self; 20] = [
        Self::X,
        Self::Y,
        Self::Dy,
        Self::Dx,
        Self::Gamma,
        Self::Beta,
        Self::Dgamma,
        Self::Dbeta,
        Self::Saved,
        Self::RunningMean,
        Self::RunningVar,
        Self::Batches,
        Self::Moments,
        Self::Z,
        Self::Dz,
        Self::Mask,
        Self::Parts,
        Self::Sums,
        Self::Weights,
        Self::Scratch,
    ];

    /// The slot's name, the same in Rust, WGSL, labels and errors.
    pub fn name(&self) -> &'static str {
        match self {
            Self::X => "x",
            Self::Y => "y",
            Self::Dy => "dy",
            Self::Dx => "dx",
            Self::Gamma => "gamma",
            Self::Beta => "beta",
            Self::Dgamma => "dgamma",
            Self::Dbeta => "dbeta",
            Self::Saved => "saved",
            Self::RunningMean => "running_mean",
            Self::RunningVar => "running_var",
            Self::Batches => "batches",
            Self::Moments => "moments",
            Self::Z => "z",
            Self::Dz => "dz",
            Self::Mask => "mask",
            Self::Parts => "parts",
            Self::Sums => "sums",
            Self::Weights => "weights",
            Self::Scratch => "scratch",
        }
    }

    /// Whether the slot is one or several values of each channel.
    pub(crate) fn is_of_channels(&self) -> bool {
        matches!(
            self,
            Self::Gamma
                | Self::Beta
                | Self::Dgamma
                | Self::Dbeta
                | Self::Saved
                | Self::RunningMean
                | Self::RunningVar
                | Self::Moments
                | Self::Sums
        )
    }

    /// Whether the slot is a whole tensor, shaped as `x`.
    pub fn is_tensor(&self) -> bool {
        matches!(self, Self::X | Self::Y | Self::Dy | Self::Dx | Self::Z | Self::Dz)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of slots.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Slots(u32);

impl Slots {
    /// The set of the given slots.
    pub fn of(slots: &[Slot]) -> Self {
        Self(slots.iter().fold(0, |set, &slot| set | 1 << slot as u8))
    }

    /// Whether `slot` is in the set.
    pub fn contains(&self, slot: Slot) -> bool {
        self.0 & 1 << slot as u8 != 0
    }

    /// How many slots are in the set.
    pub(super) fn count(&self) -> u32 {
        self.0.count_ones()
    }

    /// The slots of the set, in binding order.
    pub fn iter(&self) -> impl Iterator<Item = Slot> + use<> {
        let set = *self;
        Slot::ALL.into_iter().filter(move |&slot| set.contains(slot))
    }

    pub(super) fn with(self, condition: bool, slot: Slot) -> Self {
        if condition { Self(self.0 | 1 << slot as u8) } else { self }
    }

    pub(super) fn without(self, slot: Slot) -> Self {
        Self(self.0 & !(1 << slot as u8))
    }

    pub(super) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|slot| slot.name())).finish()
    }
}
