//! 4-bit linears of profile W4A4, exact to the checkpoint: weights as stored, activations quantised to 4 bits.

use super::Cuda;
use super::gemm4::{Kernels, Operands, Product};
use super::linear::{Epilogue, Target};
use super::low_rank::{self, Part, Update};
use super::memory::Range;
use super::quantize::{QuantizeParams, Rows};
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
    /// Its low-rank branch, whose `up` is packed, and the memory of that.
    own: Part,
    _own: [Range; 2],
    /// Its `down`, packed, for rows that come from a GELU.
    down_packed: Range,
    unsigned: bool,
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
        let down = low_rank::own_down(cuda, source)?;
        let up = cuda.constant(&source.lora_up)?;
        let [down_at, up_at] = [&down, &up].map(Range::at);
        Ok(Weights {
            n,
            k,
            codes: cuda.constant(&source.qweight)?,
            scales: cuda.constant(&source.wscales)?,
            channels,
            bias: matrix(pack::unpack_vector(&source.bias))?,
            reciprocal: cuda.constant(&reciprocal)?,
            own: Part { rank, strength: 1.0, rows: [0, n], down: down_at, up: up_at },
            _own: [down, up],
            down_packed: cuda.constant(&source.lora_down)?,
            unsigned,
        })
    }

    /// Rows with room for codes of `k` channels, as `linear4::Codes` has them, and for `rank` projections. Scales are
    /// `[k/64, count rounded up to 16]`: a float, or four e4m3 numbers.
    fn rows(cuda: &Cuda, count: usize, k: usize, rank: usize) -> Result<Rows> {
        let padded = count.next_multiple_of(16);
        Ok(Rows {
            count,
            codes: cuda.temporary(padded * k / 2)?,
            scales: cuda.temporary(padded * k / 64 * 4)?,
            lora: cuda.temporary(count * rank * 2)?,
            rank,
        })
    }

    /// [`Cuda::quantize`]
    pub(super) fn quantize(
        &self,
        cuda: &Cuda,
        x: u64,
        rows: usize,
        norm: Option<[u64; 2]>,
        updates: &[Update<'_>],
    ) -> Result<Rows> {
        assert!(!self.unsigned, "the input of fc2 is made by linear_gelu");
        let [scale, shift] = norm.unwrap_or_default();
        let parts = low_rank::parts(self.own, updates)?;
        let ready = Self::rows(cuda, rows, self.k, low_rank::rank(&parts))?;
        kernels(cuda).quantizer.quantize(&QuantizeParams {
            x,
            scale,
            shift,
            reciprocal: self.reciprocal.at(),
            xq: ready.codes.at(),
            xs: ready.scales.at(),
            lora: ready.lora.at(),
            h: 0,
            m: rows as i32,
            k: self.k as i32,
            rank: ready.rank as i32,
            parts: low_rank::down_parts(&parts, |part| part.down),
        })?;
        Ok(ready)
    }

    /// `linear(x)` and `target`.
    pub(super) fn apply(&self, cuda: &Cuda, x: &Rows, updates: &[Update<'_>], target: Target) -> Result<()> {
        self.product(cuda, x, updates, &target.epilogue())
    }

    /// [`Cuda::apply_gelu`]
    pub(super) fn gelu(
        &self,
        cuda: &Cuda,
        x: &Rows,
        updates: &[Update<'_>],
        (next, next_updates): (&Weights, &[Update<'_>]),
    ) -> Result<Rows> {
        assert!(next.unsigned || next.channels.is_some(), "the kernel shifts what it codes in INT4");
        let own = Part { down: next.down_packed.at(), ..next.own };
        let parts = low_rank::parts(own, next_updates)?;
        let rank = low_rank::rank(&parts);
        let (blocks, count) = (self.n / 128, x.count * rank);
        let ready = Self::rows(cuda, x.count, self.n, rank)?;
        let partials = cuda.temporary(blocks * count * 4)?;
        let epilogue = Epilogue::Gelu {
            codes: ready.codes.at(),
            scales: ready.scales.at(),
            reciprocal: next.reciprocal.at(),
            parts: &parts,
            partials: partials.at(),
        };
        self.product(cuda, x, updates, &epilogue)?;
        kernels(cuda).quantizer.sum_low_rank(partials.at(), ready.lora.at(), blocks, count)?;
        Ok(ready)
    }

    /// The product with the updates, and what `epilogue` makes of it.
    pub(super) fn product(
        &self,
        cuda: &Cuda,
        x: &Rows,
        updates: &[Update<'_>],
        epilogue: &Epilogue<'_>,
    ) -> Result<()> {
        let parts = low_rank::parts(self.own, updates)?;
        assert_eq!(x.rank, low_rank::rank(&parts), "the input was made ready for other updates");
        let bias = low_rank::bias_bf16(cuda, &self.bias, self.n, updates)?;
        let product = Product {
            operands: Operands {
                x: x.codes.at(),
                xs: x.scales.at(),
                w: self.codes.at(),
                ws: self.scales.at(),
            },
            channels: self.channels.as_ref().map_or(0, Range::at),
            lora: x.lora.at(),
            parts: &parts,
            bias: bias.as_ref().unwrap_or(&self.bias).at(),
            m: x.count,
            n: self.n,
            k: self.k,
            unsigned: self.unsigned,
        };
        kernels(cuda).linear(&product, epilogue)
    }
}
