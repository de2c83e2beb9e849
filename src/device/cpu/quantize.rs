//! Activations on their way into a 4-bit linear.

use super::simd::{Kernel, Simd};
use crate::memory::Buf;
use crate::ops::Profile;

/// Added to the input of fc2, so that a GELU's output (at least -0.17) is never negative.
const SHIFT: f32 = 0.171875;

/// How the input of one linear is smoothed and quantised.
pub(super) struct Quantizer {
    pub(super) profile: Profile,
    pub(super) smooth: Buf<f32>,
    /// The input is shifted first, and its codes have no sign.
    pub(super) unsigned: bool,
    /// The weights are NVFP4, and so are the codes of W4A4.
    pub(super) fp4: bool,
}

impl Quantizer {
    /// Whether the linear multiplies floats: nothing is quantised, or to codes that are no integers.
    pub(super) fn is_float(&self) -> bool {
        match self.profile {
            Profile::W4A4 => self.fp4,
            Profile::W4A8 => false,
            Profile::W4A16 => true,
        }
    }

    /// Channels that share a scale.
    pub(super) fn block(&self) -> usize {
        match self.profile {
            Profile::W4A4 => 64,
            Profile::W4A8 if self.unsigned => 256,
            Profile::W4A8 | Profile::W4A16 => self.smooth.len(),
        }
    }

    /// What a stored code is more than the value it stands for.
    pub(super) fn zero(&self) -> u8 {
        match self.profile {
            _ if self.unsigned => 0,
            Profile::W4A4 => 8,
            Profile::W4A8 | Profile::W4A16 => 128,
        }
    }

    /// The smallest and the largest code, and the code of the largest value.
    fn range(&self) -> [f32; 3] {
        match (self.profile, self.unsigned) {
            (Profile::W4A4, false) => [-8.0, 7.0, 7.0],
            (Profile::W4A4, true) => [0.0, 15.0, 15.0],
            (Profile::W4A8 | Profile::W4A16, false) => [-127.0, 127.0, 127.0],
            (Profile::W4A8 | Profile::W4A16, true) => [0.0, 255.0, 255.0],
        }
    }

    fn shift(&self) -> f32 {
        if self.unsigned { SHIFT } else { 0.0 }
    }
}

/// `to = (from + shift) / smooth`, row by row.
pub(super) struct Smooth<'a> {
    pub(super) quantizer: &'a Quantizer,
    pub(super) from: &'a [f32],
    pub(super) to: &'a mut [f32],
}

impl Kernel for Smooth<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let smooth = &self.quantizer.smooth;
        let shift = s.splat(self.quantizer.shift());
        let rows = self.from.chunks_exact(smooth.len()).zip(self.to.chunks_exact_mut(smooth.len()));
        for (x, y) in rows {
            for ((x, y), d) in x.chunks(S::LANES).zip(y.chunks_mut(S::LANES)).zip(smooth.chunks(S::LANES)) {
                s.store(s.div(s.add(s.load(x), shift), s.load(d)), y);
            }
        }
    }
}

/// Quantises `smoothed` rows, which it may overwrite.
pub(super) struct Quantize<'a> {
    pub(super) quantizer: &'a Quantizer,
    pub(super) smoothed: &'a mut [f32],
    /// As many as `smoothed`.
    pub(super) codes: &'a mut [u8],
    /// `[rows, blocks]`
    pub(super) scales: &'a mut [f32],
}

impl Kernel for Quantize<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (k, block) = (self.quantizer.smooth.len(), self.quantizer.block());
        let four = self.quantizer.profile == Profile::W4A4;
        let [low, high, top] = self.quantizer.range();
        let (low, high, zero) = (s.splat(low), s.splat(high), s.splat(f32::from(self.quantizer.zero())));
        let rows = self.smoothed.chunks_exact_mut(k).zip(self.codes.chunks_exact_mut(k));
        for ((v, codes), scales) in rows.zip(self.scales.chunks_exact_mut(k.div_ceil(block))) {
            for ((v, codes), scale) in v.chunks_mut(block).zip(codes.chunks_mut(block)).zip(scales) {
                let mut largest = s.splat(0.0);
                for v in v.chunks_mut(S::LANES) {
                    let mut x = s.load(v);
                    if four {
                        x = s.round_bf16(x);
                        s.store(x, v);
                    }
                    largest = s.max(largest, s.max(x, s.sub(s.splat(0.0), x)));
                }
                let largest = s.largest(largest);
                let exact = if four { largest * (1.0 / top) } else { largest / top };
                let inverse = match (largest > 0.0, four) {
                    (false, _) => 0.0,
                    (true, true) => 1.0 / exact,
                    (true, false) => top / largest,
                };
                *scale = if four { half::bf16::from_f32(exact).to_f32() } else { exact };
                let inverse = s.splat(inverse);
                for (v, codes) in v.chunks(S::LANES).zip(codes.chunks_mut(S::LANES)) {
                    let code = s.round(s.mul(s.load(v), inverse));
                    s.store_bytes(s.add(s.min(s.max(code, low), high), zero), codes);
                }
            }
        }
    }
}

/// Replaces smoothed activations by what their NVFP4 codes stand for: in groups of 16, `s = min(absmax/6, 448)` of bf16
/// values, each `e4m3(s) · e2m1(v / s)`, both rounded to nearest even and saturated.
pub(super) fn fake_quantise_fp4(smoothed: &mut [f32]) {
    for group in smoothed.chunks_mut(16) {
        let mut largest = 0.0f32;
        for v in &mut *group {
            *v = half::bf16::from_f32(*v).to_f32();
            largest = largest.max(v.abs());
        }
        let scale = (largest * (1.0 / 6.0)).min(448.0);
        // 0 and scales so small that they have no reciprocal give zeros.
        let inverse = Some(1.0 / scale).filter(|inverse| inverse.is_finite()).unwrap_or(0.0);
        let stored = round_e4m3(scale);
        for v in group {
            *v = round_e2m1(*v * inverse) * stored;
        }
    }
}

/// The nearest e4m3 number of a scale from 0 to 448, ties to even.
fn round_e4m3(scale: f32) -> f32 {
    // Between 2^e and 2^(e+1) the step is 2^(e-3); below 2^-6 it stays 2^-9.
    let exponent = (scale.to_bits() >> 23).max(127 - 6);
    let step = f32::from_bits((exponent - 3) << 23);
    (scale / step).round_ties_even() * step
}

/// The nearest e2m1 number, ties to even.
fn round_e2m1(v: f32) -> f32 {
    let step = match v.abs() {
        v if v < 2.0 => 0.5,
        v if v < 4.0 => 1.0,
        _ => 2.0,
    };
    ((v / step).round_ties_even() * step).clamp(-6.0, 6.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::float::E4M3;
    use crate::weights::pack::E2M1;

    /// Of two neighbours, the middle goes to the one with the even code, and all else to the nearer one.
    fn check(numbers: &[f32], round: fn(f32) -> f32) {
        for (code, pair) in numbers.windows(2).enumerate() {
            let (low, high) = (pair[0], pair[1]);
            let middle = (low + high) / 2.0;
            assert_eq!((round(low), round(high)), (low, high));
            assert_eq!(round(middle), if code % 2 == 0 { low } else { high }, "between {low} and {high}");
            assert_eq!((round(middle.next_down()), round(middle.next_up())), (low, high));
        }
    }

    #[test]
    fn rounds_to_nearest_even() {
        check(&E4M3[..0x7f], round_e4m3);
        check(&E2M1[..8], round_e2m1);
        assert_eq!((round_e2m1(100.0), round_e2m1(-7.0), round_e2m1(-0.7)), (6.0, -6.0, -0.5));
    }

    #[test]
    fn groups_of_zeros_and_of_large_values_stay_finite() {
        let mut values = [0.0; 32];
        values[3] = 1e-40;
        values[16..].fill(1e30);
        values[31] = -1e30;
        fake_quantise_fp4(&mut values);
        assert!(values[..16].iter().all(|&v| v == 0.0));
        assert!(values[16..31].iter().all(|&v| v == 6.0 * 448.0) && values[31] == -6.0 * 448.0);
    }
}
