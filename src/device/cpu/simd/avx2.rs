//! AVX2 with FMA.

use std::arch::x86_64::*;

use super::{Kernel, Simd};

/// AVX2 and FMA.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Avx2(()))
    }
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn run<K: Kernel>(s: Avx2, kernel: K) {
    kernel.run(s);
}

/// All bits set in the lanes below `len`.
#[inline(always)]
fn mask(len: usize) -> __m256i {
    let lane = |i: usize| if i < len { -1 } else { 0 };
    // SAFETY: called with AVX2 only.
    unsafe { _mm256_setr_epi32(lane(0), lane(1), lane(2), lane(3), lane(4), lane(5), lane(6), lane(7)) }
}

/// Methods made of instructions that `Avx2` vouches for.
macro_rules! instructions {
    ($(fn $name:ident($($arg:ident: $type:ty),*) $(-> $ret:ty)? = $body:expr;)*) => {
        $(#[inline(always)]
        fn $name(self, $($arg: $type),*) $(-> $ret)? {
            // SAFETY: an `Avx2` exists only where the processor has these instructions; memory is
            // accessed within the slices given.
            unsafe { $body }
        })*
    };
}

/// Bytes `2i` and `2i + 1` of each 16 bits, as 16-bit numbers.
type Split = [__m256i; 2];

impl Simd for Avx2 {
    const LANES: usize = 8;
    const ROWS: usize = 6;
    const INT_ROWS: usize = 4;
    type F = __m256;
    type I = __m256i;
    type W = Split;
    type X = Split;

    instructions! {
        fn splat(v: f32) -> __m256 = _mm256_set1_ps(v);
        fn load(x: &[f32]) -> __m256 = if x.len() >= 8 {
            _mm256_loadu_ps(x.as_ptr())
        } else {
            _mm256_maskload_ps(x.as_ptr(), mask(x.len()))
        };
        fn store(v: __m256, x: &mut [f32]) = if x.len() >= 8 {
            _mm256_storeu_ps(x.as_mut_ptr(), v)
        } else {
            _mm256_maskstore_ps(x.as_mut_ptr(), mask(x.len()), v)
        };
        fn add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
        fn sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b);
        fn mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
        fn div(a: __m256, b: __m256) -> __m256 = _mm256_div_ps(a, b);
        fn min(a: __m256, b: __m256) -> __m256 = _mm256_min_ps(a, b);
        fn max(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
        fn fma(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
        fn round(a: __m256) -> __m256 =
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
        fn round_bf16(a: __m256) -> __m256 = {
            let bits = _mm256_castps_si256(a);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            _mm256_castsi256_ps(_mm256_and_si256(up, _mm256_set1_epi32(!0xffff)))
        };
        fn exp2(n: __m256) -> __m256 = {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        };
        fn sum(a: __m256) -> f32 = {
            let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        };
        fn largest(a: __m256) -> f32 = {
            let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        };
        fn store_bytes(v: __m256, x: &mut [u8]) = {
            let ints = _mm256_cvtps_epi32(v);
            let words = _mm_packus_epi32(_mm256_castsi256_si128(ints), _mm256_extracti128_si256::<1>(ints));
            let bytes = _mm_cvtsi128_si64(_mm_packus_epi16(words, words)).to_le_bytes();
            let len = x.len().min(8);
            x[..len].copy_from_slice(&bytes[..len]);
        };
        fn to_float(a: __m256i) -> __m256 = _mm256_cvtepi32_ps(a);
        fn codes(four: u32) -> Split = {
            let x = _mm256_set1_epi32(four.cast_signed());
            [_mm256_and_si256(x, _mm256_set1_epi16(0xff)), _mm256_srli_epi16::<8>(x)]
        };
        fn dot(a: __m256i, x: Split, w: Split) -> __m256i = {
            let even = _mm256_madd_epi16(x[0], w[0]);
            _mm256_add_epi32(a, _mm256_add_epi32(even, _mm256_madd_epi16(x[1], w[1])))
        };
    }

    #[inline(always)]
    unsafe fn load_at(self, x: *const f32) -> __m256 {
        // SAFETY: by the contract of this method.
        unsafe { _mm256_loadu_ps(x) }
    }

    #[inline(always)]
    unsafe fn store_at(self, v: __m256, x: *mut f32) {
        // SAFETY: by the contract of this method.
        unsafe { _mm256_storeu_ps(x, v) }
    }

    #[inline(always)]
    unsafe fn widen_at(self, x: *const u16) -> __m256 {
        // SAFETY: by the contract of this method.
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        }
    }

    #[inline(always)]
    unsafe fn nibbles_at(self, x: *const u8) -> [__m256; 2] {
        // SAFETY: by the contract of this method.
        unsafe {
            let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(x.cast()));
            let low = _mm256_and_si256(bytes, _mm256_set1_epi32(15));
            [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(bytes))]
        }
    }

    #[inline(always)]
    unsafe fn load_ints_at(self, x: *const i32) -> __m256i {
        // SAFETY: by the contract of this method.
        unsafe { _mm256_loadu_si256(x.cast()) }
    }

    #[inline(always)]
    unsafe fn weights_at(self, x: *const i8) -> Split {
        // SAFETY: by the contract of this method.
        unsafe {
            let w = _mm256_loadu_si256(x.cast());
            [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(w)), _mm256_srai_epi16::<8>(w)]
        }
    }
}
