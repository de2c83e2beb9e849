//! The noise that `torch.randn` draws on the CPU, from the same seed.
//!
//! A seed has to mean the same picture here as in diffusers, so this follows torch's x86 build to
//! the bit: its generator (MT19937), its order of draws, and its single-precision logarithm, sine and
//! cosine. Those are the polynomials of the Cephes library, with a fused multiply-add wherever
//! torch's compiler made one: moving a `mul_add` changes the last bit of one value in a hundred.

#![allow(unsafe_code, reason = "instructions that a build cannot assume, behind run-time detection")]

/// `torch.randn(values.len(), generator=torch.Generator("cpu").manual_seed(seed))`, in float32: values of the standard
/// normal distribution. As in torch, only the low 32 bits of `seed` count, and a shorter draw is not a prefix of a longer
/// one.
pub fn randn(seed: u64, values: &mut [f32]) {
    Normal::new(seed).fill(values);
}

/// `torch.Generator("cpu").manual_seed(seed)`, from which one tensor is drawn after the other.
pub(crate) struct Normal(Mt19937);

impl Normal {
    pub(crate) fn new(seed: u64) -> Self {
        Normal(Mt19937::new(seed as u32))
    }

    /// The next `torch.randn(values.len(), generator=...)`. Draws after one of an odd number of values below 16 are not
    /// torch's, which keeps one value for them.
    pub(crate) fn fill(&mut self, values: &mut [f32]) {
        let (rng, count) = (&mut self.0, values.len());
        if count < BLOCK {
            return randn_short(rng, values);
        }
        values.fill_with(|| rng.uniform_f32());
        let whole = count - count % BLOCK;
        box_muller_all(&mut values[..whole]);
        if whole < count {
            // torch draws the last 16 values anew, over some that are done already.
            let last = &mut values[count - BLOCK..];
            last.fill_with(|| rng.uniform_f32());
            box_muller(last);
        }
    }
}

/// [`box_muller`] of all blocks, with the processor's own fused multiply-add if there is one: the same numbers, without a
/// call for each.
fn box_muller_all(values: &mut [f32]) {
    let blocks = values.chunks_exact_mut(BLOCK);
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("fma") {
        #[target_feature(enable = "avx,fma")]
        fn with_fma(blocks: std::slice::ChunksExactMut<'_, f32>) {
            for block in blocks {
                box_muller(block);
            }
        }
        // SAFETY: the processor has FMA, which comes with AVX.
        return unsafe { with_fma(blocks) };
    }
    blocks.for_each(box_muller);
}

/// Values that torch transforms together.
const BLOCK: usize = 16;

/// Turns 16 uniform values into 16 normal ones: value `i` (the radius) and `i + 8` (the angle) make
/// the pair `i` (cosine) and `i + 8` (sine).
#[inline(always)]
fn box_muller(block: &mut [f32]) {
    let (first, second) = block.split_at_mut(BLOCK / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * ln(1.0 - *a)).sqrt();
        let (sin, cos) = sin_cos(std::f32::consts::TAU * *b);
        // The sum turns -0 into 0, as torch's `· std + mean` does.
        *a = radius * cos + 0.0;
        *b = radius * sin + 0.0;
    }
}

/// What torch does for fewer than 16 values: Box-Muller in float64, a pair at a time.
fn randn_short(rng: &mut Mt19937, values: &mut [f32]) {
    for pair in values.chunks_mut(2) {
        let angle = std::f64::consts::TAU * rng.uniform_f64();
        let radius = (-2.0 * (-rng.uniform_f64()).ln_1p()).sqrt();
        let normals = [(radius * angle.cos()) as f32, (radius * angle.sin()) as f32];
        pair.copy_from_slice(&normals[..pair.len()]);
    }
}

/// Cephes' `logf` for `x` in `[2⁻²⁴, 1]`: `x = (1 + m) · 2^e` with `1 + m` in `[√½, √2)`, and a
/// polynomial in `m`.
#[inline(always)]
fn ln(x: f32) -> f32 {
    const P: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_84e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_4e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    let bits = x.to_bits();
    let half = f32::from_bits(bits & 0x007f_ffff | 0x3f00_0000); // the mantissa, in [½, 1)
    let exponent = (bits >> 23) as f32 - 126.0;
    let (m, e) = match half < std::f32::consts::FRAC_1_SQRT_2 {
        true => (half - 1.0 + half, exponent - 1.0),
        false => (half - 1.0, exponent),
    };
    let square = m * m;
    // e · ln 2 in two parts, the small one added first.
    let tail = (horner(&P, m) * m).mul_add(square, e * -2.121_944_4e-4);
    e.mul_add(0.693_359_4, m + square.mul_add(-0.5, tail))
}

/// Cephes' `sinf` and `cosf` for `x` in `[0, 2π]`: both polynomials on the remainder in
/// `[-π/4, π/4]`, then swapped and negated by quadrant.
#[inline(always)]
fn sin_cos(x: f32) -> (f32, f32) {
    const SIN: [f32; 3] = [-1.951_529_6e-4, 8.332_161e-3, -1.666_665_5e-1];
    const COS: [f32; 3] = [2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2];
    let octant = (x * (4.0 / std::f32::consts::PI)) as u32;
    let even = (octant + 1) & !1;
    let turns = even as f32;
    // turns · π/4 in three parts, for an accurate remainder.
    let r = turns.mul_add(-3.774_895e-8, turns.mul_add(-2.418_756_5e-4, turns.mul_add(-0.785_156_25, x)));
    let square = r * r;
    let sin = (horner(&SIN, square) * square).mul_add(r, r);
    let cos = (horner(&COS, square) * square).mul_add(square, square * -0.5) + 1.0;
    match even / 2 % 4 {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

/// `Σ c[i] x^(n-1-i)`
#[inline(always)]
fn horner(coefficients: &[f32], x: f32) -> f32 {
    coefficients.iter().fold(0.0, |sum, c| sum.mul_add(x, *c))
}

/// The Mersenne Twister of Matsumoto and Nishimura (1998), seeded by their `init_genrand`.
struct Mt19937 {
    state: [u32; 624],
    next: usize,
}

impl Mt19937 {
    fn new(seed: u32) -> Self {
        let mut state = [seed; 624];
        for i in 1..state.len() {
            let last = state[i - 1];
            state[i] = (last ^ (last >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        let next = state.len();
        Mt19937 { state, next }
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == self.state.len() {
            self.refill();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn refill(&mut self) {
        let n = self.state.len();
        for i in 0..n {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % n] & 0x7fff_ffff);
            let twist = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + 397) % n] ^ (y >> 1) ^ twist;
        }
        self.next = 0;
    }

    /// In `[0, 1)`: the low 24 bits of a draw.
    fn uniform_f32(&mut self) -> f32 {
        (self.next_u32() & 0x00ff_ffff) as f32 * (1.0 / 16_777_216.0)
    }

    /// In `[0, 1)`: the low 53 bits of two draws, the high word first.
    fn uniform_f64(&mut self) -> f64 {
        let word = u64::from(self.next_u32()) << 32 | u64::from(self.next_u32());
        (word & ((1 << 53) - 1)) as f64 * (1.0 / 9_007_199_254_740_992.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use super::*;
    use crate::weights::Checkpoint;

    #[test]
    fn generator_is_the_reference_mt19937() {
        // The C++ standard fixes the 10000th draw of std::mt19937 with its default seed.
        let mut rng = Mt19937::new(5489);
        let tenth_thousand = (0..10_000).map(|_| rng.next_u32()).last();
        assert_eq!(tenth_thousand, Some(4_123_659_995));
    }

    #[test]
    fn approximations_stay_close_to_exact_functions() {
        for i in 1..=1 << 16 {
            let x = i as f32 / 65536.0;
            assert!((f64::from(ln(x)) - f64::from(x).ln()).abs() < 1e-6, "ln {x}");
            let (sin, cos) = sin_cos(x * std::f32::consts::TAU);
            let exact = f64::from(x * std::f32::consts::TAU).sin_cos();
            assert!((f64::from(sin) - exact.0).abs() < 1.2e-7, "sin {x}");
            assert!((f64::from(cos) - exact.1).abs() < 1.2e-7, "cos {x}");
        }
    }

    fn randn(seed: u64, count: usize) -> Vec<f32> {
        let mut values = vec![0.0; count];
        super::randn(seed, &mut values);
        values
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    /// Shapes that are and are not multiples of 16, seeds beyond 32 bits.
    #[test]
    fn equals_torch_bit_for_bit() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/noise.safetensors");
        let golden = Checkpoint::open(&golden).unwrap();
        assert!(golden.names().count() > 20);
        for tensor in golden.tensors() {
            let torch = golden.f32(tensor.name, tensor.shape).unwrap();
            let seed = tensor.name.split('/').next().unwrap().parse().unwrap();
            assert_eq!(bits(&randn(seed, torch.len())), bits(&torch), "{}", tensor.name);
        }
    }

    /// Hashes (FNV-1a of the words) and values from torch 2.15 on x86: long draws and one of fewer than 16.
    #[test]
    fn long_and_short_draws_equal_torch() {
        let step = |h: u64, v: f32| (h ^ u64::from(v.to_bits())).wrapping_mul(0x100_0000_01b3);
        let hash = |seed, count| randn(seed, count).into_iter().fold(0xcbf2_9ce4_8422_2325, step);
        assert_eq!(hash(0, 262_144), 0x9809_06ee_a73e_9361);
        assert_eq!(hash(42, 65_539), 0x05bc_6a3e_c08d_9cb7);
        assert_eq!(bits(&randn(0, 5)), [0x3fc53f5c, 0xbe963c50, 0xc00b7149, 0x3f1184b6, 0xbf8ad1a1]);
    }

    #[test]
    fn lengths_and_seeds() {
        for count in [0, 1, 2, 15, 16, 17, 31, 32, 4099] {
            assert!(randn(3, count).iter().all(|&value| value != 0.0), "{count} values");
        }
        assert_eq!(randn(7, 64), randn(7 + (1 << 32), 64));
        assert_ne!(randn(7, 64), randn(8, 64));
    }
}
