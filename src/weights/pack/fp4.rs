//! NVFP4: e2m1 codes, which lie where INT4's do, and their e4m3 scales in groups of 16.

use crate::weights::float::E4M3;

/// The numbers of the 16 codes of e2m1: bit 3 is the sign.
pub const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Group scales `[k/16][n]`. `n` is a multiple of 128, `k` of 64.
///
/// Channel `c` of group `g` is stored at byte
/// `(((c/128 · k/64 + g/4) · 8 + c%8) · 16 + c%32/8 · 4 + c%128/32) · 4 + g%4`.
pub fn unpack_fp4_scales(bytes: &[u8], n: usize, k: usize) -> Vec<f32> {
    let mut scales = vec![0.0; bytes.len()];
    unpack_fp4_scales_to(bytes, n, k, &mut scales);
    scales
}

/// As [`unpack_fp4_scales`], into `scales`.
pub(super) fn unpack_fp4_scales_to(bytes: &[u8], n: usize, k: usize, scales: &mut [f32]) {
    assert_eq!([bytes.len(), scales.len()], [n * (k / 16); 2]);
    for_each(n, k, |stored, at| scales[at] = E4M3[usize::from(bytes[stored])]);
}

/// The inverse of [`unpack_fp4_scales`], of e4m3 codes.
pub fn pack_fp4_scales(codes: &[u8], n: usize, k: usize) -> Vec<u8> {
    assert_eq!(codes.len(), n * (k / 16));
    let mut bytes = vec![0; codes.len()];
    for_each(n, k, |stored, at| bytes[stored] = codes[at]);
    bytes
}

/// Calls `f(stored, at)` for every scale: its place in the file, and in `[k/16][n]`.
fn for_each(n: usize, k: usize, mut f: impl FnMut(usize, usize)) {
    assert!(n.is_multiple_of(128) && k.is_multiple_of(64), "[{n}, {k}] is not made of 128 x 64 tiles");
    let mut stored = 0;
    for rows in (0..n).step_by(128) {
        for groups in (0..k / 16).step_by(4) {
            for lane in 0..8 {
                for c in (0..4).flat_map(|b| (0..4).map(move |a| a * 32 + b * 8 + lane)) {
                    for g in groups..groups + 4 {
                        f(stored, g * n + rows + c);
                        stored += 1;
                    }
                }
            }
        }
    }
}
