//! Softmax attention, a block of queries at a time.

#![allow(unsafe_code, reason = "tasks write the columns of different heads")]

use super::gemm::{accumulate, panel_width};
use super::math;
use super::on::On;
use super::pool::Disjoint;
use super::simd::{Kernel, MAX_ROWS, Simd};
use super::tensor::Tensor;
use crate::Result;
use crate::memory::Buf;

/// Queries of a task.
const QUERIES: usize = 2 * MAX_ROWS;
/// Keys whose values are used for all queries of a task while they are in the first-level cache.
const KEYS: usize = 128;

/// [`crate::ops::Attention`] with what it borrows at hand.
pub(super) struct Spec<'a> {
    pub(super) heads: usize,
    pub(super) scale: f32,
    pub(super) causal: bool,
    pub(super) bias: Option<&'a Tensor>,
}

/// `out[m, head] = Σ_j softmax_j(scale · q[m]·k[j] + mask) · v[j]`
pub(super) fn attention(on: &On<'_>, qkv: &Tensor, spec: &Spec<'_>) -> Result<Tensor> {
    let level = on.level;
    let (rows, width) = (qkv.rows, qkv.cols / 3);
    let (d, panel) = (width / spec.heads, panel_width(level));
    let keys = pack_keys(on, qkv, spec.heads, panel)?;
    let values = pack_values(on, qkv, spec.heads, panel)?;
    let padded = rows.next_multiple_of(panel);
    let blocks = rows.div_ceil(QUERIES);
    let mut out = Tensor::zeros(on, rows, width)?;
    let out_rows = Disjoint::new(&mut out.data);
    on.run_with(spec.heads * blocks, QUERIES * padded, |task, scores| {
        let head = task / blocks;
        let start = task % blocks * QUERIES;
        let queries = start..rows.min(start + QUERIES);

        let scores = &mut scores[..queries.len() * padded];
        scores.fill(0.0);
        for (i, keys) in keys[head * padded * d..][..padded * d].chunks_exact(panel * d).enumerate() {
            let q = |m: usize, _| &qkv.row(start + m)[head * d..][..d];
            accumulate(level, (&mut scores[i * panel..], padded), queries.len(), 1, q, keys);
        }
        let mut weights = [0.0; QUERIES];
        for ((m, scores), weight) in queries.clone().zip(scores.chunks_exact_mut(padded)).zip(&mut weights) {
            let keys = if spec.causal { m + 1 } else { rows };
            let bias = spec.bias.map_or(&[][..], |b| &b.row(head)[rows - 1 - m..][..rows]);
            level.run(Softmax { scores, keys, scale: spec.scale, bias, weight });
        }
        let size = d.next_multiple_of(panel) * rows;
        for (i, values) in values[head * size..][..size].chunks_exact(rows * panel).enumerate() {
            let mut sums = [0.0; QUERIES * 2 * super::simd::MAX_LANES];
            for start in (0..rows).step_by(KEYS) {
                let end = rows.min(start + KEYS);
                let p = |m: usize, _| &scores[m * padded..][start..end];
                let values = &values[start * panel..end * panel];
                accumulate(level, (&mut sums, panel), queries.len(), 1, p, values);
            }
            let columns = i * panel..d.min((i + 1) * panel);
            for ((m, sums), weight) in queries.clone().zip(sums.chunks_exact(panel)).zip(weights) {
                let at = m * width + head * d;
                // SAFETY: no other task has these queries of this head.
                let out = unsafe { out_rows.slice(at + columns.start..at + columns.end) };
                out.iter_mut().zip(sums).for_each(|(o, sum)| *o = sum * weight);
            }
        }
    })?;
    Ok(out)
}

/// The keys as panels of weights: `[head][panel of keys][channel][key]`, zeros after the last key.
fn pack_keys(on: &On<'_>, qkv: &Tensor, heads: usize, panel: usize) -> Result<Buf<f32>> {
    let (rows, width) = (qkv.rows, qkv.cols / 3);
    let (d, panels) = (width / heads, rows.div_ceil(panel));
    let mut keys = on.zeros(heads * panels * panel * d, "the keys of an attention")?;
    on.chunks(&mut keys, panel * d, |i, to| {
        let (head, start) = (i / panels, i % panels * panel);
        for (j, row) in (start..rows.min(start + panel)).enumerate() {
            let key = &qkv.row(row)[width + head * d..][..d];
            to[j..].iter_mut().step_by(panel).zip(key).for_each(|(to, v)| *to = *v);
        }
    })?;
    Ok(keys)
}

/// The values as panels of weights: `[head][panel of channels][key][channel]`, zeros after the last channel.
fn pack_values(on: &On<'_>, qkv: &Tensor, heads: usize, panel: usize) -> Result<Buf<f32>> {
    let (rows, width) = (qkv.rows, qkv.cols / 3);
    let d = width / heads;
    let panels = d.div_ceil(panel);
    let mut values = on.zeros(heads * panels * panel * rows, "the values of an attention")?;
    on.chunks(&mut values, panel * rows, |i, to| {
        let (head, start) = (i / panels, i % panels * panel);
        let end = d.min(start + panel);
        for (row, to) in to.chunks_exact_mut(panel).enumerate() {
            let value = &qkv.row(row)[2 * width + head * d..][start..end];
            to[..value.len()].copy_from_slice(value);
        }
    })?;
    Ok(values)
}

/// Turns the first `keys` scores into `p = exp(score - max)`, the rest into zeros, and gives the
/// weight `1 / Σ p`.
struct Softmax<'a> {
    /// Whole vectors.
    scores: &'a mut [f32],
    keys: usize,
    scale: f32,
    /// As many as there are queries, or empty.
    bias: &'a [f32],
    weight: &'a mut f32,
}

impl Kernel for Softmax<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (scores, rest) = self.scores.split_at_mut(self.keys);
        let (scale, mut max) = (s.splat(self.scale), s.splat(f32::NEG_INFINITY));
        let (whole, part) = scores.split_at_mut(self.keys / S::LANES * S::LANES);
        for (i, x) in whole.chunks_exact_mut(S::LANES).enumerate() {
            let mut v = s.mul(s.load(x), scale);
            if !self.bias.is_empty() {
                v = s.add(v, s.load(&self.bias[i * S::LANES..]));
            }
            max = s.max(max, v);
            s.store(v, x);
        }
        let mut max = s.largest(max);
        for (i, x) in part.iter_mut().enumerate() {
            *x = *x * self.scale + self.bias.get(whole.len() + i).unwrap_or(&0.0);
            max = if *x > max { *x } else { max };
        }
        let max = s.splat(max);
        let mut sum = s.splat(0.0);
        for x in scores.chunks_mut(S::LANES) {
            s.store(math::exp(s, s.sub(s.load(x), max)), x);
            // read back: beyond the last key there are zeros
            sum = s.add(sum, s.load(x));
        }
        rest.fill(0.0);
        *self.weight = 1.0 / s.sum(sum);
    }
}
