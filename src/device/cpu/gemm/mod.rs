//! Matrix products: which task computes which tile of the output, and what happens to a finished tile.
//!
//! Every element is summed in the order of `k`, however the work is cut, so that the result does
//! not depend on the number of threads.

#![allow(unsafe_code, reason = "tasks write different tiles of one output")]

mod float;
mod int;
mod packed;

use std::ops::Range;

pub(super) use float::{Panels, accumulate};
pub(super) use int::{IntPanels, IntRows};

use super::math;
use super::on::On;
use super::pool::Disjoint;
use super::simd::{Kernel, Level, MAX_LANES, MAX_ROWS, Simd};
use crate::Result;
use crate::ops::Activation;

/// Columns of a panel: what the kernels compute at once.
pub(super) fn panel_width(level: Level) -> usize {
    2 * level.lanes()
}

/// The most rows of a task's tile.
const TILE_ROWS: usize = 12 * MAX_ROWS;

/// Sums of some rows of the output and the columns of one panel.
pub(super) struct Tile<'a> {
    pub(super) rows: Range<usize>,
    pub(super) panel: usize,
    /// Row-major, `stride` columns.
    pub(super) values: &'a mut [f32],
    pub(super) stride: usize,
}

/// `y[m,n] = act(sum[m,n] + bias[n])`, and then what [`Target`] says.
pub(super) struct Epilogue<'a> {
    /// `[n]`, or empty.
    pub(super) bias: &'a [f32],
    pub(super) act: Activation,
    pub(super) target: Target<'a>,
}

/// What becomes of `y`.
#[derive(Clone, Copy)]
pub(super) enum Target<'a> {
    /// `out = y`
    Store,
    /// `out = y ⊙ by`
    Mul(&'a [f32]),
    /// `out = y + by`
    Plus(&'a [f32]),
    /// `out += gate[n] y`
    Add(Option<&'a [f32]>),
}

/// Computes `out`, `[rows, n]`, tile by tile: `sums` adds to a tile of zeros, `epilogue` does the rest.
pub(super) fn product(
    on: &On<'_>,
    out: &mut [f32],
    n: usize,
    sums: impl Fn(&mut Tile<'_>) + Sync,
    epilogue: &Epilogue<'_>,
) -> Result<()> {
    let level = on.level;
    let (rows, stride) = (out.len() / n, panel_width(level));
    let panels = n.div_ceil(stride);
    // a few tiles for each thread, as tall as that allows
    let tall = rows * panels / (4 * on.pool.threads() * MAX_ROWS);
    let height = (tall * MAX_ROWS).clamp(MAX_ROWS, TILE_ROWS);
    let blocks = rows.div_ceil(height);
    let height = rows.div_ceil(blocks.max(1)).next_multiple_of(MAX_ROWS);
    let out = Disjoint::new(out);
    on.run(panels * blocks, |task| {
        let (panel, start) = (task / blocks, task % blocks * height);
        if start >= rows {
            return;
        }
        let mut values = [0.0; TILE_ROWS * 2 * MAX_LANES];
        let rows = start..rows.min(start + height);
        let mut tile = Tile { rows, panel, values: &mut values, stride };
        sums(&mut tile);
        level.run(Finish { tile, epilogue, out: &out, n });
    })
}

struct Finish<'a> {
    tile: Tile<'a>,
    epilogue: &'a Epilogue<'a>,
    out: &'a Disjoint<'a, f32>,
    n: usize,
}

impl Kernel for Finish<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Finish { tile, epilogue: e, out, n } = self;
        let columns = tile.panel * tile.stride..n.min((tile.panel + 1) * tile.stride);
        for (m, sums) in tile.rows.zip(tile.values.chunks_exact(tile.stride)) {
            for start in columns.clone().step_by(S::LANES) {
                let end = columns.end.min(start + S::LANES);
                let mut y = s.load(&sums[start - columns.start..]);
                if !e.bias.is_empty() {
                    y = s.add(y, s.load(&e.bias[start..end]));
                }
                y = match e.act {
                    Activation::None => y,
                    Activation::Silu => math::silu(s, y),
                    Activation::GeluTanh => math::gelu_tanh(s, y),
                    Activation::QuickGelu => math::quick_gelu(s, y),
                };
                let at = m * n + start..m * n + end;
                // SAFETY: this tile's part of the output, and no other's.
                let out = unsafe { out.slice(at.clone()) };
                y = match e.target {
                    Target::Store => y,
                    Target::Mul(by) => s.mul(y, s.load(&by[at])),
                    Target::Plus(by) => s.add(y, s.load(&by[at])),
                    Target::Add(None) => s.add(s.load(out), y),
                    Target::Add(Some(gate)) => s.fma(y, s.load(&gate[start..end]), s.load(out)),
                };
                s.store(y, out);
            }
        }
    }
}
