//! Nunchaku's byte layouts, by index formula, and their inverses.
//!
//! The layouts are the register fragments of NVIDIA's `mma` instructions, written out in the order in
//! which a warp loads them. In the formulas `/` is integer division. All 16-bit values are
//! bfloat16, all words little-endian, and packing rounds f32 to the nearest bfloat16, ties to even.
//!
//! # Panics
//! Every function panics when a slice is not of the size that `n`, `k` and `rank` imply, or when these are
//! not multiples of the tile. Sizes that come from files are checked where the file is opened.

mod awq;
mod codes;
mod fp4;
mod low_rank;
mod svdq;
#[cfg(test)]
mod tests;
mod vector;

pub use awq::{pack_awq_codes, unpack_awq, unpack_awq_bias, unpack_awq_codes, unpack_awq_row};
pub use codes::{pack_codes, unpack_codes};
pub use fp4::{E2M1, pack_fp4_scales, unpack_fp4_scales};
pub use low_rank::{
    pack_lora_down, pack_lora_up, unpack_lora_down, unpack_lora_down_bf16, unpack_lora_up,
    unpack_lora_up_bf16,
};
pub use svdq::{Unpacked, unpack_svdq};
pub use vector::{pack_vector, pack_wscales, unpack_vector, unpack_wscales};

use half::bf16;

/// Little-endian bf16 bytes to f32.
pub fn bf16_to_f32(bytes: &[u8]) -> impl ExactSizeIterator<Item = f32> {
    bytes.as_chunks::<2>().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32())
}

/// f32 to little-endian bf16 bytes, nearest even.
pub fn f32_to_bf16(values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * 2];
    for (bytes, &value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
        *bytes = bf16::from_f32(value).to_le_bytes();
    }
    bytes
}
