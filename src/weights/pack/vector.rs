//! Vectors and group scales: every 16 channels are stored in the order [`ORDER`].

use super::bf16_to_f32;
use half::bf16;

/// Channel of stored element `i`: channel `c` is at `c%8/2 · 4 + c/8 · 2 + c%2`.
const ORDER: [usize; 16] = [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15];

/// bf16 vector (`bias`, `smooth`) in channel order. Its length is a multiple of 16.
pub fn unpack_vector(bytes: &[u8]) -> Vec<f32> {
    let mut channels = vec![0.0; bytes.len() / 2];
    unpack_into(bytes, &mut channels);
    channels
}

/// The inverse of [`unpack_vector`].
pub fn pack_vector(channels: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(channels.len() * 2);
    pack_onto(channels, &mut bytes);
    bytes
}

/// Group scales `[k/64][n]`. `n` is a multiple of 128, `k` of 64.
///
/// Channel `c` of group `g` is stored at element `(c/128 · k/64 + g) · 128 + c%128/16 · 16`, plus its place in
/// the vector order.
pub fn unpack_wscales(bytes: &[u8], n: usize, k: usize) -> Vec<f32> {
    let mut scales = vec![0.0; n * (k / 64)];
    unpack_wscales_to(bytes, n, k, &mut scales);
    scales
}

/// As [`unpack_wscales`], into `scales`.
pub(super) fn unpack_wscales_to(bytes: &[u8], n: usize, k: usize, scales: &mut [f32]) {
    assert!(n.is_multiple_of(128) && k.is_multiple_of(64), "[{n}, {k}] is not made of 128 x 64 tiles");
    assert_eq!([bytes.len(), scales.len()], [n * (k / 64) * 2, n * (k / 64)]);
    for (i, tile) in bytes.chunks_exact(256).enumerate() {
        let (rows, group) = (i / (k / 64), i % (k / 64));
        unpack_into(tile, &mut scales[group * n + rows * 128..][..128]);
    }
}

/// The inverse of [`unpack_wscales`].
pub fn pack_wscales(scales: &[f32], n: usize, k: usize) -> Vec<u8> {
    assert!(n.is_multiple_of(128) && k.is_multiple_of(64), "[{n}, {k}] is not made of 128 x 64 tiles");
    assert_eq!(scales.len(), n * (k / 64));
    let mut bytes = Vec::with_capacity(scales.len() * 2);
    for rows in 0..n / 128 {
        for group in 0..k / 64 {
            pack_onto(&scales[group * n + rows * 128..][..128], &mut bytes);
        }
    }
    bytes
}

fn unpack_into(bytes: &[u8], channels: &mut [f32]) {
    let (from, to) = (bytes.as_chunks::<32>(), channels.as_chunks_mut::<16>());
    assert!(
        from.1.is_empty() && to.1.is_empty() && from.0.len() == to.0.len(),
        "not a multiple of 16 channels"
    );
    for (stored, block) in from.0.iter().zip(to.0) {
        for (&channel, value) in ORDER.iter().zip(bf16_to_f32(stored)) {
            block[channel] = value;
        }
    }
}

fn pack_onto(channels: &[f32], bytes: &mut Vec<u8>) {
    let (blocks, rest) = channels.as_chunks::<16>();
    assert!(rest.is_empty(), "not a multiple of 16 channels");
    for block in blocks {
        bytes.extend(ORDER.iter().flat_map(|&channel| bf16::from_f32(block[channel]).to_le_bytes()));
    }
}
