//! How a tensor is walked: reduce every channel, then write every value, with the second read as
//! close to the first as the caches need. What is summed with what, and in which order, depends on
//! the shape alone; only who does it depends on the threads.
//!
//! - Rows (values of a channel that lie together are many): a thread takes a group of channels that
//!   its cache holds, reduces and writes them. A few long channels are cut into pieces, on which
//!   all threads work.
//! - Columns (they are few): rows of columns, side by side. Chunks of rows are reduced in parallel;
//!   then they are written in reverse, as the caches hold what was read last.

use std::ops::Range;

use rayon::prelude::*;

use super::loops::{Block, DEPTH, Runs, Sums, TILE};
use crate::geometry::Geometry;

/// Fewest values of which several threads take a share: waking one costs some 10 µs.
const SERIAL: usize = 1 << 15;
/// Values of a channel that lie together, from which on a channel is rows.
const MIN_ROW: usize = 16;
/// Values in a piece of a channel.
const PIECE: usize = 1 << 15;
/// Values in a share of a write at most: 256 KiB at a time took 0.45 to 0.85 of the time of 64 KiB
/// (8x256x56x56 channels-last, two threads of a busy machine).
const SHARE: usize = 1 << 16;
/// Values that a thread's own cache (of 512 KiB, most often) holds along with what it writes.
const RESIDENT: usize = 1 << 16;
/// Columns side by side at least, where fewer channels are several rows in one.
const MIN_WIDTH: usize = TILE / 2;
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
    /// A span of whole rows of columns (the last one may be short).
    fn columns(&self, span: Range<usize>, constants: [&[f32]; 4]);
}

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

    fn is_columns(&self) -> bool {
        self.inner < MIN_ROW && self.channels > 1
    }

    fn is_parallel(&self) -> bool {
        self.len() >= SERIAL
    }

    /// Values in a share of a write: enough shares for all threads.
    fn share(&self) -> usize {
        (self.len() / (4 * rayon::current_num_threads())).clamp(SHARE / 16, SHARE)
    }

    /// Where the i-th value of a channel lies.
    pub(super) fn place(&self, channel: usize, i: usize) -> usize {
        (i / self.inner * self.channels + channel) * self.inner + i % self.inner
    }

    pub(super) fn values_per_channel(&self) -> usize {
        self.outer * self.inner
    }

    /// Reduces every channel, and writes it with the constants that `finish` makes of its sums.
    pub(super) fn sweep(
        &self,
        reduce: &impl Reduce,
        finish: &(impl Fn(usize, Reduced) -> [f32; 4] + Sync),
        apply: Option<&impl Apply>,
    ) -> Vec<Reduced> {
        if self.is_columns() {
            let reduced = Columns::new(self).reduce(reduce);
            if let Some(apply) = apply {
                let table: Vec<_> =
                    reduced.iter().enumerate().map(|(c, r)| finish(c, *r)).collect();
                Columns::new(self).apply(&table, apply);
            }
            return reduced;
        }
        let threads = if self.is_parallel() { rayon::current_num_threads() } else { 1 };
        if threads > 1 && self.channels < 4 * threads && self.piece_count() > 1 {
            self.sweep_pieces(reduce, finish, apply)
        } else {
            self.sweep_channels(reduce, finish, apply, threads)
        }
    }

    /// Writes every value with given constants.
    pub(super) fn apply(&self, table: &[[f32; 4]], apply: &impl Apply) {
        if self.is_columns() {
            return Columns::new(self).apply(table, apply);
        }
        let (rows, inner) = (self.outer * self.channels, self.inner);
        // Several short rows, or parts of a long one.
        let size = self.share();
        let (rows_per_share, parts) = match inner <= size {
            true => (size / inner, 1),
            false => (1, inner.div_ceil(size)),
        };
        for_each(rows.div_ceil(rows_per_share) * parts, self.is_parallel(), |i| {
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

    fn sweep_channels(
        &self,
        reduce: &impl Reduce,
        finish: &(impl Fn(usize, Reduced) -> [f32; 4] + Sync),
        apply: Option<&impl Apply>,
        threads: usize,
    ) -> Vec<Reduced> {
        let Self { outer, channels, inner } = *self;
        let resident = RESIDENT / (self.values_per_channel() * tensors(reduce));
        let group = resident.min(channels / (4 * threads)).max(1);
        let task = |(i, reduced): (usize, &mut [Reduced])| {
            let first = i * group;
            let mut table = Vec::with_capacity(group);
            for (channel, reduced) in (first..).zip(reduced.iter_mut()) {
                *reduced = self.reduce_channel(channel, reduce);
                table.push(finish(channel, *reduced));
            }
            let Some(apply) = apply else { return };
            for o in (0..outer).rev() {
                let start = (o * channels + first) * inner;
                apply.rows(start..start + reduced.len() * inner, inner, &table);
            }
        };
        let mut reduced = vec![Reduced::default(); channels];
        if threads > 1 {
            reduced.par_chunks_mut(group).enumerate().with_max_len(1).for_each(task);
        } else {
            reduced.chunks_mut(group).enumerate().for_each(task);
        }
        reduced
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

    fn sweep_pieces(
        &self,
        reduce: &impl Reduce,
        finish: &(impl Fn(usize, Reduced) -> [f32; 4] + Sync),
        apply: Option<&impl Apply>,
    ) -> Vec<Reduced> {
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
        if let Some(apply) = apply {
            let table: Vec<_> = reduced.iter().enumerate().map(|(c, r)| finish(c, *r)).collect();
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
        reduced
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

/// The shifts to reduce by once more, where one of them was bad.
fn better_shifts(reduce: &impl Reduce, reduced: &[Reduced]) -> Option<Vec<f32>> {
    let better: Vec<_> = reduced.iter().map(|r| reduce.better_shift(r.shift, r.sums)).collect();
    let any = better.iter().any(Option::is_some);
    any.then(|| better.iter().zip(reduced).map(|(b, r)| b.unwrap_or(r.shift)).collect())
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
        let width = (MIN_WIDTH / unit).min(view.outer / DEPTH).max(1) * unit;
        Self { view: *view, width, rows: view.len() / width, tail: view.len() % width }
    }

    /// The channels of a range of columns, in order.
    fn channels(&self, columns: Range<usize>) -> impl Iterator<Item = usize> {
        let View { channels, inner, .. } = self.view;
        let (mut channel, mut place) = (columns.start / inner % channels, columns.start % inner);
        columns.map(move |_| {
            let now = channel;
            place += 1;
            if place == inner {
                (place, channel) = (0, if channel + 1 == channels { 0 } else { channel + 1 });
            }
            now
        })
    }

    fn by_column(&self, of: impl Fn(usize) -> f32) -> Vec<f32> {
        let unit = self.view.channels * self.view.inner;
        let mut values = Vec::with_capacity(self.width);
        for channel in 0..self.view.channels {
            values.resize(values.len() + self.view.inner, of(channel));
        }
        for _ in 1..self.width / unit {
            values.extend_from_within(..unit);
        }
        values
    }

    fn reduce(&self, reduce: &impl Reduce) -> Vec<Reduced> {
        let first = self.reduce_by(reduce, |channel| reduce.shift(channel));
        match better_shifts(reduce, &first) {
            Some(shifts) => self.reduce_by(reduce, |channel| shifts[channel]),
            None => first,
        }
    }

    fn reduce_by(&self, reduce: &impl Reduce, shift: impl Fn(usize) -> f32) -> Vec<Reduced> {
        let Self { view, width, rows, tail } = *self;
        let shifts = self.by_column(&shift);
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
        let mut reduced: Vec<_> = (0..view.channels)
            .map(|channel| Reduced { shift: shift(channel), sums: [0.0; 2] })
            .collect();
        for (i, sums) in parts.iter().enumerate() {
            let column = i % tiles * TILE;
            let (s, q) = sums.split_at(sums.len() / 2);
            let channels = self.channels(column..column + s.len());
            for (channel, (s, q)) in channels.zip(s.iter().zip(q)) {
                let to = &mut reduced[channel].sums;
                *to = add(*to, [*s, *q]);
            }
        }
        reduced
    }

    fn apply(&self, table: &[[f32; 4]], apply: &impl Apply) {
        let constants: [Vec<f32>; 4] =
            std::array::from_fn(|i| self.by_column(|channel| table[channel][i]));
        let constants = constants.each_ref().map(Vec::as_slice);
        let share = (self.view.share() / self.width).max(1) * self.width;
        let length = self.view.len();
        let count = length.div_ceil(share);
        for_each(count, self.view.is_parallel(), |i| {
            let start = (count - 1 - i) * share;
            apply.columns(start..(start + share).min(length), constants);
        });
    }
}
