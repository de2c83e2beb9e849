//! 4-bit linears of profile W4A4, exact to the checkpoint: weights as stored, activations quantised to 4 bits.

use super::Cuda;
use super::gemm4::{Kernels, Operands, Product};
use super::linear::{Epilogue, Target};
use super::memory::Range;
use super::quantize::QuantizeParams;
use crate::Result;
use crate::ops::{Codes, SvdqSource};
use crate::weights::pack;

/// The weights of a linear. "Packed" is what the checkpoint holds.
pub(super) struct Weights {
    n: usize,
    k: usize,
    /// `[n, k]`, packed
    codes: Range,
    /// Packed
    scales: Range,
    /// NVFP4: `[n]` f32
    channels: Option<Range>,
    /// `[n]` bf16
    bias: Range,
    /// `[k]` f32: 1 / smooth
    reciprocal: Range,
    rank: usize,
    /// `[rank, k]` bf16, for rows that are quantised by themselves
    down: Range,
    /// The same, packed, for those that come from a GELU
    down_packed: Range,
    /// `[n, rank]`, packed
    up: Range,
    unsigned: bool,
}

/// Rows made ready for a linear.
pub(super) struct Rows {
    count: usize,
    /// `[count, k]` in 4 bits, as `linear4::Codes` has them
    codes: Range,
    /// `[k/64, count rounded up to 16]`: a float, or four e4m3 numbers
    scales: Range,
    /// `[count, rank]` bf16
    lora: Range,
}

/// The kernels that this family's weights were loaded for.
fn kernels(cuda: &Cuda) -> &Kernels {
    let Some(kernels) = &cuda.gpu.gemm4 else { panic!("4-bit weights on a GPU without 4-bit products") };
    kernels
}

impl Weights {
    pub(super) fn load(cuda: &Cuda, source: &SvdqSource<'_>) -> Result<Self> {
        let SvdqSource { n, k, rank, unsigned, .. } = *source;
        let channels = match &source.codes {
            Codes::Int4 => None,
            Codes::Fp4 { channel_scales } => Some(cuda.constant(channel_scales)?),
        };
        if channels.is_none() && !unsigned {
            // Of NVFP4 linears only those that follow no GELU: that is seen when they run.
            kernels(cuda).quantizer.check(k)?;
        }
        let reciprocal: Vec<f32> = pack::unpack_vector(&source.smooth).iter().map(|v| 1.0 / v).collect();
        let matrix = |values: Vec<f32>| cuda.constant(&pack::f32_to_bf16(&values));
        Ok(Weights {
            n,
            k,
            codes: cuda.constant(&source.qweight)?,
            scales: cuda.constant(&source.wscales)?,
            channels,
            bias: matrix(pack::unpack_vector(&source.bias))?,
            reciprocal: cuda.constant(&reciprocal)?,
            rank,
            down: cuda.constant_of(rank * k, || pack::unpack_lora_down_bf16(&source.lora_down, k, rank))?,
            down_packed: cuda.constant(&source.lora_down)?,
            up: cuda.constant(&source.lora_up)?,
            unsigned,
        })
    }

    /// Rows with room for codes of `k` channels and `rank` projections.
    fn rows(cuda: &Cuda, count: usize, k: usize, rank: usize) -> Result<Rows> {
        let padded = count.next_multiple_of(16);
        Ok(Rows {
            count,
            codes: cuda.temporary(padded * k / 2)?,
            scales: cuda.temporary(padded * k / 64 * 4)?,
            lora: cuda.temporary(count * rank * 2)?,
        })
    }

    /// [`Cuda::quantize`]
    pub(super) fn quantize(&self, cuda: &Cuda, x: u64, rows: usize, norm: Option<[u64; 2]>) -> Result<Rows> {
        assert!(!self.unsigned, "the input of fc2 is made by linear_gelu");
        let [scale, shift] = norm.unwrap_or_default();
        let ready = Self::rows(cuda, rows, self.k, self.rank)?;
        kernels(cuda).quantizer.quantize(&QuantizeParams {
            x,
            scale,
            shift,
            reciprocal: self.reciprocal.at(),
            down: self.down.at(),
            xq: ready.codes.at(),
            xs: ready.scales.at(),
            lora: ready.lora.at(),
            m: rows as i32,
            k: self.k as i32,
            rank: self.rank as i32,
        })?;
        Ok(ready)
    }

    /// `linear(x)` and `target`.
    pub(super) fn apply(&self, cuda: &Cuda, x: &Rows, target: Target) -> Result<()> {
        self.product(cuda, x, &target.epilogue())
    }

    /// [`Cuda::apply_qkv`]
    pub(super) fn qkv(&self, cuda: &Cuda, x: &Rows, out: u64, norms: u64, rope: u64) -> Result<()> {
        self.product(cuda, x, &Epilogue::Qkv { out, norms, rope })
    }

    /// [`Cuda::apply_gelu`]
    pub(super) fn gelu(&self, cuda: &Cuda, x: &Rows, next: &Weights) -> Result<Rows> {
        assert!(next.unsigned || next.channels.is_some(), "the kernel shifts what it codes in INT4");
        let (blocks, count) = (self.n / 128, x.count * next.rank);
        let ready = Self::rows(cuda, x.count, self.n, next.rank)?;
        let partials = cuda.temporary(blocks * count * 4)?;
        let epilogue = Epilogue::Gelu {
            codes: ready.codes.at(),
            scales: ready.scales.at(),
            reciprocal: next.reciprocal.at(),
            down: next.down_packed.at(),
            rank: next.rank,
            partials: partials.at(),
        };
        self.product(cuda, x, &epilogue)?;
        kernels(cuda).quantizer.sum_low_rank(partials.at(), ready.lora.at(), blocks, count)?;
        Ok(ready)
    }

    fn product(&self, cuda: &Cuda, x: &Rows, epilogue: &Epilogue) -> Result<()> {
        let product = Product {
            operands: Operands {
                x: x.codes.at(),
                xs: x.scales.at(),
                w: self.codes.at(),
                ws: self.scales.at(),
            },
            channels: self.channels.as_ref().map_or(0, Range::at),
            lora: x.lora.at(),
            up: self.up.at(),
            bias: self.bias.at(),
            m: x.count,
            n: self.n,
            k: self.k,
            rank: self.rank,
            unsigned: self.unsigned,
        };
        kernels(cuda).linear(&product, epilogue)
    }
}
