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

#[cfg(feature = "reference")]
impl ChannelAxis {
    /// The shape of one value for each position of `shape`, which has the axis: `[outer, inner]`
    /// elements, row-major.
    pub(crate) fn positions(&self, shape: &[usize]) -> Vec<usize> {
        let rank = shape.len();
        let channels = match *self {
            Self::First => 1..2,
            Self::Last => rank - 1..rank,
            Self::At(axis) if axis < 0 => {
                rank - axis.unsigned_abs()..rank - axis.unsigned_abs() + 1
            }
            Self::At(axis) => axis.unsigned_abs()..axis.unsigned_abs() + 1,
            Self::PerActivation => 1..rank,
        };
        [&shape[..channels.start], &shape[channels.end..]].concat()
    }
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

    /// Cuts the tensor into pieces that lie together and have at most `most` elements (≥ 64): of
    /// whole samples, else of whole channels of a sample, else of one channel of a sample. A piece
    /// begins at a multiple of four elements if the tensor's rows have one.
    ///
    /// Every channel is in as many pieces, which are numbered by `part`.
    pub(crate) fn windows(&self, most: u64) -> Vec<Window> {
        let Self { outer, channels, inner } = *self;
        let row = channels * inner;
        let window = |first, part, first_channel, outer, channels, inner| Window {
            first,
            part,
            first_channel,
            geometry: Self { outer, channels, inner },
        };
        if self.len() <= most {
            return vec![window(0, 0, 0, outer, channels, inner)];
        }
        let steps = |end: u64, step: u64| {
            (0..end.div_ceil(step)).map(move |i| (i, i * step, step.min(end - i * step)))
        };
        if row <= most {
            let rows = most / row;
            let rows = if rows >= 4 { rows - rows % 4 } else { rows };
            return steps(outer, rows)
                .map(|(part, o, rows)| window(o * row, part, 0, rows, channels, inner))
                .collect();
        }
        let samples = 0..outer;
        if inner <= most {
            return samples
                .flat_map(|o| {
                    steps(channels, most / inner)
                        .map(move |(_, c, wide)| window(o * row + c * inner, o, c, 1, wide, inner))
                })
                .collect();
        }
        let piece = most - most % 64;
        let pieces = inner.div_ceil(piece);
        samples
            .flat_map(|o| (0..channels).map(move |c| (o, c)))
            .flat_map(|(o, c)| {
                steps(inner, piece).map(move |(p, i, long)| {
                    window(o * row + c * inner + i, o * pieces + p, c, 1, 1, long)
                })
            })
            .collect()
    }

    /// The same memory with a channel for each of `groups` groups of channels of each position of
    /// `outer`.
    pub(crate) fn groups(&self, groups: u64) -> Self {
        let inner = self.channels / groups * self.inner;
        // No channels part into any number of groups, which are none.
        Self { outer: 1, channels: self.outer * groups.min(self.channels), inner }
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

/// A piece of a tensor that lies together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Window {
    /// Its first element.
    pub first: u64,
    /// Which of its channels' pieces it is.
    pub part: u64,
    /// Its first channel.
    pub first_channel: u64,
    /// Of the piece.
    pub geometry: Geometry,
}

impl Window {
    /// Its first position among those of the `whole` tensor, numbered over outer and inner.
    pub(crate) fn position(&self, whole: &Geometry) -> u64 {
        let sample = whole.channels * whole.inner;
        self.first / sample * whole.inner + self.first % whole.inner
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

    #[cfg(feature = "reference")]
    #[test]
    fn positions_are_all_but_the_channels() {
        let shape = [2, 3, 4, 5];
        for (axis, expected) in [
            (ChannelAxis::First, &[2, 4, 5][..]),
            (ChannelAxis::Last, &[2, 3, 4]),
            (ChannelAxis::At(0), &[3, 4, 5]),
            (ChannelAxis::At(-2), &[2, 3, 5]),
            (ChannelAxis::PerActivation, &[2]),
        ] {
            assert_eq!(axis.positions(&shape), expected);
            let g = Geometry::new(&shape, axis).unwrap();
            assert_eq!(expected.iter().product::<usize>() as u64, g.values_per_channel());
        }
    }

    #[test]
    fn windows_cover_every_element_once() {
        for shape in [[7, 3, 10], [1, 5, 64], [3, 1, 1000], [2, 300, 1], [5, 7, 3], [2, 3, 129]] {
            let g = Geometry::new(&shape, ChannelAxis::First).unwrap();
            for most in [64, 65, 100, 128, 1000, 10_000] {
                let windows = g.windows(most);
                let mut next = 0;
                let mut parts = vec![Vec::new(); g.channels as usize];
                for w in &windows {
                    assert_eq!(w.first, next, "{shape:?} {most}");
                    next += w.geometry.len();
                    assert!(w.geometry.len() <= most);
                    let channels = w.first_channel..w.first_channel + w.geometry.channels;
                    channels.for_each(|c| parts[c as usize].push(w.part));
                    assert!(!g.inner.is_multiple_of(4) || w.first.is_multiple_of(4));
                }
                assert_eq!(next, g.len());
                let numbers: Vec<u64> = (0..parts[0].len() as u64).collect();
                assert!(parts.iter().all(|parts| *parts == numbers), "{shape:?} {most}");
            }
        }
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
