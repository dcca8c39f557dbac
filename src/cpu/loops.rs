//! The loops over f32 values: eight lanes side by side, compiled for AVX2 where the machine has it.
//! No multiplication is contracted with an addition and every order is fixed, so that all machines
//! give the same bits.
//!
//! Sums are f32 over at most [`DEPTH`] values a lane, and f64 beyond.

use super::output::Writer;
use super::vector::{LANES, Plain, Vector};

/// Values of one lane (of one column) that are summed in f32.
pub(super) const DEPTH: usize = 8;

/// Two sums of a channel.
pub(super) type Sums = [f64; 2];

/// What squares are scaled by, so that a sum of DEPTH of them overflows only where one does.
pub(super) const SQUARE_SCALE: f32 = 1.0 / 16.0;

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
    ($($(#[$doc:meta])* fn $name:ident<$V:ident>($($arg:ident: $ty:ty),*) $(-> $out:ty)? $body:block)*) => {$(
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

/// A short vector, filled up.
#[inline(always)]
fn padded<V: Vector>(values: &[f32], filler: f32) -> V {
    let mut all = [filler; LANES];
    for (to, from) in all.iter_mut().zip(values) {
        *to = *from;
    }
    V::load(&all)
}

#[inline(always)]
fn total(lanes: [f64; LANES]) -> f64 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// `Σ(x−k)` and `Σ(x−k)²` of up to DEPTH vectors.
#[derive(Clone, Copy)]
struct Moments<V> {
    k: V,
    scale: V,
    sum: V,
    squares: V,
}

impl<V: Vector> Moments<V> {
    #[inline(always)]
    fn new(k: V) -> Self {
        Self { k, scale: V::splat(SQUARE_SCALE), sum: V::splat(0.0), squares: V::splat(0.0) }
    }

    #[inline(always)]
    fn add(&mut self, x: V) {
        let d = x.sub(self.k);
        self.sum = self.sum.add(d);
        self.squares = self.squares.add(d.mul(self.scale).mul(d));
    }
}

/// `Σdy` and `Σdy·(x−mean)` of up to DEPTH vectors.
#[derive(Clone, Copy)]
struct Products<V> {
    mean: V,
    sum: V,
    products: V,
}

impl<V: Vector> Products<V> {
    #[inline(always)]
    fn new(mean: V) -> Self {
        Self { mean, sum: V::splat(0.0), products: V::splat(0.0) }
    }

    #[inline(always)]
    fn add(&mut self, x: V, dy: V) {
        self.sum = self.sum.add(dy);
        self.products = self.products.add(dy.mul(x.sub(self.mean)));
    }
}

/// Columns of up to DEPTH rows: vectors of them, and the rest filled up.
#[inline(always)]
fn column_moments<V: Vector>(rows: &[&[f32]], k: &[f32], sums: [&mut [f64]; 2]) {
    let [sums, squares] = sums;
    let n = k.len();
    for j in (0..n / LANES * LANES).step_by(LANES) {
        let at = j..j + LANES;
        let mut m = Moments::new(V::load(&k[at.clone()]));
        for row in rows {
            m.add(V::load(&row[at.clone()]));
        }
        m.sum.add_to(&mut sums[at.clone()]);
        m.squares.add_to(&mut squares[at]);
    }
    for j in n / LANES * LANES..n {
        let (mut s, mut q) = (0.0, 0.0);
        for row in rows {
            let d = row[j] - k[j];
            s += d;
            q += d * SQUARE_SCALE * d;
        }
        sums[j] += f64::from(s);
        squares[j] += f64::from(q);
    }
}

#[inline(always)]
fn column_products<V: Vector>(rows: &[(&[f32], &[f32])], mean: &[f32], sums: [&mut [f64]; 2]) {
    let [sums, products] = sums;
    let n = mean.len();
    for j in (0..n / LANES * LANES).step_by(LANES) {
        let at = j..j + LANES;
        let mut p = Products::new(V::load(&mean[at.clone()]));
        for (x, dy) in rows {
            p.add(V::load(&x[at.clone()]), V::load(&dy[at.clone()]));
        }
        p.sum.add_to(&mut sums[at.clone()]);
        p.products.add_to(&mut products[at]);
    }
    for j in n / LANES * LANES..n {
        let (mut s, mut p) = (0.0, 0.0);
        for (x, dy) in rows {
            s += dy[j];
            p += dy[j] * (x[j] - mean[j]);
        }
        sums[j] += f64::from(s);
        products[j] += f64::from(p);
    }
}

/// Four constants of a channel, or of each column.
trait Constants {
    fn vector<V: Vector>(&self, which: usize, column: usize) -> V;
    fn value(&self, which: usize, column: usize) -> f32;
}

impl Constants for [f32; 4] {
    #[inline(always)]
    fn vector<V: Vector>(&self, which: usize, _: usize) -> V {
        V::splat(self[which])
    }

    #[inline(always)]
    fn value(&self, which: usize, _: usize) -> f32 {
        self[which]
    }
}

impl Constants for [&[f32]; 4] {
    #[inline(always)]
    fn vector<V: Vector>(&self, which: usize, column: usize) -> V {
        V::load(&self[which][column..column + LANES])
    }

    #[inline(always)]
    fn value(&self, which: usize, column: usize) -> f32 {
        self[which][column]
    }
}

/// `y = (x − a)·b + c` of a row.
#[inline(always)]
fn line_of_row<V: Vector>(mut x: &[f32], y: &mut Writer<'_>, c: &impl Constants) {
    let mut column = 0;
    while !x.is_empty() {
        let y = y.next(x.len());
        let (now, rest) = x.split_at(y.len());
        x = rest;
        let (xs, mut ys) = (now.chunks_exact(LANES), y.chunks_exact_mut(LANES));
        let last = xs.remainder();
        for (x, y) in xs.zip(&mut ys) {
            let d = V::load(x).sub(c.vector(0, column));
            d.mul(c.vector(1, column)).add(c.vector(2, column)).store(y);
            column += LANES;
        }
        for (x, y) in last.iter().zip(ys.into_remainder()) {
            *y = (x - c.value(0, column)) * c.value(1, column) + c.value(2, column);
            column += 1;
        }
    }
}

/// `dx = b·((dy − c) − (x − a)·d)` of a row.
#[inline(always)]
fn slope_of_row<V: Vector>(
    mut x: &[f32],
    mut dy: &[f32],
    dx: &mut Writer<'_>,
    c: &impl Constants,
) {
    let mut column = 0;
    while !x.is_empty() {
        let dx = dx.next(x.len());
        let ((x_now, x_rest), (dy_now, dy_rest)) = (x.split_at(dx.len()), dy.split_at(dx.len()));
        (x, dy) = (x_rest, dy_rest);
        let (xs, dys) = (x_now.chunks_exact(LANES), dy_now.chunks_exact(LANES));
        let (last_x, last_dy) = (xs.remainder(), dys.remainder());
        let mut dxs = dx.chunks_exact_mut(LANES);
        for ((x, dy), dx) in xs.zip(dys).zip(&mut dxs) {
            let slope = V::load(x).sub(c.vector(0, column)).mul(c.vector(3, column));
            let level = V::load(dy).sub(c.vector(2, column));
            c.vector::<V>(1, column).mul(level.sub(slope)).store(dx);
            column += LANES;
        }
        for ((x, dy), dx) in last_x.iter().zip(last_dy).zip(dxs.into_remainder()) {
            let slope = (x - c.value(0, column)) * c.value(3, column);
            *dx = c.value(1, column) * ((dy - c.value(2, column)) - slope);
            column += 1;
        }
    }
}

vectorised! {
    /// `Σ(x−k)` and `Σ(x−k)²`, the squares scaled.
    fn moments_of_runs<V>(x: &[f32], runs: Runs, k: f32) -> Sums {
        let (mut sums, mut squares) = ([0.0; LANES], [0.0; LANES]);
        for i in 0..runs.count {
            for block in x[runs.start + i * runs.stride..][..runs.length].chunks(LANES * DEPTH) {
                let mut m = Moments::new(V::splat(k));
                let vectors = block.chunks_exact(LANES);
                let rest = vectors.remainder();
                for x in vectors {
                    m.add(V::load(x));
                }
                if !rest.is_empty() {
                    m.add(padded(rest, k));
                }
                m.sum.add_to(&mut sums);
                m.squares.add_to(&mut squares);
            }
        }
        [total(sums), total(squares)]
    }

    /// `Σdy` and `Σdy·(x−mean)`.
    fn products_of_runs<V>(x: &[f32], dy: &[f32], runs: Runs, mean: f32) -> Sums {
        let (mut sums, mut products) = ([0.0; LANES], [0.0; LANES]);
        for i in 0..runs.count {
            let start = runs.start + i * runs.stride;
            let run = x[start..][..runs.length].chunks(LANES * DEPTH);
            for (x, dy) in run.zip(dy[start..][..runs.length].chunks(LANES * DEPTH)) {
                let mut p = Products::new(V::splat(mean));
                let (xs, dys) = (x.chunks_exact(LANES), dy.chunks_exact(LANES));
                let (x, dy) = (xs.remainder(), dys.remainder());
                for (x, dy) in xs.zip(dys) {
                    p.add(V::load(x), V::load(dy));
                }
                if !x.is_empty() {
                    p.add(padded(x, mean), padded(dy, 0.0));
                }
                p.sum.add_to(&mut sums);
                p.products.add_to(&mut products);
            }
        }
        [total(sums), total(products)]
    }

    /// Adds what a block contributes to `Σ(x−k)` and `Σ(x−k)²` of each column, the squares scaled.
    fn moments_of_columns<V>(x: &[f32], block: Block, k: &[f32], sums: [&mut [f64]; 2]) {
        let [s, q] = sums;
        let row = |r: usize| &x[block.start + r * block.width..][..k.len()];
        let whole = block.rows / DEPTH * DEPTH;
        for first in (0..whole).step_by(DEPTH) {
            let rows: [&[f32]; DEPTH] = std::array::from_fn(|i| row(first + i));
            column_moments::<V>(&rows, k, [s, q]);
        }
        for r in whole..block.rows {
            column_moments::<V>(&[row(r)], k, [s, q]);
        }
    }

    /// Adds what a block contributes to `Σdy` and `Σdy·(x−mean)` of each column.
    fn products_of_columns<V>(
        x: &[f32], dy: &[f32], block: Block, mean: &[f32], sums: [&mut [f64]; 2]
    ) {
        let [s, p] = sums;
        let row = |r: usize| {
            let start = block.start + r * block.width;
            (&x[start..][..mean.len()], &dy[start..][..mean.len()])
        };
        let whole = block.rows / DEPTH * DEPTH;
        for first in (0..whole).step_by(DEPTH) {
            let rows: [(&[f32], &[f32]); DEPTH] = std::array::from_fn(|i| row(first + i));
            column_products::<V>(&rows, mean, [s, p]);
        }
        for r in whole..block.rows {
            column_products::<V>(&[row(r)], mean, [s, p]);
        }
    }

    /// `(x − a)·b + c` of rows of `inner` values; `lines` are those of the rows, in order.
    fn line_of_rows<V>(x: &[f32], y: &mut Writer<'_>, inner: usize, lines: &[[f32; 4]]) {
        for (x, line) in x.chunks(inner).zip(lines) {
            line_of_row::<V>(x, y, line);
        }
    }

    /// `b·((dy − c) − (x − a)·d)` of rows of `inner` values.
    fn slope_of_rows<V>(
        x: &[f32], dy: &[f32], dx: &mut Writer<'_>, inner: usize, slopes: &[[f32; 4]]
    ) {
        for ((x, dy), slope) in x.chunks(inner).zip(dy.chunks(inner)).zip(slopes) {
            slope_of_row::<V>(x, dy, dx, slope);
        }
    }

    /// `(x − a)·b + c` of whole rows of columns.
    fn line_of_columns<V>(x: &[f32], y: &mut Writer<'_>, lines: [&[f32]; 4]) {
        for x in x.chunks(lines[0].len()) {
            line_of_row::<V>(x, y, &lines);
        }
    }

    /// `b·((dy − c) − (x − a)·d)` of whole rows of columns.
    fn slope_of_columns<V>(x: &[f32], dy: &[f32], dx: &mut Writer<'_>, slopes: [&[f32]; 4]) {
        let width = slopes[0].len();
        for (x, dy) in x.chunks(width).zip(dy.chunks(width)) {
            slope_of_row::<V>(x, dy, dx, &slopes);
        }
    }
}
