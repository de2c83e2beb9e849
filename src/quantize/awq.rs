//! One modulation linear: 4-bit weights with a scale and a zero for each group of 64, activations as they are.

use super::matrix::{Matrix, for_each, vectorized};
use super::round::{GROUP, round_unsigned};

/// The parts of a quantised modulation linear, rows interleaved as they are stored; scales, zeros and bias are exact in bf16.
pub(super) struct Awq {
    /// `[n, k]`, 0 ..= 15
    pub(super) codes: Vec<u8>,
    /// `[k/64, n]`
    pub(super) scales: Vec<f32>,
    /// `[k/64, n]`
    pub(super) zeros: Vec<f32>,
    /// `[n]`
    pub(super) bias: Vec<f32>,
    /// Power of the weights over power of their errors, in dB.
    pub(super) sqnr_db: f64,
}

/// Quantises a modulation linear whose rows are in `chunks` chunks (shift, scale, gate, ...), one after the other. Row `d` of chunk
/// `s` becomes row `d · chunks + s`.
pub(super) fn quantize(weight: &Matrix, bias: &[f32], chunks: usize, threads: usize) -> Awq {
    struct Row<'a> {
        weight: &'a [f32],
        codes: &'a mut [u8],
        scales: Vec<f32>,
        zeros: Vec<f32>,
        error: f64,
    }
    let (n, k) = (weight.rows, weight.cols);
    let source = |stored: usize| stored % chunks * (n / chunks) + stored / chunks;
    let mut codes = vec![0; n * k];
    let mut rows: Vec<Row> = (codes.chunks_exact_mut(k).enumerate())
        .map(|(i, codes)| Row {
            weight: weight.row(source(i)),
            codes,
            scales: vec![],
            zeros: vec![],
            error: 0.0,
        })
        .collect();
    for_each(&mut rows, threads, |row| {
        let groups = row.weight.as_chunks::<GROUP>().0.iter().zip(row.codes.as_chunks_mut::<GROUP>().0);
        for (weight, codes) in groups {
            let rounded = vectorized(|| round_unsigned(weight));
            *codes = rounded.codes;
            row.scales.push(rounded.scale.to_f32());
            row.zeros.push(rounded.zero.to_f32());
            row.error += rounded.error as f64;
        }
    });

    let by_group = |part: for<'r> fn(&'r Row<'_>) -> &'r [f32]| -> Vec<f32> {
        (0..k / GROUP).flat_map(|g| rows.iter().map(move |row| part(row)[g])).collect()
    };
    let (scales, zeros) = (by_group(|row| &row.scales), by_group(|row| &row.zeros));
    let error: f64 = rows.iter().map(|row| row.error).sum();
    drop(rows);
    let power: f64 = weight.data.iter().map(|&w| (w as f64).powi(2)).sum();
    let bias = (0..n).map(|i| bias[source(i)]).collect();
    Awq { codes, scales, zeros, bias, sqnr_db: super::decibel(power, error) }
}
