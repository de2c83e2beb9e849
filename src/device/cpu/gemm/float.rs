//! `y += x · W` in f32.

#![allow(unsafe_code, reason = "the inner loop reads by pointer")]

use super::super::on::On;
use super::super::simd::{Kernel, Level, MAX_LANES, MAX_ROWS, Simd};
use super::packed::Packed;
use super::{Tile, panel_width};
use crate::Result;
use crate::memory::{Buf, Plain};
use crate::ops::{AwqSource, Storage};

/// Rows of weights that are used for all rows of a tile while they are in the first-level cache.
const BLOCK: usize = 128;
/// The most taps that the kernel goes through at once.
const SEGMENTS: usize = 9;

/// Weights in panels of as many columns as the kernel computes at once: `[panel][k][column]`,
/// the last panel filled with zeros.
pub(in super::super) struct Panels {
    k: usize,
    width: usize,
    data: Data,
}

enum Data {
    F32(Buf<f32>),
    Bf16(Buf<u16>),
    Packed(Packed),
}

impl Panels {
    /// The weights `[n, k]`. With [`Storage::Bf16`] every one of them is exact in bfloat16.
    pub(in super::super) fn pack(
        on: &On<'_>,
        [n, k]: [usize; 2],
        storage: Storage,
        weights: &[f32],
    ) -> Result<Panels> {
        assert_eq!(weights.len(), n * k, "the weights have another shape");
        let width = panel_width(on.level);
        let data = match storage {
            Storage::F32 => Data::F32(pack(on, width, k, weights, |v| v)?),
            Storage::Bf16 => Data::Bf16(pack(on, width, k, weights, |v| (v.to_bits() >> 16) as u16)?),
        };
        Ok(Panels { k, width, data })
    }

    /// 4-bit weights, which stay so. Their columns are in the order of the outputs.
    pub(in super::super) fn packed(on: &On<'_>, source: &AwqSource<'_>) -> Result<Panels> {
        let data = Data::Packed(Packed::new(on, source)?);
        Ok(Panels { k: source.k, width: panel_width(on.level), data })
    }

    /// Adds to `tile` the product of rows `row(m, tap)` and the weights, whose `k` runs over the taps
    /// and, inside each, over the row.
    pub(in super::super) fn multiply<'a>(
        &self,
        level: Level,
        tile: &mut Tile<'_>,
        taps: usize,
        row: impl Fn(usize, usize) -> &'a [f32],
    ) {
        let depth = self.k / taps;
        // as many taps at once as fill a block
        let together = (BLOCK / depth.max(1)).clamp(1, SEGMENTS);
        let mut widened = [0.0; BLOCK * 2 * MAX_LANES];
        let tokens = tile.rows.clone();
        for tap in (0..taps).step_by(together) {
            let segments = together.min(taps - tap);
            for start in (0..depth).step_by(BLOCK) {
                let end = depth.min(start + BLOCK);
                let rows = tap * depth + start..tap * depth + start + segments * (end - start);
                let first = (tile.panel * self.k + rows.start) * self.width;
                let len = rows.len() * self.width;
                let weights = match &self.data {
                    Data::F32(w) => &w[first..][..len],
                    Data::Bf16(w) => {
                        let weights = &mut widened[..len];
                        level.run(Widen { from: &w[first..][..len], to: weights });
                        weights
                    }
                    Data::Packed(w) => {
                        let weights = &mut widened[..len];
                        w.widen(level, tile.panel, rows, weights);
                        weights
                    }
                };
                let x = |m: usize, segment: usize| &row(tokens.start + m, tap + segment)[start..end];
                accumulate(level, (&mut *tile.values, tile.stride), tokens.len(), segments, x, weights);
            }
        }
    }
}

fn pack<T: Plain>(
    on: &On<'_>,
    width: usize,
    k: usize,
    weights: &[f32],
    convert: impl Fn(f32) -> T + Sync,
) -> Result<Buf<T>> {
    let panels = weights.len().div_ceil(width * k.max(1));
    let mut packed = on.zeros(panels * width * k, "weights")?;
    on.chunks(&mut packed, (width * k).max(1), |panel, packed| {
        let rows = &weights[panel * width * k..weights.len().min((panel + 1) * width * k)];
        // a block at a time, so that the lines written stay in the cache
        for (block, to) in packed.chunks_mut(BLOCK * width).enumerate() {
            for (column, row) in rows.chunks_exact(k).enumerate() {
                let to = to[column..].iter_mut().step_by(width);
                to.zip(&row[block * BLOCK..]).for_each(|(to, &v)| *to = convert(v));
            }
        }
    })?;
    Ok(packed)
}

/// `y[m, ..] += Σ_k x[m][k] · w[k, ..]` for `rows` rows: `w` is one panel, `y` begins at its first
/// column, and `x(m, 0)` to `x(m, segments - 1)`, all of one length, make up row `m`.
pub(in super::super) fn accumulate<'a>(
    level: Level,
    (y, stride): (&mut [f32], usize),
    rows: usize,
    segments: usize,
    x: impl Fn(usize, usize) -> &'a [f32],
    w: &[f32],
) {
    let width = panel_width(level);
    let k = w.len() / width / segments;
    let mut pointers = [[std::ptr::null(); MAX_ROWS]; SEGMENTS];
    for first in (0..rows).step_by(level.rows()) {
        let count = level.rows().min(rows - first);
        for (segment, pointers) in pointers[..segments].iter_mut().enumerate() {
            for (m, pointer) in pointers[..count].iter_mut().enumerate() {
                let x = x(first + m, segment);
                assert_eq!(x.len(), k, "a row is not as long as the weights are deep");
                *pointer = x.as_ptr();
            }
        }
        let y = &mut y[first * stride..];
        assert!(y.len() >= (count - 1) * stride + width, "the output is too small");
        let (w, y) = (w.as_ptr(), y.as_mut_ptr());
        level.run(Micro { rows: &pointers[..segments], count, k, w, y, stride });
    }
}

struct Widen<'a> {
    from: &'a [u16],
    to: &'a mut [f32],
}

impl Kernel for Widen<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (from, to) in self.from.chunks_exact(S::LANES).zip(self.to.chunks_exact_mut(S::LANES)) {
            // SAFETY: the chunks are a vector long.
            unsafe { s.store_at(s.widen_at(from.as_ptr()), to.as_mut_ptr()) };
        }
    }
}

/// One register tile: `count` rows of `k` values in each segment, as many rows of a panel, and sums
/// `stride` apart. Built only by [`accumulate`], which checks that the pointers reach that far.
struct Micro<'a> {
    rows: &'a [[*const f32; MAX_ROWS]],
    count: usize,
    k: usize,
    w: *const f32,
    y: *mut f32,
    stride: usize,
}

impl Kernel for Micro<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        macro_rules! pick {
            ($($rows:literal)*) => {
                match self.count {
                    // SAFETY: `accumulate` has checked the lengths.
                    $($rows if const { $rows <= S::ROWS } => unsafe { self.tile::<S, $rows>(s) },)*
                    _ => unreachable!("a tile of {} rows", self.count),
                }
            };
        }
        pick!(1 2 3 4 5 6 7 8 9 10 11 12);
    }
}

impl Micro<'_> {
    /// # Safety
    /// The pointers are valid for the shapes beside them.
    #[inline(always)]
    unsafe fn tile<S: Simd, const ROWS: usize>(self, s: S) {
        let width = 2 * S::LANES;
        let mut sums = [[s.splat(0.0); 2]; ROWS];
        // SAFETY: by the contract of this function.
        unsafe {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (c, sum) in sums.iter_mut().enumerate() {
                    *sum = s.load_at(self.y.add(r * self.stride + c * S::LANES));
                }
            }
            for (segment, rows) in self.rows.iter().enumerate() {
                for k in 0..self.k {
                    let w = self.w.add((segment * self.k + k) * width);
                    let w = [s.load_at(w), s.load_at(w.add(S::LANES))];
                    for (sums, row) in sums.iter_mut().zip(rows) {
                        let x = s.splat(*row.add(k));
                        for (sum, w) in sums.iter_mut().zip(w) {
                            *sum = s.fma(x, w, *sum);
                        }
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (c, sum) in sums.iter().enumerate() {
                    s.store_at(*sum, self.y.add(r * self.stride + c * S::LANES));
                }
            }
        }
    }
}
