//! `y += (xq · wq) xs ws`: integer sums in blocks of channels, scaled in f32.

#![allow(unsafe_code, reason = "the inner loop reads by pointer")]

use super::super::on::On;
use super::super::simd::{Kernel, Level, MAX_ROWS, Simd};
use super::{Tile, panel_width};
use crate::Result;
use crate::memory::Buf;

/// Quantised rows. A stored code is `zero` more than the value it stands for.
pub(in super::super) struct IntRows {
    /// `[rows, k]`
    pub(in super::super) codes: Buf<u8>,
    /// `[rows, blocks]`
    pub(in super::super) scales: Buf<f32>,
}

/// Quantised weights in panels.
pub(in super::super) struct IntPanels {
    k: usize,
    block: usize,
    /// `[panel][k / 4][column][4]`
    codes: Buf<i8>,
    /// `[panel][block][column]`
    scales: Buf<f32>,
    /// `-zero · Σ codes`, where the sum over a block begins: `[panel][block][column]`.
    starts: Buf<i32>,
}

impl IntPanels {
    /// The codes `[n, k]` and scales `[blocks, n]`, for blocks of `block` channels and rows whose
    /// codes are stored with `zero` added. `block` is a multiple of 4, as `k` is.
    pub(in super::super) fn pack(
        on: &On<'_>,
        k: usize,
        block: usize,
        zero: u8,
        codes: &[i8],
        scales: &[f32],
    ) -> Result<IntPanels> {
        assert!(k.is_multiple_of(4) && block.is_multiple_of(4), "blocks of {block} in {k} channels");
        let (width, blocks, n) = (panel_width(on.level), k.div_ceil(block), codes.len() / k);
        assert_eq!(scales.len(), blocks * n, "the scales have another shape");
        let rows = |panel: usize| (panel * width..n.min((panel + 1) * width)).enumerate();
        let panels = n.div_ceil(width);
        let mut packed = on.zeros(panels * width * k, "weights")?;
        on.chunks(&mut packed, width * k, |panel, packed| {
            for (column, row) in rows(panel) {
                let to = packed.as_chunks_mut::<4>().0[column..].iter_mut().step_by(width);
                to.zip(codes[row * k..][..k].as_chunks::<4>().0).for_each(|(to, four)| *to = *four);
            }
        })?;
        let mut starts = on.zeros(panels * blocks * width, "weights' sums")?;
        on.chunks(&mut starts, blocks * width, |panel, starts| {
            for (column, row) in rows(panel) {
                for (b, codes) in codes[row * k..][..k].chunks(block).enumerate() {
                    let sum: i32 = codes.iter().map(|&c| i32::from(c)).sum();
                    starts[b * width + column] = -i32::from(zero) * sum;
                }
            }
        })?;
        let mut by_panel: Buf<f32> = on.zeros(panels * blocks * width, "weights' scales")?;
        for (panel, to) in by_panel.chunks_exact_mut(blocks * width).enumerate() {
            for (from, to) in scales.chunks_exact(n).zip(to.chunks_exact_mut(width)) {
                let from = &from[panel * width..n.min((panel + 1) * width)];
                to[..from.len()].copy_from_slice(from);
            }
        }
        Ok(IntPanels { k, block, codes: packed, scales: by_panel, starts })
    }

    /// Adds the product of `x` and the weights to `tile`.
    pub(in super::super) fn multiply(&self, level: Level, tile: &mut Tile<'_>, x: &IntRows) {
        let (blocks, width) = (self.k.div_ceil(self.block), tile.stride);
        let mut y = &mut *tile.values;
        for start in tile.rows.clone().step_by(level.int_rows()) {
            let count = level.int_rows().min(tile.rows.end - start);
            let micro = Micro {
                codes: &x.codes[start * self.k..][..count * self.k],
                scales: &x.scales[start * blocks..][..count * blocks],
                count,
                panels: self,
                w: &self.codes[tile.panel * self.k * width..][..self.k * width],
                ws: &self.scales[tile.panel * blocks * width..][..blocks * width],
                starts: &self.starts[tile.panel * blocks * width..][..blocks * width],
                y: &mut y[..count * width],
            };
            level.run(micro);
            y = &mut y[count * width..];
        }
    }
}

/// One register tile; the slices hold exactly its rows, and one panel.
struct Micro<'a> {
    codes: &'a [u8],
    scales: &'a [f32],
    count: usize,
    panels: &'a IntPanels,
    w: &'a [i8],
    ws: &'a [f32],
    starts: &'a [i32],
    y: &'a mut [f32],
}

impl Kernel for Micro<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        macro_rules! pick {
            ($($rows:literal)*) => {
                match self.count {
                    // SAFETY: the slices are cut to the shapes that the tile reads.
                    $($rows if const { $rows <= S::INT_ROWS } => unsafe { self.tile::<S, $rows>(s) },)*
                    _ => unreachable!("a tile of {} rows", self.count),
                }
            };
        }
        const { assert!(S::INT_ROWS <= MAX_ROWS) };
        pick!(1 2 3 4 5 6 7 8 9 10 11 12);
    }
}

impl Micro<'_> {
    /// # Safety
    /// The slices hold `ROWS` rows and a whole panel of `2 * S::LANES` columns.
    #[inline(always)]
    unsafe fn tile<S: Simd, const ROWS: usize>(self, s: S) {
        let (width, k) = (2 * S::LANES, self.panels.k);
        let blocks = self.scales.len() / ROWS;
        // SAFETY: by the contract of this function; `k` is a multiple of 4, and so are the blocks.
        unsafe {
            for b in 0..blocks {
                let starts = self.starts.as_ptr().add(b * width);
                let starts = [s.load_ints_at(starts), s.load_ints_at(starts.add(S::LANES))];
                let mut sums = [starts; ROWS];
                for four in (b * self.panels.block..k.min((b + 1) * self.panels.block)).step_by(4) {
                    let w = self.w.as_ptr().add(four * width);
                    let w = [s.weights_at(w), s.weights_at(w.add(4 * S::LANES))];
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let x = self.codes.as_ptr().add(r * k + four).cast::<[u8; 4]>().read_unaligned();
                        let x = s.codes(u32::from_le_bytes(x));
                        for (sum, w) in sums.iter_mut().zip(w) {
                            *sum = s.dot(*sum, x, w);
                        }
                    }
                }
                let ws = self.ws.as_ptr().add(b * width);
                let ws = [s.load_at(ws), s.load_at(ws.add(S::LANES))];
                for (r, sums) in sums.iter().enumerate() {
                    let xs = s.splat(*self.scales.as_ptr().add(r * blocks + b));
                    for (c, (sum, ws)) in sums.iter().zip(ws).enumerate() {
                        let y = self.y.as_mut_ptr().add(r * width + c * S::LANES);
                        let scaled = s.fma(s.to_float(*sum), s.mul(xs, ws), s.load_at(y));
                        s.store_at(scaled, y);
                    }
                }
            }
        }
    }
}
