//! The low-rank branch: 16 x 16 fragments of `mma.m16n8k16`, 256 bf16 each.
//!
//! Element `(row, col)` of a fragment is at `(row%8 · 4 + col%8/2) · 8 + row/8 · 4 + col/8 · 2 + col%2`.
//! A fragment of `lora_down` has ranks as rows and `k` as columns, one of `lora_up` has `n` as rows and ranks as
//! columns. In both the rank fragments of the same 16 channels lie side by side.

use half::bf16;

/// `A`, row-major `[rank][k]`. `k` and `rank` are multiples of 16.
pub fn unpack_lora_down(bytes: &[u8], k: usize, rank: usize) -> Vec<f32> {
    unpack(bytes, k, rank, |channel, r, row, col| (r + row) * k + channel + col)
}

/// The inverse of [`unpack_lora_down`].
pub fn pack_lora_down(a: &[f32], k: usize, rank: usize) -> Vec<u8> {
    pack(a, k, rank, |channel, r, row, col| (r + row) * k + channel + col)
}

/// `B`, row-major `[n][rank]`. `n` and `rank` are multiples of 16.
pub fn unpack_lora_up(bytes: &[u8], n: usize, rank: usize) -> Vec<f32> {
    unpack(bytes, n, rank, |channel, r, row, col| (channel + row) * rank + r + col)
}

/// The inverse of [`unpack_lora_up`].
pub fn pack_lora_up(b: &[f32], n: usize, rank: usize) -> Vec<u8> {
    pack(b, n, rank, |channel, r, row, col| (channel + row) * rank + r + col)
}

/// `at(channel, r, row, col)` is the matrix element at `(row, col)` of the fragment that begins there.
fn unpack(
    bytes: &[u8],
    channels: usize,
    rank: usize,
    at: impl Fn(usize, usize, usize, usize) -> usize,
) -> Vec<f32> {
    assert_eq!(bytes.len(), channels * rank * 2);
    let mut matrix = vec![0.0; channels * rank];
    let stored = bytes.as_chunks::<2>().0;
    for_each(channels, rank, |i, channel, r, row, col| {
        matrix[at(channel, r, row, col)] = bf16::from_le_bytes(stored[i]).to_f32();
    });
    matrix
}

fn pack(
    matrix: &[f32],
    channels: usize,
    rank: usize,
    at: impl Fn(usize, usize, usize, usize) -> usize,
) -> Vec<u8> {
    assert_eq!(matrix.len(), channels * rank);
    let mut bytes = vec![0; channels * rank * 2];
    let stored = bytes.as_chunks_mut::<2>().0;
    for_each(channels, rank, |i, channel, r, row, col| {
        stored[i] = bf16::from_f32(matrix[at(channel, r, row, col)]).to_le_bytes();
    });
    bytes
}

/// Calls `f(i, channel, r, row, col)` for every stored element `i`, in order.
fn for_each(channels: usize, rank: usize, mut f: impl FnMut(usize, usize, usize, usize, usize)) {
    assert!(channels.is_multiple_of(16) && rank.is_multiple_of(16), "[{channels}, {rank}] is not in 16s");
    let mut fragment = 0;
    for channel in (0..channels).step_by(16) {
        for r in (0..rank).step_by(16) {
            for i in 0..256 {
                let (lane, slot) = (i / 8, i % 8);
                let row = lane / 4 + slot / 4 * 8;
                let col = lane % 4 * 2 + slot / 2 % 2 * 8 + slot % 2;
                f(fragment + i, channel, r, row, col);
            }
            fragment += 256;
        }
    }
}
