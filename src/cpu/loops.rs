//! The loops over f32 values, compiled for AVX2 where the machine has it. No multiplication is
//! contracted with an addition and every order is fixed, so that all machines give the same bits.
//!
//! Sums are f32 over at most [`DEPTH`] values in a row, and f64 beyond.

use super::output::Writer;
use super::vector::{LANES, Plain, Vector};

/// Values in a row that are summed in f32.
pub(super) const DEPTH: usize = 16;
/// Columns side by side at most, so that the first cache holds their sums.
pub(super) const TILE: usize = 1024;

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
            body::<Plain<LANES>>($($arg),*)
        }
    )*};
}

/// The tensors that are summed over: x, and dy where there is one.
type Tensors<'a> = [&'a [f32]; 2];

/// Two f32 sums of up to DEPTH values.
trait Pair<V: Vector>: Copy {
    /// Goes on from given sums.
    fn new(shift: V, sums: [V; 2]) -> Self;
    fn add(&mut self, tensors: Tensors<'_>, at: usize);
    /// Adds fewer values than V has.
    fn add_part(&mut self, tensors: Tensors<'_>, at: usize, count: usize);
    fn sums(self) -> [V; 2];
}

/// `Σ(x−k)` and `Σ(x−k)²`, the squares scaled.
#[derive(Clone, Copy)]
struct Moments<V> {
    k: V,
    sums: [V; 2],
}

impl<V: Vector> Moments<V> {
    #[inline(always)]
    fn add_vector(&mut self, x: V) {
        let d = x.sub(self.k);
        let [sum, squares] = self.sums;
        self.sums = [sum.add(d), squares.add(d.mul(V::splat(SQUARE_SCALE)).mul(d))];
    }
}

impl<V: Vector> Pair<V> for Moments<V> {
    #[inline(always)]
    fn new(k: V, sums: [V; 2]) -> Self {
        Self { k, sums }
    }

    #[inline(always)]
    fn add(&mut self, [x, _]: Tensors<'_>, at: usize) {
        self.add_vector(V::load(&x[at..at + V::COUNT]));
    }

    #[inline(always)]
    fn add_part(&mut self, [x, _]: Tensors<'_>, at: usize, count: usize) {
        self.add_vector(V::load_part(&x[at..at + count], self.k));
    }

    #[inline(always)]
    fn sums(self) -> [V; 2] {
        self.sums
    }
}

/// `Σdy` and `Σdy·(x−mean)`.
#[derive(Clone, Copy)]
struct Products<V> {
    mean: V,
    sums: [V; 2],
}

impl<V: Vector> Products<V> {
    #[inline(always)]
    fn add_vectors(&mut self, x: V, dy: V) {
        let [sum, products] = self.sums;
        self.sums = [sum.add(dy), products.add(dy.mul(x.sub(self.mean)))];
    }
}

impl<V: Vector> Pair<V> for Products<V> {
    #[inline(always)]
    fn new(mean: V, sums: [V; 2]) -> Self {
        Self { mean, sums }
    }

    #[inline(always)]
    fn add(&mut self, [x, dy]: Tensors<'_>, at: usize) {
        let at = at..at + V::COUNT;
        self.add_vectors(V::load(&x[at.clone()]), V::load(&dy[at]));
    }

    #[inline(always)]
    fn add_part(&mut self, [x, dy]: Tensors<'_>, at: usize, count: usize) {
        let at = at..at + count;
        let dy = V::load_part(&dy[at.clone()], V::splat(0.0));
        self.add_vectors(V::load_part(&x[at], self.mean), dy);
    }

    #[inline(always)]
    fn sums(self) -> [V; 2] {
        self.sums
    }
}

/// Sums along runs: eight lanes, of which each takes every eighth value of a run.
#[inline(always)]
fn sum_runs<V: Vector, P: Pair<V>>(tensors: Tensors<'_>, runs: Runs, shift: f32) -> Sums {
    let mut totals = [[0.0; LANES]; 2];
    let vectors = runs.length.div_ceil(LANES);
    // Several short runs, or a part of a long one.
    let batch = (DEPTH / vectors).max(1);
    for first in (0..runs.count).step_by(batch) {
        for begin in (0..runs.length).step_by(LANES * DEPTH) {
            let length = (runs.length - begin).min(LANES * DEPTH);
            let mut pair = P::new(V::splat(shift), [V::splat(0.0); 2]);
            for run in first..(first + batch).min(runs.count) {
                let start = runs.start + run * runs.stride + begin;
                let whole = length / LANES * LANES;
                for at in (start..start + whole).step_by(LANES) {
                    pair.add(tensors, at);
                }
                if whole < length {
                    pair.add_part(tensors, start + whole, length - whole);
                }
            }
            for (sum, total) in pair.sums().into_iter().zip(&mut totals) {
                sum.add_to(total);
            }
        }
    }
    totals.map(|[a, b, c, d, e, f, g, h]| ((a + e) + (c + g)) + ((b + f) + (d + h)))
}

/// Adds a row to the sums of columns, which are `fresh` where nothing was added yet. One row at a
/// time: memory is read in order (eight rows at once took a fifth longer past the caches).
#[inline(always)]
fn add_row<V: Vector, P: Pair<V>>(
    tensors: Tensors<'_>,
    shifts: &[f32],
    sums: [&mut [f32]; 2],
    fresh: bool,
) {
    let n = shifts.len();
    let (tensors, [sums, squares]) = (tensors.map(|t| &t[..n]), sums.map(|s| &mut s[..n]));
    let mut at = 0;
    while at + V::COUNT <= n {
        let place = at..at + V::COUNT;
        let before = match fresh {
            true => [V::splat(0.0); 2],
            false => [V::load(&sums[place.clone()]), V::load(&squares[place.clone()])],
        };
        let mut pair = P::new(V::load(&shifts[place.clone()]), before);
        pair.add(tensors, at);
        let [sum, square] = pair.sums();
        sum.store(&mut sums[place.clone()]);
        square.store(&mut squares[place]);
        at += V::COUNT;
    }
}

/// Sums down columns; P and Q are the same for a vector and for a single column.
#[inline(always)]
fn sum_columns<V: Vector, P: Pair<V>, Q: Pair<Plain<1>>>(
    tensors: Tensors<'_>,
    block: Block,
    shifts: &[f32],
    mut totals: [&mut [f64]; 2],
) {
    let n = shifts.len();
    let whole = n / V::COUNT * V::COUNT;
    let (vectors, singles) = shifts.split_at(whole);
    let mut sums = [[0.0; TILE]; 2];
    for first in (0..block.rows).step_by(DEPTH) {
        let [s, q] = &mut sums;
        let ((s, s1), (q, q1)) = (s[..n].split_at_mut(whole), q[..n].split_at_mut(whole));
        for row in first..(first + DEPTH).min(block.rows) {
            let (start, fresh) = (block.start + row * block.width, row == first);
            let row = tensors.map(|tensor| &tensor[start..start + n]);
            add_row::<V, P>(row, vectors, [s, q], fresh);
            add_row::<Plain<1>, Q>(row.map(|row| &row[whole..]), singles, [s1, q1], fresh);
        }
        for (sums, totals) in sums.iter().zip(&mut totals) {
            let (vectors, singles) = totals.split_at_mut(whole);
            for (sum, total) in sums.chunks_exact(V::COUNT).zip(vectors.chunks_exact_mut(V::COUNT))
            {
                V::load(sum).add_to(total);
            }
            for (sum, total) in sums[whole..n].iter().zip(singles) {
                *total += f64::from(*sum);
            }
        }
    }
}

/// `y = (x − a)·b + c`.
#[inline(always)]
fn line<V: Vector>(x: &[f32], y: &mut [f32], [a, b, c]: [V; 3]) {
    V::load(x).sub(a).mul(b).add(c).store(y);
}

/// `dx = b·((dy − c) − (x − a)·d)`.
#[inline(always)]
fn slope<V: Vector>(x: &[f32], dy: &[f32], dx: &mut [f32], [a, b, c, d]: [V; 4]) {
    b.mul(V::load(dy).sub(c).sub(V::load(x).sub(a).mul(d))).store(dx);
}

#[inline(always)]
fn line_of_row<V: Vector>(x: &[f32], y: &mut [f32], [a, b, c, _]: [f32; 4]) {
    let constants = [a, b, c].map(V::splat);
    let (xs, mut ys) = (x.chunks_exact(V::COUNT), y.chunks_exact_mut(V::COUNT));
    let rest = xs.remainder();
    for (x, y) in xs.zip(&mut ys) {
        line(x, y, constants);
    }
    for (x, y) in rest.iter().zip(ys.into_remainder()) {
        *y = (x - a) * b + c;
    }
}

#[inline(always)]
fn slope_of_row<V: Vector>(x: &[f32], dy: &[f32], dx: &mut [f32], [a, b, c, d]: [f32; 4]) {
    let constants = [a, b, c, d].map(V::splat);
    let (xs, dys) = (x.chunks_exact(V::COUNT), dy.chunks_exact(V::COUNT));
    let mut dxs = dx.chunks_exact_mut(V::COUNT);
    let (rest, rest_dy) = (xs.remainder(), dys.remainder());
    for ((x, dy), dx) in xs.zip(dys).zip(&mut dxs) {
        slope(x, dy, dx, constants);
    }
    for ((x, dy), dx) in rest.iter().zip(rest_dy).zip(dxs.into_remainder()) {
        *dx = b * ((dy - c) - (x - a) * d);
    }
}

/// Columns side by side, all of the same length.
#[inline(always)]
fn line_of_columns_at<V: Vector>(x: &[f32], y: &mut [f32], [a, b, c]: [&[f32]; 3]) {
    let n = y.len() / V::COUNT * V::COUNT;
    let (x, a, b, c) = (&x[..n], &a[..n], &b[..n], &c[..n]);
    let constants = a.chunks_exact(V::COUNT).zip(b.chunks_exact(V::COUNT));
    let constants = constants.zip(c.chunks_exact(V::COUNT));
    let values = x.chunks_exact(V::COUNT).zip(y[..n].chunks_exact_mut(V::COUNT));
    for ((x, y), ((a, b), c)) in values.zip(constants) {
        line::<V>(x, y, [V::load(a), V::load(b), V::load(c)]);
    }
}

#[inline(always)]
fn slope_of_columns_at<V: Vector>(x: &[f32], dy: &[f32], dx: &mut [f32], slopes: [&[f32]; 4]) {
    let n = dx.len() / V::COUNT * V::COUNT;
    let (x, dy, [a, b, c, d]) = (&x[..n], &dy[..n], slopes.map(|s| &s[..n]));
    let first = a.chunks_exact(V::COUNT).zip(b.chunks_exact(V::COUNT));
    let constants = first.zip(c.chunks_exact(V::COUNT).zip(d.chunks_exact(V::COUNT)));
    let values = x.chunks_exact(V::COUNT).zip(dy.chunks_exact(V::COUNT));
    let values = values.zip(dx[..n].chunks_exact_mut(V::COUNT));
    for (((x, dy), dx), ((a, b), (c, d))) in values.zip(constants) {
        slope::<V>(x, dy, dx, [V::load(a), V::load(b), V::load(c), V::load(d)]);
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
        sum_columns::<V, Moments<V>, Moments<Plain<1>>>([x, x], block, k, sums);
    }

    /// Adds what a block contributes to `Σdy` and `Σdy·(x−mean)` of each column.
    fn products_of_columns<V>(
        x: &[f32], dy: &[f32], block: Block, mean: &[f32], sums: [&mut [f64]; 2]
    ) {
        sum_columns::<V, Products<V>, Products<Plain<1>>>([x, dy], block, mean, sums);
    }

    /// `(x − a)·b + c` of rows of `inner` values; `lines` are those of the rows, in order.
    fn line_of_rows<V>(x: &[f32], y: &mut Writer<'_>, inner: usize, lines: &[[f32; 4]]) {
        for (mut x, &line) in x.chunks(inner).zip(lines) {
            while !x.is_empty() {
                let y = y.next(x.len());
                let (now, rest) = x.split_at(y.len());
                line_of_row::<V>(now, y, line);
                x = rest;
            }
        }
    }

    /// `b·((dy − c) − (x − a)·d)` of rows of `inner` values.
    fn slope_of_rows<V>(
        x: &[f32], dy: &[f32], dx: &mut Writer<'_>, inner: usize, slopes: &[[f32; 4]]
    ) {
        for ((mut x, mut dy), &slope) in x.chunks(inner).zip(dy.chunks(inner)).zip(slopes) {
            while !x.is_empty() {
                let dx = dx.next(x.len());
                let (now, rest) = x.split_at(dx.len());
                let (now_dy, rest_dy) = dy.split_at(dx.len());
                slope_of_row::<V>(now, now_dy, dx, slope);
                (x, dy) = (rest, rest_dy);
            }
        }
    }

    /// `(x − a)·b + c` of whole rows of columns.
    fn line_of_columns<V>(x: &[f32], y: &mut Writer<'_>, lines: [&[f32]; 4]) {
        for mut x in x.chunks(lines[0].len()) {
            let mut column = 0;
            while !x.is_empty() {
                let y = y.next(x.len());
                let (now, rest) = x.split_at(y.len());
                let [a, b, c, _] = lines.map(|line| &line[column..column + y.len()]);
                line_of_columns_at::<V>(now, y, [a, b, c]);
                let whole = y.len() / V::COUNT * V::COUNT;
                let last = [a, b, c].map(|line| &line[whole..]);
                line_of_columns_at::<Plain<1>>(&now[whole..], &mut y[whole..], last);
                column += y.len();
                x = rest;
            }
        }
    }

    /// `b·((dy − c) − (x − a)·d)` of whole rows of columns.
    fn slope_of_columns<V>(x: &[f32], dy: &[f32], dx: &mut Writer<'_>, slopes: [&[f32]; 4]) {
        let width = slopes[0].len();
        for (mut x, mut dy) in x.chunks(width).zip(dy.chunks(width)) {
            let mut column = 0;
            while !x.is_empty() {
                let dx = dx.next(x.len());
                let (now, rest) = x.split_at(dx.len());
                let (now_dy, rest_dy) = dy.split_at(dx.len());
                let slopes = slopes.map(|slope| &slope[column..column + dx.len()]);
                slope_of_columns_at::<V>(now, now_dy, dx, slopes);
                let whole = dx.len() / V::COUNT * V::COUNT;
                let last = slopes.map(|slope| &slope[whole..]);
                let (x_last, dy_last) = (&now[whole..], &now_dy[whole..]);
                slope_of_columns_at::<Plain<1>>(x_last, dy_last, &mut dx[whole..], last);
                column += dx.len();
                (x, dy) = (rest, rest_dy);
            }
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

    /// AVX, where it is found, and plain arrays give the same bits for every length of run and
    /// every number of columns.
    #[test]
    fn instructions_do_not_change_the_bits() {
        type P = Plain<LANES>;
        let (x, dy, shift) = (values(3_000, 1), values(3_000, 2), 0.3);
        for n in 1..300 {
            for count in [1, 3, 9] {
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
                sum_columns::<P, Moments<P>, Moments<Plain<1>>>([&x, &x], block, &shifts, plain);
                assert_eq!((&a, &b), (&c, &d), "{n} {count}");
                products_of_columns(&x, &dy, block, &shifts, [&mut a, &mut b]);
                let plain = [c.as_mut_slice(), &mut d];
                sum_columns::<P, Products<P>, Products<Plain<1>>>([&x, &dy], block, &shifts, plain);
                assert_eq!((a, b), (c, d), "{n} {count}");
            }
        }
    }
}
