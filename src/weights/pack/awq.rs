//! 4-bit codes of a modulation linear (W4A16, groups of 64).
//!
//! Element `(row, col)` of `[n, k]`, rows as stored, lies in
//! ```text
//! word   = row/4 · k + col/64 · 64 + row%4 · 16 + col%64/32 · 8 + col%8        (16 bits)
//! nibble = col%32 / 8
//! w      = code · wscales[col/64][row] + wzeros[col/64][row]
//! ```
//! and stored row `d·chunks + s` is channel `d` of chunk `s`.

use super::bf16_to_f32;
use crate::ops::{AwqSource, DenseSource, Storage};

/// The dequantised linear with its rows chunk by chunk: stored row `d·chunks + s` becomes row `s·n/chunks + d`,
/// of the bias too, which keeps the `1 +` of its scale chunks.
pub fn unpack_awq(source: &AwqSource<'_>) -> DenseSource<'static> {
    let AwqSource { n, k, chunks, .. } = *source;
    let scales: Vec<f32> = bf16_to_f32(source.wscales).collect();
    let zeros: Vec<f32> = bf16_to_f32(source.wzeros).collect();
    assert!(n.is_multiple_of(chunks) && scales.len() == n * k / 64 && zeros.len() == scales.len());
    let place = |row: usize| row % chunks * (n / chunks) + row / chunks;

    let mut weight = vec![0.0; n * k];
    for_each_block(n, k, source.qweight, |row, col, codes| {
        let (scale, zero) = (scales[col / 64 * n + row], zeros[col / 64 * n + row]);
        let out = &mut weight[place(row) * k + col..][..64];
        for (w, &code) in out.iter_mut().zip(codes) {
            *w = f32::from(code) * scale + zero;
        }
    });
    let mut bias = vec![0.0; n];
    for (row, value) in bf16_to_f32(&source.bias).enumerate() {
        bias[place(row)] = value;
    }
    DenseSource { n, k, weight: weight.into(), bias, storage: Storage::F32 }
}

/// Codes `0..=15`, row-major `[n, k]`, rows as stored. `n` is a multiple of 4, `k` of 64.
pub fn unpack_awq_codes(qweight: &[u8], n: usize, k: usize) -> Vec<u8> {
    let mut all = vec![0; n * k];
    for_each_block(n, k, qweight, |row, col, codes| all[row * k + col..][..64].copy_from_slice(codes));
    all
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

/// Calls `f(row, col, codes)` for every 64 codes that begin at `(row, col)`, in the order in which they are stored.
fn for_each_block(n: usize, k: usize, qweight: &[u8], mut f: impl FnMut(usize, usize, &[u8; 64])) {
    assert!(n.is_multiple_of(4) && k.is_multiple_of(64), "[{n}, {k}] is not made of 4 x 64 tiles");
    assert_eq!(qweight.len(), n * k / 2);
    let mut codes = [0u8; 64];
    for (block, bytes) in qweight.as_chunks::<32>().0.iter().enumerate() {
        for (half, codes) in bytes.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<32>().0) {
            for (i, &[low, high]) in half.as_chunks::<2>().0.iter().enumerate() {
                codes[i] = low & 15;
                codes[i + 8] = low >> 4;
                codes[i + 16] = high & 15;
                codes[i + 24] = high >> 4;
            }
        }
        let tile = block / 4;
        f(tile / (k / 64) * 4 + block % 4, tile % (k / 64) * 64, &codes);
    }
}
