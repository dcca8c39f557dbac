//! The loops over f32 values, compiled for AVX2 where the machine has it. No multiplication is
//! contracted with an addition and every order is fixed, so that all machines give the same bits. No
//! closure loads, computes or stores a vector: where the compiler does not inline it, it is not compiled
//! for AVX2, and takes ten times longer.
//!
//! Sums are f32 over at most [`DEPTH`] values in a row, and f64 beyond.

use std::ops::{Range, RangeInclusive};

use super::vector::{LANES, Plain, Vector};

/// Values in a row that are summed in f32.
pub(super) const DEPTH: usize = 16;
/// Values in a cache line of 64 bytes.
pub(super) const LINE: usize = 2 * LANES;
/// Vectors side by side whose sums are in registers. One alone waits for its own sum.
const STRIP: usize = 4;
/// Columns side by side at most: the second cache holds the rows that are asked for ahead.
pub(super) const TILE: usize = 2048;
/// Columns up to which two tensors past the caches are summed row by row.
const BY_ROWS: usize = 512;
/// Values of DEPTH rows up to which those of the first tensor are loaded before the second is read: the
/// memory then reads a page of one and a page of the other, not lines in turns (products of 100352x64:
/// 31 → 39 GB/s).
const TOUCHED: usize = 2048;
/// Columns from which on strips start where cache lines do.
const ALIGNED_COLUMNS: usize = 512;
/// Values ahead that are asked for along a row, where the hardware does not know that it goes on.
const AHEAD: usize = 2048;
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

/// Two sums of a channel.
pub(super) type Sums = [f64; 2];

/// What squares are scaled by, so that a sum of DEPTH of them overflows only where one does.
pub(super) const SQUARE_SCALE: f32 = 1.0 / DEPTH as f32;

/// Runs of one channel's values at equal distance.
#[derive(Clone, Copy)]
pub(super) struct Runs {
    pub(super) start: usize,
    pub(super) length: usize,
    pub(super) stride: usize,
    pub(super) count: usize,
}

/// Rows of `width` columns, of which some columns are meant.
#[derive(Clone, Copy)]
pub(super) struct Block {
    /// The first row's first meant column.
    pub(super) start: usize,
    pub(super) width: usize,
    pub(super) rows: usize,
}

/// Compiles a function for AVX2 too, and runs that where the machine has it.
macro_rules! vectorised {
    ($(
        $(#[$doc:meta])*
        fn $name:ident<$V:ident>($($arg:ident: $ty:ty),*) $(-> $out:ty)? $body:block
    )*) => {$(
        $(#[$doc])*
        #[allow(unsafe_code, reason = "a function for AVX2 is called where AVX2 was found")]
        pub(super) fn $name($($arg: $ty),*) $(-> $out)? {
            #[inline(always)]
            fn body<$V: Vector>($($arg: $ty),*) $(-> $out)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn wide($($arg: $ty),*) $(-> $out)? {
                    body::<super::vector::Avx>($($arg),*)
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: AVX2 was just found.
                    return unsafe { wide($($arg),*) };
                }
            }
            body::<Plain>($($arg),*)
        }
    )*};
}

/// The tensors that are summed over: x, and dy where there is one.
type Tensors<'a> = [&'a [f32]; 2];

/// Two f32 sums of up to DEPTH values.
trait Pair<V: Vector>: Copy {
    /// Tensors that it takes values of.
    const TENSORS: usize;
    fn new() -> Self;
    /// Adds x, relative to the shift, and dy.
    fn add(&mut self, shift: V, values: [V; 2]);
    fn sums(self) -> [V; 2];
}

/// `Σ(x−k)` and `Σ(x−k)²`, the squares scaled.
#[derive(Clone, Copy)]
struct Moments<V>([V; 2]);

impl<V: Vector> Pair<V> for Moments<V> {
    const TENSORS: usize = 1;

    #[inline(always)]
    fn new() -> Self {
        Self([V::splat(0.0); 2])
    }

    #[inline(always)]
    fn add(&mut self, k: V, [x, _]: [V; 2]) {
        let d = x.sub(k);
        let Self([sum, squares]) = *self;
        self.0 = [sum.add(d), squares.add(d.mul(V::splat(SQUARE_SCALE)).mul(d))];
    }

    #[inline(always)]
    fn sums(self) -> [V; 2] {
        self.0
    }
}

/// `Σdy` and `Σdy·(x−mean)`.
#[derive(Clone, Copy)]
struct Products<V>([V; 2]);

impl<V: Vector> Pair<V> for Products<V> {
    const TENSORS: usize = 2;

    #[inline(always)]
    fn new() -> Self {
        Self([V::splat(0.0); 2])
    }

    #[inline(always)]
    fn add(&mut self, mean: V, [x, dy]: [V; 2]) {
        let Self([sum, products]) = *self;
        self.0 = [sum.add(dy), products.add(dy.mul(x.sub(mean)))];
    }

    #[inline(always)]
    fn sums(self) -> [V; 2] {
        self.0
    }
}

#[inline(always)]
fn load<V: Vector>(tensors: Tensors<'_>, at: usize) -> [V; 2] {
    let [x, dy] = tensors;
    [V::load(&x[at..at + LANES]), V::load(&dy[at..at + LANES])]
}

/// What the places that are missing hold adds nothing.
#[inline(always)]
fn load_part<V: Vector>([x, dy]: Tensors<'_>, at: usize, count: usize, shift: V) -> [V; 2] {
    let at = at..at + count;
    [V::load_part(&x[at.clone()], shift), V::load_part(&dy[at], V::splat(0.0))]
}

/// Adds values that lie together, the vectors in turns.
#[inline(always)]
fn add_run<V: Vector, P: Pair<V>>(
    tensors: Tensors<'_>,
    ahead: usize,
    shift: V,
    pairs: &mut [P; STRIP],
) {
    let n = tensors[0].len();
    let tensors = tensors.map(|tensor| &tensor[..n]);
    let mut at = 0;
    while at + STRIP * LANES <= n {
        for tensor in &tensors[..P::TENSORS] {
            V::prefetch(tensor, at + ahead);
            V::prefetch(tensor, at + ahead + STRIP * LANES / 2);
        }
        for (i, pair) in pairs.iter_mut().enumerate() {
            pair.add(shift, load(tensors, at + i * LANES));
        }
        at += STRIP * LANES;
    }
    for pair in pairs {
        if at + LANES <= n {
            pair.add(shift, load(tensors, at));
        } else if at < n {
            pair.add(shift, load_part(tensors, at, n - at, shift));
        }
        at += LANES;
    }
}

/// Sums along runs: four times eight lanes, of which each takes every 32nd value of a run.
#[inline(always)]
fn sum_runs<V: Vector, P: Pair<V>>(tensors: Tensors<'_>, runs: Runs, shift: f32) -> Sums {
    let mut totals = [[0.0; LANES]; 2];
    // Several short runs, or a part of a long one.
    let batch = (DEPTH / runs.length.div_ceil(STRIP * LANES)).max(1);
    // The next channel goes on where a run ends.
    let ahead = runs.length.min(AHEAD);
    for first in (0..runs.count).step_by(batch) {
        for begin in (0..runs.length).step_by(STRIP * LANES * DEPTH) {
            let length = (runs.length - begin).min(STRIP * LANES * DEPTH);
            let mut pairs = [P::new(); STRIP];
            for run in first..(first + batch).min(runs.count) {
                let start = runs.start + run * runs.stride + begin;
                let run = tensors.map(|tensor| &tensor[start..start + length]);
                add_run(run, ahead, V::splat(shift), &mut pairs);
            }
            for pair in pairs {
                for (sum, total) in pair.sums().into_iter().zip(&mut totals) {
                    sum.add_to(total);
                }
            }
        }
    }
    totals.map(|[a, b, c, d, e, f, g, h]| ((a + e) + (c + g)) + ((b + f) + (d + h)))
}

/// Sums N vectors of columns down at most DEPTH rows. Asks for as many values that lie together,
/// from `ahead` on.
#[inline(always)]
fn sum_strip<V: Vector, P: Pair<V>, const N: usize>(
    tensors: Tensors<'_>,
    block: Block,
    ahead: usize,
    shifts: &[f32],
    [sums, squares]: [&mut [f64]; 2],
) {
    let shifts: [V; N] = std::array::from_fn(|i| V::load(&shifts[i * LANES..(i + 1) * LANES]));
    let mut pairs = [P::new(); N];
    for row in 0..block.rows {
        let at = block.start + row * block.width;
        for tensor in &tensors[..P::TENSORS] {
            for line in (0..N * LANES).step_by(2 * LANES) {
                V::prefetch(tensor, ahead + row * N * LANES + line);
            }
        }
        let row = tensors.map(|tensor| &tensor[at..at + N * LANES]);
        for (i, pair) in pairs.iter_mut().enumerate() {
            pair.add(shifts[i], load(row, i * LANES));
        }
    }
    for (i, pair) in pairs.into_iter().enumerate() {
        let [sum, square] = pair.sums();
        sum.add_to(&mut sums[i * LANES..(i + 1) * LANES]);
        square.add_to(&mut squares[i * LANES..(i + 1) * LANES]);
    }
}

/// The same of fewer than LANES columns.
#[inline(always)]
fn sum_last<V: Vector, P: Pair<V>>(
    tensors: Tensors<'_>,
    block: Block,
    shifts: &[f32],
    totals: [&mut [f64]; 2],
) {
    let count = shifts.len();
    let shifts = V::load_part(shifts, V::splat(0.0));
    let mut pair = P::new();
    for row in 0..block.rows {
        let values = load_part(tensors, block.start + row * block.width, count, shifts);
        pair.add(shifts, values);
    }
    for (sum, totals) in pair.sums().into_iter().zip(totals) {
        let mut all = [0.0; LANES];
        sum.add_to(&mut all);
        for (total, sum) in totals.iter_mut().zip(all) {
            *total += sum;
        }
    }
}

/// Sums whole vectors of columns row by row, with the sums in the first cache. Past the caches, two
/// tensors come faster when they are read in order (products, GB/s by strips → by rows: 100352x64 22 → 39,
/// 50176x128 20 → 28, 25088x256 19 → 26, 12544x512 18 → 24), in the caches slower (25088x64: 63 → 50).
#[inline(always)]
fn sum_rows<V: Vector, P: Pair<V>>(
    tensors: Tensors<'_>,
    block: Block,
    shifts: &[f32],
    [sums, squares]: [&mut [f64]; 2],
) {
    let Block { width, .. } = block;
    let mut pairs = [P::new(); BY_ROWS / LANES];
    let pairs = &mut pairs[..shifts.len() / LANES];
    for first in (0..block.rows).step_by(DEPTH) {
        let start = block.start + first * width;
        let rows = (block.rows - first).min(DEPTH);
        if width * DEPTH <= TOUCHED {
            for place in (start..start + (rows - 1) * width + shifts.len()).step_by(LINE) {
                V::touch(tensors[0], place);
            }
        }
        for at in (start..).step_by(width).take(rows) {
            let [x, dy] = tensors.map(|tensor| tensor[at..at + shifts.len()].chunks_exact(LANES));
            let columns = pairs.iter_mut().zip(shifts.chunks_exact(LANES));
            for ((pair, shift), (x, dy)) in columns.zip(x.zip(dy)) {
                pair.add(V::load(shift), [V::load(x), V::load(dy)]);
            }
        }
        let totals = sums.chunks_exact_mut(LANES).zip(squares.chunks_exact_mut(LANES));
        for (pair, (sums, squares)) in pairs.iter_mut().zip(totals) {
            let [sum, square] = std::mem::replace(pair, P::new()).sums();
            sum.add_to(sums);
            square.add_to(squares);
        }
    }
}

/// Sums down columns, DEPTH rows at a time. The strips of a block do not lie together, and past the
/// caches the hardware does not see that all of it is read: so each strip asks for its share of the
/// rows two blocks ahead (one, of two tensors), in order (moments of 25088x256: 11 → 32 GB/s; of
/// 25088x64, in the cache: 51 → 53).
#[inline(always)]
fn sum_columns<V: Vector, P: Pair<V>>(
    tensors: Tensors<'_>,
    block: Block,
    shifts: &[f32],
    [sums, squares]: [&mut [f64]; 2],
    far: bool,
) {
    let n = shifts.len();
    let (sums, squares) = (&mut sums[..n], &mut squares[..n]);
    let by_rows = if far && block.width <= BY_ROWS { n / LANES * LANES } else { 0 };
    if by_rows > 0 {
        let totals = [&mut sums[..by_rows], &mut squares[..by_rows]];
        sum_rows::<V, P>(tensors, block, &shifts[..by_rows], totals);
    }
    // A line that two strips share leaves the cache between them where the rows are long, as those
    // of a strip then fall on few of its places (products of 1568x1024: 30 → 47 GB/s).
    let head = if n >= ALIGNED_COLUMNS { misplaced(&tensors[0][block.start..]) } else { 0 };
    for first in (0..block.rows).step_by(DEPTH) {
        let rows = (block.rows - first).min(DEPTH);
        let start = block.start + first * block.width;
        let ahead = start + (3 - P::TENSORS) * DEPTH * block.width;
        let mut at = by_rows;
        while at < n {
            let left = if at < head { head - at } else { n - at };
            let widths = [STRIP * LANES, LANES];
            let count = widths.into_iter().find(|width| *width <= left).unwrap_or(left);
            let place = at..at + count;
            let strip = Block { start: start + at, rows, ..block };
            let share = at * DEPTH;
            let ahead = ahead + share / n * block.width + share % n;
            let shifts = &shifts[place.clone()];
            let totals = [&mut sums[place.clone()], &mut squares[place]];
            if count == STRIP * LANES {
                sum_strip::<V, P, STRIP>(tensors, strip, ahead, shifts, totals);
            } else if count == LANES {
                sum_strip::<V, P, 1>(tensors, strip, ahead, shifts, totals);
            } else {
                sum_last::<V, P>(tensors, strip, shifts, totals);
            }
            at += count;
        }
    }
}

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

/// Places before the first that starts a cache line.
fn misplaced(values: &[f32]) -> usize {
    (LINE - values.as_ptr() as usize / size_of::<f32>() % LINE) % LINE
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
    /// `Σ(x−k)` and `Σ(x−k)²`, the squares scaled.
    fn moments_of_runs<V>(x: &[f32], runs: Runs, k: f32) -> Sums {
        sum_runs::<V, Moments<V>>([x, x], runs, k)
    }

    /// `Σdy` and `Σdy·(x−mean)`.
    fn products_of_runs<V>(x: &[f32], dy: &[f32], runs: Runs, mean: f32) -> Sums {
        sum_runs::<V, Products<V>>([x, dy], runs, mean)
    }

    /// Adds what a block contributes to `Σ(x−k)` and `Σ(x−k)²` of each column, the squares scaled.
    fn moments_of_columns<V>(x: &[f32], block: Block, k: &[f32], sums: [&mut [f64]; 2]) {
        sum_columns::<V, Moments<V>>([x, x], block, k, sums, false);
    }

    /// Adds what a block contributes to `Σdy` and `Σdy·(x−mean)` of each column; `far` says that the
    /// caches do not hold the tensors.
    fn products_of_columns<V>(
        x: &[f32], dy: &[f32], block: Block, mean: &[f32], sums: [&mut [f64]; 2], far: bool
    ) {
        sum_columns::<V, Products<V>>([x, dy], block, mean, sums, far);
    }

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
    use super::*;

    fn values(count: usize, seed: u32) -> Vec<f32> {
        let mix = |i: usize| (i as u32 + seed).wrapping_mul(2_654_435_761) >> 8;
        (0..count).map(|i| mix(i) as f32 / (1 << 20) as f32 - 7.0).collect()
    }

    /// Where a tensor lies in memory makes no difference.
    #[test]
    fn places_do_not_change_the_bits() {
        let (n, x) = (701, values(6 * 701 + 20, 1));
        let shifts = values(n, 3);
        let sums_at = |start: usize| {
            let mut moved = vec![0.0; start];
            moved.extend(&x);
            let (mut sums, mut squares) = (vec![0.5; n], vec![0.5; n]);
            let block = Block { start, width: n, rows: 6 };
            moments_of_columns(&moved, block, &shifts, [&mut sums, &mut squares]);
            (sums, squares)
        };
        let first = sums_at(0);
        assert!((1..20).all(|start| sums_at(start) == first));
    }

    /// AVX, where it is found, and plain arrays give the same bits for every length of run and
    /// every number of columns.
    #[test]
    fn instructions_do_not_change_the_bits() {
        type P = Plain;
        let (x, dy, shift) = (values(15_000, 1), values(15_000, 2), 0.3);
        for n in (1..300).chain([512, 701]) {
            for count in [1, 3, 9, 20] {
                let runs = Runs { start: 5, length: n, stride: n + 2, count };
                let plain = sum_runs::<P, Moments<P>>([&x, &x], runs, shift);
                assert_eq!(moments_of_runs(&x, runs, shift), plain, "{n} {count}");
                let plain = sum_runs::<P, Products<P>>([&x, &dy], runs, shift);
                assert_eq!(products_of_runs(&x, &dy, runs, shift), plain, "{n} {count}");

                let block = Block { start: 5, width: n + 2, rows: count };
                let shifts = values(n, 3);
                let sums = || vec![0.5; n];
                let (mut a, mut b, mut c, mut d) = (sums(), sums(), sums(), sums());
                moments_of_columns(&x, block, &shifts, [&mut a, &mut b]);
                let plain = [c.as_mut_slice(), &mut d];
                sum_columns::<P, Moments<P>>([&x, &x], block, &shifts, plain, false);
                assert_eq!((&a, &b), (&c, &d), "{n} {count}");
                for far in [false, true] {
                    products_of_columns(&x, &dy, block, &shifts, [&mut a, &mut b], far);
                    let plain = [c.as_mut_slice(), &mut d];
                    sum_columns::<P, Products<P>>([&x, &dy], block, &shifts, plain, false);
                    assert_eq!((&a, &b), (&c, &d), "{n} {count} {far}");
                }
            }
        }
    }

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
