//! 4-bit linears of profile W4A16, which every GPU runs: weights are unpacked to bf16 for every product, and activations
//! stay bf16.

use super::Cuda;
use super::generic::{LinearParams, Output, UnpackParams};
use super::linear::Target;
use super::low_rank::{self, Update};
use super::memory::Range;
use super::tensor::Elements;
use crate::Result;
use crate::ops::{Activation, Codes, SvdqSource};
use crate::weights::pack;

/// Added to the input of an INT4 fc2 before it is divided by the smoothing factors. Exact in bf16.
const SHIFT: f32 = 0.171875;

/// The weights of a linear.
pub(super) struct Weights {
    n: usize,
    k: usize,
    /// `[n, k]`, as stored
    codes: Range,
    /// As stored
    scales: Range,
    /// NVFP4: `[n]` f32
    channels: Option<Range>,
    /// `[k]` f32: 1 / smooth
    reciprocal: Range,
    /// `[n]` f32, with what the shift of an unsigned input adds
    bias: Range,
    rank: usize,
    /// `[rank, k]` bf16
    down: Range,
    /// `[n, rank]` bf16
    up: Range,
}

/// Rows made ready for a linear.
pub(super) struct Rows {
    count: usize,
    /// `[count, k]` bf16
    h: Range,
    /// `[count, rank]` bf16
    lora: Range,
}

impl Weights {
    pub(super) fn load(cuda: &Cuda, source: &SvdqSource<'_>) -> Result<Self> {
        let SvdqSource { n, k, rank, unsigned, .. } = *source;
        let reciprocal: Vec<f32> = pack::unpack_vector(&source.smooth).iter().map(|v| 1.0 / v).collect();
        let weights = Weights {
            n,
            k,
            codes: cuda.constant(&source.qweight)?,
            scales: cuda.constant(&source.wscales)?,
            channels: match &source.codes {
                Codes::Int4 => None,
                Codes::Fp4 { channel_scales } => Some(cuda.constant(channel_scales)?),
            },
            reciprocal: cuda.constant(&reciprocal)?,
            bias: cuda.constant(&pack::unpack_vector(&source.bias))?,
            rank,
            down: low_rank::own_down(cuda, source)?,
            up: low_rank::own_up(cuda, source)?,
        };
        if unsigned {
            weights.add_shift(cuda)?;
        }
        Ok(weights)
    }

    /// Adds to the bias the product with a row of shifts, so that inputs need not be shifted.
    fn add_shift(&self, cuda: &Cuda) -> Result<()> {
        let row = cuda.staged(&pack::f32_to_bf16(&vec![SHIFT; self.k]))?;
        let bias = Elements { data: self.bias.at(), f32: 1 };
        self.product(
            cuda,
            row.at(),
            1,
            Output { add: bias, ..Output::store(bias, self.n, 0, Activation::None) },
        )
    }

    /// Makes `count` rows `h`, `[count, k]` bf16, ready.
    pub(super) fn ready(&self, cuda: &Cuda, h: Range, count: usize) -> Result<Rows> {
        let lora = cuda.temporary(count * self.rank * 2)?;
        if self.rank > 0 && count > 0 {
            cuda.gpu.generic.linear(&LinearParams {
                x: h.at(),
                w: self.down.at(),
                m: count as i32,
                n: self.rank as i32,
                k: self.k as i32,
                output: Output::store(Elements::bf16(lora.at()), self.rank, 0, Activation::None),
            })?;
        }
        Ok(Rows { count, h, lora })
    }

    /// `linear(x)`, then `act` and `target`.
    pub(super) fn apply(
        &self,
        cuda: &Cuda,
        x: &Rows,
        updates: &[Update<'_>],
        act: Activation,
        target: Target,
    ) -> Result<()> {
        let n = self.n;
        let mut before = low_rank::products(cuda, x.h.at(), [x.count, n, self.k], updates)?;
        if self.rank > 0 {
            let add = before.as_ref().map_or(Elements::NONE, |sum| Elements::f32(sum.at()));
            let sum = match before.take() {
                Some(sum) => sum,
                None => cuda.temporary(x.count * n * 4)?,
            };
            cuda.gpu.generic.linear(&LinearParams {
                x: x.lora.at(),
                w: self.up.at(),
                m: x.count as i32,
                n: n as i32,
                k: self.rank as i32,
                output: Output { add, ..Output::store(Elements::f32(sum.at()), n, 0, Activation::None) },
            })?;
            before = Some(sum);
        }
        let own = Elements::f32(self.bias.at());
        let bias = low_rank::bias(cuda, own, n, updates)?;
        let mut output = target.output(n, act, bias.as_ref().unwrap_or(&self.bias).at());
        if let Some(before) = &before {
            (output.before, output.before_pitch) = (Elements::f32(before.at()), n as i32);
        }
        self.product(cuda, x.h.at(), x.count, output)
    }

    /// `output` of the product of `rows` rows at `x` with the 4-bit weights, which are unpacked for it.
    fn product(&self, cuda: &Cuda, x: u64, rows: usize, output: Output) -> Result<()> {
        let (n, k) = (self.n, self.k);
        let weight = cuda.temporary(n * k * 2)?;
        cuda.gpu.generic.unpack(&UnpackParams {
            codes: self.codes.at(),
            scales: self.scales.at(),
            channels: self.channels.as_ref().map(Range::at),
            reciprocal: self.reciprocal.at(),
            w: weight.at(),
            n,
            k,
        })?;
        let [m, n, k] = [rows, n, k].map(|size| size as i32);
        cuda.gpu.generic.linear(&LinearParams { x, w: weight.at(), m, n, k, output })
    }
}
