//! Statistics as plain data that can be merged: of batches, shards, machines, or tensors larger than
//! one binding. All arithmetic is f64.

use std::fmt;

use crate::config::RunningVariance;

/// How many values per channel there were, and each channel's mean and population variance.
///
/// Merging the moments of several batches, however unequal, gives the moments of all their values
/// together. That is how running statistics are re-estimated exactly, after training (precise batch
/// norm; Wu and Johnson, 2021) or for data of another domain (AdaBN; Li et al., 2016). The other
/// choice, PyTorch's average of the batches' statistics with equal weights, is
/// [`Update::Cumulative`](crate::Update::Cumulative): it misses how far the batches' means lie
/// apart.
///
/// The spread is kept as a variance, not as a sum of squares: it is what the kernels write, and it
/// does not grow with the count. To exchange moments between machines, send
/// [`count`](Self::count), [`mean`](Self::mean) and the population [`variance`](Self::variance),
/// and put them together by [`new`](Self::new).
///
/// ```
/// use wgpu_batchnorm::{Moments, RunningVariance};
/// // One channel: the values 1, 3 and the values 5, 7, 9.
/// let mut all = Moments::new(2.0, vec![2.0], vec![1.0])?;
/// all.merge(&Moments::new(3.0, vec![7.0], vec![8.0 / 3.0])?)?;
/// assert_eq!((all.count(), all.mean()), (5.0, &[5.0][..]));
/// assert!((all.variance(RunningVariance::Unbiased)[0] - 10.0).abs() < 1e-14);
/// # Ok::<(), wgpu_batchnorm::MomentsError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    count: f64,
    mean: Vec<f64>,
    variance: Vec<f64>,
}

impl Moments {
    /// The moments of no value: merging them changes nothing.
    pub fn empty(channels: usize) -> Self {
        Self { count: 0.0, mean: vec![0.0; channels], variance: vec![0.0; channels] }
    }

    /// `count` values per channel with the given mean and population variance, `[C]` each. NaN and
    /// infinity are taken as they are.
    ///
    /// # Errors
    /// [`MomentsError::Channels`] when the lengths differ, [`MomentsError::Count`] for a count that
    /// is negative or not finite, [`MomentsError::Variance`] for a negative variance.
    pub fn new(count: f64, mean: Vec<f64>, variance: Vec<f64>) -> Result<Self, MomentsError> {
        check_channels(variance.len(), mean.len())?;
        check_count(count)?;
        match variance.iter().position(|v| *v < 0.0) {
            Some(channel) => Err(MomentsError::Variance { channel, value: variance[channel] }),
            None => Ok(Self { count, mean, variance }),
        }
    }

    /// What [`Statistics`](crate::Statistics) has written into its slot `moments`, `[4, C]`: mean,
    /// its rounding remainder, population variance, count. The slot's count is an f32, which is
    /// exact up to 2²⁴; [`with_count`](Self::with_count) puts an exact one in its place.
    ///
    /// # Errors
    /// [`MomentsError::Slot`] for a length that is no multiple of 4, [`MomentsError::Counts`] when
    /// channels have different counts, and as [`new`](Self::new). Sums of weights may differ by their
    /// rounding, to which 2⁻¹⁶ of the first channel's is allowed; that one is taken.
    pub fn from_slot(slot: &[f32]) -> Result<Self, MomentsError> {
        if !slot.len().is_multiple_of(4) {
            return Err(MomentsError::Slot { length: slot.len() });
        }
        let channels = slot.len() / 4;
        let plane = |i: usize| &slot[i * channels..(i + 1) * channels];
        let (mean, rest, counts) = (plane(0), plane(1), plane(3));
        let count = counts.first().copied().unwrap_or_default();
        let rounding = count.abs() / 65_536.0;
        let is_near =
            |other: &f32| other.to_bits() == count.to_bits() || (other - count).abs() <= rounding;
        if let Some(channel) = counts.iter().position(|other| !is_near(other)) {
            return Err(MomentsError::Counts { channel, found: counts[channel], expected: count });
        }
        // An infinite mean has no remainder.
        let whole = |(&mean, &rest): (&f32, &f32)| {
            f64::from(mean) + if rest.is_finite() { f64::from(rest) } else { 0.0 }
        };
        let mean = mean.iter().zip(rest).map(whole).collect();
        Self::new(count.into(), mean, plane(2).iter().map(|&v| f64::from(v)).collect())
    }

    /// The same mean and variance, of `count` values.
    ///
    /// # Errors
    /// [`MomentsError::Count`] for a count that is negative or not finite.
    pub fn with_count(self, count: f64) -> Result<Self, MomentsError> {
        check_count(count)?;
        Ok(Self { count, ..self })
    }

    /// Takes the values of `other` in, by Chan, Golub and LeVeque's formula (1979). The count is
    /// exact up to 2⁵³; mean and variance are those of all values together, but for a few roundings
    /// of f64. What is empty changes nothing.
    ///
    /// # Errors
    /// [`MomentsError::Channels`] for another number of channels, [`MomentsError::Count`] when the
    /// sum of the counts is not finite; nothing has changed then.
    pub fn merge(&mut self, other: &Self) -> Result<(), MomentsError> {
        check_channels(other.channels(), self.channels())?;
        let (a, b) = (self.count, other.count);
        let count = a + b;
        check_count(count)?;
        if b == 0.0 {
            return Ok(());
        }
        if a == 0.0 {
            self.clone_from(other);
            return Ok(());
        }
        let (old, new) = (a / count, b / count);
        for (c, (mean, variance)) in self.mean.iter_mut().zip(&mut self.variance).enumerate() {
            let delta = other.mean[c] - *mean;
            // An infinite mean stays infinite: ∞ − ∞ would make it NaN.
            *mean = match delta.is_finite() {
                true => *mean + delta * new,
                false => *mean * old + other.mean[c] * new,
            };
            // Three terms ≥ 0: nothing cancels.
            *variance = *variance * old + other.variance[c] * new + (delta * old) * (delta * new);
        }
        self.count = count;
        Ok(())
    }

    /// Values per channel.
    pub fn count(&self) -> f64 {
        self.count
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.mean.len()
    }

    /// Mean, `[C]`; 0 of no value.
    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// Variance by the convention, `[C]`; 0 of one value and of none.
    pub fn variance(&self, convention: RunningVariance) -> Vec<f64> {
        let factor = convention.factor(self.count);
        self.variance.iter().map(|variance| variance * factor).collect()
    }

    /// The running statistics `(mean, variance)` that these moments are, `[C]` each, rounded to
    /// f32.
    ///
    /// # Errors
    /// [`MomentsError::Empty`] for the moments of no value, [`MomentsError::NotFinite`] for a
    /// channel with a mean or variance that is not finite in f32.
    pub fn running(
        &self,
        convention: RunningVariance,
    ) -> Result<(Vec<f32>, Vec<f32>), MomentsError> {
        if self.count == 0.0 {
            return Err(MomentsError::Empty);
        }
        let narrow = |values: &[f64]| values.iter().map(|&v| v as f32).collect::<Vec<f32>>();
        let (mean, variance) = (narrow(&self.mean), narrow(&self.variance(convention)));
        for (channel, (&mean, &variance)) in mean.iter().zip(&variance).enumerate() {
            if !(mean.is_finite() && variance.is_finite()) {
                return Err(MomentsError::NotFinite { channel, mean, variance });
            }
        }
        Ok((mean, variance))
    }
}

fn check_channels(found: usize, expected: usize) -> Result<(), MomentsError> {
    if found == expected { Ok(()) } else { Err(MomentsError::Channels { found, expected }) }
}

fn check_count(count: f64) -> Result<(), MomentsError> {
    if count.is_finite() && count >= 0.0 { Ok(()) } else { Err(MomentsError::Count { count }) }
}

/// Why moments cannot be made, merged or used.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum MomentsError {
    /// The slot `moments` is `[4, C]`.
    Slot {
        /// The length given.
        length: usize,
    },
    /// Another number of channels.
    Channels {
        /// Channels given.
        found: usize,
        /// Channels there are.
        expected: usize,
    },
    /// A negative variance.
    Variance {
        /// Its channel.
        channel: usize,
        /// Its value.
        value: f64,
    },
    /// A count that is negative or not finite.
    Count {
        /// The count.
        count: f64,
    },
    /// A slot whose channels have different counts.
    Counts {
        /// A channel.
        channel: usize,
        /// Its count.
        found: f32,
        /// The first channel's.
        expected: f32,
    },
    /// The moments of no value are no running statistics.
    Empty,
    /// A channel that is not finite in f32 cannot be normalized with.
    NotFinite {
        /// The channel.
        channel: usize,
        /// Its mean.
        mean: f32,
        /// Its variance.
        variance: f32,
    },
}

impl fmt::Display for MomentsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slot { length } => {
                write!(f, "moments has {length} values, which is no multiple of 4")
            }
            Self::Channels { found, expected } => {
                write!(f, "moments of {found} channels do not fit {expected} channels")
            }
            Self::Variance { channel, value } => {
                write!(f, "the variance of channel {channel} is {value}; it must be >= 0")
            }
            Self::Count { count } => write!(f, "the count {count} must be finite and >= 0"),
            Self::Counts { channel, found, expected } => {
                write!(f, "channel {channel} counts {found} values, channel 0 counts {expected}")
            }
            Self::Empty => f.write_str("the moments of no value are no running statistics"),
            Self::NotFinite { channel, mean, variance } => write!(
                f,
                "channel {channel} has mean {mean} and variance {variance}; both must be finite"
            ),
        }
    }
}

impl std::error::Error for MomentsError {}
