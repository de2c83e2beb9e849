//! `y += x · W` in f32.

#![allow(unsafe_code, reason = "the inner loop reads by pointer")]

use super::super::pool::Pool;
use super::super::simd::{Kernel, Level, MAX_LANES, MAX_ROWS, Simd};
use super::{Tile, panel_width};
use crate::ops::Storage;

/// Rows of weights that are used for all rows of a tile while they are in the first-level cache.
const BLOCK: usize = 128;

/// Weights in panels of as many columns as the kernel computes at once: `[panel][k][column]`,
/// the last panel filled with zeros.
pub(in super::super) struct Panels {
    k: usize,
    width: usize,
    data: Data,
}

enum Data {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
}

impl Panels {
    /// The weights `[n, k]`. With [`Storage::Bf16`] every one of them is exact in bfloat16.
    pub(in super::super) fn pack(
        (level, pool): (Level, &Pool),
        [n, k]: [usize; 2],
        storage: Storage,
        weights: &[f32],
    ) -> Panels {
        assert_eq!(weights.len(), n * k, "the weights have another shape");
        let width = panel_width(level);
        let data = match storage {
            Storage::F32 => Data::F32(pack(pool, width, k, weights, |v| v)),
            Storage::Bf16 => Data::Bf16(pack(pool, width, k, weights, |v| (v.to_bits() >> 16) as u16)),
        };
        Panels { k, width, data }
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
        let mut widened = [0.0; BLOCK * 2 * MAX_LANES];
        for tap in 0..taps {
            for start in (0..depth).step_by(BLOCK) {
                let end = depth.min(start + BLOCK);
                let first = (tile.panel * self.k + tap * depth + start) * self.width;
                let len = (end - start) * self.width;
                let weights = match &self.data {
                    Data::F32(w) => &w[first..][..len],
                    Data::Bf16(w) => {
                        let weights = &mut widened[..len];
                        level.run(Widen { from: &w[first..][..len], to: weights });
                        weights
                    }
                };
                let rows = tile.rows.clone().map(|m| &row(m, tap)[start..end]);
                accumulate(level, tile.values, tile.stride, rows, weights);
            }
        }
    }
}

fn pack<T: Copy + Default + Send>(
    pool: &Pool,
    width: usize,
    k: usize,
    weights: &[f32],
    convert: impl Fn(f32) -> T + Sync,
) -> Vec<T> {
    let panels = weights.len().div_ceil(width * k.max(1));
    let mut packed = vec![T::default(); panels * width * k];
    pool.chunks(&mut packed, (width * k).max(1), |panel, packed| {
        let rows = &weights[panel * width * k..weights.len().min((panel + 1) * width * k)];
        // a block at a time, so that the lines written stay in the cache
        for (block, to) in packed.chunks_mut(BLOCK * width).enumerate() {
            for (column, row) in rows.chunks_exact(k).enumerate() {
                let to = to[column..].iter_mut().step_by(width);
                to.zip(&row[block * BLOCK..]).for_each(|(to, &v)| *to = convert(v));
            }
        }
    });
    packed
}

/// `y[m, ..] += Σ_k x[m][k] · w[k, ..]`: `w` is one panel, and `y` begins at its first column.
pub(in super::super) fn accumulate<'a>(
    level: Level,
    y: &mut [f32],
    stride: usize,
    x: impl Iterator<Item = &'a [f32]>,
    w: &[f32],
) {
    let width = panel_width(level);
    let k = w.len() / width;
    let (mut rows, mut count, mut done) = ([std::ptr::null(); MAX_ROWS], 0, 0);
    let height = level.rows();
    let mut x = x.peekable();
    while let Some(row) = x.next() {
        assert_eq!(row.len(), k, "a row is not as long as the weights are deep");
        rows[count] = row.as_ptr();
        count += 1;
        if count == height || x.peek().is_none() {
            let y = &mut y[done * stride..];
            assert!(y.len() >= (count - 1) * stride + width, "the output is too small");
            level.run(Micro { rows: &rows, count, k, w: w.as_ptr(), y: y.as_mut_ptr(), stride });
            done += count;
            count = 0;
        }
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

/// One register tile: `count` rows of `k` values, `k` rows of a panel, and sums `stride` apart.
/// Built only by [`accumulate`], which checks that the pointers reach that far.
struct Micro<'a> {
    rows: &'a [*const f32; MAX_ROWS],
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
                    $($rows if $rows <= S::ROWS => unsafe { self.tile::<S, $rows>(s) },)*
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
            for k in 0..self.k {
                let w = self.w.add(k * width);
                let w = [s.load_at(w), s.load_at(w.add(S::LANES))];
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = s.splat(*self.rows[r].add(k));
                    for (sum, w) in sums.iter_mut().zip(w) {
                        *sum = s.fma(x, w, *sum);
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
