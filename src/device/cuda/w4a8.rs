//! 4-bit linears of profile W4A8 on compute capability 9.0: weights folded into int8, activations quantised to 8 bits.

use super::Cuda;
use super::hopper::{self, Epilogue, MAX_QUANTIZED, QuantizeParams, Quantized};
use super::linear::Target;
use super::memory::Range;
use crate::ops::{Codes, SvdqSource};
use crate::weights::pack;
use crate::{Error, Result};

/// The weights of a linear.
pub(super) struct Weights {
    n: usize,
    k: usize,
    /// `[n, k]` int8
    codes: Range,
    /// `[n]` f32
    scales: Range,
    /// `[n]` bf16
    bias: Range,
    /// `[k]` f32: 1 / smooth
    reciprocal: Range,
    rank: usize,
    /// `[rank, k]` bf16
    down: Range,
    /// `[n, rank]` bf16
    up: Range,
    unsigned: bool,
}

/// Rows made ready for a linear.
pub(super) struct Rows {
    count: usize,
    /// `[count, k]`, int8, or uint8 if they come from a GELU.
    codes: Range,
    /// `[count]`, or `[k/256, count]` if they come from a GELU: f32.
    scales: Range,
    /// `[count, rank]` bf16
    lora: Range,
}

impl Weights {
    pub(super) fn load(cuda: &Cuda, source: &SvdqSource<'_>) -> Result<Self> {
        let SvdqSource { n, k, rank, unsigned, .. } = *source;
        if source.codes != Codes::Int4 {
            return Err(Error::Unsupported(
                "NVFP4 weights on the GPU: this version runs them on the CPU only".into(),
            ));
        }
        if !unsigned && k > MAX_QUANTIZED {
            return Err(Error::Unsupported(format!(
                "a 4-bit linear with {k} input channels: the GPU's kernels take up to {MAX_QUANTIZED}"
            )));
        }
        let (qweight, wscales) = (cuda.temporary(n * k / 2)?, cuda.temporary(n * k / 64 * 2)?);
        qweight.write(&source.qweight)?;
        wscales.write(&source.wscales)?;
        let (codes, scales) = (cuda.weights.take(n * k)?, cuda.weights.take(n * 4)?);
        let unpacked = [codes.at(), scales.at()];
        cuda.gpu.hopper.unpack([qweight.at(), wscales.at()], unpacked, [n, k])?;
        let reciprocal: Vec<f32> = pack::unpack_vector(&source.smooth).iter().map(|v| 1.0 / v).collect();
        let matrix = |values: Vec<f32>| cuda.constant(&pack::f32_to_bf16(&values));
        Ok(Weights {
            n,
            k,
            codes,
            scales,
            bias: matrix(pack::unpack_vector(&source.bias))?,
            reciprocal: cuda.constant(&reciprocal)?,
            rank,
            down: matrix(pack::unpack_lora_down(&source.lora_down, k, rank))?,
            up: matrix(pack::unpack_lora_up(&source.lora_up, n, rank))?,
            unsigned,
        })
    }

    /// [`Cuda::quantize`]
    pub(super) fn quantize(&self, cuda: &Cuda, x: u64, rows: usize, norm: Option<[u64; 2]>) -> Result<Rows> {
        assert!(!self.unsigned, "the input of fc2 is made by linear_gelu");
        let [scale, shift] = norm.unwrap_or_default();
        let (codes, scales) = (cuda.temporary(rows * self.k)?, cuda.temporary(rows * 4)?);
        let lora = cuda.temporary(rows * self.rank * 2)?;
        cuda.gpu.hopper.quantize(&QuantizeParams {
            x,
            scale,
            shift,
            reciprocal: self.reciprocal.at(),
            down: self.down.at(),
            xq: codes.at(),
            xs: scales.at(),
            lora: lora.at(),
            m: rows as i32,
            k: self.k as i32,
            rank: self.rank as i32,
        })?;
        Ok(Rows { count: rows, codes, scales, lora })
    }

    /// `linear(x)` and `target`.
    pub(super) fn apply(&self, cuda: &Cuda, x: &Rows, target: Target) -> Result<()> {
        match target {
            Target::Store(out) => self.product(cuda, x, &Epilogue::Store { out: out.data }),
            Target::Add(out, gate) => {
                assert!(out.f32 == 0 && gate != 0, "the kernel adds to bf16, through a gate");
                self.product(cuda, x, &Epilogue::Add { out: out.data, gate })
            }
            Target::Columns(..) | Target::Mul(..) => panic!("no model has this after a 4-bit linear"),
        }
    }

    /// [`Cuda::apply_qkv`]
    pub(super) fn qkv(&self, cuda: &Cuda, x: &Rows, out: u64, norms: u64, rope: u64) -> Result<()> {
        self.product(cuda, x, &Epilogue::Qkv { out, norms, rope })
    }

    /// [`Cuda::apply_gelu`]
    pub(super) fn gelu(&self, cuda: &Cuda, x: &Rows, next: &Weights) -> Result<Rows> {
        assert!(next.unsigned, "only fc2 follows a GELU");
        let (rows, rank, blocks) = (x.count, next.rank, self.n.div_ceil(256));
        let (codes, scales) = (cuda.temporary(rows * self.n)?, cuda.temporary(blocks * rows * 4)?);
        let lora = cuda.temporary(rows * rank * 2)?;
        let partials = cuda.temporary(blocks * rows * rank * 4)?;
        let epilogue = Epilogue::Gelu {
            codes: codes.at(),
            scales: scales.at(),
            reciprocal: next.reciprocal.at(),
            down: next.down.at(),
            rank,
            partials: partials.at(),
        };
        self.product(cuda, x, &epilogue)?;
        cuda.gpu.hopper.sum_low_rank(partials.at(), lora.at(), blocks, rows * rank)?;
        Ok(Rows { count: rows, codes, scales, lora })
    }

    fn product(&self, cuda: &Cuda, x: &Rows, epilogue: &Epilogue) -> Result<()> {
        let Weights { n, k, rank, ref codes, ref scales, ref bias, ref up, unsigned, .. } = *self;
        let weights = hopper::Weights { n, k, rank, codes, scales, bias, up };
        let Rows { count, ref codes, ref scales, ref lora } = *x;
        let x = Quantized { rows: count, codes, scales, lora, blocked: unsigned };
        cuda.gpu.hopper.linear(&x, &weights, epilogue)
    }
}
