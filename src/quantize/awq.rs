//! One modulation linear: 4-bit weights with a scale and a zero for each group of 64, activations as they
//! are.

use super::inputs::Inputs;
use super::matrix::{Left, Matrix, for_each, product, vectorized};
use super::round::{GROUP, Group, Unsigned, round_unsigned};

/// The parts of a quantised modulation linear, rows interleaved as they are stored; scales and zeros are
/// exact in bf16.
pub(super) struct Awq {
    /// `[n, k]`, 0 ..= 15
    pub(super) codes: Vec<u8>,
    /// `[k/64, n]`
    pub(super) scales: Vec<f32>,
    /// `[k/64, n]`
    pub(super) zeros: Vec<f32>,
    /// `[n]`
    pub(super) bias: Vec<f32>,
    /// Power of the outputs (less the bias) over power of their errors for the sampled conditioning, in dB.
    pub(super) sqnr_db: f64,
}

/// A row of the output.
struct Row<'a> {
    weight: &'a [f32],
    codes: &'a mut [u8],
    scales: Vec<f32>,
    zeros: Vec<f32>,
}

/// Rows that are rounded together.
struct Block<'a> {
    rows: Vec<Row<'a>>,
    /// Power of the errors of the outputs.
    error: f64,
}

/// Quantises a modulation linear whose rows are in `chunks` chunks (shift, scale, gate, ...), one after the
/// other. Row `d` of chunk `s` becomes row `d · chunks + s`.
pub(super) fn quantize(weight: &Matrix, bias: &[f32], chunks: usize, inputs: &Inputs, threads: usize) -> Awq {
    let (n, k) = (weight.rows, weight.cols);
    let source = |stored: usize| stored % chunks * (n / chunks) + stored / chunks;
    let mut codes = vec![0; n * k];
    let mut blocks: Vec<Block> = (codes.chunks_mut(64 * k).enumerate())
        .map(|(b, codes)| {
            let rows = codes.chunks_exact_mut(k).enumerate();
            let row = |(r, codes)| Row {
                weight: weight.row(source(64 * b + r)),
                codes,
                scales: vec![],
                zeros: vec![],
            };
            Block { rows: rows.map(row).collect(), error: 0.0 }
        })
        .collect();
    for_each(&mut blocks, threads, |block| round_block(block, inputs));

    let by_group = |part: for<'r> fn(&'r Row<'_>) -> &'r [f32]| -> Vec<f32> {
        let rows = || blocks.iter().flat_map(|block| &block.rows);
        (0..k / GROUP).flat_map(|g| rows().map(move |row| part(row)[g])).collect()
    };
    let (scales, zeros) = (by_group(|row| &row.scales), by_group(|row| &row.zeros));
    let error: f64 = blocks.iter().map(|block| block.error).sum();
    drop(blocks);
    let power = power(&product(Left::Plain(weight), inputs.conditioning(), threads));
    let bias = (0..n).map(|i| bias[source(i)]).collect();
    Awq { codes, scales, zeros, bias, sqnr_db: super::decibel(power, error) }
}

/// Rounds group after group, each from what the errors of those before it ask for.
fn round_block(block: &mut Block<'_>, inputs: &Inputs) {
    let count = block.rows.len();
    let mut errors = Matrix::zeros(0, count);
    let feedback = inputs.feedback();
    for (g, (before, within)) in feedback.before.iter().zip(&feedback.within).enumerate() {
        let asked = product(Left::Transposed(&errors), before, 1);
        let mut group_errors = [[0.0; GROUP]; 64];
        for (r, row) in block.rows.iter_mut().enumerate() {
            let weight = &row.weight.as_chunks::<GROUP>().0[g];
            let target = std::array::from_fn(|i| weight[i] + asked.row(r)[i]);
            let rounded = vectorized(|| round_with_feedback(weight, target, within, &mut group_errors[r]));
            row.codes.as_chunks_mut::<GROUP>().0[g] = rounded.codes;
            row.scales.push(rounded.scale.to_f32());
            row.zeros.push(rounded.zero.to_f32());
        }
        errors.rows += GROUP;
        errors.data.extend((0..GROUP).flat_map(|c| group_errors[..count].iter().map(move |e| e[c])));
    }
    block.error = power(&product(Left::Transposed(&errors), inputs.conditioning(), 1));
}

/// Rounds a group from `target`, which takes up the errors as they come; scale and zero are those that fit it
/// at first.
#[inline(always)]
fn round_with_feedback(
    weight: &Group<f32>,
    mut target: Group<f32>,
    within: &[Group<f32>; GROUP],
    errors: &mut Group<f32>,
) -> Unsigned {
    let mut rounded = round_unsigned(&target);
    for i in 0..GROUP {
        rounded.codes[i] = rounded.code(target[i]);
        errors[i] = weight[i] - rounded.value(i);
        target.iter_mut().zip(&within[i]).for_each(|(t, v)| *t += errors[i] * v);
    }
    rounded
}

/// `Σ m²`
fn power(m: &Matrix) -> f64 {
    m.data.iter().map(|&v| (v as f64).powi(2)).sum()
}
