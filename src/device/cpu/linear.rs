//! Linears: their weights, the rows that are ready for them, and their products.

#![allow(unsafe_code, reason = "tasks write different rows of several outputs")]

use std::ops::Range;

use super::Cpu;
use super::gemm::{Epilogue, IntPanels, IntRows, Panels, Target, Tile, product};
use super::low_rank::{Branch, LowRank};
use super::norm::{NormRows, RowNorm};
use super::on::On;
use super::pool::Disjoint;
use super::quantize::{Quantize, Quantizer, Smooth, fake_quantise_fp4};
use super::simd::MAX_ROWS;
use super::tensor::Tensor;
use crate::Result;
use crate::memory::Buf;
use crate::ops::{
    Activation, AwqSource, Codes, DenseSource, LowRankSource, Norm, Profile, Storage, SvdqSource,
};
use crate::weights::pack::{self, Unpacked};

/// What a failed allocation was for.
const BIAS: &str = "a linear's bias";

/// The weights of a linear.
pub struct Linear {
    pub(super) n: usize,
    pub(super) k: usize,
    bias: Buf<f32>,
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
    low_rank: Option<LowRank>,
}

/// Rows made ready for one linear.
pub struct Input {
    pub(super) rows: usize,
    x: Rows,
    /// Projections of the rows on all branches, those of one after those of another.
    lora: Buf<f32>,
}

enum Rows {
    Float(Buf<f32>),
    Int(IntRows),
}

impl Linear {
    pub(super) fn dense(on: &On<'_>, source: &DenseSource<'_>) -> Result<Linear> {
        let DenseSource { n, k, ref weight, ref bias, storage } = *source;
        let weights = Weights::Float(Panels::pack(on, [n, k], storage, weight.values()?)?);
        Ok(Linear { n, k, bias: on.copy(bias, BIAS)?, weights, svdq: None })
    }

    pub(super) fn awq(on: &On<'_>, source: &AwqSource<'_>) -> Result<Linear> {
        let weights = Weights::Float(Panels::packed(on, source)?);
        let bias = on.copy(&pack::unpack_awq_bias(source), BIAS)?;
        Ok(Linear { n: source.n, k: source.k, bias, weights, svdq: None })
    }

    pub(super) fn svdq(on: &On<'_>, profile: Profile, source: &SvdqSource<'_>) -> Result<Linear> {
        let SvdqSource { n, k, rank, unsigned, .. } = *source;
        let fp4 = source.codes != Codes::Int4;
        let smooth = on.copy(&pack::unpack_vector(&source.smooth), "smoothing factors")?;
        let quantizer = Quantizer { profile, smooth, unsigned, fp4 };
        let mut unpacked = Unpacked::of(on.memory, source)?;
        let weights = if quantizer.is_float() {
            let mut weights = on.zeros(n * k, "weights")?;
            on.chunks(&mut weights, k, |row, weights| unpacked.row(row, weights))?;
            Weights::Float(Panels::pack(on, [n, k], Storage::F32, &weights)?)
        } else {
            let (block, zero) = (quantizer.block(), quantizer.zero());
            if profile == Profile::W4A8 {
                let folded = fold(on, &mut unpacked, k)?;
                let blocks = vec![&folded[..]; k.div_ceil(block)];
                unpacked.scales = Buf::concat(on.memory, &blocks, "weights' scales")?;
            }
            Weights::Int(IntPanels::pack(on, k, block, zero, &unpacked.codes, &unpacked.scales)?)
        };
        let low_rank = (rank > 0).then(|| {
            let down = pack::unpack_lora_down(on.memory, &source.lora_down, k, rank)?.into();
            let up = pack::unpack_lora_up(on.memory, &source.lora_up, n, rank)?.into();
            let source = LowRankSource { n, k, rows: 0..n, rank, down, up, bias: vec![] };
            LowRank::stored(on, Storage::Bf16, &source)
        });
        let svdq = Some(Svdq { quantizer, low_rank: low_rank.transpose()? });
        Ok(Linear { n, k, bias: on.copy(&pack::unpack_vector(&source.bias), BIAS)?, weights, svdq })
    }

    /// Makes `rows` of `x` ready: `norm`, the low-rank branches and the quantiser.
    pub(super) fn prepare(
        &self,
        on: &On<'_>,
        x: &Tensor,
        rows: Range<usize>,
        norm: &Norm<'_, Cpu>,
        updates: &[(&LowRank, f32)],
    ) -> Result<Input> {
        let (level, k, first) = (on.level, self.k, rows.start);
        let rows = rows.len();
        let branches = self.branches(updates);
        let rank = branches.last().map_or(0, |last| last.start + last.weights.width());
        let quantizer = self.svdq.as_ref().map(|svdq| &svdq.quantizer);
        let float = quantizer.is_none_or(|q| q.is_float());
        let blocks = quantizer.map_or(0, |q| k.div_ceil(q.block()));
        let what = format_args!("{rows} rows on their way into a linear");
        let mut lora = on.zeros(rows * rank, what)?;
        let mut ready = on.zeros(if float { rows * k } else { 0 }, what)?;
        let mut codes = on.zeros(if float { 0 } else { rows * k }, what)?;
        let mut scales = on.zeros(if float { 0 } else { rows * blocks }, what)?;
        let is_normed = quantizer.is_some() && !matches!(norm, Norm::None);
        let aside = usize::from(is_normed) + usize::from(!float);
        {
            let norm = if on.is_idle { RowNorm::None } else { RowNorm::new(norm, k) };
            let (lora, ready) = (Disjoint::new(&mut lora), Disjoint::new(&mut ready));
            let (codes, scales) = (Disjoint::new(&mut codes), Disjoint::new(&mut scales));
            on.run_with(rows.div_ceil(MAX_ROWS), aside * MAX_ROWS * k, |task, aside| {
                let rows = task * MAX_ROWS..rows.min((task + 1) * MAX_ROWS);
                let of = |cols: usize| rows.start * cols..rows.end * cols;
                // SAFETY: these rows belong to this task alone.
                let (lora, ready) =
                    unsafe { (lora.slice(of(rank)), ready.slice(of(if float { k } else { 0 }))) };
                let x = &x.data[first * k..][of(k)];
                let (normed, smoothed) = aside.split_at_mut(if is_normed { x.len() } else { 0 });
                let Some(quantizer) = quantizer else {
                    level.run(NormRows { norm, cols: k, from: x, to: ready });
                    return branches.iter().for_each(|b| b.project(level, k, ready, lora, rank));
                };
                let mut h = x;
                if is_normed {
                    level.run(NormRows { norm, cols: k, from: h, to: normed });
                    h = normed;
                }
                branches.iter().for_each(|b| b.project(level, k, h, lora, rank));
                if float {
                    level.run(Smooth { quantizer, from: h, to: &mut *ready });
                    if quantizer.profile == Profile::W4A4 {
                        fake_quantise_fp4(ready);
                    }
                    return;
                }
                let smoothed = &mut smoothed[..h.len()];
                level.run(Smooth { quantizer, from: h, to: smoothed });
                // SAFETY: as above.
                let (codes, scales) = unsafe { (codes.slice(of(k)), scales.slice(of(blocks))) };
                level.run(Quantize { quantizer, smoothed, codes, scales });
            })?;
        }
        let x = if float { Rows::Float(ready) } else { Rows::Int(IntRows { codes, scales }) };
        Ok(Input { rows, x, lora })
    }

    /// `out = linear(x)` and what `act` and `target` make of it.
    pub(super) fn apply(
        &self,
        on: &On<'_>,
        input: &Input,
        updates: &[(&LowRank, f32)],
        act: Activation,
        target: Target<'_>,
        out: &mut [f32],
    ) -> Result<()> {
        if on.is_idle {
            return Ok(());
        }
        let level = on.level;
        assert_eq!(out.len(), input.rows * self.n, "the output has another shape");
        let branches = self.branches(updates);
        let rank = branches.last().map_or(0, |last| last.start + last.weights.width());
        assert_eq!(input.lora.len(), input.rows * rank, "the input was made ready for other updates");
        let sums = |tile: &mut Tile<'_>| {
            match (&input.x, &self.weights) {
                (Rows::Float(x), Weights::Float(w)) => {
                    w.multiply(level, tile, 1, |m, _| &x[m * self.k..][..self.k]);
                }
                (Rows::Int(x), Weights::Int(w)) => w.multiply(level, tile, x),
                _ => panic!("the input was made ready for a linear of another kind"),
            }
            branches.iter().for_each(|b| b.add(level, tile, &input.lora, rank));
        };
        product(on, out, self.n, sums, &Epilogue { bias: &self.bias, act, target })
    }

    /// The low-rank branch of the weights, if any, and then the updates, side by side in the columns of [`Input::lora`].
    fn branches<'a>(&'a self, updates: &'a [(&'a LowRank, f32)]) -> Vec<Branch<'a>> {
        let own = self.svdq.iter().filter_map(|svdq| Some((svdq.low_rank.as_ref()?, 1.0)));
        let mut start = 0;
        own.chain(updates.iter().copied())
            .map(|(weights, strength)| {
                assert!(weights.fits([self.n, self.k]), "an update of a linear of another shape");
                let branch = Branch { weights, strength, start };
                start += weights.width();
                branch
            })
            .collect()
    }
}

/// Turns 4-bit codes into int8 codes with one scale a row, `absmax / 127`.
fn fold(on: &On<'_>, weights: &mut Unpacked, k: usize) -> Result<Buf<f32>> {
    let n = weights.codes.len() / k;
    let Unpacked { codes, scales, levels, group, .. } = weights;
    let (levels, group) = (&*levels, *group);
    let level = |code: i8| levels[usize::from(code as u8 & 15)];
    let mut folded = on.zeros(n, "weights' scales")?;
    let folded_rows = Disjoint::new(&mut folded);
    on.chunks(codes, k, |row, codes| {
        let scale = |g: usize| scales[g * n + row];
        let largest = codes.chunks(group).enumerate().fold(0.0f32, |max, (g, codes)| {
            let code = codes.iter().fold(0.0f32, |max, &c| max.max(level(c).abs()));
            max.max((code * scale(g)).abs())
        });
        let row_scale = largest / 127.0;
        for (g, codes) in codes.chunks_mut(group).enumerate() {
            // A row of zeros gives 0/0, which is stored as 0.
            let of = |code: usize| (levels[code] * scale(g) / row_scale).round_ties_even() as i8;
            let table: [i8; 16] = std::array::from_fn(of);
            codes.iter_mut().for_each(|c| *c = table[usize::from(*c as u8 & 15)]);
        }
        // SAFETY: this row's scale is this task's alone.
        unsafe { folded_rows.slice(row..row + 1) }.fill(row_scale);
    })?;
    Ok(folded)
}
