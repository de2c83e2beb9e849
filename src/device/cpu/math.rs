//! Exponentials and what is made of them, on vectors.

use super::simd::Simd;

/// `exp(x)`, off by less than 2e-7 relatively; arguments are clamped to -87.3 .. 88.
#[inline(always)]
pub(super) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    let x = s.min(s.max(x, s.splat(-87.3)), s.splat(88.0));
    // x = n ln 2 + r; ln 2 in two parts, of which the first times n is exact
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-0.693_359_4), x);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    // exp(r) = 1 + r + r² p(r), |r| <= ln 2 / 2
    let mut p = s.splat(1.987_569_1e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = s.fma(p, r, s.splat(c));
    }
    let tail = s.fma(s.mul(r, r), p, r);
    s.mul(s.add(tail, s.splat(1.0)), s.exp2(n))
}

/// `v · sigmoid(u)`
#[inline(always)]
pub(super) fn gated<S: Simd>(s: S, v: S::F, u: S::F) -> S::F {
    s.div(v, s.add(s.splat(1.0), exp(s, s.sub(s.splat(0.0), u))))
}

/// `v · sigmoid(v)`
#[inline(always)]
pub(super) fn silu<S: Simd>(s: S, v: S::F) -> S::F {
    gated(s, v, v)
}

/// `v · sigmoid(1.702 v)`
#[inline(always)]
pub(super) fn quick_gelu<S: Simd>(s: S, v: S::F) -> S::F {
    gated(s, v, s.mul(v, s.splat(1.702)))
}

/// `0.5 v (1 + tanh u) = v · sigmoid(2u)` with `u = √(2/π) (v + 0.044715 v³)`
#[inline(always)]
pub(super) fn gelu_tanh<S: Simd>(s: S, v: S::F) -> S::F {
    let cubic = s.fma(s.mul(v, v), s.splat(2.0 * 0.797_884_6 * 0.044715), s.splat(2.0 * 0.797_884_6));
    gated(s, v, s.mul(v, cubic))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::simd::{Kernel, Level};

    struct Exp<'a>(&'a [f32], &'a mut [f32]);

    impl Kernel for Exp<'_> {
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for (x, y) in self.0.chunks(S::LANES).zip(self.1.chunks_mut(S::LANES)) {
                s.store(exp(s, s.load(x)), y);
            }
        }
    }

    #[test]
    fn exponentials() {
        let x: Vec<f32> = (-87_300..=88_000).step_by(7).map(|i| i as f32 / 1000.0).collect();
        for level in Level::all() {
            let mut y = vec![0.0; x.len()];
            level.run(Exp(&x, &mut y));
            for (x, y) in x.iter().zip(y) {
                let want = f64::from(*x).exp();
                assert!((f64::from(y) - want).abs() < 2e-7 * want, "exp({x}) = {y} on {level:?}");
            }
            let mut y = [1.0; 4];
            level.run(Exp(&[-1e30, f32::NEG_INFINITY, 1e30, 0.0], &mut y));
            assert!(y[0] < 1.3e-38 && y[1] < 1.3e-38 && y[2].is_finite() && y[3] == 1.0, "{y:?}");
        }
    }
}
