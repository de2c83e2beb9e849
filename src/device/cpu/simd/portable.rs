//! Arrays of eight, for processors without a better instruction set of ours. The compiler makes
//! of them what the build's target allows.

use super::Simd;

/// No assumption about the processor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

const LANES: usize = 8;
type F = [f32; LANES];
type I = [i32; LANES];

#[inline(always)]
fn map(a: F, f: impl Fn(f32) -> f32) -> F {
    std::array::from_fn(|i| f(a[i]))
}

#[inline(always)]
fn zip(a: F, b: F, f: impl Fn(f32, f32) -> f32) -> F {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    const LANES: usize = LANES;
    const ROWS: usize = 2;
    const INT_ROWS: usize = 2;
    type F = F;
    type I = I;
    type W = [[i8; 4]; LANES];
    type X = [u8; 4];

    #[inline(always)]
    fn splat(self, v: f32) -> F {
        [v; LANES]
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> F {
        let mut v = [0.0; LANES];
        let len = x.len().min(LANES);
        v[..len].copy_from_slice(&x[..len]);
        v
    }

    #[inline(always)]
    fn store(self, v: F, x: &mut [f32]) {
        let len = x.len().min(LANES);
        x[..len].copy_from_slice(&v[..len]);
    }

    #[inline(always)]
    unsafe fn load_at(self, x: *const f32) -> F {
        // SAFETY: by the contract of this method.
        unsafe { x.cast::<F>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store_at(self, v: F, x: *mut f32) {
        // SAFETY: by the contract of this method.
        unsafe { x.cast::<F>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn widen_at(self, x: *const u16) -> F {
        // SAFETY: by the contract of this method.
        let bits = unsafe { x.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|b| f32::from_bits(u32::from(b) << 16))
    }

    #[inline(always)]
    unsafe fn nibbles_at(self, x: *const u8) -> [F; 2] {
        // SAFETY: by the contract of this method.
        let bytes = unsafe { x.cast::<[u8; LANES]>().read_unaligned() };
        [bytes.map(|b| f32::from(b & 15)), bytes.map(|b| f32::from(b >> 4))]
    }

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        // Where it is no instruction, `mul_add` would be a call into the C library.
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
        } else {
            std::array::from_fn(|i| a[i] * b[i] + c[i])
        }
    }

    #[inline(always)]
    fn round(self, a: F) -> F {
        map(a, f32::round_ties_even)
    }

    #[inline(always)]
    fn round_bf16(self, a: F) -> F {
        map(a, |v| {
            let bits = v.to_bits();
            f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & !0xffff)
        })
    }

    #[inline(always)]
    fn exp2(self, n: F) -> F {
        map(n, |n| f32::from_bits(((n as i32 + 127) << 23).cast_unsigned()))
    }

    #[inline(always)]
    fn sum(self, a: F) -> f32 {
        a.iter().sum()
    }

    #[inline(always)]
    fn largest(self, a: F) -> f32 {
        a.iter().fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m })
    }

    #[inline(always)]
    fn store_bytes(self, v: F, x: &mut [u8]) {
        for (x, v) in x.iter_mut().zip(v) {
            *x = v as u8;
        }
    }

    #[inline(always)]
    unsafe fn load_ints_at(self, x: *const i32) -> I {
        // SAFETY: by the contract of this method.
        unsafe { x.cast::<I>().read_unaligned() }
    }

    #[inline(always)]
    fn to_float(self, a: I) -> F {
        a.map(|v| v as f32)
    }

    #[inline(always)]
    unsafe fn weights_at(self, x: *const i8) -> [[i8; 4]; LANES] {
        // SAFETY: by the contract of this method.
        unsafe { x.cast::<[[i8; 4]; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    fn codes(self, four: u32) -> [u8; 4] {
        four.to_le_bytes()
    }

    #[inline(always)]
    fn dot(self, a: I, x: [u8; 4], w: [[i8; 4]; LANES]) -> I {
        std::array::from_fn(|i| {
            let w = w[i];
            let product = |j: usize| i32::from(x[j]) * i32::from(w[j]);
            a[i] + product(0) + product(1) + product(2) + product(3)
        })
    }
}
