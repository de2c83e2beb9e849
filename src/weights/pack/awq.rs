//! 4-bit codes of linears whose activations are not quantised (W4A16).
//!
//! Element `(row, col)` of `[n, k]`, rows as stored, lies in
//! ```text
//! word   = row/4 · k + col/64 · 64 + row%4 · 16 + col%64/32 · 8 + col%8        (16 bits)
//! nibble = col%32 / 8
//! w      = code · wscales[col/group][row] + wzeros[col/group][row]
//! ```
//! and stored row `d·chunks + s` is channel `d` of chunk `s`.

use super::bf16_to_f32;
use crate::ops::{AwqSource, DenseSource, Storage};

/// The dequantised linear with its rows chunk by chunk: stored row `d·chunks + s` becomes row `s·n/chunks + d`,
/// of the bias too, which keeps the `1 +` of its scale chunks.
pub fn unpack_awq(source: &AwqSource<'_>) -> DenseSource<'static> {
    let AwqSource { n, k, group, .. } = *source;
    let [scales, zeros] =
        [&source.wscales, &source.wzeros].map(|bytes| bf16_to_f32(bytes).collect::<Vec<f32>>());
    assert!(k.is_multiple_of(group) && scales.len() == n * k / group && zeros.len() == scales.len());
    let mut codes = vec![0; k];
    let mut weight = Vec::with_capacity(n * k);
    for column in 0..n {
        let row = source.stored_row(column);
        unpack_awq_row(&source.qweight, k, row, &mut codes);
        for (g, codes) in codes.chunks(group).enumerate() {
            let (scale, zero) = (scales[g * n + row], zeros[g * n + row]);
            weight.extend(codes.iter().map(|&code| f32::from(code) * scale + zero));
        }
    }
    DenseSource { n, k, weight: weight.into(), bias: unpack_awq_bias(source), storage: Storage::F32 }
}

/// The bias in the order of the outputs: `[n]`, or empty for none.
pub fn unpack_awq_bias(source: &AwqSource<'_>) -> Vec<f32> {
    let stored: Vec<f32> = bf16_to_f32(&source.bias).collect();
    (0..stored.len()).map(|column| stored[source.stored_row(column)]).collect()
}

/// Codes `0..=15`, row-major `[n, k]`, rows as stored. `n` is a multiple of 4, `k` of 64.
pub fn unpack_awq_codes(qweight: &[u8], n: usize, k: usize) -> Vec<u8> {
    assert!(n.is_multiple_of(4) && qweight.len() == n * k / 2, "[{n}, {k}] is not made of 4 x 64 tiles");
    let mut all = vec![0; n * k];
    for (row, codes) in all.chunks_exact_mut(k).enumerate() {
        unpack_awq_row(qweight, k, row, codes);
    }
    all
}

/// The codes of one row as stored, `[k]`. `k` is a multiple of 64.
pub fn unpack_awq_row(qweight: &[u8], k: usize, row: usize, codes: &mut [u8]) {
    assert!(k.is_multiple_of(64) && codes.len() == k, "rows of {k} codes are not made of 64");
    let runs = &qweight.as_chunks::<32>().0[row / 4 * (k / 16) + row % 4..];
    for (bytes, codes) in runs.iter().step_by(4).zip(codes.as_chunks_mut::<64>().0) {
        for (half, codes) in bytes.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<32>().0) {
            for (i, &[low, high]) in half.as_chunks::<2>().0.iter().enumerate() {
                codes[i] = low & 15;
                codes[i + 8] = low >> 4;
                codes[i + 16] = high & 15;
                codes[i + 24] = high >> 4;
            }
        }
    }
}

/// The inverse of [`unpack_awq_codes`]; only the low four bits of a code are kept.
pub fn pack_awq_codes(codes: &[u8], n: usize, k: usize) -> Vec<u8> {
    assert!(n.is_multiple_of(4) && k.is_multiple_of(64), "[{n}, {k}] is not made of 4 x 64 tiles");
    assert_eq!(codes.len(), n * k);
    let mut bytes = Vec::with_capacity(n * k / 2);
    for row in (0..n).step_by(4) {
        for col in (0..k).step_by(64) {
            for half in (0..4).flat_map(|r| [0, 32].map(|half| (row + r) * k + col + half)) {
                for i in half..half + 8 {
                    bytes.push(codes[i] & 15 | codes[i + 8] << 4);
                    bytes.push(codes[i + 16] & 15 | codes[i + 24] << 4);
                }
            }
        }
    }
    bytes
}
