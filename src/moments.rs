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
/// let mut all = Moments::new(2, vec![2.0], vec![1.0])?;
/// all.merge(&Moments::new(3, vec![7.0], vec![8.0 / 3.0])?)?;
/// assert_eq!((all.count(), all.mean()), (5, &[5.0][..]));
/// assert!((all.variance(RunningVariance::Unbiased)[0] - 10.0).abs() < 1e-14);
/// # Ok::<(), wgpu_batchnorm::MomentsError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    count: u64,
    mean: Vec<f64>,
    variance: Vec<f64>,
}

impl Moments {
    /// The moments of no value: merging them changes nothing.
    pub fn empty(channels: usize) -> Self {
        Self { count: 0, mean: vec![0.0; channels], variance: vec![0.0; channels] }
    }

    /// `count` values per channel with the given mean and population variance, `[C]` each. NaN and
    /// infinity are taken as they are.
    ///
    /// # Errors
    /// [`MomentsError::Channels`] when the lengths differ, [`MomentsError::Variance`] for a
    /// negative variance.
    pub fn new(count: u64, mean: Vec<f64>, variance: Vec<f64>) -> Result<Self, MomentsError> {
        check_channels(variance.len(), mean.len())?;
        match variance.iter().position(|v| *v < 0.0) {
            Some(channel) => Err(MomentsError::Variance { channel, value: variance[channel] }),
            None => Ok(Self { count, mean, variance }),
        }
    }

    /// What [`Statistics`](crate::Statistics) has written into its slot `moments`, `[3, C]`: mean,
    /// its rounding remainder, population variance. `count` is the geometry's
    /// [`values_per_channel`](crate::Geometry::values_per_channel).
    ///
    /// # Errors
    /// [`MomentsError::Slot`] for a length that is no multiple of 3, and as [`new`](Self::new).
    pub fn from_slot(count: u64, slot: &[f32]) -> Result<Self, MomentsError> {
        if !slot.len().is_multiple_of(3) {
            return Err(MomentsError::Slot { length: slot.len() });
        }
        let channels = slot.len() / 3;
        let (mean, rest) = (&slot[..channels], &slot[channels..2 * channels]);
        // An infinite mean has no remainder.
        let whole = |(&mean, &rest): (&f32, &f32)| {
            f64::from(mean) + if rest.is_finite() { f64::from(rest) } else { 0.0 }
        };
        let mean = mean.iter().zip(rest).map(whole).collect();
        Self::new(count, mean, slot[2 * channels..].iter().map(|&v| f64::from(v)).collect())
    }

    /// Takes the values of `other` in, by Chan, Golub and LeVeque's formula (1979). The count is
    /// exact; mean and variance are those of all values together, but for a few roundings of f64.
    /// What is empty changes nothing.
    ///
    /// # Errors
    /// [`MomentsError::Channels`] for another number of channels, [`MomentsError::Count`] when the
    /// count does not fit 64 bits; nothing has changed then.
    pub fn merge(&mut self, other: &Self) -> Result<(), MomentsError> {
        check_channels(other.channels(), self.channels())?;
        let (a, b) = (self.count, other.count);
        let count = a.checked_add(b).ok_or(MomentsError::Count { a, b })?;
        if b == 0 {
            return Ok(());
        }
        let (old, new) = (a as f64 / count as f64, b as f64 / count as f64);
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
    pub fn count(&self) -> u64 {
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
        if self.count == 0 {
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

/// Why moments cannot be made, merged or used.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum MomentsError {
    /// The slot `moments` is `[3, C]`.
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
    /// The sum of two counts does not fit 64 bits.
    Count {
        /// One count.
        a: u64,
        /// The other.
        b: u64,
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
                write!(f, "moments has {length} values, which is no multiple of 3")
            }
            Self::Channels { found, expected } => {
                write!(f, "moments of {found} channels do not fit {expected} channels")
            }
            Self::Variance { channel, value } => {
                write!(f, "the variance of channel {channel} is {value}; it must be >= 0")
            }
            Self::Count { a, b } => write!(f, "{a} and {b} values are more than 64 bits can count"),
            Self::Empty => f.write_str("the moments of no value are no running statistics"),
            Self::NotFinite { channel, mean, variance } => write!(
                f,
                "channel {channel} has mean {mean} and variance {variance}; both must be finite"
            ),
        }
    }
}

impl std::error::Error for MomentsError {}
