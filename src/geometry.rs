//! How a tensor is seen by the kernels: `[outer, C, inner]`, and nothing else.
//!
//! This is the only module that multiplies sizes; every product is checked in 64 bits.

use std::fmt;

/// Which axis of a shape holds the channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChannelAxis {
    /// Axis 1, as in `[N, C, H, W]` (channels-first).
    First,
    /// The last axis, as in `[N, H, W, C]` and `[N, C]` (channels-last).
    Last,
    /// Any axis; a negative one counts from the end, as Keras' `axis=-1`.
    At(isize),
    /// Every position after the batch axis is a channel of its own (cuDNN's per-activation mode):
    /// `C` is the product of all dimensions but the first.
    PerActivation,
}

/// A tensor seen as `[outer, C, inner]`, row-major.
///
/// | memory order | outer | inner |
/// |---|---|---|
/// | `[N, C, H, W]` | N | H·W |
/// | `[N, H, W, C]` | N·H·W | 1 |
/// | `[N, C]` | N | 1 |
/// | per activation | N | 1 |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Geometry {
    outer: u64,
    channels: u64,
    inner: u64,
}

impl Geometry {
    /// Views `shape` (sizes in elements, row-major) with its channels at `axis`.
    ///
    /// Dimensions of size zero are allowed.
    ///
    /// # Errors
    /// [`GeometryError::Axis`] when the shape has no such axis, [`GeometryError::Overflow`] when
    /// its element count does not fit 64 bits.
    ///
    /// ```
    /// use wgpu_batchnorm::{ChannelAxis, Geometry};
    /// let g = Geometry::new(&[8, 64, 56, 56], ChannelAxis::First)?;
    /// assert_eq!((g.outer(), g.channels(), g.inner()), (8, 64, 56 * 56));
    /// # Ok::<(), wgpu_batchnorm::GeometryError>(())
    /// ```
    pub fn new(shape: &[usize], axis: ChannelAxis) -> Result<Self, GeometryError> {
        let rank = shape.len();
        let outside = |axis| GeometryError::Axis { axis, rank };
        let split = match axis {
            ChannelAxis::First if rank >= 2 => 1..2,
            ChannelAxis::First => return Err(outside(1)),
            ChannelAxis::Last if rank >= 1 => rank - 1..rank,
            ChannelAxis::Last => return Err(outside(-1)),
            ChannelAxis::PerActivation if rank >= 1 => 1..rank,
            ChannelAxis::PerActivation => return Err(outside(0)),
            ChannelAxis::At(at) => {
                let index = if at < 0 { at.checked_add_unsigned(rank) } else { Some(at) };
                match index {
                    Some(i) if i >= 0 && (i as usize) < rank => i as usize..i as usize + 1,
                    _ => return Err(outside(at)),
                }
            }
        };
        let overflow = || GeometryError::Overflow { shape: shape.to_vec() };
        let product = |dims: &[usize]| {
            dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64)).ok_or_else(overflow)
        };
        let geometry = Self {
            outer: product(&shape[..split.start])?,
            channels: product(&shape[split.clone()])?,
            inner: product(&shape[split.end..])?,
        };
        // Every later product of these three is bounded by this one.
        geometry
            .outer
            .max(1)
            .checked_mul(geometry.channels.max(1))
            .and_then(|n| n.checked_mul(geometry.inner.max(1)))
            .and_then(|n| n.checked_mul(16))
            .ok_or_else(overflow)?;
        Ok(geometry)
    }

    /// Product of the dimensions before the channel axis.
    pub fn outer(&self) -> u64 {
        self.outer
    }

    /// Number of channels, `C`.
    pub fn channels(&self) -> u64 {
        self.channels
    }

    /// Product of the dimensions after the channel axis.
    pub fn inner(&self) -> u64 {
        self.inner
    }

    /// `n = outer · inner`: how many values one channel's statistics are made of.
    pub fn values_per_channel(&self) -> u64 {
        self.outer * self.inner
    }

    /// Elements in the whole tensor.
    pub fn len(&self) -> u64 {
        self.outer * self.channels * self.inner
    }

    /// Whether the tensor holds no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same memory with a channel for each of `groups` groups of channels of each position of
    /// `outer`.
    pub(crate) fn groups(&self, groups: u64) -> Self {
        let inner = self.channels / groups * self.inner;
        Self { outer: 1, channels: self.outer * groups, inner }
    }

    /// The same memory with a channel for each row.
    pub(crate) fn rows(&self) -> Self {
        Self { outer: 1, channels: self.outer * self.channels, inner: self.inner }
    }

    /// The same memory with as few, as long rows as possible: a single channel is one row.
    pub(crate) fn coalesced(&self) -> Self {
        if self.channels == 1 {
            Self { outer: 1, channels: 1, inner: self.outer * self.inner }
        } else {
            *self
        }
    }
}

/// Why a shape cannot be viewed as `[outer, C, inner]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum GeometryError {
    /// The shape has no such axis.
    Axis {
        /// The axis asked for.
        axis: isize,
        /// How many axes the shape has.
        rank: usize,
    },
    /// The element count (with some room to count bytes) does not fit 64 bits.
    Overflow {
        /// The shape.
        shape: Vec<usize>,
    },
}

impl fmt::Display for GeometryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Axis { axis, rank } => {
                write!(f, "channel axis {axis} does not exist in a shape of rank {rank}")
            }
            Self::Overflow { shape } => {
                write!(f, "the size of shape {shape:?} does not fit 64 bits")
            }
        }
    }
}

impl std::error::Error for GeometryError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(shape: &[usize], axis: ChannelAxis) -> (u64, u64, u64) {
        let g = Geometry::new(shape, axis).unwrap();
        (g.outer, g.channels, g.inner)
    }

    #[test]
    fn every_axis_of_every_rank() {
        assert_eq!(view(&[2, 3, 4, 5], ChannelAxis::First), (2, 3, 20));
        assert_eq!(view(&[2, 3, 4, 5], ChannelAxis::Last), (24, 5, 1));
        assert_eq!(view(&[2, 3, 4, 5], ChannelAxis::At(2)), (6, 4, 5));
        assert_eq!(view(&[2, 3, 4, 5], ChannelAxis::At(-4)), (1, 2, 60));
        assert_eq!(view(&[2, 3, 4, 5], ChannelAxis::PerActivation), (2, 60, 1));
        assert_eq!(view(&[7], ChannelAxis::Last), (1, 7, 1));
        assert_eq!(view(&[0, 3, 4], ChannelAxis::First), (0, 3, 4));
    }

    #[test]
    fn refusals_name_the_numbers() {
        let axis = |axis, rank| Err(GeometryError::Axis { axis, rank });
        assert_eq!(Geometry::new(&[3], ChannelAxis::First), axis(1, 1));
        assert_eq!(Geometry::new(&[], ChannelAxis::Last), axis(-1, 0));
        assert_eq!(Geometry::new(&[2, 3], ChannelAxis::At(2)), axis(2, 2));
        assert_eq!(Geometry::new(&[2, 3], ChannelAxis::At(-3)), axis(-3, 2));
        assert_eq!(Geometry::new(&[2], ChannelAxis::At(isize::MIN)), axis(isize::MIN, 1));
        let huge = [usize::MAX, 2, 3];
        assert!(matches!(
            Geometry::new(&huge, ChannelAxis::Last),
            Err(GeometryError::Overflow { .. })
        ));
        let hidden_by_zero = [0, usize::MAX, usize::MAX];
        assert!(Geometry::new(&hidden_by_zero, ChannelAxis::Last).is_err());
    }
}
