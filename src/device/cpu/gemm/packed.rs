//! 4-bit weights with a scale and a zero for every group of channels, widened to f32 a block at a time.

#![allow(unsafe_code, reason = "the inner loop reads by pointer")]

use std::ops::Range;

use super::super::on::On;
use super::super::pool::Disjoint;
use super::super::simd::{Kernel, Level, Simd};
use super::panel_width;
use crate::Result;
use crate::memory::Buf;
use crate::ops::AwqSource;
use crate::weights::pack;

/// The weights of an [`AwqSource`] in panels, as [`super::Panels`] has them.
pub(super) struct Packed {
    k: usize,
    group: usize,
    width: usize,
    /// `[panel][k][width / 2]`: byte `c` has the codes of columns `c` and, above it, `c + width / 2`.
    codes: Buf<u8>,
    /// bf16 `[panel][k / group][column]`
    scales: Buf<u16>,
    zeros: Buf<u16>,
}

impl Packed {
    pub(super) fn new(on: &On<'_>, source: &AwqSource<'_>) -> Result<Packed> {
        let AwqSource { n, k, group, .. } = *source;
        assert!(k.is_multiple_of(group), "groups of {group} do not divide {k} channels");
        let (width, half) = (panel_width(on.level), on.level.lanes());
        let panels = n.div_ceil(width);
        let rows = |panel: usize| {
            (panel * width..n.min((panel + 1) * width)).map(|column| source.stored_row(column)).enumerate()
        };
        let mut codes = on.zeros(panels * k * half, "weights")?;
        let packed_panels = Disjoint::new(&mut codes);
        on.run_with(panels, k, |panel, codes| {
            // SAFETY: every task has its own panel.
            let packed = unsafe { packed_panels.slice(panel * k * half..(panel + 1) * k * half) };
            for (column, row) in rows(panel) {
                pack::unpack_awq_row(&source.qweight, k, row, codes);
                let to = packed[column % half..].iter_mut().step_by(half);
                to.zip(&*codes).for_each(|(to, code)| *to |= code << (column / half * 4));
            }
        })?;
        let by_panel = |stored: &[u8]| -> Result<Buf<u16>> {
            let stored = stored.as_chunks::<2>().0;
            let mut values = on.zeros(panels * k / group * width, "weights' scales")?;
            on.chunks(&mut values, k / group * width, |panel, values| {
                for (g, values) in values.chunks_exact_mut(width).enumerate() {
                    rows(panel).for_each(|(column, row)| {
                        values[column] = u16::from_le_bytes(stored[g * n + row]);
                    });
                }
            })?;
            Ok(values)
        };
        let (scales, zeros) = (by_panel(&source.wscales)?, by_panel(&source.wzeros)?);
        Ok(Packed { k, group, width, codes, scales, zeros })
    }

    /// The weights of `panel` for the channels `rows`: `[rows][column]`.
    pub(super) fn widen(&self, level: Level, panel: usize, rows: Range<usize>, to: &mut [f32]) {
        let Packed { k, group, width, .. } = *self;
        let mut to = to;
        let mut start = rows.start;
        while start < rows.end {
            let end = rows.end.min((start / group + 1) * group);
            let of = |rows: Range<usize>, cols: usize| rows.start * cols..rows.end * cols;
            let vector =
                of(panel * (k / group) + start / group..panel * (k / group) + start / group + 1, width);
            let (block, rest) = to.split_at_mut((end - start) * width);
            level.run(Widen {
                codes: &self.codes[of(panel * k + start..panel * k + end, width / 2)],
                scales: &self.scales[vector.clone()],
                zeros: &self.zeros[vector],
                to: block,
            });
            (to, start) = (rest, end);
        }
    }
}

/// `to = code · scale + zero` in one group; the slices of a panel of the instruction set's own width.
struct Widen<'a> {
    codes: &'a [u8],
    scales: &'a [u16],
    zeros: &'a [u16],
    to: &'a mut [f32],
}

impl Kernel for Widen<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = 2 * S::LANES;
        assert!(self.scales.len() == width && self.zeros.len() == width, "a panel of another width");
        // SAFETY: two vectors of each, as just checked.
        let vectors = |x: &[u16]| unsafe { [s.widen_at(x.as_ptr()), s.widen_at(x.as_ptr().add(S::LANES))] };
        let (scales, zeros) = (vectors(self.scales), vectors(self.zeros));
        for (codes, to) in self.codes.chunks_exact(S::LANES).zip(self.to.chunks_exact_mut(width)) {
            // SAFETY: the chunks are as long as what is read and written.
            unsafe {
                let [low, high] = s.nibbles_at(codes.as_ptr());
                s.store_at(s.fma(low, scales[0], zeros[0]), to.as_mut_ptr());
                s.store_at(s.fma(high, scales[1], zeros[1]), to.as_mut_ptr().add(S::LANES));
            }
        }
    }
}
