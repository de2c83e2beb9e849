//! What is done to a row before it enters a linear, and to the heads of q and k.

use super::Cpu;
use super::math;
use super::simd::{Kernel, Simd};
use crate::ops::{Chunk, Norm};

/// A [`Norm`] whose weights are at hand, `cols` of them each.
#[derive(Clone, Copy)]
pub(super) enum RowNorm<'a> {
    None,
    Silu,
    Layer { weight: &'a [f32], bias: &'a [f32], eps: f32 },
    Rms { weight: &'a [f32], eps: f32 },
}

impl<'a> RowNorm<'a> {
    pub(super) fn new(norm: &Norm<'a, Cpu>, cols: usize) -> Self {
        match norm {
            Norm::None => RowNorm::None,
            Norm::Silu => RowNorm::Silu,
            Norm::Layer { weight, bias, eps } => {
                RowNorm::Layer { weight: weight.row(0), bias: bias.row(0), eps: *eps }
            }
            Norm::Rms { weight, eps } => RowNorm::Rms { weight: weight.row(0), eps: *eps },
            Norm::Modulate { scale, shift } => {
                RowNorm::Layer { weight: chunk(scale, cols), bias: chunk(shift, cols), eps: 1e-6 }
            }
        }
    }
}

/// The `cols` values that `c` names.
pub(super) fn chunk<'a>(c: &Chunk<'a, Cpu>, cols: usize) -> &'a [f32] {
    &c.table.row(c.row)[c.start..][..cols]
}

/// `to = norm(from)`, row by row.
pub(super) struct NormRows<'a> {
    pub(super) norm: RowNorm<'a>,
    pub(super) cols: usize,
    pub(super) from: &'a [f32],
    pub(super) to: &'a mut [f32],
}

impl Kernel for NormRows<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, y) in self.from.chunks_exact(self.cols).zip(self.to.chunks_exact_mut(self.cols)) {
            match self.norm {
                RowNorm::None => y.copy_from_slice(x),
                RowNorm::Silu => {
                    for (x, y) in x.chunks(S::LANES).zip(y.chunks_mut(S::LANES)) {
                        s.store(math::silu(s, s.load(x)), y);
                    }
                }
                RowNorm::Layer { weight, bias, eps } => layer(s, x, y, weight, bias, eps),
                RowNorm::Rms { weight, eps } => rms(s, x, y, weight, eps),
            }
        }
    }
}

#[inline(always)]
fn layer<S: Simd>(s: S, x: &[f32], y: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let mut sum = s.splat(0.0);
    for x in x.chunks(S::LANES) {
        sum = s.add(sum, s.load(x));
    }
    let mean = s.splat(s.sum(sum) / x.len() as f32);
    let mut squares = s.splat(0.0);
    for (x, y) in x.chunks(S::LANES).zip(y.chunks_mut(S::LANES)) {
        s.store(s.sub(s.load(x), mean), y);
        // read back: beyond the end of the row it is the zeros that count, not the mean
        let d = s.load(y);
        squares = s.fma(d, d, squares);
    }
    let r = s.splat(1.0 / (s.sum(squares) / x.len() as f32 + eps).sqrt());
    let (weight, bias) = (weight.chunks(S::LANES), bias.chunks(S::LANES));
    for ((y, w), b) in y.chunks_mut(S::LANES).zip(weight).zip(bias) {
        s.store(s.fma(s.mul(s.load(y), r), s.load(w), s.load(b)), y);
    }
}

#[inline(always)]
fn rms<S: Simd>(s: S, x: &[f32], y: &mut [f32], weight: &[f32], eps: f32) {
    let r = s.splat(reciprocal_rms(s, x, eps));
    for ((x, y), w) in x.chunks(S::LANES).zip(y.chunks_mut(S::LANES)).zip(weight.chunks(S::LANES)) {
        s.store(s.mul(s.mul(s.load(x), r), s.load(w)), y);
    }
}

/// `1 / sqrt(mean(x²) + eps)`
#[inline(always)]
fn reciprocal_rms<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    let mut squares = s.splat(0.0);
    for x in x.chunks(S::LANES) {
        let x = s.load(x);
        squares = s.fma(x, x, squares);
    }
    1.0 / (s.sum(squares) / x.len() as f32 + eps).sqrt()
}

/// RMSNorm and rotation of the heads of q and k in a row of q, k and v.
pub(super) struct RotateHeads<'a> {
    pub(super) row: &'a mut [f32],
    /// Weights of the norm, `head_dim` each.
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
    /// cos and sin of each pair.
    pub(super) rope: &'a [f32],
}

impl Kernel for RotateHeads<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.row.len() / 3;
        let (q, rest) = self.row.split_at_mut(width);
        for (part, weight) in [(q, self.q), (&mut rest[..width], self.k)] {
            for head in part.chunks_exact_mut(weight.len()) {
                let r = reciprocal_rms(s, head, 1e-6);
                let turns = weight.as_chunks::<2>().0.iter().zip(self.rope.as_chunks::<2>().0);
                for (u, (w, [cos, sin])) in head.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                    let [a, b] = [u[0] * r * w[0], u[1] * r * w[1]];
                    *u = [a * cos - b * sin, a * sin + b * cos];
                }
            }
        }
    }
}
