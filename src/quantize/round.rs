//! 4-bit rounding of groups of 64 weights, with a search for the group's scale.

use half::bf16;

/// Weights that share one scale.
pub(super) const GROUP: usize = 64;
/// One group of values, codes or importances.
pub(super) type Group<T> = [T; GROUP];

/// What is tried in place of the 7 in `scale = extremum / 7`: from clipping the extremum well inside the
/// codes' range to leaving room beyond it. Positive where the extremum gets a positive code, negative where
/// it gets a negative one.
const DIVISORS: [f32; 24] = [
    7.0, -8.0, 5.0, 5.4, 5.8, 6.1, 6.4, 6.7, 7.2, 7.5, 7.9, -5.4, -5.8, -6.2, -6.5, -6.8, -7.1, -7.4, -7.7,
    -8.2, -8.4, -8.7, -9.2, 4.6,
];

/// A group of weights as signed 4-bit codes: `w ≈ code · scale`.
pub(super) struct Signed {
    /// -8 ..= 7
    pub(super) codes: Group<i8>,
    /// May be negative: the codes reach further below zero than above.
    pub(super) scale: bf16,
    /// `Σ importance · (w - code · scale)²`
    pub(super) error: f32,
}

/// Rounds a group with the scale of least error. The first candidate is plain rounding with `bf16(absmax/7)`,
/// so the error is never above that of plain rounding.
#[inline(always)]
pub(super) fn round_signed(w: &Group<f32>, importance: &Group<f32>) -> Signed {
    let extremum = w.iter().fold(0.0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
    let mut best = (f32::INFINITY, bf16::ZERO);
    for divisor in DIVISORS {
        let scale = bf16::from_f32(extremum / divisor);
        let error = signed_error(w, importance, scale.to_f32());
        if error < best.0 {
            best = (error, scale);
        }
    }
    let (error, scale) = best;
    let inverse = reciprocal(scale.to_f32());
    Signed { codes: w.map(|v| clamp_round(v * inverse, -8.0, 7.0) as i8), scale, error }
}

#[inline(always)]
fn signed_error(w: &Group<f32>, importance: &Group<f32>, scale: f32) -> f32 {
    let inverse = reciprocal(scale);
    let mut sums = [0.0f32; 16];
    for (w, importance) in w.chunks_exact(16).zip(importance.chunks_exact(16)) {
        for i in 0..16 {
            let e = w[i] - clamp_round(w[i] * inverse, -8.0, 7.0) * scale;
            sums[i] += importance[i] * e * e;
        }
    }
    total(sums)
}

/// A group of weights as unsigned 4-bit codes: `w ≈ code · scale + zero`.
pub(super) struct Unsigned {
    /// 0 ..= 15
    pub(super) codes: Group<u8>,
    pub(super) scale: bf16,
    pub(super) zero: bf16,
}

impl Unsigned {
    /// The code nearest to `v`.
    #[inline(always)]
    pub(super) fn code(&self, v: f32) -> u8 {
        clamp_round((v - self.zero.to_f32()) * reciprocal(self.scale.to_f32()), 0.0, 15.0) as u8
    }

    /// What code `i` stands for.
    #[inline(always)]
    pub(super) fn value(&self, i: usize) -> f32 {
        self.codes[i] as f32 * self.scale.to_f32() + self.zero.to_f32()
    }
}

/// Fractions of the range from the middle to either end that are tried as the outermost codes.
const SHRINK: [f32; 7] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7];

/// Rounds a group with the scale and zero of least error.
#[inline(always)]
pub(super) fn round_unsigned(w: &Group<f32>) -> Unsigned {
    let low = w.iter().copied().fold(f32::INFINITY, f32::min);
    let high = w.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let middle = 0.5 * (low + high);
    let mut best = (f32::INFINITY, bf16::ZERO, bf16::ZERO);
    for down in SHRINK {
        for up in SHRINK {
            let zero = bf16::from_f32(middle + (low - middle) * down);
            let scale = bf16::from_f32((middle + (high - middle) * up - zero.to_f32()) / 15.0);
            let error = unsigned_error(w, scale.to_f32(), zero.to_f32());
            if error < best.0 {
                best = (error, scale, zero);
            }
        }
    }
    let mut rounded = Unsigned { codes: [0; GROUP], scale: best.1, zero: best.2 };
    rounded.codes = w.map(|v| rounded.code(v));
    rounded
}

#[inline(always)]
fn unsigned_error(w: &Group<f32>, scale: f32, zero: f32) -> f32 {
    let inverse = reciprocal(scale);
    let mut sums = [0.0f32; 16];
    for w in w.chunks_exact(16) {
        for i in 0..16 {
            let e = w[i] - clamp_round((w[i] - zero) * inverse, 0.0, 15.0) * scale - zero;
            sums[i] += e * e;
        }
    }
    total(sums)
}

/// `1 / scale`, and 0 for a scale that is 0 or so small that its reciprocal is not finite: all codes are 0
/// then.
#[inline(always)]
fn reciprocal(scale: f32) -> f32 {
    let inverse = 1.0 / scale;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// `v` rounded to the nearest integer, half to even, within `low ..= high`.
#[inline(always)]
fn clamp_round(v: f32, low: f32, high: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 · 2^23: adding it leaves no fraction bits
    (v.max(low).min(high) + SHIFT) - SHIFT
}

/// The sum, in a fixed order.
#[inline(always)]
fn total(mut sums: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
    }
    sums[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::random::Random;

    /// Roughly Gaussian values.
    fn groups(count: usize) -> Vec<Group<f32>> {
        let mut random = Random::new(1);
        (0..count).map(|_| std::array::from_fn(|_| (0..6).map(|_| random.symmetric()).sum())).collect()
    }

    fn decibel(signal: f64, error: f64) -> f64 {
        10.0 * (signal / error).log10()
    }

    #[test]
    fn the_search_is_never_worse_than_plain_rounding_and_clearly_better_on_average() {
        let (mut signal, mut plain, mut searched) = (0.0, 0.0, 0.0);
        for w in groups(500) {
            let absmax = w.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let scale = bf16::from_f32(absmax / 7.0).to_f32();
            let rtn: f64 =
                w.iter().map(|v| (v - (v / scale).round().clamp(-8.0, 7.0) * scale).powi(2) as f64).sum();
            let found = round_signed(&w, &[1.0; GROUP]);
            let real: f64 = w
                .iter()
                .zip(found.codes)
                .map(|(v, q)| (v - q as f32 * found.scale.to_f32()).powi(2) as f64)
                .sum();
            assert!(found.codes.iter().all(|q| (-8..=7).contains(q)));
            assert!((real - found.error as f64).abs() <= 1e-5 * real, "the error is that of the codes");
            assert!(real <= rtn * 1.00001, "{real} against {rtn}");
            signal += w.iter().map(|&v| (v * v) as f64).sum::<f64>();
            plain += rtn;
            searched += real;
        }
        let gain = decibel(signal, searched) - decibel(signal, plain);
        assert!(gain > 1.0, "gained {gain} dB");
    }

    #[test]
    fn errors_where_importance_is_high_are_avoided() {
        let w = groups(1)[0];
        let importance = std::array::from_fn(|i| if i < 8 { 100.0 } else { 1.0 });
        let error = |r: &Signed| -> f32 {
            (0..8).map(|i| (w[i] - r.codes[i] as f32 * r.scale.to_f32()).powi(2)).sum()
        };
        assert!(error(&round_signed(&w, &importance)) < error(&round_signed(&w, &[1.0; GROUP])));
    }

    #[test]
    fn unsigned_codes_use_the_whole_range() {
        for w in groups(100) {
            let w = w.map(|v| v * 0.1 + 3.0);
            let found = round_unsigned(&w);
            let real: f64 = (0..GROUP).map(|i| (w[i] - found.value(i)).powi(2) as f64).sum();
            let spread: f64 = w.iter().map(|v| (v - 3.0).powi(2) as f64).sum();
            assert!(decibel(spread, real) > 16.0, "{} dB", decibel(spread, real));
        }
    }

    #[test]
    fn groups_of_zeros_and_of_tiny_values_stay_finite() {
        for value in [0.0, 1e-42, -1e-39, f32::MIN_POSITIVE] {
            let signed = round_signed(&[value; GROUP], &[1.0; GROUP]);
            let unsigned = round_unsigned(&[value; GROUP]);
            assert!(signed.scale.is_finite() && unsigned.scale.is_finite() && unsigned.zero.is_finite());
            assert!(signed.error.is_finite() && (0..GROUP).all(|i| unsigned.value(i).is_finite()));
        }
    }
}
