//! Choices made by the device: a pure function of capabilities, geometry and element, as a plain
//! struct that the caller can change and hand to [`Plan::with_tuning`](crate::Plan::with_tuning).
//!
//! Results depend on these numbers in their last bits (they decide the order of summation), and on
//! nothing else: the same tuning gives the same bits.

use std::fmt;
use std::str::FromStr;

use crate::caps::{Caps, Class};
use crate::config::Element;
use crate::geometry::Geometry;

/// No invocation loops more often than this. lavapipe silently ends every loop after 65,535
/// iterations, summed over all loops of an invocation.
pub const MAX_ITERATIONS: u32 = 16_384;

/// How a plan cuts its work. "Load" is one vector load (4 elements, or 1 where 4 do not fit).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tuning {
    /// Invocations per workgroup; a power of two from 4 to 65,536.
    pub workgroup_size: u32,
    /// How many workgroups a pass that leaves partials is split into when one per channel is too few.
    pub workgroup_count: u32,
    /// The same where it walks columns, each of which has partials of its own.
    pub column_workgroup_count: u32,
    /// The same of a pass that leaves none.
    pub apply_workgroup_count: u32,
    /// A channel is not split into pieces of fewer loads per invocation than this.
    pub min_loads: u32,
    /// The same for columns, where every lane writes partials of its own.
    pub min_column_loads: u32,
    /// The same of a pass that leaves no partials.
    pub min_apply_loads: u32,
    /// Partials that a lane merges, where there are enough lanes.
    pub merge_loads: u32,
    /// One dispatch for everything when a channel, walked as rows, takes at most this many loads per
    /// invocation and there are `fused_workgroups` of work.
    pub fused_loads: u32,
    /// The same for columns, which jump a whole row from load to load: a long one leaves the cache
    /// before its second pass.
    pub fused_column_loads: u32,
    /// Channels-last, a workgroup goes through neighbouring columns in blocks of this many bytes, and
    /// touches each cache line of a block first; 0: it has one tile of columns, and none is touched.
    pub column_block: u32,
    /// Columns: a workgroup that has several rows side by side joins what they leave, so that there is
    /// less to merge. Not where columns are gone through in blocks.
    pub join_rows: bool,
    /// One dispatch that walks a channel as rows keeps it in registers, instead of reading it twice, where
    /// these are at most so many values per invocation: of x forward, of x and dy together backward, in
    /// strides of four loads, of which there are never more than 32.
    pub held_values: u32,
    /// See `fused_loads`.
    pub fused_workgroups: u32,
    /// One dispatch with fewer workgroups than that, when a channel takes at most this many loads per
    /// invocation: a second dispatch would cost more than it saves.
    pub tiny_loads: u32,
    /// Shortest `inner` that is walked as rows (one channel per workgroup); shorter ones are
    /// walked as columns (lanes over channels), unless the tensor is tiny.
    pub min_row: u32,
    /// It is where there are at most `workgroup_count` channels, each takes at most `tiny_loads`, and all
    /// together as many as this; a quarter of both where rows that no vector of four fits could be
    /// columns, which it fits.
    pub short_row_loads: u32,
    /// Where a channel has so many rows, which lie far apart, it is twice as long.
    pub many_rows: u32,
    /// Rows of f32 that no vector of four fits are walked as columns, which it fits, from so many on (of
    /// halves from two on, which would be written one by one).
    pub min_odd_rows: u32,
    /// Tensors are loaded and stored by words of 64 bits, where the device has them and four values fit,
    /// and by two neighbouring vectors at a time where eight fit.
    pub wide_loads: bool,
    /// A pass that reads again what an earlier one has read begins with its end, which caches may still hold.
    pub from_end: bool,
    /// f16 is widened by the built-in conversion…
    pub built_in_widen: bool,
    /// …and rounded by it: the same bits with less arithmetic, on devices where they are exact.
    pub built_in_narrow: bool,
    /// Where rows hold whole words of the mask, an invocation has all values of a word: it needs no
    /// atomics, but does not load what lies next to its neighbours'.
    pub mask_words: bool,
}

impl Tuning {
    /// The choice for a device and a shape.
    pub fn choose(caps: &Caps, _geometry: &Geometry, _element: Element) -> Self {
        match caps.class {
            Class::Software => Self {
                workgroup_size: 8,
                workgroup_count: 256,
                column_workgroup_count: 256,
                apply_workgroup_count: 256,
                min_loads: 64,
                min_column_loads: 128,
                min_apply_loads: 128,
                merge_loads: 8,
                fused_loads: 8_192,
                // lavapipe 22.3, forward and backward in one dispatch against three, ms: 8x2048x7x7
                // channels-last (392 loads) 0.71 1.13, 1.56 2.01; 700x800 0.54 0.85, 0.89 1.2; 1024x512 from
                // 0.50 0.80 to 1.26 1.64 by the process, as its rows fall on few sets of the cache, 0.77
                // 1.02; 8x1024x14x14 channels-last (1,568 loads) 2.0 4.2, 2.5 3.5; 8x512x28x28 channels-last
                // (6,272 loads) 6.8 18.2, 4.4 6.2. More workgroups (1,024 or 4,096) and shorter chunks for
                // the passes without partials (8 to 64 rows) brought nothing; 256, 384 and 512 for
                // `min_column_loads`, and 64, 256 and 512 KiB for `column_block`, nothing above a busy
                // machine's noise.
                fused_column_loads: 768,
                // A load at a stride waits for its cache line, and so does a store. lavapipe 22.3, of the
                // memcpy kernel's rate (forward, inference, backward): 8x256x56x56 channels-last 0.20 0.21
                // 0.22 → 0.6 0.75 0.7; 65536x64 0.35 0.35 0.34 → 0.63 0.73 0.73. Inference by blocks of 16,
                // 32, 64, 128, 256 KiB (C = 256): 7.4, 6.4, 5.9, 5.6, 5.8 ms. Without the touches 33 ms
                // where that had 12; without those of what is written, 32; of every second line only, half
                // as fast. Where a tile is the whole row, memory is gone through in order anyway, and the
                // touches cost a third: 8x64x112x112 8.3 5.0 12.8 → 6.2 3.6 8.9 ms.
                column_block: 1 << 17,
                join_rows: false,
                held_values: 0,
                fused_workgroups: 4,
                // One workgroup alone, one dispatch against three, on two cores, forward and backward, ms:
                // 544x32 0.05 0.07, 0.10 0.12; 1000x32 0.08 0.11, 0.14 0.18; 8x3x56x56 (784 loads) 0.11 0.14,
                // 0.21 0.23; 3072x32 0.21 0.30, 0.31 0.34; 4000x3 0.11 0.17, 0.13 0.15; 4096x32 0.29 0.40, 0.44
                // 0.56; 2500x64 0.28 0.39, 0.36 0.34; 8x3x112x112 (3,136 loads) 0.37 0.52, 0.48 0.58;
                // 8x2x128x128 (4,096) 0.31 0.35, 0.48 0.46. From 6,000x32 on, three are as good or better; with
                // more cores presumably from fewer, which is not measured.
                tiny_loads: 4_096,
                // As columns against as rows, forward, inference, backward, ms: inner 32 (2048x64x4x8) 10.4
                // 4.2 11.3, 16.8 11.5 26.2; inner 48 12.1 5.8 14.3, 13.3 9.1 23.0; inner 56 13.1 5.8 14.9,
                // 5.9 5.2 14.1; inner 64 12.5 6.5 14.9, 6.9 4.5 17.3.
                min_row: 49,
                // As rows in one dispatch against as columns, forward, inference, backward, ms: 500x3x6x6 (1,688
                // loads) 0.15 0.11 0.17, 0.22 0.09 0.23; 2000x4x4x8 (8,000) 0.39 0.24 0.48, 0.41 0.22 0.51;
                // 1000x16x6x6 (18,000) 0.70 0.44 1.06, 0.74 0.40 0.98; 2000x64x4x8 (128,000) 18 13 31, 6.2 3.3
                // 8.0. Odd rows, 60x64x5x5 (12,000) 0.39 0.29 0.51, 0.31 0.17 0.46; 200x30x5x5 (18,750) 0.43
                // 0.27 0.62, 0.35 0.18 0.40.
                short_row_loads: 8_192,
                // As columns against as rows, forward, inference, backward, ms: 4096x16x8x8 6.1 3.1 8.1, 9.9
                // 8.5 22.0; 1024x64x8x8 8.1 4.7 12.3, 7.4 5.2 17.3; 128x512x8x8 7.6 4.2 10.6, 5.7 3.3 8.6;
                // inner 144 (455x64x12x12) 11.6 6.6 15.1, 5.9 4.3 9.6.
                many_rows: 512,
                // As columns against as rows, forward, inference, backward, ms: 8x2048x7x7 2.07 0.81 2.28,
                // 3.45 1.50 4.33; 4x2048x7x7 1.25 0.46 1.36, 2.17 0.83 2.51; 8x64x55x55 3.13 1.37 4.13, 4.13
                // 2.18 6.06; 2x64x55x55 1.88 0.62 1.78, 1.17 0.61 1.56. Halves: 8x64x55x55 2.65 1.14 3.24,
                // 6.80 5.29 8.94; 2x64x55x55 1.82 0.60 1.79, 1.76 1.29 2.25.
                min_odd_rows: 4,
                // lavapipe goes through the lanes and components of every load and store one by one, so that
                // few large ones are better. 22.3, 8x64x112x112, forward, inference, backward, ms: by 32
                // bits 7.5 4.3 10.4 (only loads by 64), stores by 64 too 7.2 3.8 9.9, and pairs of vectors
                // at once 6.0 3.4 8.1. To merge statistics by eight loads instead of four gains nothing.
                wide_loads: true,
                // lavapipe 22.3, forward and backward: nothing (8x64x112x112 channels last 5.6 5.6, 8.0 8.0 ms);
                // and rows that are not read again take longer (8x256x56x56 inference 3.9 → 4.4 ms).
                from_end: false,
                // lavapipe 22.3, f16, of the memcpy kernel's rate, geometric mean of four shapes, forward,
                // inference, backward: 0.43 0.50 0.51 → 0.46 0.55 0.57.
                built_in_widen: caps.exact_widen,
                // Slower (5.7 to 6.3 ms where its own take 5.1; lavapipe 22.3, inference of 12.8 MB).
                built_in_narrow: false,
                // lavapipe goes through the lanes of an atomic too. 22.3, add and ReLU, forward: 8x64x56x56
                // 6.97 → 5.56 ms, 8x64x112x112 26.5 → 20.4 ms.
                mask_words: true,
            },
            // Reasoned, not measured: for some hundred workgroups that run at once, memory that answers
            // after a microsecond, and a microsecond or two from one dispatch to the next.
            Class::Hardware => Self {
                workgroup_size: 1 << caps.max_workgroup_size.clamp(4, 256).ilog2(),
                workgroup_count: 1_024,
                // Every lane leaves partials of its columns: fewer workgroups than could run leave a
                // merge that is shorter.
                column_workgroup_count: 384,
                apply_workgroup_count: 4_096,
                min_loads: 8,
                // As few as that, since a workgroup joins its partials.
                min_column_loads: 8,
                // One round of loads in flight.
                min_apply_loads: 4,
                // So that four neighbouring channels' partials are loaded at once where they are 384.
                merge_loads: 8,
                // The second read is of what a workgroup has just read, of which caches hold most.
                fused_loads: 32,
                fused_column_loads: 16,
                column_block: 0,
                // 32x64x56x56 channels last: 384 partials of a channel to merge, and not 6,144.
                join_rows: true,
                // 16,384 values of a channel forward, 8,192 backward.
                held_values: 64,
                fused_workgroups: 64,
                tiny_loads: 8,
                min_row: 32,
                // A thousand channels.
                short_row_loads: 8_192,
                many_rows: u32::MAX,
                // Up to there, channels of 7x7 take one dispatch as rows.
                min_odd_rows: 128,
                wide_loads: false,
                // Caches of tens of MB, which a tensor of twice the size would go through for nothing.
                from_end: true,
                // Its own take some 30 integer operations for a value that is read and written, the built-in
                // ones one or two.
                built_in_widen: caps.exact_widen,
                built_in_narrow: caps.exact_narrow,
                mask_words: false,
            },
        }
    }

    /// [`choose`](Self::choose), with what was measured of the device in place of what is typical of its
    /// class. The same measurement gives the same tuning, and so the same bits; another measurement of
    /// the same device may give another one.
    pub fn refined(
        caps: &Caps,
        geometry: &Geometry,
        element: Element,
        measured: &Measured,
    ) -> Self {
        let tuning = Self::choose(caps, geometry, element);
        let Some(parallel) = measured.parallel() else { return tuning };
        let load_us = measured.load_us(tuning.workgroup_size);
        // One dispatch leaves idle what a second one, and a third to merge, would use. It takes
        // 2·loads·(1 − 1/parallel) load times longer, and saves two dispatches.
        let saved = measured.dispatch_us / (load_us * (1.0 - 1.0 / parallel));
        Self {
            tiny_loads: power_of_two(saved, 1, MAX_ITERATIONS / 2),
            fused_workgroups: power_of_two(parallel, 1, 1_024),
            ..tuning
        }
    }
}

/// The nearest, within bounds: a measurement that differs a little gives the same.
fn power_of_two(value: f64, least: u32, most: u32) -> u32 {
    let exponent = value.max(1.0).log2().round().min(31.0) as u32;
    (1u32 << exponent).clamp(least, most)
}

/// What `Gpu::measure` measures of a device: plain data. Written as one line of text, and read from it,
/// without loss.
///
/// ```
/// use wgpu_batchnorm::Measured;
/// let line = "dispatch 9.5 us, alone 6.25 GB/s, copies 65536:8 8388608:12.5 GB/s";
/// let measured: Measured = line.parse()?;
/// assert_eq!(measured.copies[1].gigabytes_per_second, 12.5);
/// assert_eq!(measured.to_string(), line);
/// # Ok::<(), wgpu_batchnorm::MeasuredError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Microseconds that one more dispatch takes which does nothing.
    pub dispatch_us: f64,
    /// Gigabytes per second, read and written, that one workgroup copies alone.
    pub alone: f64,
    /// The same of many workgroups, over sizes.
    pub copies: Vec<CopyRate>,
}

/// How fast a copy of some size is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CopyRate {
    /// Bytes read; as many are written.
    pub bytes: u64,
    /// Read and written.
    pub gigabytes_per_second: f64,
}

impl Measured {
    /// How many workgroups keep the device busy, at least 2; `None` where a number makes no sense.
    fn parallel(&self) -> Option<f64> {
        let rates = self.copies.iter().map(|copy| copy.gigabytes_per_second);
        let parallel = rates.fold(0.0, f64::max) / self.alone;
        let sensible = |v: f64| v.is_finite() && v > 0.0;
        let all = [self.dispatch_us, self.alone, parallel].into_iter().all(sensible);
        // On a busy machine it looks as if there were no second one. But none copies alone twice what many
        // copy: then the clock was too coarse, or something else ran.
        (all && parallel >= 0.5).then_some(parallel.max(2.0))
    }

    /// One load of a whole workgroup alone, with its store.
    fn load_us(&self, workgroup_size: u32) -> f64 {
        2.0 * 16.0 * f64::from(workgroup_size) / (self.alone * 1e3)
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dispatch {} us, alone {} GB/s, copies", self.dispatch_us, self.alone)?;
        for CopyRate { bytes, gigabytes_per_second } in &self.copies {
            write!(f, " {bytes}:{gigabytes_per_second}")?;
        }
        f.write_str(" GB/s")
    }
}

impl FromStr for Measured {
    type Err = MeasuredError;

    fn from_str(text: &str) -> Result<Self, MeasuredError> {
        let error = || MeasuredError { text: text.into() };
        let mut parts = text.trim().split(", ");
        let mut part = |begin: &str, end: &str| {
            let part = parts.next()?.strip_prefix(begin)?.strip_suffix(end)?;
            Some(part.trim().to_string())
        };
        let mut number = |begin, end| {
            part(begin, end).and_then(|part| part.parse::<f64>().ok()).ok_or_else(error)
        };
        let dispatch_us = number("dispatch ", " us")?;
        let alone = number("alone ", " GB/s")?;
        let copies = part("copies", " GB/s").ok_or_else(error)?;
        let copy = |copy: &str| {
            let (bytes, rate) = copy.split_once(':')?;
            let (bytes, gigabytes_per_second) = (bytes.parse().ok()?, rate.parse().ok()?);
            Some(CopyRate { bytes, gigabytes_per_second })
        };
        let copies: Option<Vec<CopyRate>> = copies.split_whitespace().map(copy).collect();
        match (copies, parts.next()) {
            (Some(copies), None) => Ok(Self { dispatch_us, alone, copies }),
            _ => Err(error()),
        }
    }
}

/// A text that is no [`Measured`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeasuredError {
    /// The text.
    pub text: String,
}

impl fmt::Display for MeasuredError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is no measurement; one is like \"dispatch 9.5 us, alone 6.25 GB/s, copies 65536:8 \
             8388608:12.5 GB/s\"",
            self.text
        )
    }
}

impl std::error::Error for MeasuredError {}
