//! A tensor that several threads write, each its own places; past the caches if that pays.

#![allow(unsafe_code, reason = "threads write parts of one tensor that do not lie together")]

use std::marker::PhantomData;
use std::ops::Range;

/// Bytes of a tensor from which on it is written past the caches, which do not hold it until someone
/// reads it: 3 to 10 % of the time for 100 MB, nothing for 25 MB (AMD EPYC with 32 MiB of L3).
const STREAM_SIZE: usize = 64 << 20;

/// Floats in a cache line of 64 bytes.
const LINE: usize = 16;
/// Floats that are computed in the first cache before they go out.
const STAGE: usize = 2048;

/// The tensor.
pub(super) struct Output<'a> {
    pointer: *mut f32,
    length: usize,
    stream: bool,
    tensor: PhantomData<&'a mut [f32]>,
}

// SAFETY: threads reach the tensor through `write`, whose callers keep to their own places.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    pub(super) fn new(tensor: &'a mut [f32]) -> Self {
        let (pointer, length) = (tensor.as_mut_ptr(), tensor.len());
        let stream = length * size_of::<f32>() >= STREAM_SIZE && can_stream();
        Self { pointer, length, stream, tensor: PhantomData }
    }

    /// Writes the places of `range`, in order.
    ///
    /// # Safety
    /// Nobody else may have any of these places meanwhile.
    pub(super) unsafe fn write(&self, range: Range<usize>, write: impl FnOnce(&mut Writer<'_>)) {
        assert!(range.start <= range.end && range.end <= self.length, "bug: outside the tensor");
        // SAFETY: the range lies in the tensor, which outlives this call, and it is ours alone.
        let rest =
            unsafe { std::slice::from_raw_parts_mut(self.pointer.add(range.start), range.len()) };
        if self.stream {
            let mut stage = [0.0; STAGE];
            let mut writer = Writer { rest, stage: Some(&mut stage), staged: 0 };
            write(&mut writer);
            writer.flush();
            fence();
        } else {
            write(&mut Writer { rest, stage: None, staged: 0 });
        }
    }
}

/// Writes neighbouring places in order.
pub(super) struct Writer<'a> {
    rest: &'a mut [f32],
    stage: Option<&'a mut [f32; STAGE]>,
    staged: usize,
}

impl Writer<'_> {
    /// The next places, at most `count` and at least one of those that are left. The caller fills
    /// them before it asks again.
    #[inline(always)]
    pub(super) fn next(&mut self, count: usize) -> &mut [f32] {
        if self.stage.is_none() {
            let (next, rest) = std::mem::take(&mut self.rest).split_at_mut(count);
            self.rest = rest;
            return next;
        }
        self.next_staged(count)
    }

    fn next_staged(&mut self, count: usize) -> &mut [f32] {
        // The stage ends where a cache line ends.
        let misplaced = self.rest.as_ptr() as usize / size_of::<f32>() % LINE;
        let mut capacity = STAGE - misplaced;
        if self.staged == capacity {
            self.flush();
            capacity = STAGE;
        }
        let count = count.min(capacity - self.staged);
        let next = self.staged..self.staged + count;
        self.staged += count;
        match &mut self.stage {
            Some(stage) => &mut stage[next],
            None => &mut [],
        }
    }

    fn flush(&mut self) {
        if let Some(stage) = &self.stage {
            let (out, rest) = std::mem::take(&mut self.rest).split_at_mut(self.staged);
            stream(&stage[..self.staged], out);
            self.rest = rest;
            self.staged = 0;
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn can_stream() -> bool {
    is_x86_feature_detected!("avx")
}

#[cfg(not(target_arch = "x86_64"))]
fn can_stream() -> bool {
    false
}

/// Copies; whole cache lines go past the caches.
#[cfg(target_arch = "x86_64")]
fn stream(from: &[f32], to: &mut [f32]) {
    #[target_feature(enable = "avx")]
    fn lines(from: &[f32], to: &mut [f32]) {
        use std::arch::x86_64::{_mm256_loadu_ps, _mm256_stream_ps};
        for (from, to) in from.chunks_exact(LINE).zip(to.chunks_exact_mut(LINE)) {
            // SAFETY: both are LINE floats long, and `to` starts on a cache line.
            unsafe {
                let (a, b) =
                    (_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8)));
                _mm256_stream_ps(to.as_mut_ptr(), a);
                _mm256_stream_ps(to.as_mut_ptr().add(8), b);
            }
        }
    }
    let head = (to.as_ptr().align_offset(LINE * size_of::<f32>())).min(to.len());
    let (from_head, from) = from.split_at(head);
    let (to_head, to) = to.split_at_mut(head);
    to_head.copy_from_slice(from_head);
    let whole = to.len() / LINE * LINE;
    // SAFETY: a writer has a stage only where `can_stream` has found AVX.
    unsafe { lines(&from[..whole], &mut to[..whole]) };
    to[whole..].copy_from_slice(&from[whole..]);
}

/// Orders what was streamed before whatever tells another thread that this one is done.
#[cfg(target_arch = "x86_64")]
fn fence() {
    // SAFETY: SSE is part of x86-64.
    unsafe { std::arch::x86_64::_mm_sfence() }
}

#[cfg(not(target_arch = "x86_64"))]
fn fence() {}

#[cfg(not(target_arch = "x86_64"))]
fn stream(from: &[f32], to: &mut [f32]) {
    to.copy_from_slice(from);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of odd sizes at odd places, staged and not, arrive as they were written, and nothing
    /// else changes.
    #[test]
    fn writers_fill_their_places() {
        for stream in [false, can_stream()] {
            for (start, end) in [(0, 0), (3, 4), (5, 9_001), (1, 2_048), (16, 6_160)] {
                let mut tensor = vec![-1.0; 9_010];
                let output = Output { stream, ..Output::new(&mut tensor) };
                let write = |writer: &mut Writer<'_>| {
                    let mut at = start;
                    while at < end {
                        for place in writer.next((end - at).min(777)) {
                            *place = at as f32;
                            at += 1;
                        }
                    }
                };
                // SAFETY: there is one writer.
                unsafe { output.write(start..end, write) };
                for (i, &value) in tensor.iter().enumerate() {
                    let inside = (start..end).contains(&i);
                    assert_eq!(value, if inside { i as f32 } else { -1.0 }, "{start}..{end}");
                }
            }
        }
    }
}
