//! What is written from x, dy and each channel's constants.

use std::ops::{Range, RangeInclusive};

use super::vector::{LANES, LINE, Plain, Tensors, Vector, load, misplaced, vectorised};

/// Rows of columns that are written at once, so that constants are loaded once for them…
const TOGETHER: usize = 4;
/// …where the first cache does not hold the constants of a row (392x2048: forward 0.32 → 0.26, inference
/// 0.16 → 0.11, backward 0.40 → 0.32 ms; 1568x1024 loses a tenth, as does whatever is past the caches).
const WIDTHS_TOGETHER: RangeInclusive<usize> = 1025..=4096;
/// Places from which on the first vectors are written twice, so that the others share no cache line.
const ALIGNED: usize = 8 * LINE;
/// Values of a row from which on it is written past the caches. Of each row two lines may be shared with
/// its neighbours, which takes longer (inference of 8x256x3136 1.6 → 1.1, 64x200x400 1.3 → 0.8, but
/// 32x1024x196 1.8 → 2.4 ms).
const STREAM_ROW: usize = 24 * LINE;
/// The same of rows of whole lines (16x2048x144 1.2 → 0.7 ms).
const STREAM_LINES: usize = 8 * LINE;

/// What is written at a place, from x and dy there and four constants. That of one and of LANES
/// values is the same arithmetic.
trait Formula {
    fn vector<V: Vector>(values: [V; 2], constants: [V; 4]) -> V;
    fn single(values: [f32; 2], constants: [f32; 4]) -> f32;
}

/// `(x − a)·b + c`.
struct Line;

impl Formula for Line {
    #[inline(always)]
    fn vector<V: Vector>([x, _]: [V; 2], [a, b, c, _]: [V; 4]) -> V {
        x.sub(a).mul(b).add(c)
    }

    #[inline(always)]
    fn single([x, _]: [f32; 2], [a, b, c, _]: [f32; 4]) -> f32 {
        (x - a) * b + c
    }
}

/// `b·((dy − c) − (x − a)·d)`.
struct Slope;

impl Formula for Slope {
    #[inline(always)]
    fn vector<V: Vector>([x, dy]: [V; 2], [a, b, c, d]: [V; 4]) -> V {
        b.mul(dy.sub(c).sub(x.sub(a).mul(d)))
    }

    #[inline(always)]
    fn single([x, dy]: [f32; 2], [a, b, c, d]: [f32; 4]) -> f32 {
        b * ((dy - c) - (x - a) * d)
    }
}

/// Where vectors start that cover the places of `0..n` but `start..end`, of which there are fewer than LINE
/// before and LANES behind.
fn edges(start: usize, end: usize, n: usize) -> impl Iterator<Item = usize> {
    let before = (start > 0).then_some(0);
    let next = (start > LANES).then(|| start - LANES);
    before.into_iter().chain(next).chain((end < n).then(|| n - LANES))
}

/// A formula's constants along a row.
trait Constants<V: Vector>: Copy {
    /// Those of a part of the row.
    fn part(self, part: Range<usize>) -> Self;
    /// Those of the LANES places from `at` on.
    fn of(self, at: usize) -> [V; 4];
}

impl<V: Vector> Constants<V> for [V; 4] {
    #[inline(always)]
    fn part(self, _: Range<usize>) -> Self {
        self
    }

    #[inline(always)]
    fn of(self, _: usize) -> [V; 4] {
        self
    }
}

impl<V: Vector> Constants<V> for [&[f32]; 4] {
    #[inline(always)]
    fn part(self, part: Range<usize>) -> Self {
        self.map(|constant| &constant[part.clone()])
    }

    #[inline(always)]
    fn of(self, at: usize) -> [V; 4] {
        let [a, b, c, d] = self;
        let end = at + LANES;
        [V::load(&a[at..end]), V::load(&b[at..end]), V::load(&c[at..end]), V::load(&d[at..end])]
    }
}

/// N vectors from place `at` on, and those below them in ROWS rows of `width` places, which share
/// constants. All are computed before the first is stored: a load waits for a store just before it to a
/// place with the same last 12 bits of its address, and two tensors often lie like that.
#[inline(always)]
fn write_block<V: Vector, F: Formula, const STREAM: bool, const ROWS: usize, const N: usize>(
    tensors: Tensors<'_>,
    out: &mut [f32],
    at: usize,
    width: usize,
    constants: impl Constants<V>,
) {
    let constants = constants.part(at..at + N * LANES);
    let mut values = [[V::splat(0.0); N]; ROWS];
    for (row, values) in values.iter_mut().enumerate() {
        let start = at + row * width;
        let tensors = tensors.map(|tensor| &tensor[start..start + N * LANES]);
        for (k, value) in values.iter_mut().enumerate() {
            *value = F::vector(load(tensors, k * LANES), constants.of(k * LANES));
        }
    }
    for (row, values) in values.into_iter().enumerate() {
        let start = at + row * width;
        let out = &mut out[start..start + N * LANES];
        for (value, out) in values.into_iter().zip(out.chunks_exact_mut(LANES)) {
            if STREAM {
                value.stream(out);
            } else {
                value.store(out);
            }
        }
    }
}

/// ROWS rows of whole vectors, which share constants. To pass the caches, a line is written at once.
#[inline(always)]
fn write_vectors<V: Vector, F: Formula, const STREAM: bool, const ROWS: usize>(
    tensors: Tensors<'_>,
    at: usize,
    out: &mut [f32],
    constants: impl Constants<V>,
) {
    let width = out.len() / ROWS;
    let tensors = tensors.map(|tensor| &tensor[at..at + out.len()]);
    let mut i = 0;
    while ROWS == 1 && i + 4 * LINE <= width {
        write_block::<V, F, STREAM, ROWS, 8>(tensors, out, i, width, constants);
        i += 4 * LINE;
    }
    while i + LINE <= width {
        write_block::<V, F, STREAM, ROWS, 2>(tensors, out, i, width, constants);
        i += LINE;
    }
    if i + LANES <= width {
        write_block::<V, F, false, ROWS, 1>(tensors, out, i, width, constants);
    }
}

/// Single places of rows of `width` columns.
#[inline(always)]
fn write_singles<F: Formula>(
    tensors: Tensors<'_>,
    out: &mut [f32],
    places: impl Iterator<Item = usize>,
    width: usize,
    constants: [&[f32]; 4],
) {
    for i in places {
        let constants = constants.map(|constant| constant[i % width]);
        out[i] = F::single(tensors.map(|tensor| tensor[i]), constants);
    }
}

/// A row, of one channel. The first and the last vector overlap their neighbours where they must, unless
/// these pass the caches: a line that is partly in one is read from memory first (64x200x792, inference
/// that starts within a line: 4.1 → 2.2 ms).
#[inline(always)]
fn write_row<V: Vector, F: Formula, const STREAM: bool>(
    tensors: Tensors<'_>,
    out: &mut [f32],
    constants: [f32; 4],
) {
    let n = out.len();
    let tensors = tensors.map(|tensor| &tensor[..n]);
    let singles = constants.each_ref().map(std::slice::from_ref);
    if n < LANES {
        return write_singles::<F>(tensors, out, 0..n, 1, singles);
    }
    let constants = constants.map(V::splat);
    let start = if n >= ALIGNED { misplaced(out) } else { 0 };
    let end = start + (n - start) / LANES * LANES;
    write_vectors::<V, F, STREAM, 1>(tensors, start, &mut out[start..end], constants);
    if STREAM {
        return write_singles::<F>(tensors, out, (0..start).chain(end..n), 1, singles);
    }
    for at in edges(start, end, n) {
        F::vector(load(tensors, at), constants).store(&mut out[at..at + LANES]);
    }
}

/// Whole rows of `width` columns as one long row, whose constants come again every `width` places;
/// they go on for a line past the width.
#[inline(always)]
fn write_columns<V: Vector, F: Formula, const STREAM: bool>(
    tensors: Tensors<'_>,
    out: &mut [f32],
    width: usize,
    constants: [&[f32]; 4],
) {
    let n = out.len();
    let tensors = tensors.map(|tensor| &tensor[..n]);
    if n < LANES {
        return write_singles::<F>(tensors, out, 0..n, width, constants);
    }
    let start = if n >= ALIGNED { misplaced(out) } else { 0 };
    let (mut at, mut column) = (start, start % width);
    if !STREAM && width.is_multiple_of(LINE) && WIDTHS_TOGETHER.contains(&width) {
        let constants = constants.map(|constant| &constant[column..column + width]);
        while at + TOGETHER * width <= n {
            let out = &mut out[at..at + TOGETHER * width];
            write_vectors::<V, F, STREAM, TOGETHER>(tensors, at, out, constants);
            at += TOGETHER * width;
        }
    }
    while at + LANES <= n {
        let count = (width - column).next_multiple_of(LINE).min((n - at) / LANES * LANES);
        let constants = constants.map(|constant| &constant[column..column + count]);
        let vectors = &mut out[at..at + count];
        write_vectors::<V, F, STREAM, 1>(tensors, at, vectors, constants);
        at += count;
        column += count;
        while column >= width {
            column -= width;
        }
    }
    if STREAM {
        return write_singles::<F>(tensors, out, (0..start).chain(at..n), width, constants);
    }
    for at in edges(start, at, n) {
        let value = F::vector::<V>(load(tensors, at), constants.of(at % width));
        value.store(&mut out[at..at + LANES]);
    }
}

/// Rows of `inner` values; `constants` are those of the rows, in order.
#[inline(always)]
fn write_rows<V: Vector, F: Formula>(
    [x, dy]: Tensors<'_>,
    out: &mut [f32],
    inner: usize,
    constants: &[[f32; 4]],
    stream: bool,
) {
    let at_least = if inner.is_multiple_of(LINE) { STREAM_LINES } else { STREAM_ROW };
    let stream = stream && inner >= at_least;
    let rows = x.chunks(inner).zip(dy.chunks(inner)).zip(out.chunks_mut(inner));
    for (((x, dy), out), &constants) in rows.zip(constants) {
        match stream {
            true => write_row::<V, F, true>([x, dy], out, constants),
            false => write_row::<V, F, false>([x, dy], out, constants),
        }
    }
}

vectorised! {
    /// `(x − a)·b + c` of rows of `inner` values; `lines` are those of the rows, in order.
    fn line_of_rows<V>(
        x: &[f32], y: &mut [f32], inner: usize, lines: &[[f32; 4]], stream: bool
    ) {
        write_rows::<V, Line>([x, x], y, inner, lines, stream);
    }

    /// `b·((dy − c) − (x − a)·d)` of rows of `inner` values.
    fn slope_of_rows<V>(
        x: &[f32], dy: &[f32], dx: &mut [f32], inner: usize, slopes: &[[f32; 4]], stream: bool
    ) {
        write_rows::<V, Slope>([x, dy], dx, inner, slopes, stream);
    }

    /// `(x − a)·b + c` of whole rows of columns.
    fn line_of_columns<V>(
        x: &[f32], y: &mut [f32], width: usize, lines: [&[f32]; 4], stream: bool
    ) {
        match stream && y.len() >= ALIGNED {
            true => write_columns::<V, Line, true>([x, x], y, width, lines),
            false => write_columns::<V, Line, false>([x, x], y, width, lines),
        }
    }

    /// `b·((dy − c) − (x − a)·d)` of whole rows of columns.
    fn slope_of_columns<V>(
        x: &[f32], dy: &[f32], dx: &mut [f32], width: usize, slopes: [&[f32]; 4], stream: bool
    ) {
        match stream && dx.len() >= ALIGNED {
            true => write_columns::<V, Slope, true>([x, dy], dx, width, slopes),
            false => write_columns::<V, Slope, false>([x, dy], dx, width, slopes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::vector::values;
    use super::*;

    /// Every place gets its value, wherever the tensor starts and whatever the width, past the caches
    /// and not; and nothing around it changes.
    #[test]
    fn every_place_is_written() {
        let (x, dy) = (values(44_000, 4), values(42_000, 5));
        for width in (1..40).chain([255, 256, 300, 1024, 2048, STREAM_ROW + 5]) {
            for (start, rows) in [(0, 1), (1, 3), (4, 4), (7, 5)] {
                let n = width * rows;
                let (x, dy) = (&x[start..start + n], &dy[start..start + n]);
                let table: Vec<[f32; 4]> = (0..width.max(rows))
                    .map(|i| std::array::from_fn(|k| (i + 5 * k) as f32 / 8.0 - 2.0))
                    .collect();
                let constants: [Vec<f32>; 4] = std::array::from_fn(|k| {
                    (0..width + LINE).map(|i| table[i % width][k]).collect()
                });
                let columns = constants.each_ref().map(Vec::as_slice);
                for stream in [false, true] {
                    let check = |write: &dyn Fn(&mut [f32]), value: &dyn Fn(usize) -> f32| {
                        let mut out = vec![f32::NAN; n + 20];
                        write(&mut out[start + 3..start + 3 + n]);
                        for (i, out) in out.into_iter().enumerate() {
                            match i.checked_sub(start + 3).filter(|i| *i < n) {
                                Some(i) => assert_eq!(out, value(i), "{width} {start} {rows} {i}"),
                                None => assert!(out.is_nan(), "{width} {start} {rows} {i}"),
                            }
                        }
                    };
                    let line = |i: usize, c: usize| Line::single([x[i], dy[i]], table[c]);
                    let slope = |i: usize, c: usize| Slope::single([x[i], dy[i]], table[c]);
                    check(&|y| line_of_rows(x, y, width, &table, stream), &|i| line(i, i / width));
                    check(&|dx| slope_of_rows(x, dy, dx, width, &table, stream), &|i| {
                        slope(i, i / width)
                    });
                    check(&|y| line_of_columns(x, y, width, columns, stream), &|i| {
                        line(i, i % width)
                    });
                    check(&|dx| slope_of_columns(x, dy, dx, width, columns, stream), &|i| {
                        slope(i, i % width)
                    });
                    check(
                        &|dx| write_columns::<Plain, Slope, false>([x, dy], dx, width, columns),
                        &|i| slope(i, i % width),
                    );
                    check(
                        &|dx| write_rows::<Plain, Slope>([x, dy], dx, width, &table, stream),
                        &|i| slope(i, i / width),
                    );
                }
            }
        }
    }
}
