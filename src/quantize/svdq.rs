//! One SVDQuant linear: smoothing, low-rank branch and 4-bit residual from a dense weight.

use half::bf16;

use super::lowrank::{LowRank, Subspace};
use super::matrix::{Left, Matrix, for_each, product, vectorized};
use super::round::{GROUP, round_signed};

/// What is added to fc2's input so that it is never negative; exact in bf16.
const SHIFT: f64 = 0.171875;
/// Power iterations of the first low-rank search, which starts from a random subspace.
const FIRST_ITERATIONS: usize = 4;
/// Power iterations of later searches, which start from the subspace of the one before.
const LATER_ITERATIONS: usize = 1;

/// A linear `y = W x + b` that is to be quantised.
pub(super) struct Dense<'a> {
    /// `[n, k]`; `n` and `k` are multiples of 128.
    pub(super) weight: Matrix,
    /// `[n]`
    pub(super) bias: &'a [f32],
    /// The assumed root mean square of each input channel, `[k]`, positive.
    pub(super) input_rms: &'a [f32],
    /// The 4-bit weights see the input shifted by 0.171875 (fc2).
    pub(super) shifted: bool,
}

/// The parts of a quantised linear in logical order; every 16-bit part is exact in bf16.
/// ```text
/// y[n] = Σ_k codes[n,k] · scales[n,k/64] · (x[k] + shift) / smooth[k] + Σ_r up[n,r] Σ_k down[r,k] x[k] + bias[n]
/// ```
pub(super) struct Svdq {
    /// `[n, k]`, -8 ..= 7
    pub(super) codes: Vec<i8>,
    /// `[n, k/64]`
    pub(super) scales: Vec<f32>,
    /// `[k]`
    pub(super) smooth: Vec<f32>,
    /// `[rank, k]`
    pub(super) down: Matrix,
    /// `[n, rank]`
    pub(super) up: Matrix,
    /// `[n]`
    pub(super) bias: Vec<f32>,
    /// Power of the outputs over power of their errors if only the weights are quantised, for independent
    /// inputs of the assumed root mean squares; in dB.
    pub(super) sqnr_db: f64,
}

/// The 4-bit part of a linear for one choice of the low-rank part.
struct Residual {
    codes: Vec<i8>,
    scales: Vec<f32>,
    /// `Σ importance · (residual - codes · scale)²`
    error: f64,
}

/// Quantises a linear with a low-rank branch of rank `rank`. `rounds` times in turn, the branch is fitted to
/// what the 4-bit weights leave, and the 4-bit weights to what the branch leaves; the best round is kept.
pub(super) fn quantize(dense: Dense<'_>, rank: usize, rounds: usize, threads: usize) -> Svdq {
    let Dense { weight: mut hat, bias, input_rms, shifted } = dense;
    let smooth = smoothing(&hat, input_rms);
    for row in hat.data.chunks_exact_mut(smooth.len()) {
        row.iter_mut().zip(&smooth).for_each(|(w, s)| *w *= s);
    }
    let importance: Vec<f32> = input_rms.iter().zip(&smooth).map(|(a, s)| (a / s).powi(2)).collect();

    let mut subspace = Subspace::random(hat.cols, rank);
    let mut fit = |target: Matrix, iterations: usize| {
        let branch = stored(subspace.approximate(&target, iterations, threads), &smooth);
        drop(target);
        let (residual, rest) = round_residual(&hat, &branch, &smooth, &importance, threads);
        (residual, branch, rest)
    };
    let (mut residual, mut branch, mut target) = fit(hat.clone(), FIRST_ITERATIONS);
    for _ in 1..rounds {
        let (next, next_branch, rest) = fit(target, LATER_ITERATIONS);
        if next.error < residual.error {
            (residual, branch) = (next, next_branch);
        }
        target = rest;
    }

    let power = weighted_power(&hat, &importance);
    let sqnr_db = super::decibel(power, residual.error);
    let LowRank { up, down } = branch;
    let shift = if shifted { SHIFT } else { 0.0 };
    let bias = shifted_bias(bias, &residual, &smooth, shift);
    Svdq { codes: residual.codes, scales: residual.scales, smooth, down, up, bias, sqnr_db }
}

/// The divisor of each input channel: `√(rms of the input / rms of the weight's column)`, with a geometric
/// mean of 1. It gives a channel's share of the quantisation error in equal parts to the weights and to the
/// activations.
fn smoothing(weight: &Matrix, input_rms: &[f32]) -> Vec<f32> {
    let mut power = vec![0.0f64; weight.cols];
    for row in weight.data.chunks_exact(weight.cols) {
        power.iter_mut().zip(row).for_each(|(p, &w)| *p += (w as f64).powi(2));
    }
    let smooth: Vec<f64> = power
        .iter()
        .zip(input_rms)
        .map(|(p, &a)| (a as f64 / (p / weight.rows as f64).sqrt()).sqrt())
        .collect();
    let usable = |s: f64| s.is_finite() && s > 0.0;
    let count = smooth.iter().filter(|&&s| usable(s)).count().max(1);
    let mean = (smooth.iter().filter(|&&s| usable(s)).map(|s| s.ln()).sum::<f64>() / count as f64).exp();
    smooth.iter().map(|&s| if usable(s) { bf16_round((s / mean) as f32) } else { 1.0 }).collect()
}

/// The branch as the file holds it: rounded to bf16, `down` divided by `smooth` because the branch sees the
/// unsmoothed input.
fn stored(mut branch: LowRank, smooth: &[f32]) -> LowRank {
    for row in branch.down.data.chunks_exact_mut(smooth.len()) {
        row.iter_mut().zip(smooth).for_each(|(d, s)| *d = bf16_round(*d / s));
    }
    branch.up.data.iter_mut().for_each(|u| *u = bf16_round(*u));
    branch
}

/// Rounds `hat - up · down · diag(smooth)`; also gives `hat` less the rounded residual.
fn round_residual(
    hat: &Matrix,
    branch: &LowRank,
    smooth: &[f32],
    importance: &[f32],
    threads: usize,
) -> (Residual, Matrix) {
    let mut down = branch.down.clone();
    for row in down.data.chunks_exact_mut(smooth.len()) {
        row.iter_mut().zip(smooth).for_each(|(d, s)| *d *= s);
    }
    let mut rest = product(Left::Plain(&branch.up), &down, threads);

    struct Row<'a> {
        hat: &'a [f32],
        /// The low-rank part, then what the 4-bit part leaves.
        rest: &'a mut [f32],
        codes: &'a mut [i8],
        scales: &'a mut [f32],
        error: f64,
    }
    let (n, k) = (hat.rows, hat.cols);
    let (mut codes, mut scales) = (vec![0; n * k], vec![0.0; n * (k / GROUP)]);
    let mut rows: Vec<Row> = (hat.data.chunks_exact(k).zip(rest.data.chunks_exact_mut(k)))
        .zip(codes.chunks_exact_mut(k).zip(scales.chunks_exact_mut(k / GROUP)))
        .map(|((hat, rest), (codes, scales))| Row { hat, rest, codes, scales, error: 0.0 })
        .collect();
    for_each(&mut rows, threads, |row| {
        row.error = vectorized(|| round_row(row.hat, row.rest, importance, row.codes, row.scales));
    });
    let error = rows.iter().map(|row| row.error).sum();
    drop(rows);
    (Residual { codes, scales, error }, rest)
}

/// Rounds `hat - rest` in groups and puts `hat` less the result into `rest`. Returns the error.
#[inline(always)]
fn round_row(hat: &[f32], rest: &mut [f32], importance: &[f32], codes: &mut [i8], scales: &mut [f32]) -> f64 {
    let groups = (hat.as_chunks::<GROUP>().0.iter().zip(rest.as_chunks_mut::<GROUP>().0))
        .zip(importance.as_chunks::<GROUP>().0)
        .zip(codes.as_chunks_mut::<GROUP>().0.iter_mut().zip(scales));
    let mut error = 0.0;
    for (((hat, rest), importance), (codes, scale)) in groups {
        for (r, h) in rest.iter_mut().zip(hat) {
            *r = h - *r;
        }
        let rounded = round_signed(rest, importance);
        *codes = rounded.codes;
        *scale = rounded.scale.to_f32();
        for i in 0..GROUP {
            rest[i] = hat[i] - rounded.codes[i] as f32 * *scale;
        }
        error += rounded.error as f64;
    }
    error
}

/// `Σ importance · m²`
fn weighted_power(m: &Matrix, importance: &[f32]) -> f64 {
    let row = |r: &[f32]| -> f64 { r.iter().zip(importance).map(|(w, i)| (w * w * i) as f64).sum() };
    m.data.chunks_exact(m.cols).map(row).sum()
}

/// `bias[n] - Σ_k codes[n,k] · scale · shift / smooth[k]`: takes back what the 4-bit weights make of the
/// shift. The low-rank branch sees the input without it.
fn shifted_bias(bias: &[f32], residual: &Residual, smooth: &[f32], shift: f64) -> Vec<f32> {
    let k = smooth.len();
    let inputs: Vec<f64> = smooth.iter().map(|&s| shift / s as f64).collect();
    let rows = residual.codes.chunks_exact(k).zip(residual.scales.chunks_exact(k / GROUP));
    rows.zip(bias)
        .map(|((codes, scales), &b)| {
            let groups = codes.chunks_exact(GROUP).zip(inputs.chunks_exact(GROUP)).zip(scales);
            let moved: f64 = groups
                .map(|((codes, inputs), &scale)| {
                    scale as f64 * codes.iter().zip(inputs).map(|(&q, x)| q as f64 * x).sum::<f64>()
                })
                .sum();
            bf16_round((b as f64 - moved) as f32)
        })
        .collect()
}

fn bf16_round(value: f32) -> f32 {
    bf16::from_f32(value).to_f32()
}
