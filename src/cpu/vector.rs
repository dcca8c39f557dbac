//! Eight f32 side by side: AVX where the machine has it, else plain arrays, with the same bits.

/// Values side by side.
pub(super) const LANES: usize = 8;

/// Eight f32.
pub(super) trait Vector: Copy {
    fn splat(value: f32) -> Self;
    /// Of [`LANES`] values.
    fn load(values: &[f32]) -> Self;
    /// Into [`LANES`] places.
    fn store(self, places: &mut [f32]);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    /// Adds to [`LANES`] sums.
    fn add_to(self, sums: &mut [f64]);
}

#[derive(Clone, Copy)]
pub(super) struct Plain([f32; LANES]);

impl Plain {
    #[inline(always)]
    fn with(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Vector for Plain {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    fn load(values: &[f32]) -> Self {
        Self(values.try_into().expect("bug: as many values as lanes"))
    }

    #[inline(always)]
    fn store(self, places: &mut [f32]) {
        places.copy_from_slice(&self.0);
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.with(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.with(other, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.with(other, |a, b| a * b)
    }

    #[inline(always)]
    fn add_to(self, sums: &mut [f64]) {
        for (sum, value) in sums.iter_mut().zip(self.0) {
            *sum += f64::from(value);
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use avx::Avx;

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "intrinsics; loops use this type only where AVX2 was found")]
mod avx {
    use std::arch::x86_64::*;

    use super::{LANES, Vector};

    #[derive(Clone, Copy)]
    pub(in crate::cpu) struct Avx(__m256);

    // SAFETY of every block: the machine has AVX, and the slices are asserted to be long enough.
    impl Vector for Avx {
        #[inline(always)]
        fn splat(value: f32) -> Self {
            Self(unsafe { _mm256_set1_ps(value) })
        }

        #[inline(always)]
        fn load(values: &[f32]) -> Self {
            assert!(values.len() == LANES, "bug: as many values as lanes");
            Self(unsafe { _mm256_loadu_ps(values.as_ptr()) })
        }

        #[inline(always)]
        fn store(self, places: &mut [f32]) {
            assert!(places.len() == LANES, "bug: as many places as lanes");
            unsafe { _mm256_storeu_ps(places.as_mut_ptr(), self.0) }
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            Self(unsafe { _mm256_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            Self(unsafe { _mm256_sub_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            Self(unsafe { _mm256_mul_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn add_to(self, sums: &mut [f64]) {
            assert!(sums.len() == LANES, "bug: as many sums as lanes");
            let (low, high) = sums.split_at_mut(LANES / 2);
            unsafe {
                let values = _mm256_cvtps_pd(_mm256_castps256_ps128(self.0));
                let sum = _mm256_add_pd(_mm256_loadu_pd(low.as_ptr()), values);
                _mm256_storeu_pd(low.as_mut_ptr(), sum);
                let values = _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(self.0));
                let sum = _mm256_add_pd(_mm256_loadu_pd(high.as_ptr()), values);
                _mm256_storeu_pd(high.as_mut_ptr(), sum);
            }
        }
    }
}
