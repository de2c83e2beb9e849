//! Linears whose activations are bf16: dense weights, and 4-bit ones in AWQ's layout.

use std::borrow::Cow;

use super::Cuda;
use super::generic::{LinearParams, Output, W4A16Params};
use super::low_rank::{self, Update};
use super::memory::Range;
use super::stored::Stored;
use super::tensor::Elements;
use crate::Result;
use crate::ops::{AwqSource, DenseSource, Usage};
use crate::weights::pack;

/// What the low-rank updates of a product add to it.
struct Updates {
    products: Option<Range>,
    /// With that of the linear.
    bias: Option<Range>,
    /// That of the linear, f32, or 0.
    own: u64,
    /// Columns of `products`.
    n: usize,
}

impl Updates {
    /// For `rows` rows of `x`, `[rows, k]` bf16, and `n` outputs.
    fn of(cuda: &Cuda, [rows, n, k]: [usize; 3], x: u64, own: u64, updates: &[Update<'_>]) -> Result<Self> {
        let products = low_rank::products(cuda, x, [rows, n, k], updates)?;
        let bias = low_rank::bias(cuda, Elements::f32(own), n, updates)?;
        Ok(Updates { products, bias, own, n })
    }

    /// What `output` makes of a bias, and these.
    fn to(&self, output: impl FnOnce(u64) -> Output) -> Output {
        let before = self.products.as_ref().map_or(Elements::NONE, |sum| Elements::f32(sum.at()));
        let before_pitch = if self.products.is_some() { self.n as i32 } else { 0 };
        Output { before, before_pitch, ..output(self.bias.as_ref().map_or(self.own, Range::at)) }
    }
}

/// A matrix of bf16.
pub(super) struct Dense {
    n: usize,
    k: usize,
    /// `[n, k]` bf16
    weight: Stored,
    /// `[n]` f32
    bias: Option<Range>,
}

impl Dense {
    pub(super) fn load(cuda: &Cuda, usage: Usage, source: &DenseSource<'_>) -> Result<Self> {
        let weight = cuda.store(&source.weight.bf16()?, usage)?;
        let bias = match source.bias.as_slice() {
            [] => None,
            bias => Some(cuda.constant(bias)?),
        };
        Ok(Dense { n: source.n, k: source.k, weight, bias })
    }

    /// What `output` makes, given the bias, of the product with `rows` rows of `x`, `[rows, k]` bf16, and of `updates`.
    pub(super) fn apply(
        &self,
        cuda: &Cuda,
        x: u64,
        rows: usize,
        updates: &[Update<'_>],
        output: impl FnOnce(u64) -> Output,
    ) -> Result<()> {
        let weight = cuda.fetch(&self.weight)?;
        let bias = self.bias.as_ref().map_or(0, Range::at);
        let updates = Updates::of(cuda, [rows, self.n, self.k], x, bias, updates)?;
        cuda.gpu.generic.linear(&LinearParams {
            x,
            w: weight.at(),
            m: rows as i32,
            n: self.n as i32,
            k: self.k as i32,
            output: updates.to(output),
        })
    }
}

/// Up to so many rows 4-bit codes are multiplied as they are, and read once for every 16 rows. For more, such as T5's tokens
/// or the modulation of as many steps, they become bf16 first.
const FEW_ROWS: usize = 64;

/// 4-bit codes with a scale and a zero for every group of channels.
pub(super) struct Awq {
    n: usize,
    k: usize,
    group: usize,
    chunks: usize,
    codes: Stored,
    /// `[k/group, n]` bf16
    scales: Stored,
    /// `[k/group, n]` bf16
    zeros: Stored,
    /// `[n]` f32, in the order of the result
    bias: Option<Range>,
}

impl Awq {
    pub(super) fn load(cuda: &Cuda, usage: Usage, source: &AwqSource<'_>) -> Result<Self> {
        let AwqSource { n, k, group, chunks, .. } = *source;
        let bias = match pack::unpack_awq_bias(source).as_slice() {
            [] => None,
            bias => Some(cuda.constant(bias)?),
        };
        let store = |bytes| cuda.store(&[Cow::Borrowed(bytes)], usage);
        Ok(Awq {
            n,
            k,
            group,
            chunks,
            codes: store(&source.qweight)?,
            scales: store(&source.wscales)?,
            zeros: store(&source.wzeros)?,
            bias,
        })
    }

    /// As [`Dense::apply`].
    pub(super) fn apply(
        &self,
        cuda: &Cuda,
        x: u64,
        rows: usize,
        updates: &[Update<'_>],
        output: impl FnOnce(u64) -> Output,
    ) -> Result<()> {
        let (codes, scales) = (cuda.fetch(&self.codes)?, cuda.fetch(&self.scales)?);
        let zeros = cuda.fetch(&self.zeros)?;
        let bias = self.bias.as_ref().map_or(0, Range::at);
        let updates = Updates::of(cuda, [rows, self.n, self.k], x, bias, updates)?;
        let product = W4A16Params {
            x,
            codes: codes.at(),
            scales: scales.at(),
            zeros: zeros.at(),
            m: rows as i32,
            n: self.n as i32,
            k: self.k as i32,
            group: self.group as i32,
            chunks: self.chunks as i32,
            output: updates.to(output),
        };
        if rows <= FEW_ROWS {
            return cuda.gpu.generic.linear_w4a16(&product);
        }
        let w = cuda.temporary(2 * self.n * self.k)?;
        cuda.gpu.generic.unpack_awq(&product, w.at())?;
        let W4A16Params { x, m, n, k, output, .. } = product;
        cuda.gpu.generic.linear(&LinearParams { x, w: w.at(), m, n, k, output })
    }
}
