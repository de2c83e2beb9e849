//! Low-rank branches: a 4-bit linear's own, and the updates that LoRAs attach to any linear.

use super::gemm::{Panels, Tile, panel_width};
use super::on::On;
use super::simd::Level;
use crate::Result;
use crate::memory::Buf;
use crate::ops::{LowRankSource, Storage};

/// `B A` and a bias, for some outputs of a linear.
pub struct LowRank {
    shape: [usize; 2],
    rank: usize,
    /// `[rank, k]`
    down: Panels,
    /// `[n, rank]` of the linear's panels `first ..`, filled up with zeros at both ends.
    up: Panels,
    first: usize,
    panels: usize,
    /// Of all columns of these panels, or empty.
    bias: Buf<f32>,
    /// Columns of a panel.
    width: usize,
}

impl LowRank {
    pub(super) fn new(on: &On<'_>, source: &LowRankSource<'_>) -> Result<LowRank> {
        let storage = match source.down.is_bf16() && source.up.is_bf16() {
            true => Storage::Bf16,
            false => Storage::F32,
        };
        Self::stored(on, storage, source)
    }

    /// Of values that are as exact as `storage` says.
    pub(super) fn stored(on: &On<'_>, storage: Storage, source: &LowRankSource<'_>) -> Result<LowRank> {
        let LowRankSource { n, k, ref rows, rank, ref down, ref up, ref bias } = *source;
        assert!(rows.start < rows.end && rows.end <= n, "the update is of outputs that are not there");
        let width = panel_width(on.level);
        let (first, end) = (rows.start / width, rows.end.div_ceil(width));
        let all = (end - first) * width;
        let before = rows.start - first * width;
        let (down, up) = (down.values()?, up.values()?);
        let mut wide: Buf<f32> = on.zeros(all * rank, "a low-rank branch")?;
        wide[before * rank..][..up.len()].copy_from_slice(up);
        let mut wide_bias: Buf<f32> =
            on.zeros(if bias.is_empty() { 0 } else { all }, "a low-rank branch's bias")?;
        if !bias.is_empty() {
            wide_bias[before..][..bias.len()].copy_from_slice(bias);
        }
        Ok(LowRank {
            shape: [n, k],
            rank,
            down: Panels::pack(on, [rank, k], storage, down)?,
            up: Panels::pack(on, [all, rank], storage, &wide)?,
            first,
            panels: end - first,
            bias: wide_bias,
            width,
        })
    }

    /// Columns that the projections take: the rank in whole panels.
    pub(super) fn width(&self) -> usize {
        self.rank.next_multiple_of(self.width)
    }

    /// Whether it is an update of a linear `[n, k]`.
    pub(super) fn fits(&self, shape: [usize; 2]) -> bool {
        self.shape == shape
    }
}

/// A branch in use, whose projections start at column `start`.
pub(super) struct Branch<'a> {
    pub(super) weights: &'a LowRank,
    pub(super) strength: f32,
    pub(super) start: usize,
}

impl Branch<'_> {
    /// `lora[m, start + r] = strength · Σ_k h[m,k] · A[r,k]` for rows of `stride` columns that are zero.
    pub(super) fn project(&self, level: Level, k: usize, h: &[f32], lora: &mut [f32], stride: usize) {
        let LowRank { ref down, width, .. } = *self.weights;
        if self.weights.rank == 0 {
            return;
        }
        let rows = h.len() / k;
        for panel in 0..self.weights.width() / width {
            let values = &mut lora[self.start + panel * width..];
            let mut tile = Tile { rows: 0..rows, panel, values, stride };
            down.multiply(level, &mut tile, 1, |m, _| &h[m * k..][..k]);
        }
        if self.strength != 1.0 {
            for row in lora.chunks_exact_mut(stride) {
                row[self.start..][..self.weights.width()].iter_mut().for_each(|v| *v *= self.strength);
            }
        }
    }

    /// Adds to `tile` the product of the projections and `B`, and the bias.
    pub(super) fn add(&self, level: Level, tile: &mut Tile<'_>, lora: &[f32], stride: usize) {
        let LowRank { rank, ref up, first, panels, ref bias, width, .. } = *self.weights;
        let Some(panel) = tile.panel.checked_sub(first).filter(|&panel| panel < panels) else { return };
        if rank > 0 {
            let mut tile = Tile { rows: tile.rows.clone(), panel, values: tile.values, stride: tile.stride };
            up.multiply(level, &mut tile, 1, |m, _| &lora[m * stride + self.start..][..rank]);
        }
        if !bias.is_empty() {
            let bias = &bias[panel * width..][..width];
            for row in tile.values.chunks_exact_mut(tile.stride).take(tile.rows.len()) {
                row.iter_mut().zip(bias).for_each(|(y, b)| *y += self.strength * b);
            }
        }
    }
}
