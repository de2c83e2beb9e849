//! AVX-512 with VNNI.

use std::arch::x86_64::*;

use super::{Kernel, Simd};

/// AVX-512 F, BW, DQ, VL and VNNI.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("fma");
        has.then_some(Avx512(()))
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")]
pub(super) fn run<K: Kernel>(s: Avx512, kernel: K) {
    kernel.run(s);
}

/// The lanes below `len`.
#[inline(always)]
fn mask(len: usize) -> __mmask16 {
    if len < 16 { (1 << len) - 1 } else { !0 }
}

/// Methods made of instructions that `Avx512` vouches for.
macro_rules! instructions {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) $(-> $ret:ty)? = $body:expr;)*) => {
        $(#[inline(always)]
        fn $name(self, $($arg: $type),*) $(-> $ret)? {
            // SAFETY: an `Avx512` exists only where the processor has these instructions; memory
            // is accessed within the slices given.
            unsafe { $body }
        })*
    };
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    const ROWS: usize = 12;
    const INT_ROWS: usize = 12;
    type F = __m512;
    type I = __m512i;
    type W = __m512i;
    type X = __m512i;

    instructions! {
        fn splat(v: f32) -> __m512 = _mm512_set1_ps(v);
        fn load(x: &[f32]) -> __m512 = if x.len() >= 16 {
            _mm512_loadu_ps(x.as_ptr())
        } else {
            _mm512_maskz_loadu_ps(mask(x.len()), x.as_ptr())
        };
        fn store(v: __m512, x: &mut [f32]) = if x.len() >= 16 {
            _mm512_storeu_ps(x.as_mut_ptr(), v)
        } else {
            _mm512_mask_storeu_ps(x.as_mut_ptr(), mask(x.len()), v)
        };
        fn add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        fn sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
        fn mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        fn div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
        fn min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
        fn max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        fn round(a: __m512) -> __m512 =
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
        fn round_bf16(a: __m512) -> __m512 = {
            let bits = _mm512_castps_si512(a);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            _mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32(!0xffff)))
        };
        fn exp2(n: __m512) -> __m512 = {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        };
        fn sum(a: __m512) -> f32 = _mm512_reduce_add_ps(a);
        fn largest(a: __m512) -> f32 = _mm512_reduce_max_ps(a);
        fn store_bytes(v: __m512, x: &mut [u8]) =
            _mm512_mask_cvtepi32_storeu_epi8(x.as_mut_ptr().cast(), mask(x.len()), _mm512_cvtps_epi32(v));
        fn to_float(a: __m512i) -> __m512 = _mm512_cvtepi32_ps(a);
        fn codes(four: u32) -> __m512i = _mm512_set1_epi32(four.cast_signed());
        fn dot(a: __m512i, x: __m512i, w: __m512i) -> __m512i = _mm512_dpbusd_epi32(a, x, w);
    }

    #[inline(always)]
    unsafe fn load_at(self, x: *const f32) -> __m512 {
        // SAFETY: by the contract of this method.
        unsafe { _mm512_loadu_ps(x) }
    }

    #[inline(always)]
    unsafe fn store_at(self, v: __m512, x: *mut f32) {
        // SAFETY: by the contract of this method.
        unsafe { _mm512_storeu_ps(x, v) }
    }

    #[inline(always)]
    unsafe fn widen_at(self, x: *const u16) -> __m512 {
        // SAFETY: by the contract of this method.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }

    #[inline(always)]
    unsafe fn nibbles_at(self, x: *const u8) -> [__m512; 2] {
        // SAFETY: by the contract of this method.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(x.cast()));
            let low = _mm512_and_si512(bytes, _mm512_set1_epi32(15));
            [_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(bytes))]
        }
    }

    #[inline(always)]
    unsafe fn load_ints_at(self, x: *const i32) -> __m512i {
        // SAFETY: by the contract of this method.
        unsafe { _mm512_loadu_si512(x.cast()) }
    }

    #[inline(always)]
    unsafe fn weights_at(self, x: *const i8) -> __m512i {
        // SAFETY: by the contract of this method.
        unsafe { _mm512_loadu_si512(x.cast()) }
    }
}
