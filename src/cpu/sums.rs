//! Sums over the values of channels, f32 over at most [`DEPTH`] values in a row, and f64 beyond.

use super::vector::{LANES, LINE, Plain, Tensors, Vector, load, misplaced, vectorised};

/// Values in a row that are summed in f32.
pub(super) const DEPTH: usize = 16;
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
}

#[cfg(test)]
mod tests {
    use super::super::vector::values;
    use super::*;

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
}
