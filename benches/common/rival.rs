//! The CPU rival: f32 batch norm on all cores, vectorised, for `[outer, C, inner]` in both memory
//! orders. Not the oracle: this is what a CPU can do.
//!
//! Statistics are sums relative to the channel's first value in 16 lanes of f32, flushed to f64
//! every block, so they do not cancel. Channels-first: a thread takes whole channels, so the second
//! pass finds them in its cache; fewer channels than threads are split. Channels-last: a thread takes
//! rows, and accumulates all channels side by side.

use std::thread;

/// `[outer, channels, inner]`.
#[derive(Clone, Copy)]
pub struct View {
    pub outer: usize,
    pub channels: usize,
    pub inner: usize,
}

const LANES: usize = 16;
/// Values summed in f32 before the sums go to f64.
const BLOCK: usize = 4096;
const EPSILON: f64 = 1e-5;

/// One channel's constants: `y = (x − a)·b + c`.
#[derive(Clone, Copy, Default)]
pub struct Line {
    a: f32,
    b: f32,
    c: f32,
}

/// `dx = scale·((dy − offset) − (x − mean)·factor)`.
#[derive(Clone, Copy, Default)]
struct Slope {
    mean: f32,
    scale: f32,
    offset: f32,
    factor: f32,
}

/// Statistics of a channel.
#[derive(Clone, Copy, Default, Debug)]
pub struct Moments {
    pub mean: f64,
    pub variance: f64,
}

/// Runs a function compiled for AVX2 where the machine has it.
macro_rules! vectorised {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),*) $(-> $out:ty)? $body:block) => {
        $(#[$doc])*
        fn $name($($arg: $ty),*) $(-> $out)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $out)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn wide($($arg: $ty),*) $(-> $out)? {
                    body($($arg),*)
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the features were just detected.
                    return unsafe { wide($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}

vectorised! {
    /// Adds `Σ(x−k)` and `Σ(x−k)²` of a run.
    fn add_moments(x: &[f32], k: f32, sums: &mut [f64; 2]) {
        for block in x.chunks(BLOCK) {
            let (mut s, mut q) = ([0.0f32; LANES], [0.0f32; LANES]);
            let chunks = block.chunks_exact(LANES);
            for (i, v) in chunks.remainder().iter().enumerate() {
                let d = v - k;
                s[i] += d;
                q[i] += d * d;
            }
            for chunk in chunks {
                for i in 0..LANES {
                    let d = chunk[i] - k;
                    s[i] += d;
                    q[i] += d * d;
                }
            }
            sums[0] += s.iter().map(|&v| f64::from(v)).sum::<f64>();
            sums[1] += q.iter().map(|&v| f64::from(v)).sum::<f64>();
        }
    }
}

vectorised! {
    fn apply_line(x: &[f32], y: &mut [f32], l: Line) {
        for (x, y) in x.iter().zip(y) {
            *y = (x - l.a) * l.b + l.c;
        }
    }
}

vectorised! {
    /// Adds `Σdy` and `Σdy·(x−mean)` of a run.
    fn add_sums(x: &[f32], dy: &[f32], mean: f32, sums: &mut [f64; 2]) {
        for (x, dy) in x.chunks(BLOCK).zip(dy.chunks(BLOCK)) {
            let (mut s, mut p) = ([0.0f32; LANES], [0.0f32; LANES]);
            let (xs, dys) = (x.chunks_exact(LANES), dy.chunks_exact(LANES));
            for (i, (x, dy)) in xs.remainder().iter().zip(dys.remainder()).enumerate() {
                s[i] += dy;
                p[i] += dy * (x - mean);
            }
            for (x, dy) in xs.zip(dys) {
                for i in 0..LANES {
                    s[i] += dy[i];
                    p[i] += dy[i] * (x[i] - mean);
                }
            }
            sums[0] += s.iter().map(|&v| f64::from(v)).sum::<f64>();
            sums[1] += p.iter().map(|&v| f64::from(v)).sum::<f64>();
        }
    }
}

vectorised! {
    fn apply_slope(x: &[f32], dy: &[f32], dx: &mut [f32], s: Slope) {
        for ((x, dy), dx) in x.iter().zip(dy).zip(dx) {
            *dx = s.scale * ((dy - s.offset) - (x - s.mean) * s.factor);
        }
    }
}

vectorised! {
    /// Adds `x−k` and `(x−k)²` of some rows to sums per column.
    fn add_column_moments(x: &[f32], k: &[f32], s: &mut [f32], q: &mut [f32]) {
        for row in x.chunks_exact(k.len()) {
            for (((x, k), s), q) in row.iter().zip(k).zip(s.iter_mut()).zip(q.iter_mut()) {
                let d = x - k;
                *s += d;
                *q += d * d;
            }
        }
    }
}

vectorised! {
    fn add_column_sums(x: &[f32], dy: &[f32], mean: &[f32], s: &mut [f32], p: &mut [f32]) {
        for (x, dy) in x.chunks_exact(mean.len()).zip(dy.chunks_exact(mean.len())) {
            let columns = x.iter().zip(dy).zip(mean).zip(s.iter_mut()).zip(p.iter_mut());
            for ((((x, dy), mean), s), p) in columns {
                *s += dy;
                *p += dy * (x - mean);
            }
        }
    }
}

vectorised! {
    fn apply_column_lines(x: &[f32], y: &mut [f32], a: &[f32], b: &[f32], c: &[f32]) {
        for (x, y) in x.chunks_exact(a.len()).zip(y.chunks_exact_mut(a.len())) {
            for ((((x, y), a), b), c) in x.iter().zip(y).zip(a).zip(b).zip(c) {
                *y = (x - a) * b + c;
            }
        }
    }
}

vectorised! {
    fn apply_column_slopes(x: &[f32], dy: &[f32], dx: &mut [f32], slopes: [&[f32]; 4]) {
        let [mean, scale, offset, factor] = slopes;
        let n = mean.len();
        for ((x, dy), dx) in x.chunks_exact(n).zip(dy.chunks_exact(n)).zip(dx.chunks_exact_mut(n)) {
            let constants = mean.iter().zip(scale).zip(offset).zip(factor);
            for (((x, dy), dx), (((mean, scale), offset), factor)) in
                x.iter().zip(dy).zip(dx).zip(constants)
            {
                *dx = scale * ((dy - offset) - (x - mean) * factor);
            }
        }
    }
}

/// A tensor that several threads write, each its own places.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: `slice` is only used on places that one thread alone owns.
unsafe impl Send for Shared {}
unsafe impl Sync for Shared {}

impl Shared {
    /// # Safety
    /// No other thread may use these places meanwhile, and they must lie in the tensor.
    unsafe fn slice<'a>(self, start: usize, length: usize) -> &'a mut [f32] {
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), length) }
    }
}

fn threads(work: usize) -> usize {
    // A thread costs about 20 µs to start: 64 Ki values are twice that.
    let cores = thread::available_parallelism().map_or(1, usize::from);
    cores.min(work / 65_536 + 1)
}

/// Runs `task(i)` for all `i` below `count`, each thread a contiguous share.
fn parallel<T: Send>(count: usize, workers: usize, task: impl Fn(usize) -> T + Sync) -> Vec<T> {
    if workers <= 1 || count <= 1 {
        return (0..count).map(task).collect();
    }
    let share = count.div_ceil(workers);
    thread::scope(|scope| {
        let task = &task;
        let handles: Vec<_> = (0..count)
            .step_by(share)
            .map(|start| {
                scope.spawn(move || {
                    (start..(start + share).min(count)).map(task).collect::<Vec<T>>()
                })
            })
            .collect();
        handles.into_iter().flat_map(|handle| handle.join().expect("a worker panicked")).collect()
    })
}

impl View {
    fn len(&self) -> usize {
        self.outer * self.channels * self.inner
    }

    fn is_columns(&self) -> bool {
        self.inner == 1 && self.channels > 1
    }

    /// The contiguous runs of a channel's `part`-th of `parts`.
    fn runs(
        &self,
        channel: usize,
        part: usize,
        parts: usize,
    ) -> impl Iterator<Item = (usize, usize)> {
        // One long row is split inside, several rows are split between rows.
        let Self { outer, channels, inner } = *self;
        let (rows, columns) = if outer >= parts {
            (outer * part / parts..outer * (part + 1) / parts, 0..inner)
        } else {
            (0..outer, inner * part / parts..inner * (part + 1) / parts)
        };
        rows.map(move |o| ((o * channels + channel) * inner + columns.start, columns.len()))
    }

    /// Rows of a channels-last tensor in shares of about 64 KiB.
    fn row_shares(&self) -> Vec<(usize, usize)> {
        let rows = (16_384 / self.channels).clamp(1, self.outer);
        (0..self.outer).step_by(rows).map(|row| (row, rows.min(self.outer - row))).collect()
    }
}

fn moments(sums: [f64; 2], k: f32, n: f64) -> Moments {
    let mean = sums[0] / n;
    Moments { mean: f64::from(k) + mean, variance: (sums[1] / n - mean * mean).max(0.0) }
}

fn add(a: [f64; 2], b: [f64; 2]) -> [f64; 2] {
    [a[0] + b[0], a[1] + b[1]]
}

fn line(m: Moments, gamma: f32, beta: f32) -> Line {
    let b = f64::from(gamma) / (m.variance + EPSILON).sqrt();
    Line { a: m.mean as f32, b: b as f32, c: beta }
}

/// Training forward; gives the batch statistics.
pub fn forward(v: View, x: &[f32], y: &mut [f32], gamma: &[f32], beta: &[f32]) -> Vec<Moments> {
    let n = (v.outer * v.inner) as f64;
    let workers = threads(v.len());
    let out = Shared(y.as_mut_ptr());
    if v.is_columns() {
        let k = &x[..v.channels];
        let sums = column_reduce(v, workers, &|rows, s, q| {
            add_column_moments(&x[rows.0 * v.channels..][..rows.1 * v.channels], k, s, q);
        });
        let all: Vec<Moments> = (0..v.channels).map(|c| moments(sums[c], k[c], n)).collect();
        let lines: Vec<Line> = (0..v.channels).map(|c| line(all[c], gamma[c], beta[c])).collect();
        column_lines(v, workers, x, out, &lines);
        return all;
    }
    let statistics = |c: usize, part, parts| {
        let mut sums = [0.0; 2];
        for (start, length) in v.runs(c, part, parts) {
            add_moments(&x[start..start + length], x[c * v.inner], &mut sums);
        }
        sums
    };
    let apply = |c: usize, part, parts, line| {
        for (start, length) in v.runs(c, part, parts) {
            // SAFETY: a channel's part belongs to one thread.
            apply_line(&x[start..start + length], unsafe { out.slice(start, length) }, line);
        }
    };
    if v.channels >= workers {
        return parallel(v.channels, workers, |c| {
            let m = moments(statistics(c, 0, 1), x[c * v.inner], n);
            apply(c, 0, 1, line(m, gamma[c], beta[c]));
            m
        });
    }
    (0..v.channels)
        .map(|c| {
            let parts = parallel(workers, workers, |part| statistics(c, part, workers));
            let m = moments(parts.into_iter().fold([0.0; 2], add), x[c * v.inner], n);
            let line = line(m, gamma[c], beta[c]);
            parallel(workers, workers, |part| apply(c, part, workers, line));
            m
        })
        .collect()
}

/// Inference with given statistics.
pub fn inference(v: View, x: &[f32], y: &mut [f32], gamma: &[f32], beta: &[f32], m: &[Moments]) {
    let workers = threads(v.len());
    let lines: Vec<Line> = (0..v.channels).map(|c| line(m[c], gamma[c], beta[c])).collect();
    let out = Shared(y.as_mut_ptr());
    if v.is_columns() {
        return column_lines(v, workers, x, out, &lines);
    }
    let rows = v.outer * v.channels;
    // Rows are contiguous: one after another, whatever the channel; a few long ones are split.
    let split = (workers * 4).div_ceil(rows).max(1);
    parallel(rows * split, workers, |i| {
        let (row, part) = (i / split, i % split);
        let (start, end) = (v.inner * part / split, v.inner * (part + 1) / split);
        let (start, length) = (row * v.inner + start, end - start);
        // SAFETY: a part of a row belongs to one thread.
        let y = unsafe { out.slice(start, length) };
        apply_line(&x[start..start + length], y, lines[row % v.channels]);
    });
}

/// Training backward; gives `dgamma` and `dbeta`.
pub fn backward(
    v: View,
    x: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    gamma: &[f32],
    m: &[Moments],
) -> Vec<[f32; 2]> {
    let n = (v.outer * v.inner) as f64;
    let workers = threads(v.len());
    let out = Shared(dx.as_mut_ptr());
    let slope = |c: usize, s: [f64; 2]| {
        let i = 1.0 / (m[c].variance + EPSILON).sqrt();
        Slope {
            mean: m[c].mean as f32,
            scale: (f64::from(gamma[c]) * i) as f32,
            offset: (s[0] / n) as f32,
            factor: (i * i * s[1] / n) as f32,
        }
    };
    let gradients =
        |c: usize, s: [f64; 2]| [(s[1] / (m[c].variance + EPSILON).sqrt()) as f32, s[0] as f32];
    if v.is_columns() {
        let mean: Vec<f32> = m.iter().map(|m| m.mean as f32).collect();
        let piece = |rows: (usize, usize)| rows.0 * v.channels..(rows.0 + rows.1) * v.channels;
        let sums = column_reduce(v, workers, &|rows, s, p| {
            add_column_sums(&x[piece(rows)], &dy[piece(rows)], &mean, s, p);
        });
        let slopes: Vec<Slope> = (0..v.channels).map(|c| slope(c, sums[c])).collect();
        let constant = |f: fn(&Slope) -> f32| slopes.iter().map(f).collect::<Vec<f32>>();
        let (scale, offset, factor) =
            (constant(|s| s.scale), constant(|s| s.offset), constant(|s| s.factor));
        let shares = v.row_shares();
        parallel(shares.len(), workers, |i| {
            let piece = piece(shares[i]);
            // SAFETY: a share of rows belongs to one thread.
            let dx = unsafe { out.slice(piece.start, piece.len()) };
            let slopes = [mean.as_slice(), &scale, &offset, &factor];
            apply_column_slopes(&x[piece.clone()], &dy[piece], dx, slopes);
        });
        return (0..v.channels).map(|c| gradients(c, sums[c])).collect();
    }
    let reduce = |c: usize, part, parts| {
        let mut sums = [0.0; 2];
        for (start, length) in v.runs(c, part, parts) {
            let run = start..start + length;
            add_sums(&x[run.clone()], &dy[run], m[c].mean as f32, &mut sums);
        }
        sums
    };
    let apply = |c: usize, part, parts, slope| {
        for (start, length) in v.runs(c, part, parts) {
            let run = start..start + length;
            // SAFETY: a channel's part belongs to one thread.
            let dx = unsafe { out.slice(start, length) };
            apply_slope(&x[run.clone()], &dy[run], dx, slope);
        }
    };
    if v.channels >= workers {
        return parallel(v.channels, workers, |c| {
            let sums = reduce(c, 0, 1);
            apply(c, 0, 1, slope(c, sums));
            gradients(c, sums)
        });
    }
    (0..v.channels)
        .map(|c| {
            let parts = parallel(workers, workers, |part| reduce(c, part, workers));
            let sums = parts.into_iter().fold([0.0; 2], add);
            let slope = slope(c, sums);
            parallel(workers, workers, |part| apply(c, part, workers, slope));
            gradients(c, sums)
        })
        .collect()
}

/// Adds what some rows (start and count) contribute to two sums per column.
type ColumnTask<'a> = dyn Fn((usize, usize), &mut [f32], &mut [f32]) + Sync + 'a;

/// Two sums per column: f32 within a share of rows, f64 between shares.
fn column_reduce(v: View, workers: usize, task: &ColumnTask<'_>) -> Vec<[f64; 2]> {
    let shares = v.row_shares();
    let groups = workers.min(shares.len());
    let parts = parallel(groups, groups, |group| {
        let mut totals = vec![[0.0; 2]; v.channels];
        let (mut s, mut q) = (vec![0.0; v.channels], vec![0.0; v.channels]);
        for &share in &shares[shares.len() * group / groups..shares.len() * (group + 1) / groups] {
            s.fill(0.0);
            q.fill(0.0);
            task(share, &mut s, &mut q);
            for ((total, s), q) in totals.iter_mut().zip(&s).zip(&q) {
                *total = add(*total, [f64::from(*s), f64::from(*q)]);
            }
        }
        totals
    });
    parts
        .into_iter()
        .reduce(|a, b| a.iter().zip(b).map(|(a, b)| add(*a, b)).collect())
        .unwrap_or_default()
}

fn column_lines(v: View, workers: usize, x: &[f32], out: Shared, lines: &[Line]) {
    let constant = |f: fn(&Line) -> f32| lines.iter().map(f).collect::<Vec<f32>>();
    let (a, b, c) = (constant(|l| l.a), constant(|l| l.b), constant(|l| l.c));
    let shares = v.row_shares();
    parallel(shares.len(), workers, |i| {
        let (start, length) = (shares[i].0 * v.channels, shares[i].1 * v.channels);
        // SAFETY: a share of rows belongs to one thread.
        let y = unsafe { out.slice(start, length) };
        apply_column_lines(&x[start..start + length], y, &a, &b, &c);
    });
}
