//! Eight f32 side by side: by AVX where the machine has it, else a plain array of them. The bits are
//! the same, as no multiplication is contracted with an addition and every order is fixed. No closure
//! loads, computes or stores a vector: where the compiler does not inline it, it is not compiled for
//! AVX2, and takes ten times longer.

/// Values side by side, so that the order of sums does not depend on the machine.
pub(super) const LANES: usize = 8;

/// Values in a cache line of 64 bytes.
pub(super) const LINE: usize = 2 * LANES;

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
pub(super) use vectorised;

/// The tensors that are read: x, and dy where there is one.
pub(super) type Tensors<'a> = [&'a [f32]; 2];

#[inline(always)]
pub(super) fn load<V: Vector>(tensors: Tensors<'_>, at: usize) -> [V; 2] {
    let [x, dy] = tensors;
    [V::load(&x[at..at + LANES]), V::load(&dy[at..at + LANES])]
}

/// Places before the first that starts a cache line.
pub(super) fn misplaced(values: &[f32]) -> usize {
    (LINE - values.as_ptr() as usize / size_of::<f32>() % LINE) % LINE
}

/// Numbers for tests.
#[cfg(test)]
pub(super) fn values(count: usize, seed: u32) -> Vec<f32> {
    let mix = |i: usize| (i as u32 + seed).wrapping_mul(2_654_435_761) >> 8;
    (0..count).map(|i| mix(i) as f32 / (1 << 20) as f32 - 7.0).collect()
}

/// LANES f32.
pub(super) trait Vector: Copy {
    fn splat(value: f32) -> Self;
    /// Of LANES values.
    fn load(values: &[f32]) -> Self;
    /// Of fewer than LANES values, then those of `filler`.
    fn load_part(values: &[f32], filler: Self) -> Self;
    /// Into LANES places.
    fn store(self, places: &mut [f32]);
    /// Into LANES places that start at a multiple of their size, past the caches if possible.
    fn stream(self, places: &mut [f32]);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    /// Adds to LANES sums.
    fn add_to(self, sums: &mut [f64]);
    /// Asks for the cache line at a place, if it is in the tensor, in the second cache. (Of an address
    /// that nothing is mapped to, the question alone takes long.)
    fn prefetch(tensor: &[f32], place: usize);
    /// Loads a place's cache line into the first cache, and does not wait for it.
    fn touch(tensor: &[f32], place: usize);
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
        Self(values.try_into().expect("bug: as many values as places"))
    }

    #[inline(always)]
    fn load_part(values: &[f32], mut filler: Self) -> Self {
        for (to, from) in filler.0.iter_mut().zip(values) {
            *to = *from;
        }
        filler
    }

    #[inline(always)]
    fn store(self, places: &mut [f32]) {
        places.copy_from_slice(&self.0);
    }

    #[inline(always)]
    fn stream(self, places: &mut [f32]) {
        self.store(places);
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

    #[inline(always)]
    fn prefetch(_: &[f32], _: usize) {}

    #[inline(always)]
    fn touch(_: &[f32], _: usize) {}
}

#[cfg(target_arch = "x86_64")]
pub(super) use avx::Avx;

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "intrinsics; loops use this type only where AVX2 was found")]
mod avx {
    use std::arch::x86_64::*;

    use super::Vector;

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
            assert!(values.len() == 8, "bug: as many values as places");
            Self(unsafe { _mm256_loadu_ps(values.as_ptr()) })
        }

        #[inline(always)]
        fn load_part(values: &[f32], filler: Self) -> Self {
            const MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
            assert!(values.len() < 8, "bug: fewer values than places");
            unsafe {
                let mask = _mm256_loadu_si256(MASKS.as_ptr().add(8 - values.len()).cast());
                // Places that the mask leaves out are not read.
                let part = _mm256_maskload_ps(values.as_ptr(), mask);
                Self(_mm256_blendv_ps(filler.0, part, _mm256_castsi256_ps(mask)))
            }
        }

        #[inline(always)]
        fn store(self, places: &mut [f32]) {
            assert!(places.len() == 8, "bug: as many places as values");
            unsafe { _mm256_storeu_ps(places.as_mut_ptr(), self.0) }
        }

        #[inline(always)]
        fn stream(self, places: &mut [f32]) {
            assert!(places.len() == 8, "bug: as many places as values");
            assert!(places.as_ptr().cast::<__m256>().is_aligned(), "bug: an odd place");
            // The intrinsic's own precondition is the alignment just asserted; `Output` fences.
            unsafe { _mm256_stream_ps(places.as_mut_ptr(), self.0) }
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
            assert!(sums.len() == 8, "bug: as many sums as values");
            let (low, high) = sums.split_at_mut(4);
            unsafe {
                let values = _mm256_cvtps_pd(_mm256_castps256_ps128(self.0));
                let sum = _mm256_add_pd(_mm256_loadu_pd(low.as_ptr()), values);
                _mm256_storeu_pd(low.as_mut_ptr(), sum);
                let values = _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(self.0));
                let sum = _mm256_add_pd(_mm256_loadu_pd(high.as_ptr()), values);
                _mm256_storeu_pd(high.as_mut_ptr(), sum);
            }
        }

        #[inline(always)]
        fn prefetch(tensor: &[f32], place: usize) {
            if let Some(value) = tensor.get(place) {
                unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(value).cast()) }
            }
        }

        #[inline(always)]
        fn touch(tensor: &[f32], place: usize) {
            // A reference is valid to be read from; volatile, as the value is not used.
            unsafe { std::ptr::from_ref(&tensor[place]).read_volatile() };
        }
    }
}
