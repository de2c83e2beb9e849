//! Linears in Nunchaku's packing, and numbers as bytes.

use std::fs;

use safetensors::SafeTensors;
use svdq::ops::{Codes, SvdqSource};
use svdq::weights::pack;

/// An SVDQuant linear as a checkpoint holds it.
pub(crate) struct Layer {
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) rank: usize,
    pub(crate) unsigned: bool,
    pub(crate) qweight: Vec<u8>,
    pub(crate) wscales: Vec<u8>,
    pub(crate) bias: Vec<u8>,
    pub(crate) smooth: Vec<u8>,
    pub(crate) lora_down: Vec<u8>,
    pub(crate) lora_up: Vec<u8>,
}

impl Layer {
    /// Values of usual magnitudes.
    pub(crate) fn random(n: usize, k: usize, rank: usize, unsigned: bool, seed: u32) -> Layer {
        let codes: Vec<_> =
            random(n * k, seed, -8.5, 7.5).iter().map(|v| v.round().clamp(-8.0, 7.0) as i8).collect();
        let values = |count, field, low, high| random(count, 100 * seed + field, low, high);
        let size = (k as f32).sqrt().recip();
        Layer {
            n,
            k,
            rank,
            unsigned,
            qweight: pack::pack_codes(&codes, n, k),
            wscales: pack::pack_wscales(&values(n * k / 64, 1, 0.1 * size, 0.3 * size), n, k),
            bias: pack::pack_vector(&values(n, 2, -0.5, 0.5)),
            smooth: pack::pack_vector(&values(k, 3, 0.4, 2.5)),
            lora_down: pack::pack_lora_down(&values(k * rank, 4, -size, size), k, rank),
            lora_up: pack::pack_lora_up(&values(n * rank, 5, -0.5, 0.5), n, rank),
        }
    }

    /// Small integers, powers of two as scales, and few enough of them in the low-rank branch that bf16 holds what
    /// inputs up to 7 are projected to.
    pub(crate) fn integers(n: usize, k: usize, rank: usize, unsigned: bool, seed: u32) -> Layer {
        let whole = |count, field, top: f32| -> Vec<f32> {
            random(count, 100 * seed + field, -top, top).iter().map(|v| v.round()).collect()
        };
        let powers: Vec<_> = whole(n * k / 64, 1, 2.0).iter().map(|v| v.exp2()).collect();
        Layer {
            wscales: pack::pack_wscales(&powers, n, k),
            bias: pack::pack_vector(&whole(n, 2, 9.0)),
            smooth: pack::pack_vector(&vec![1.0; k]),
            lora_down: pack::pack_lora_down(&whole(k * rank, 4, 0.55), k, rank),
            lora_up: pack::pack_lora_up(&whole(n * rank, 5, 2.0), n, rank),
            ..Layer::random(n, k, rank, unsigned, seed)
        }
    }

    pub(crate) fn source(&self) -> SvdqSource<'_> {
        SvdqSource {
            n: self.n,
            k: self.k,
            rank: self.rank,
            unsigned: self.unsigned,
            codes: Codes::Int4,
            qweight: self.qweight.as_slice().into(),
            wscales: self.wscales.as_slice().into(),
            bias: self.bias.as_slice().into(),
            smooth: self.smooth.as_slice().into(),
            lora_down: self.lora_down.as_slice().into(),
            lora_up: self.lora_up.as_slice().into(),
        }
    }

    /// `1 / smooth`
    pub(crate) fn reciprocals(&self) -> Vec<f32> {
        pack::unpack_vector(&self.smooth).iter().map(|v| v.recip()).collect()
    }
}

/// Where the code of row `i` and channel `j` is among activations of `k` channels: a byte and a shift.
pub(crate) fn code_word(i: usize, j: usize, k: usize) -> (usize, usize) {
    let lane = i % 8 * 4 + j % 32 / 8;
    let word = ((i / 16 * (k / 64) + j / 64) * 32 + lane) * 4 + j % 64 / 32 * 2 + i % 16 / 8;
    (word * 4 + j % 8 / 2, j % 2 * 4)
}

/// `count` values from `low` to `high`.
pub(crate) fn random(count: usize, seed: u32, low: f32, high: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2654435761) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        low + (high - low) * (state >> 8) as f32 / (1 << 24) as f32
    };
    std::iter::repeat_with(next).skip(9).take(count).collect()
}

pub(crate) fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub(crate) fn bf16s(values: &[f32]) -> Vec<u8> {
    pack::f32_to_bf16(values)
}

pub(crate) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// A tensor of tests/golden/quant.safetensors.
fn golden_bytes(name: &str) -> (Vec<usize>, Vec<u8>) {
    let file = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/quant.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let tensor = tensors.tensor(name).unwrap();
    (tensor.shape().to_vec(), tensor.data().to_vec())
}

pub(crate) fn golden_floats(name: &str) -> Vec<f32> {
    floats(&golden_bytes(name).1)
}

pub(crate) fn golden_codes(name: &str) -> Vec<i8> {
    golden_bytes(name).1.iter().map(|&code| code as i8).collect()
}

/// A golden layer and its input.
pub(crate) fn golden(name: &str) -> (Layer, Vec<f32>) {
    let shape = |tensor: &str| golden_bytes(&format!("{name}.{tensor}")).0;
    let bytes = |tensor: &str| golden_bytes(&format!("{name}.{tensor}")).1;
    let (weights, up) = (shape("wq"), shape("up"));
    let layer = Layer {
        n: weights[0],
        k: weights[1],
        rank: up[1],
        unsigned: name == "unsigned",
        qweight: bytes("qweight"),
        wscales: bytes("wscales"),
        bias: bytes("bias"),
        smooth: bytes("smooth"),
        lora_down: bytes("lora_down"),
        lora_up: bytes("lora_up"),
    };
    (layer, golden_floats(&format!("{name}.x")))
}
