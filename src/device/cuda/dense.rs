//! Linears whose activations are bf16: dense weights, and 4-bit ones in AWQ's layout.

use super::Cuda;
use super::generic::{LinearParams, Output, W4A16Params};
use super::memory::Range;
use crate::Result;
use crate::ops::{AwqSource, DenseSource};
use crate::weights::pack;

/// A matrix of bf16.
pub(super) struct Dense {
    n: usize,
    k: usize,
    /// `[n, k]` bf16
    weight: Range,
    /// `[n]` f32
    bias: Option<Range>,
}

impl Dense {
    pub(super) fn load(cuda: &Cuda, source: &DenseSource<'_>) -> Result<Self> {
        let weight = cuda.constants(&source.weight.bf16())?;
        let bias = match source.bias.as_slice() {
            [] => None,
            bias => Some(cuda.constant(bias)?),
        };
        Ok(Dense { n: source.n, k: source.k, weight, bias })
    }

    /// What `output` makes, given the bias, of the product with `rows` rows of `x`, `[rows, k]` bf16.
    pub(super) fn apply(
        &self,
        cuda: &Cuda,
        x: u64,
        rows: usize,
        output: impl FnOnce(u64) -> Output,
    ) -> Result<()> {
        cuda.gpu.generic.linear(&LinearParams {
            x,
            w: self.weight.at(),
            m: rows as i32,
            n: self.n as i32,
            k: self.k as i32,
            output: output(self.bias.as_ref().map_or(0, Range::at)),
        })
    }
}

/// 4-bit codes with a scale and a zero for every group of channels.
pub(super) struct Awq {
    n: usize,
    k: usize,
    group: usize,
    chunks: usize,
    codes: Range,
    /// `[k/group, n]` bf16
    scales: Range,
    /// `[k/group, n]` bf16
    zeros: Range,
    /// `[n]` f32, in the order of the result
    bias: Option<Range>,
}

impl Awq {
    pub(super) fn load(cuda: &Cuda, source: &AwqSource<'_>) -> Result<Self> {
        let AwqSource { n, k, group, chunks, .. } = *source;
        let bias = match pack::unpack_awq_bias(source).as_slice() {
            [] => None,
            bias => Some(cuda.constant(bias)?),
        };
        Ok(Awq {
            n,
            k,
            group,
            chunks,
            codes: cuda.constant(&source.qweight)?,
            scales: cuda.constant(&source.wscales)?,
            zeros: cuda.constant(&source.wzeros)?,
            bias,
        })
    }

    /// As [`Dense::apply`].
    pub(super) fn apply(
        &self,
        cuda: &Cuda,
        x: u64,
        rows: usize,
        output: impl FnOnce(u64) -> Output,
    ) -> Result<()> {
        cuda.gpu.generic.linear_w4a16(&W4A16Params {
            x,
            codes: self.codes.at(),
            scales: self.scales.at(),
            zeros: self.zeros.at(),
            m: rows as i32,
            n: self.n as i32,
            k: self.k as i32,
            group: self.group as i32,
            chunks: self.chunks as i32,
            output: output(self.bias.as_ref().map_or(0, Range::at)),
        })
    }
}
