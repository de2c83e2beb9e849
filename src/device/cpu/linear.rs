//! Linears: their weights, the rows that are ready for them, and their products.

#![allow(unsafe_code, reason = "tasks write different rows of several outputs")]

use super::gemm::{Epilogue, IntPanels, IntRows, Panels, Target, Tile, panel_width, product};
use super::norm::{NormRows, RowNorm};
use super::pool::{Disjoint, Pool};
use super::quantize::{Quantize, Quantizer, Smooth};
use super::simd::{Level, MAX_ROWS};
use crate::ops::{Activation, DenseSource, Profile, Storage, SvdqSource};
use crate::weights::pack;

/// The weights of a linear.
pub struct Linear {
    pub(super) n: usize,
    pub(super) k: usize,
    bias: Vec<f32>,
    weights: Weights,
    svdq: Option<Svdq>,
}

enum Weights {
    Float(Panels),
    Int(IntPanels),
}

/// What a 4-bit linear does to its input, and its low-rank branch.
struct Svdq {
    quantizer: Quantizer,
    rank: usize,
    /// `[rank, k]`
    down: Panels,
    /// `[n, rank]`
    up: Panels,
}

/// Rows made ready for one linear.
pub struct Input {
    pub(super) rows: usize,
    x: Rows,
    /// `[rows, rank]`, with the rank rounded up to whole panels.
    lora: Vec<f32>,
}

enum Rows {
    Float(Vec<f32>),
    Int(IntRows),
}

impl Linear {
    pub(super) fn dense(level: Level, source: &DenseSource) -> Linear {
        let DenseSource { n, k, ref weight, ref bias, storage } = *source;
        let weights = Panels::pack(level, [n, k], storage, |n, i| weight[n * k + i]);
        Linear { n, k, bias: bias.clone(), weights: Weights::Float(weights), svdq: None }
    }

    pub(super) fn svdq(level: Level, profile: Profile, source: &SvdqSource<'_>) -> Linear {
        let SvdqSource { n, k, rank, unsigned, .. } = *source;
        let quantizer = Quantizer { profile, smooth: pack::unpack_vector(source.smooth), unsigned };
        let codes = pack::unpack_codes(source.qweight, n, k);
        let scales = pack::unpack_wscales(source.wscales, n, k);
        let down = pack::unpack_lora_down(source.lora_down, k, rank);
        let up = pack::unpack_lora_up(source.lora_up, n, rank);
        let at = |row: usize, i: usize| f32::from(codes[row * k + i]) * scales[i / 64 * n + row];
        let (block, zero) = (quantizer.block(), quantizer.zero());
        let weights = match profile {
            Profile::W4A4 => Weights::Int(IntPanels::pack(level, [n, k], block, zero, &codes, |row, b| {
                scales[b * n + row]
            })),
            Profile::W4A8 => {
                let (codes, scales) = fold([n, k], at);
                Weights::Int(IntPanels::pack(level, [n, k], block, zero, &codes, |row, _| scales[row]))
            }
            Profile::W4A16 => Weights::Float(Panels::pack(level, [n, k], Storage::F32, at)),
        };
        let svdq = Svdq {
            quantizer,
            rank,
            down: Panels::pack(level, [rank, k], Storage::Bf16, |r, i| down[r * k + i]),
            up: Panels::pack(level, [n, rank], Storage::Bf16, |n, r| up[n * rank + r]),
        };
        Linear { n, k, bias: pack::unpack_vector(source.bias), weights, svdq: Some(svdq) }
    }

    /// Makes the rows `x` ready: `norm`, the low-rank branch and the quantiser.
    pub(super) fn prepare(&self, level: Level, pool: &Pool, x: &[f32], norm: RowNorm<'_>) -> Input {
        let (k, rows) = (self.k, x.len() / self.k);
        let Some(svdq) = &self.svdq else {
            let mut h = vec![0.0; x.len()];
            pool.chunks(&mut h, MAX_ROWS * k, |i, to| {
                level.run(NormRows { norm, cols: k, from: &x[i * MAX_ROWS * k..][..to.len()], to });
            });
            return Input { rows, x: Rows::Float(h), lora: Vec::new() };
        };
        let float = svdq.quantizer.profile == Profile::W4A16;
        let blocks = k.div_ceil(svdq.quantizer.block());
        let rank = svdq.rank.next_multiple_of(panel_width(level));
        let mut lora = vec![0.0; rows * rank];
        let mut smoothed = vec![0.0; if float { rows * k } else { 0 }];
        let mut codes = vec![0; if float { 0 } else { rows * k }];
        let mut scales = vec![0.0; if float { 0 } else { rows * blocks }];
        {
            let (lora, smoothed) = (Disjoint::new(&mut lora), Disjoint::new(&mut smoothed));
            let (codes, scales) = (Disjoint::new(&mut codes), Disjoint::new(&mut scales));
            pool.run(rows.div_ceil(MAX_ROWS), |task| {
                let rows = task * MAX_ROWS..rows.min((task + 1) * MAX_ROWS);
                let of = |cols: usize| rows.start * cols..rows.end * cols;
                let mut normed = Vec::new();
                let mut h = &x[of(k)];
                if !matches!(norm, RowNorm::None) {
                    normed.resize(h.len(), 0.0);
                    level.run(NormRows { norm, cols: k, from: h, to: &mut normed });
                    h = &normed;
                }
                // SAFETY: these rows belong to this task alone.
                svdq.project(level, h, unsafe { lora.slice(of(rank)) });
                if float {
                    // SAFETY: as above.
                    let to = unsafe { smoothed.slice(of(k)) };
                    return level.run(Smooth { quantizer: &svdq.quantizer, from: h, to });
                }
                let mut smoothed = vec![0.0; h.len()];
                level.run(Smooth { quantizer: &svdq.quantizer, from: h, to: &mut smoothed });
                // SAFETY: as above.
                let (codes, scales) = unsafe { (codes.slice(of(k)), scales.slice(of(blocks))) };
                level.run(Quantize { quantizer: &svdq.quantizer, smoothed: &mut smoothed, codes, scales });
            });
        }
        let x = if float { Rows::Float(smoothed) } else { Rows::Int(IntRows { codes, scales }) };
        Input { rows, x, lora }
    }

    /// `out = linear(x)` and what `act` and `target` make of it.
    pub(super) fn apply(
        &self,
        (level, pool): (Level, &Pool),
        input: &Input,
        act: Activation,
        target: Target<'_>,
        out: &mut [f32],
    ) {
        assert_eq!(out.len(), input.rows * self.n, "the output has another shape");
        let sums = |tile: &mut Tile<'_>| {
            match (&input.x, &self.weights) {
                (Rows::Float(x), Weights::Float(w)) => {
                    w.multiply(level, tile, 1, |m, _| &x[m * self.k..][..self.k]);
                }
                (Rows::Int(x), Weights::Int(w)) => w.multiply(level, tile, x),
                _ => panic!("the input was made ready for a linear of another kind"),
            }
            if let Some(svdq) = &self.svdq
                && svdq.rank > 0
            {
                let stride = svdq.rank.next_multiple_of(panel_width(level));
                svdq.up.multiply(level, tile, 1, |m, _| &input.lora[m * stride..][..svdq.rank]);
            }
        };
        product((level, pool), out, self.n, sums, &Epilogue { bias: &self.bias, act, target });
    }
}

impl Svdq {
    /// `lora = h · Aᵀ`
    fn project(&self, level: Level, h: &[f32], lora: &mut [f32]) {
        let (k, width) = (self.quantizer.smooth.len(), panel_width(level));
        let stride = self.rank.next_multiple_of(width);
        for panel in 0..stride / width {
            let mut tile = Tile { rows: 0..h.len() / k, panel, values: &mut lora[panel * width..], stride };
            self.down.multiply(level, &mut tile, 1, |m, _| &h[m * k..][..k]);
        }
    }
}

/// The weights `[n, k]` as int8 codes with one scale a row, `absmax / 127`.
fn fold([n, k]: [usize; 2], at: impl Fn(usize, usize) -> f32) -> (Vec<i8>, Vec<f32>) {
    let (mut codes, mut scales) = (Vec::with_capacity(n * k), Vec::with_capacity(n));
    for row in 0..n {
        let scale = (0..k).fold(0.0f32, |max, i| max.max(at(row, i).abs())) / 127.0;
        // A row of zeros gives 0/0, which is stored as 0.
        codes.extend((0..k).map(|i| (at(row, i) / scale).round_ties_even() as i8));
        scales.push(scale);
    }
    (codes, scales)
}
