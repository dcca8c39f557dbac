//! How a tensor is walked: reduce every channel, then write every value, with the second read as
//! close to the first as the caches need. What is summed with what, and in which order, depends on
//! the shape alone; only who does it depends on the threads.
//!
//! - Rows (values of a channel that lie together are many): a thread takes a group of channels that
//!   its cache holds, reduces and writes them. A few long channels are cut into pieces, on which
//!   all threads work.
//! - Columns (they are few, or the samples are many): rows of columns, side by side. Chunks of rows are
//!   reduced in parallel; then all is written in reverse, as the caches hold what was read last.

use std::ops::Range;

use rayon::prelude::*;

use super::sums::{Block, DEPTH, Runs, Sums, TILE};
use super::vector::{LANES, LINE};
use crate::geometry::Geometry;

/// Fewest values of which several threads take a share: waking one costs some 10 µs.
const SERIAL: usize = 1 << 15;
/// Values of a channel that lie together, from which on a channel is rows…
const MIN_ROW: usize = 16;
/// …unless they are fewer than four times as many, in as many samples as this (forward, inference, backward
/// as rows → as columns, ms: 1000x64x20 0.96 0.38 3.9 → 0.31 0.15 0.5; 1000x512x49 52 8.2 71 → 17 8.7 29;
/// 64x512x49 0.66 0.26 1.9 → 0.88 0.26 1.3, but 32x512x49 0.28 0.13 0.37 → 0.63 0.13 0.73)…
const SAMPLES: usize = 64;
/// …or fewer than sixteen times as many, and a channel has as many as this (300x64x100 0.81 0.24 2.8 → 0.63
/// 0.23 1.1; 128x256x196 7.3 2.1 9.2 → 4.3 1.9 7.3, but 100x128x100 0.35 0.14 0.56 → 0.45 0.14 0.62).
const MANY_VALUES: usize = 1 << 14;
/// Columns of constants in the first cache.
const MAX_WRITTEN: usize = 3072;
/// Values in a piece of a channel.
const PIECE: usize = 1 << 15;
/// Values in a share of a write at most: 256 KiB at a time took 0.45 to 0.85 of the time of 64 KiB
/// (8x256x56x56 channels-last, two threads of a busy machine).
const SHARE: usize = 1 << 16;
/// Values that a thread's own cache (of 512 KiB, most often) holds along with what it writes.
const RESIDENT: usize = 1 << 16;
/// Columns side by side, where fewer channels are several rows in one: a few vectors…
const MIN_WIDTH: usize = 8 * LANES;
/// …or many, where the last of them is not whole.
const MIN_ODD_WIDTH: usize = 64 * LANES;
/// Columns side by side that are written, where fewer are several rows in one: so many that vectors are
/// written in blocks and few are left over.
const WRITTEN: usize = 64 * LANES;
/// Values in a chunk of columns…
const CHUNK: usize = 1 << 17;
/// …and its rows at least, so that partial sums are few.
const MIN_CHUNK: usize = 128;

/// What is summed over each channel.
pub(super) trait Reduce: Sync {
    /// Tensors that are read.
    const TENSORS: usize;
    /// What a channel's values are taken relative to.
    fn shift(&self, channel: usize) -> f32;
    fn runs(&self, runs: Runs, shift: f32) -> Sums;
    fn columns(&self, block: Block, shifts: &[f32], sums: [&mut [f64]; 2]);
    /// A better shift, where the sums show that it was a bad one.
    fn better_shift(&self, shift: f32, sums: Sums) -> Option<f32>;
}

/// What is written, from each channel's four constants.
pub(super) trait Apply: Sync {
    /// A span of rows of `inner` values; the first row's constants are `table`'s first.
    fn rows(&self, span: Range<usize>, inner: usize, table: &[[f32; 4]]);
    /// A span of whole rows of `width` columns (the last one may be short).
    fn columns(&self, span: Range<usize>, width: usize, constants: [&[f32]; 4]);
}

/// What a channel's sums come to: what the operation keeps, and the constants to write with.
pub(super) type Finished<T> = (T, [f32; 4]);

/// A channel's sums, and what they are relative to.
#[derive(Clone, Copy, Default)]
pub(super) struct Reduced {
    pub(super) shift: f32,
    pub(super) sums: Sums,
}

/// A tensor that is not empty, as `[outer, channels, inner]`.
#[derive(Clone, Copy)]
pub(super) struct View {
    pub(super) outer: usize,
    pub(super) channels: usize,
    pub(super) inner: usize,
}

fn add(a: Sums, b: Sums) -> Sums {
    [a[0] + b[0], a[1] + b[1]]
}

/// Does what several threads share, on one of them: to enter their pool takes some 10 µs each time.
fn within_pool<T: Send>(parallel: bool, work: impl FnOnce() -> T + Send) -> T {
    if parallel { rayon::scope(|_| work()) } else { work() }
}

/// Runs `task(i)` for all `i` below `count`.
fn for_each(count: usize, parallel: bool, task: impl Fn(usize) + Sync) {
    if parallel && count > 1 {
        (0..count).into_par_iter().with_max_len(1).for_each(&task);
    } else {
        (0..count).for_each(task);
    }
}

fn map<T: Send>(count: usize, parallel: bool, task: impl Fn(usize) -> T + Sync) -> Vec<T> {
    if parallel && count > 1 {
        (0..count).into_par_iter().with_max_len(1).map(&task).collect()
    } else {
        (0..count).map(task).collect()
    }
}

impl View {
    pub(super) fn new(geometry: &Geometry) -> Self {
        let g = geometry.coalesced();
        let [outer, channels, inner] =
            [g.outer(), g.channels(), g.inner()].map(|size| size as usize);
        Self { outer, channels, inner }
    }

    fn len(&self) -> usize {
        self.outer * self.channels * self.inner
    }

    /// Whether it is reduced as columns. Short rows of many samples lie in as many pages, which the
    /// processor looks up again for every channel.
    fn is_columns(&self) -> bool {
        let short = self.inner < MIN_ROW
            || self.inner < 4 * MIN_ROW && self.outer >= SAMPLES
            || self.inner < 16 * MIN_ROW && self.values_per_channel() >= MANY_VALUES;
        self.channels > 1 && short
    }

    /// Whether it is written as columns, whose constants the first cache holds.
    fn is_written_as_columns(&self) -> bool {
        let unit = self.channels * self.inner;
        self.is_columns()
            && (self.inner < MIN_ROW || self.inner < 4 * MIN_ROW && unit <= MAX_WRITTEN)
    }

    fn is_parallel(&self) -> bool {
        self.len() >= SERIAL && rayon::current_num_threads() > 1
    }

    /// Values in a share of a write: enough shares for all threads.
    fn share(&self) -> usize {
        (self.len() / (4 * rayon::current_num_threads())).clamp(SHARE / 16, SHARE)
    }

    /// Where the i-th value of the first channel lies.
    pub(super) fn place(&self, i: usize) -> usize {
        i / self.inner * self.channels * self.inner + i % self.inner
    }

    pub(super) fn values_per_channel(&self) -> usize {
        self.outer * self.inner
    }

    /// Reduces every channel, and writes it with the constants that `finish` makes of its sums.
    pub(super) fn sweep<T: Copy + Default + Send>(
        &self,
        reduce: &impl Reduce,
        finish: &(impl Fn(usize, Reduced) -> Finished<T> + Sync),
        apply: Option<&impl Apply>,
    ) -> Vec<T> {
        if self.is_columns() {
            let columns = Columns::new(self);
            return within_pool(self.is_parallel(), || {
                let reduced = columns.reduce(reduce);
                let (kept, table): (Vec<_>, Vec<_>) = finish_all(&reduced, finish);
                if let Some(apply) = apply {
                    self.apply(&table, apply);
                }
                kept
            });
        }
        let threads = if self.is_parallel() { rayon::current_num_threads() } else { 1 };
        if threads > 1 && self.channels < 4 * threads && self.piece_count() > 1 {
            within_pool(true, || self.sweep_pieces(reduce, finish, apply))
        } else {
            self.sweep_channels(reduce, finish, apply, threads)
        }
    }

    /// Writes every value with given constants.
    pub(super) fn apply(&self, table: &[[f32; 4]], apply: &impl Apply) {
        if self.is_written_as_columns() {
            return Columns::new(self).apply(table, apply);
        }
        let (rows, inner) = (self.outer * self.channels, self.inner);
        // Several short rows, or parts of a long one.
        let size = self.share();
        let (rows_per_share, parts) = match inner <= size {
            true => (size / inner, 1),
            false => (1, inner.div_ceil(size)),
        };
        let count = rows.div_ceil(rows_per_share) * parts;
        for_each(count, self.is_parallel(), |i| {
            let i = count - 1 - i;
            let (share, part) = (i / parts, i % parts);
            if parts > 1 {
                let span = part * size..((part + 1) * size).min(inner);
                let channel = share % self.channels;
                let span = share * inner + span.start..share * inner + span.end;
                return apply.rows(span.clone(), span.len(), &table[channel..]);
            }
            let (mut row, end) = (share * rows_per_share, ((share + 1) * rows_per_share).min(rows));
            while row < end {
                let channel = row % self.channels;
                let count = (end - row).min(self.channels - channel);
                apply.rows(row * inner..(row + count) * inner, inner, &table[channel..]);
                row += count;
            }
        });
    }

    fn sweep_channels<T: Copy + Default + Send>(
        &self,
        reduce: &impl Reduce,
        finish: &(impl Fn(usize, Reduced) -> Finished<T> + Sync),
        apply: Option<&impl Apply>,
        threads: usize,
    ) -> Vec<T> {
        let Self { outer, channels, inner } = *self;
        let resident = RESIDENT / (self.values_per_channel() * tensors(reduce));
        let group = resident.min(channels / (4 * threads)).max(1);
        let task = |(i, kept): (usize, &mut [T])| {
            let first = i * group;
            let mut table = Vec::with_capacity(kept.len());
            for (channel, keep) in (first..).zip(kept.iter_mut()) {
                let (value, constants) = finish(channel, self.reduce_channel(channel, reduce));
                *keep = value;
                table.push(constants);
            }
            let Some(apply) = apply else { return };
            for o in (0..outer).rev() {
                let start = (o * channels + first) * inner;
                apply.rows(start..start + kept.len() * inner, inner, &table);
            }
        };
        let mut kept = vec![T::default(); channels];
        if threads > 1 {
            kept.par_chunks_mut(group).enumerate().with_max_len(1).for_each(task);
        } else {
            kept.chunks_mut(group).enumerate().for_each(task);
        }
        kept
    }

    fn reduce_channel(&self, channel: usize, reduce: &impl Reduce) -> Reduced {
        let sums = |shift| {
            let pieces = (0..self.piece_count()).map(|p| self.piece(channel, p));
            pieces.map(|runs| reduce.runs(runs, shift)).reduce(add).unwrap_or_default()
        };
        let shift = reduce.shift(channel);
        let first = Reduced { shift, sums: sums(shift) };
        match reduce.better_shift(shift, first.sums) {
            Some(shift) => Reduced { shift, sums: sums(shift) },
            None => first,
        }
    }

    fn sweep_pieces<T: Send>(
        &self,
        reduce: &impl Reduce,
        finish: &(impl Fn(usize, Reduced) -> Finished<T> + Sync),
        apply: Option<&impl Apply>,
    ) -> Vec<T> {
        let pieces = self.piece_count();
        let reduce_by = |shifts: Vec<f32>| -> Vec<Reduced> {
            let parts = map(self.channels * pieces, true, |i| {
                reduce.runs(self.piece(i / pieces, i % pieces), shifts[i / pieces])
            });
            let sums = parts.chunks(pieces).map(|parts| parts.iter().copied().reduce(add));
            sums.zip(shifts)
                .map(|(sums, shift)| Reduced { shift, sums: sums.unwrap_or_default() })
                .collect()
        };
        let mut reduced = reduce_by((0..self.channels).map(|c| reduce.shift(c)).collect());
        if let Some(shifts) = better_shifts(reduce, &reduced) {
            reduced = reduce_by(shifts);
        }
        let (kept, table): (Vec<_>, Vec<_>) = finish_all(&reduced, finish);
        if let Some(apply) = apply {
            for_each(self.channels * pieces, true, |i| {
                let i = self.channels * pieces - 1 - i;
                let runs = self.piece(i / pieces, i % pieces);
                for run in 0..runs.count {
                    let start = runs.start + run * runs.stride;
                    let span = start..start + runs.length;
                    apply.rows(span, runs.length, &table[i / pieces..]);
                }
            });
        }
        kept
    }

    /// Pieces of every channel: several whole rows each, or parts of one.
    fn piece_count(&self) -> usize {
        match self.inner < PIECE {
            true => self.outer.div_ceil(PIECE / self.inner),
            false => self.outer * self.inner.div_ceil(PIECE),
        }
    }

    fn piece(&self, channel: usize, piece: usize) -> Runs {
        let Self { outer, channels, inner } = *self;
        let row = |o: usize| (o * channels + channel) * inner;
        if inner < PIECE {
            let rows = PIECE / inner;
            let o = piece * rows;
            let count = rows.min(outer - o);
            return Runs { start: row(o), length: inner, stride: channels * inner, count };
        }
        let parts = inner.div_ceil(PIECE);
        let begin = piece % parts * PIECE;
        let length = PIECE.min(inner - begin);
        Runs { start: row(piece / parts) + begin, length, stride: 0, count: 1 }
    }
}

fn tensors<R: Reduce>(_: &R) -> usize {
    R::TENSORS
}

fn finish_all<T>(
    reduced: &[Reduced],
    finish: impl Fn(usize, Reduced) -> Finished<T>,
) -> (Vec<T>, Vec<[f32; 4]>) {
    reduced.iter().enumerate().map(|(channel, &reduced)| finish(channel, reduced)).unzip()
}

/// The shifts to reduce by once more, where one of them was bad.
fn better_shifts(reduce: &impl Reduce, reduced: &[Reduced]) -> Option<Vec<f32>> {
    let better = |r: &Reduced| reduce.better_shift(r.shift, r.sums);
    let any = reduced.iter().any(|r| better(r).is_some());
    any.then(|| reduced.iter().map(|r| better(r).unwrap_or(r.shift)).collect())
}

/// A tensor as rows of columns; the first `tail` columns have one row more.
struct Columns {
    view: View,
    width: usize,
    rows: usize,
    tail: usize,
}

impl Columns {
    fn new(view: &View) -> Self {
        let unit = view.channels * view.inner;
        let at_least = if unit.is_multiple_of(LANES) { MIN_WIDTH } else { MIN_ODD_WIDTH };
        let width = (at_least / unit).min(view.outer / DEPTH).max(1) * unit;
        Self { view: *view, width, rows: view.len() / width, tail: view.len() % width }
    }

    /// The channels' values for each of the first `count` columns, which may go past the width.
    fn by_column(&self, count: usize, of: impl Fn(usize) -> f32) -> Vec<f32> {
        let View { channels, inner, .. } = self.view;
        let unit = channels * inner;
        let mut values = Vec::with_capacity(count.max(unit));
        match inner {
            1 => values.extend((0..channels).map(of)),
            _ => values
                .extend((0..channels).flat_map(|channel| std::iter::repeat_n(of(channel), inner))),
        }
        while values.len() < count {
            let more = unit.min(count - values.len());
            values.extend_from_within(..more);
        }
        values
    }

    fn reduce(&self, reduce: &impl Reduce) -> Vec<Reduced> {
        let shifts = (0..self.view.channels).map(|channel| reduce.shift(channel)).collect();
        let first = self.reduce_by(reduce, shifts);
        match better_shifts(reduce, &first) {
            Some(shifts) => self.reduce_by(reduce, shifts),
            None => first,
        }
    }

    fn reduce_by(&self, reduce: &impl Reduce, of_channels: Vec<f32>) -> Vec<Reduced> {
        let Self { view, width, rows, tail } = *self;
        let shifts = self.by_column(width, |channel| of_channels[channel]);
        let chunk = (CHUNK / width).max(MIN_CHUNK).next_multiple_of(DEPTH);
        let (chunks, tiles) = (rows.div_ceil(chunk), width.div_ceil(TILE));
        let parts = map(chunks * tiles, view.is_parallel(), |i| {
            let (first, column) = (i / tiles * chunk, i % tiles * TILE);
            let (last, end) = ((first + chunk).min(rows), (column + TILE).min(width));
            let mut sums = vec![0.0; 2 * (end - column)];
            let (s, q) = sums.split_at_mut(end - column);
            let block = Block { start: first * width + column, width, rows: last - first };
            reduce.columns(block, &shifts[column..end], [s, q]);
            let more = tail.min(end).saturating_sub(column);
            if last == rows && more > 0 {
                let block = Block { start: rows * width + column, width, rows: 1 };
                let shifts = &shifts[column..column + more];
                reduce.columns(block, shifts, [&mut s[..more], &mut q[..more]]);
            }
            sums
        });
        let totals = match <[_; 1]>::try_from(parts) {
            Ok([only]) => only,
            Err(parts) => {
                let mut totals = vec![0.0; 2 * width];
                for (i, part) in parts.iter().enumerate() {
                    let column = i % tiles * TILE;
                    let sums = totals.chunks_mut(width).zip(part.chunks(part.len() / 2));
                    for (totals, sums) in sums {
                        for (total, sum) in totals[column..].iter_mut().zip(sums) {
                            *total += sum;
                        }
                    }
                }
                totals
            }
        };
        let of_unit = |shift: f32| Reduced { shift, sums: [0.0; 2] };
        let mut reduced: Vec<_> = of_channels.into_iter().map(of_unit).collect();
        let unit = view.channels * view.inner;
        let (sums, squares) = totals.split_at(width);
        for (sums, squares) in sums.chunks(unit).zip(squares.chunks(unit)) {
            let columns = sums.chunks(view.inner).zip(squares.chunks(view.inner));
            for (to, (sums, squares)) in reduced.iter_mut().zip(columns) {
                for (&sum, &square) in sums.iter().zip(squares) {
                    to.sums = add(to.sums, [sum, square]);
                }
            }
        }
        reduced
    }

    fn apply(&self, table: &[[f32; 4]], apply: &impl Apply) {
        // They go on for a cache line, which need not end where a row does.
        let width = self.width * (WRITTEN / self.width).min(self.rows / DEPTH).max(1);
        let constants: [Vec<f32>; 4] =
            std::array::from_fn(|i| self.by_column(width + LINE, |channel| table[channel][i]));
        let constants = constants.each_ref().map(Vec::as_slice);
        let share = (self.view.share() / width).max(1) * width;
        let length = self.view.len();
        let count = length.div_ceil(share);
        for_each(count, self.view.is_parallel(), |i| {
            let start = (count - 1 - i) * share;
            apply.columns(start..(start + share).min(length), width, constants);
        });
    }
}
