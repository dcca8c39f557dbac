//! The loops over f32 values: eight lanes side by side, compiled for AVX2 where the machine has it.
//! No multiplication is contracted with an addition and every order is fixed, so that all machines
//! give the same bits.
//!
//! Sums are f32 over at most [`DEPTH`] values a lane, and f64 beyond.

use super::output::Writer;

/// Values side by side.
const LANES: usize = 8;
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
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),*) $(-> $out:ty)? $body:block)*) => {$(
        $(#[$doc])*
        #[allow(unsafe_code, reason = "a function for AVX2 is called where AVX2 was found")]
        pub(super) fn $name($($arg: $ty),*) $(-> $out)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $out)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn wide($($arg: $ty),*) $(-> $out)? {
                    body($($arg),*)
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: AVX2 was just found.
                    return unsafe { wide($($arg),*) };
                }
            }
            body($($arg),*)
        }
    )*};
}

type Lanes = [f32; LANES];

#[inline(always)]
fn lanes(values: &[f32]) -> &Lanes {
    values.try_into().expect("bug: as many values as lanes")
}

/// A short vector, filled up.
#[inline(always)]
fn padded(values: &[f32], filler: f32) -> Lanes {
    let mut all = [filler; LANES];
    all[..values.len()].copy_from_slice(values);
    all
}

#[inline(always)]
fn total(lanes: [f64; LANES]) -> f64 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

#[inline(always)]
fn add_moments<const N: usize>(x: &[f32; N], k: &[f32; N], s: &mut [f32; N], q: &mut [f32; N]) {
    for i in 0..N {
        let d = x[i] - k[i];
        s[i] += d;
        q[i] += d * SQUARE_SCALE * d;
    }
}

#[inline(always)]
fn add_products<const N: usize>(
    x: &[f32; N],
    dy: &[f32; N],
    mean: &[f32; N],
    s: &mut [f32; N],
    p: &mut [f32; N],
) {
    for i in 0..N {
        s[i] += dy[i];
        p[i] += dy[i] * (x[i] - mean[i]);
    }
}

#[inline(always)]
fn add_wide<const N: usize>(to: &mut [f64], from: [f32; N]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += f64::from(from);
    }
}

/// The same N columns of up to DEPTH rows.
#[inline(always)]
fn column_moments<const N: usize>(
    rows: &[&[f32]],
    j: usize,
    k: &[f32],
    [sums, squares]: [&mut [f64]; 2],
) {
    let of = |values: &[f32]| -> [f32; N] { values[j..j + N].try_into().expect("bug: N columns") };
    let (k, mut s, mut q) = (of(k), [0.0; N], [0.0; N]);
    for row in rows {
        add_moments(&of(row), &k, &mut s, &mut q);
    }
    add_wide(&mut sums[j..j + N], s);
    add_wide(&mut squares[j..j + N], q);
}

#[inline(always)]
fn column_products<const N: usize>(
    rows: &[(&[f32], &[f32])],
    j: usize,
    mean: &[f32],
    [sums, products]: [&mut [f64]; 2],
) {
    let of = |values: &[f32]| -> [f32; N] { values[j..j + N].try_into().expect("bug: N columns") };
    let (mean, mut s, mut p) = (of(mean), [0.0; N], [0.0; N]);
    for (x, dy) in rows {
        add_products(&of(x), &of(dy), &mean, &mut s, &mut p);
    }
    add_wide(&mut sums[j..j + N], s);
    add_wide(&mut products[j..j + N], p);
}

vectorised! {
    /// `Σ(x−k)` and `Σ(x−k)²`, the squares scaled.
    fn moments_of_runs(x: &[f32], runs: Runs, k: f32) -> Sums {
        let (mut sums, mut squares) = ([0.0; LANES], [0.0; LANES]);
        let ks = [k; LANES];
        for i in 0..runs.count {
            for block in x[runs.start + i * runs.stride..][..runs.length].chunks(LANES * DEPTH) {
                let (mut s, mut q) = ([0.0; LANES], [0.0; LANES]);
                let vectors = block.chunks_exact(LANES);
                let rest = vectors.remainder();
                for x in vectors {
                    add_moments(lanes(x), &ks, &mut s, &mut q);
                }
                if !rest.is_empty() {
                    add_moments(&padded(rest, k), &ks, &mut s, &mut q);
                }
                add_wide(&mut sums, s);
                add_wide(&mut squares, q);
            }
        }
        [total(sums), total(squares)]
    }

    /// `Σdy` and `Σdy·(x−mean)`.
    fn products_of_runs(x: &[f32], dy: &[f32], runs: Runs, mean: f32) -> Sums {
        let (mut sums, mut products) = ([0.0; LANES], [0.0; LANES]);
        let means = [mean; LANES];
        for i in 0..runs.count {
            let start = runs.start + i * runs.stride;
            let run = x[start..][..runs.length].chunks(LANES * DEPTH);
            for (x, dy) in run.zip(dy[start..][..runs.length].chunks(LANES * DEPTH)) {
                let (mut s, mut p) = ([0.0; LANES], [0.0; LANES]);
                let (xs, dys) = (x.chunks_exact(LANES), dy.chunks_exact(LANES));
                let (x, dy) = (xs.remainder(), dys.remainder());
                for (x, dy) in xs.zip(dys) {
                    add_products(lanes(x), lanes(dy), &means, &mut s, &mut p);
                }
                if !x.is_empty() {
                    let (x, dy) = (padded(x, mean), padded(dy, 0.0));
                    add_products(&x, &dy, &means, &mut s, &mut p);
                }
                add_wide(&mut sums, s);
                add_wide(&mut products, p);
            }
        }
        [total(sums), total(products)]
    }

    /// Adds what a block contributes to `Σ(x−k)` and `Σ(x−k)²` of each column, the squares scaled.
    fn moments_of_columns(x: &[f32], block: Block, k: &[f32], sums: [&mut [f64]; 2]) {
        let n = k.len();
        let [s, q] = sums;
        let row = |r: usize| &x[block.start + r * block.width..][..n];
        let whole = block.rows / DEPTH * DEPTH;
        for first in (0..whole).step_by(DEPTH) {
            let rows: [&[f32]; DEPTH] = std::array::from_fn(|i| row(first + i));
            for j in (0..n / LANES * LANES).step_by(LANES) {
                column_moments::<LANES>(&rows, j, k, [s, q]);
            }
            for j in n / LANES * LANES..n {
                column_moments::<1>(&rows, j, k, [s, q]);
            }
        }
        for r in whole..block.rows {
            for j in (0..n / LANES * LANES).step_by(LANES) {
                column_moments::<LANES>(&[row(r)], j, k, [s, q]);
            }
            for j in n / LANES * LANES..n {
                column_moments::<1>(&[row(r)], j, k, [s, q]);
            }
        }
    }

    /// Adds what a block contributes to `Σdy` and `Σdy·(x−mean)` of each column.
    fn products_of_columns(x: &[f32], dy: &[f32], block: Block, mean: &[f32], sums: [&mut [f64]; 2]) {
        let n = mean.len();
        let [s, p] = sums;
        let row = |r: usize| {
            let start = block.start + r * block.width;
            (&x[start..][..n], &dy[start..][..n])
        };
        let whole = block.rows / DEPTH * DEPTH;
        for first in (0..whole).step_by(DEPTH) {
            let rows: [(&[f32], &[f32]); DEPTH] = std::array::from_fn(|i| row(first + i));
            for j in (0..n / LANES * LANES).step_by(LANES) {
                column_products::<LANES>(&rows, j, mean, [s, p]);
            }
            for j in n / LANES * LANES..n {
                column_products::<1>(&rows, j, mean, [s, p]);
            }
        }
        for r in whole..block.rows {
            for j in (0..n / LANES * LANES).step_by(LANES) {
                column_products::<LANES>(&[row(r)], j, mean, [s, p]);
            }
            for j in n / LANES * LANES..n {
                column_products::<1>(&[row(r)], j, mean, [s, p]);
            }
        }
    }

    /// `(x − a)·b + c` of rows of `inner` values; `lines` are those of the rows, in order.
    fn line_of_rows(x: &[f32], y: &mut Writer<'_>, inner: usize, lines: &[[f32; 4]]) {
        for (mut x, &[a, b, c, _]) in x.chunks(inner).zip(lines) {
            while !x.is_empty() {
                let y = y.next(x.len());
                let (now, rest) = x.split_at(y.len());
                for (x, y) in now.iter().zip(y) {
                    *y = (x - a) * b + c;
                }
                x = rest;
            }
        }
    }

    /// `b·((dy − c) − (x − a)·d)` of rows of `inner` values.
    fn slope_of_rows(
        x: &[f32], dy: &[f32], dx: &mut Writer<'_>, inner: usize, slopes: &[[f32; 4]]
    ) {
        for ((mut x, mut dy), &[a, b, c, d]) in x.chunks(inner).zip(dy.chunks(inner)).zip(slopes) {
            while !x.is_empty() {
                let dx = dx.next(x.len());
                let (x_now, x_rest) = x.split_at(dx.len());
                let (dy_now, dy_rest) = dy.split_at(dx.len());
                for ((x, dy), dx) in x_now.iter().zip(dy_now).zip(dx) {
                    *dx = b * ((dy - c) - (x - a) * d);
                }
                (x, dy) = (x_rest, dy_rest);
            }
        }
    }

    /// `(x − a)·b + c` of whole rows of columns.
    fn line_of_columns(x: &[f32], y: &mut Writer<'_>, lines: [&[f32]; 4]) {
        let [a, b, c, _] = lines;
        for mut x in x.chunks(a.len()) {
            let mut j = 0;
            while !x.is_empty() {
                let y = y.next(x.len());
                let (now, rest) = x.split_at(y.len());
                let lines = a[j..].iter().zip(&b[j..]).zip(&c[j..]);
                for ((x, y), ((a, b), c)) in now.iter().zip(y.iter_mut()).zip(lines) {
                    *y = (x - a) * b + c;
                }
                j += y.len();
                x = rest;
            }
        }
    }

    /// `b·((dy − c) − (x − a)·d)` of whole rows of columns.
    fn slope_of_columns(x: &[f32], dy: &[f32], dx: &mut Writer<'_>, slopes: [&[f32]; 4]) {
        let [a, b, c, d] = slopes;
        for (mut x, mut dy) in x.chunks(a.len()).zip(dy.chunks(a.len())) {
            let mut j = 0;
            while !x.is_empty() {
                let dx = dx.next(x.len());
                let (x_now, x_rest) = x.split_at(dx.len());
                let (dy_now, dy_rest) = dy.split_at(dx.len());
                let slopes = a[j..].iter().zip(&b[j..]).zip(&c[j..]).zip(&d[j..]);
                let values = x_now.iter().zip(dy_now).zip(dx.iter_mut());
                for (((x, dy), dx), (((a, b), c), d)) in values.zip(slopes) {
                    *dx = b * ((dy - c) - (x - a) * d);
                }
                j += dx.len();
                (x, dy) = (x_rest, dy_rest);
            }
        }
    }
}
