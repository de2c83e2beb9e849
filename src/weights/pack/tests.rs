//! Each layout against its index formula, element by element, and there and back.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::memory::HostMemory;
use crate::ops::AwqSource;

/// A sequence without short periods; its low bits are well mixed.
fn noise(i: usize) -> u32 {
    let x = (i as u32).wrapping_mul(0x9e37_79b9) ^ 0x5bd1_e995;
    (x ^ x >> 15).wrapping_mul(0x85eb_ca6b) >> 7
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| noise(i) as u8).collect()
}

/// bf16 values that survive the way to f32 and back.
fn floats(len: usize) -> Vec<f32> {
    (0..len).map(|i| (noise(i) % 255) as f32 / 16.0 - 7.0).collect()
}

fn element(bytes: &[u8], i: usize) -> f32 {
    half::bf16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32()
}

fn vector_place(c: usize) -> usize {
    c / 16 * 16 + c % 8 / 2 * 4 + c % 16 / 8 * 2 + c % 2
}

#[test]
fn codes_lie_where_the_formula_says() {
    let (n, k) = (256, 192);
    let packed = bytes(n * k / 2);
    let codes = unpack_codes(&packed, n, k);
    for row in 0..n {
        for col in 0..k {
            let tile = row / 128 * (k / 64) + col / 64;
            let lane = ((tile * 8 + row % 128 / 16) * 8 + row % 8) * 4 + col % 32 / 8;
            let word = lane * 4 + row % 16 / 8 * 2 + col % 64 / 32;
            let nibble = packed[word * 4 + col % 8 / 2] >> (col % 2 * 4) & 15;
            let signed = if nibble < 8 { nibble as i8 } else { nibble as i8 - 16 };
            assert_eq!(codes[row * k + col], signed, "({row}, {col})");
        }
    }
    assert_eq!(pack_codes(&codes, n, k), packed);
}

#[test]
fn vectors_lie_where_the_formula_says() {
    let values = floats(48);
    let packed = pack_vector(&values);
    for (c, &value) in values.iter().enumerate() {
        assert_eq!(element(&packed, vector_place(c)), value, "channel {c}");
    }
    assert_eq!(unpack_vector(&packed), values);
}

#[test]
fn group_scales_lie_where_the_formula_says() {
    let (n, k) = (384, 192);
    let scales = floats(n * k / 64);
    let packed = pack_wscales(&scales, n, k);
    for g in 0..k / 64 {
        for c in 0..n {
            let at = (c / 128 * (k / 64) + g) * 128 + vector_place(c % 128);
            assert_eq!(element(&packed, at), scales[g * n + c], "group {g}, channel {c}");
        }
    }
    assert_eq!(unpack_wscales(&packed, n, k), scales);
}

#[test]
fn low_rank_factors_lie_where_the_formulas_say() {
    let (channels, rank) = (80, 48);
    let m = floats(channels * rank);
    let (down, up) = (pack_lora_down(&m, channels, rank), pack_lora_up(&m, channels, rank));
    for c in 0..channels {
        for r in 0..rank {
            let tile = c / 16 * (rank / 16) + r / 16;
            let a = ((tile * 8 + r % 8) * 4 + c % 8 / 2) * 8 + r % 16 / 8 * 4 + c % 16 / 8 * 2 + c % 2;
            assert_eq!(element(&down, a), m[r * channels + c], "down, channel {c}, rank {r}");
            let b = ((tile * 8 + c % 8) * 4 + r % 8 / 2) * 8 + c % 16 / 8 * 4 + r % 16 / 8 * 2 + r % 2;
            assert_eq!(element(&up, b), m[c * rank + r], "up, channel {c}, rank {r}");
        }
    }
    let bits: Vec<u16> = m.iter().map(|&v| half::bf16::from_f32(v).to_bits()).collect();
    assert_eq!(unpack_lora_down(&HostMemory::default(), &down, channels, rank).unwrap(), m);
    assert_eq!(unpack_lora_down_bf16(&HostMemory::default(), &down, channels, rank).unwrap(), bits);
    assert_eq!(unpack_lora_up(&HostMemory::default(), &up, channels, rank).unwrap(), m);
    assert_eq!(unpack_lora_up_bf16(&HostMemory::default(), &up, channels, rank).unwrap(), bits);
    assert!(unpack_lora_down(&HostMemory::default(), &[], channels, 0).unwrap().is_empty());
}

fn awq_code(packed: &[u8], k: usize, row: usize, col: usize) -> u8 {
    let word = row / 4 * k + col / 64 * 64 + row % 4 * 16 + col % 64 / 32 * 8 + col % 8;
    let nibble = col % 32 / 8;
    packed[word * 2 + nibble / 2] >> (nibble % 2 * 4) & 15
}

#[test]
fn awq_codes_lie_where_the_formula_says() {
    let (n, k) = (12, 192);
    let packed = bytes(n * k / 2);
    let codes = unpack_awq_codes(&packed, n, k);
    for row in 0..n {
        for col in 0..k {
            assert_eq!(codes[row * k + col], awq_code(&packed, k, row, col), "({row}, {col})");
        }
    }
    assert_eq!(pack_awq_codes(&codes, n, k), packed);
}

#[test]
fn awq_linears_come_out_chunk_by_chunk() {
    for (n, k, chunks, group) in [(24, 128, 3, 64), (8, 256, 1, 128)] {
        let groups = n * k / group;
        let (qweight, scales, zeros, bias) = (bytes(n * k / 2), floats(groups), floats(groups), floats(n));
        let packed = [&scales, &zeros, &bias].map(|v| f32_to_bf16(v));
        let mut source = AwqSource {
            n,
            k,
            group,
            chunks,
            qweight: qweight[..].into(),
            wscales: packed[0][..].into(),
            wzeros: packed[1][..].into(),
            bias: packed[2][..].into(),
        };
        let dense = unpack_awq(&source);
        for (s, d) in (0..chunks).flat_map(|s| (0..n / chunks).map(move |d| (s, d))) {
            let (stored, row) = (d * chunks + s, s * (n / chunks) + d);
            assert_eq!((dense.bias[row], source.stored_row(row)), (bias[stored], stored));
            for col in 0..k {
                let at = col / group * n + stored;
                let w = f32::from(awq_code(&qweight, k, stored, col)) * scales[at] + zeros[at];
                assert_eq!(
                    dense.weight.values().unwrap()[row * k + col],
                    w,
                    "chunk {s}, channel {d}, column {col}"
                );
            }
        }
        source.bias = [][..].into();
        assert!(unpack_awq(&source).bias.is_empty());
    }
}

#[test]
fn packing_rounds_to_nearest_even() {
    let between = f32::from_bits(0x3f80_8000);
    let above = f32::from_bits(0x3f81_8000);
    let mut values = vec![0.0; 16];
    (values[0], values[1]) = (between, above);
    let packed = pack_vector(&values);
    assert_eq!(packed[..4], [0x80, 0x3f, 0x82, 0x3f]);
}

#[test]
fn fp4_scales_lie_where_the_formula_says() {
    let (n, k) = (256, 192);
    let packed = bytes(n * k / 16).iter().map(|code| code & 0x7e).collect::<Vec<_>>();
    let scales = unpack_fp4_scales(&packed, n, k);
    for g in 0..k / 16 {
        for c in 0..n {
            let at = (((c / 128 * (k / 64) + g / 4) * 128) + c % 8 * 16 + c % 32 / 8 * 4 + c % 128 / 32) * 4
                + g % 4;
            let value = crate::weights::float::E4M3[usize::from(packed[at])];
            assert_eq!(scales[g * n + c], value, "group {g}, channel {c}");
        }
    }
    let codes: Vec<u8> = (0..n * k / 16).map(|i| i as u8).collect();
    let unpacked = unpack_fp4_scales(&pack_fp4_scales(&codes, n, k), n, k);
    let same = |(&code, got): (&u8, f32)| {
        let want = crate::weights::float::E4M3[usize::from(code)];
        got == want || got.is_nan() && want.is_nan()
    };
    assert!(codes.iter().zip(unpacked).all(same));
}
