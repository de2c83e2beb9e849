//! Weights as a checkpoint holds them, on their way to a device.

use std::borrow::Cow;
use std::ops::Range;

use crate::memory::Buf;
use crate::weights::Numbers;

/// How precisely the checkpoint stores a dense weight: what a device may keep without loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Every value is exact in bfloat16.
    Bf16,
    /// Anything else (float16, float32).
    F32,
}

/// The weights of one linear.
pub enum LinearSource<'a> {
    /// Plain matrix.
    Dense(DenseSource<'a>),
    /// SVDQuant: 4-bit weights and activations, with a low-rank branch.
    Svdq(SvdqSource<'a>),
    /// AWQ layout: 4-bit weights, activations not quantised (modulation layers, T5).
    Awq(AwqSource<'a>),
}

impl LinearSource<'_> {
    /// `[N, K]`: output and input features.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            LinearSource::Dense(d) => [d.n, d.k],
            LinearSource::Svdq(s) => [s.n, s.k],
            LinearSource::Awq(a) => [a.n, a.k],
        }
    }
}

/// A dense linear.
pub struct DenseSource<'a> {
    /// Output features.
    pub n: usize,
    /// Input features.
    pub k: usize,
    /// `[n, k]`, row-major.
    pub weight: Numbers<'a>,
    /// `[n]`, or empty for none.
    pub bias: Vec<f32>,
    /// Precision of `weight`.
    pub storage: Storage,
}

/// What the 4-bit codes of an SVDQuant linear mean, and what the scales beside them are.
#[derive(Clone, Debug, PartialEq)]
pub enum Codes {
    /// INT4: -8..=7 in two's complement, with bf16 scales in groups of 64.
    Int4,
    /// NVFP4: e2m1 (a sign and 0, 0.5, 1, 1.5, 2, 3, 4 or 6), with e4m3 scales in groups of 16.
    Fp4 {
        /// `[n]`, in the order of the channels: what a channel's products are multiplied by besides, in f32.
        channel_scales: Vec<f32>,
    },
}

impl Codes {
    /// Input channels that share a scale.
    pub fn group(&self) -> usize {
        match self {
            Codes::Int4 => 64,
            Codes::Fp4 { .. } => 16,
        }
    }
}

/// An SVDQuant linear in Nunchaku's packing; [`crate::weights::pack`] has the index formulas.
/// All slices are little-endian bytes of exactly the size that `n`, `k`, `rank` and `codes` imply.
pub struct SvdqSource<'a> {
    /// Output features, a multiple of 128.
    pub n: usize,
    /// Input features, a multiple of 64.
    pub k: usize,
    /// Rank of the low-rank branch, a multiple of 16; 0 for none.
    pub rank: usize,
    /// The input is the one of an INT4 fc2: shifted, so that it is never negative, and quantised unsigned.
    pub unsigned: bool,
    /// What `qweight` and `wscales` mean.
    pub codes: Codes,
    /// 4-bit codes, n·k/2 bytes.
    pub qweight: Cow<'a, [u8]>,
    /// Group scales: INT4 bf16, k/64 · n of them; NVFP4 e4m3, k/16 · n of them.
    pub wscales: Cow<'a, [u8]>,
    /// bf16, n.
    pub bias: Cow<'a, [u8]>,
    /// bf16, k.
    pub smooth: Cow<'a, [u8]>,
    /// bf16, k · rank.
    pub lora_down: Cow<'a, [u8]>,
    /// bf16, n · rank.
    pub lora_up: Cow<'a, [u8]>,
}

/// A W4A16 linear in Nunchaku's AWQ packing; [`crate::weights::pack`] has the index formula. Stored row `d·chunks + s` is
/// channel `d` of modulation chunk `s`, with the `1 +` of scale chunks already in the bias. A device gives the output
/// chunk by chunk: column `s · n/chunks + d`.
pub struct AwqSource<'a> {
    /// Output features, a multiple of 4 · chunks.
    pub n: usize,
    /// Input features, a multiple of `group`.
    pub k: usize,
    /// Input channels that share a scale and a zero: 64 (modulation) or 128 (T5).
    pub group: usize,
    /// Number of interleaved chunks.
    pub chunks: usize,
    /// 4-bit codes, n·k/2 bytes.
    pub qweight: Cow<'a, [u8]>,
    /// bf16 `[k/group, n]`.
    pub wscales: Cow<'a, [u8]>,
    /// bf16 `[k/group, n]`: `w = code · scale + zero`.
    pub wzeros: Cow<'a, [u8]>,
    /// bf16 `[n]`, or empty for none.
    pub bias: Cow<'a, [u8]>,
}

impl AwqSource<'_> {
    /// The stored row of output column `column`.
    pub fn stored_row(&self, column: usize) -> usize {
        let channels = self.n / self.chunks;
        column % channels * self.chunks + column / channels
    }
}

/// A low-rank update `B A` of the outputs `rows` of a linear, as a LoRA brings it.
pub struct LowRankSource<'a> {
    /// Output features of the linear.
    pub n: usize,
    /// Input features of the linear.
    pub k: usize,
    /// The outputs that it changes.
    pub rows: Range<usize>,
    /// Rank: any, 0 for an update of the bias alone.
    pub rank: usize,
    /// `A`, `[rank, k]`, row-major.
    pub down: Numbers<'a>,
    /// `B`, `[rows.len(), rank]`, row-major.
    pub up: Numbers<'a>,
    /// `b`, `[rows.len()]`, or empty for none.
    pub bias: Vec<f32>,
}

/// A 2-D convolution.
pub struct ConvSource {
    /// Output channels.
    pub n: usize,
    /// Input channels.
    pub c: usize,
    /// Kernel height and width: 1 or 3.
    pub kernel: usize,
    /// 1, or 2 with one row and column of zeros after the image (diffusers' `Downsample2D`).
    pub stride: usize,
    /// The input is doubled in both directions by nearest neighbour first.
    pub upsample: bool,
    /// `[n, c, kernel, kernel]`.
    pub weight: Buf<f32>,
    /// `[n]`.
    pub bias: Vec<f32>,
}
