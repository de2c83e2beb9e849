//! Products of a large matrix with a thin one, in f32.
//!
//! Every element of a product is one sum in ascending order of the inner index, without fused
//! multiply-add: the result is the same bits whatever the number of threads and the machine.
#![allow(unsafe_code, reason = "functions compiled for AVX are called after their detection")]

/// A row-major matrix.
#[derive(Clone, Debug, Default)]
pub(super) struct Matrix {
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// `rows · cols` values.
    pub(super) data: Vec<f32>,
}

impl Matrix {
    pub(super) fn new(rows: usize, cols: usize, data: Vec<f32>) -> Self {
        assert_eq!(data.len(), rows * cols, "a matrix of {rows} x {cols}");
        Matrix { rows, cols, data }
    }

    pub(super) fn zeros(rows: usize, cols: usize) -> Self {
        Matrix::new(rows, cols, vec![0.0; rows * cols])
    }

    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..][..self.cols]
    }
}

/// `mᵀ`
pub(super) fn transposed(m: &Matrix) -> Matrix {
    let mut out = Matrix::zeros(m.cols, m.rows);
    for r in 0..m.rows {
        for (c, &value) in m.row(r).iter().enumerate() {
            out.data[c * m.rows + r] = value;
        }
    }
    out
}

/// Left factor of a product: a matrix or its transpose.
#[derive(Clone, Copy)]
pub(super) enum Left<'a> {
    /// `M`
    Plain(&'a Matrix),
    /// `Mᵀ`
    Transposed(&'a Matrix),
}

impl Left<'_> {
    /// Rows and columns of the factor.
    fn shape(&self) -> [usize; 2] {
        match self {
            Left::Plain(m) => [m.rows, m.cols],
            Left::Transposed(m) => [m.cols, m.rows],
        }
    }
}

/// Rows of a tile of the product.
const TILE_ROWS: usize = 8;
/// Columns of a tile of the product.
const TILE_COLS: usize = 16;
/// Steps of the inner index after which the tile of the right factor leaves the cache.
const DEPTH: usize = 256;

/// `left · right`, where the columns of `right` are a multiple of 16.
pub(super) fn product(left: Left<'_>, right: &Matrix, threads: usize) -> Matrix {
    let [rows, depth] = left.shape();
    assert_eq!(depth, right.rows, "inner sizes of a product");
    assert_eq!(right.cols % TILE_COLS, 0, "columns of a product");
    let mut out = Matrix::zeros(rows, right.cols);
    for_row_blocks(&mut out, TILE_ROWS * 8, threads, |first, block| {
        vectorized(|| block_product(left, right, first, block));
    });
    out
}

/// Splits the rows of `m` into blocks of at most `rows` and calls `work(first row, block)` for each, on
/// `threads` threads.
pub(super) fn for_row_blocks(
    m: &mut Matrix,
    rows: usize,
    threads: usize,
    work: impl Fn(usize, &mut [f32]) + Sync,
) {
    let cols = m.cols.max(1);
    let mut blocks: Vec<_> = m.data.chunks_mut(rows * cols).enumerate().collect();
    for_each(&mut blocks, threads, |(index, block)| work(*index * rows, block));
}

/// Calls `work` once for each item, on `threads` threads; the items are dealt out in contiguous runs.
pub(super) fn for_each<T: Send>(items: &mut [T], threads: usize, work: impl Fn(&mut T) + Sync) {
    let run = items.len().div_ceil(threads.max(1)).max(1);
    if run >= items.len() {
        return items.iter_mut().for_each(work);
    }
    std::thread::scope(|scope| {
        for run in items.chunks_mut(run) {
            scope.spawn(|| run.iter_mut().for_each(&work));
        }
    });
}

/// Runs `work` compiled for the widest vectors of this machine. Wider vectors do not change results: only
/// element-wise arithmetic is vectorised, and multiplications and additions are never fused.
#[inline(always)]
pub(super) fn vectorized<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn avx512<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
        #[target_feature(enable = "avx2")]
        fn avx2<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
        let has_avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        if has_avx512 {
            // SAFETY: the machine has the features that the function is compiled for.
            return unsafe { avx512(work) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { avx2(work) };
        }
    }
    work()
}

/// Adds `left · right` to `out`, the block of the product that starts at row `first`.
#[inline(always)]
fn block_product(left: Left<'_>, right: &Matrix, first: usize, out: &mut [f32]) {
    let cols = right.cols;
    let rows = out.len() / cols;
    for start in (0..right.rows).step_by(DEPTH) {
        let depth = DEPTH.min(right.rows - start);
        for row in (0..rows).step_by(TILE_ROWS) {
            let height = TILE_ROWS.min(rows - row);
            let strip = pack(left, first + row, height, start, depth);
            for col in (0..cols).step_by(TILE_COLS) {
                let mut tile = [[0.0; TILE_COLS]; TILE_ROWS];
                for (r, sums) in tile.iter_mut().take(height).enumerate() {
                    sums.copy_from_slice(&out[(row + r) * cols + col..][..TILE_COLS]);
                }
                add_tile(&strip[..depth], &right.data[start * cols + col..], cols, &mut tile);
                for (r, sums) in tile.iter().take(height).enumerate() {
                    out[(row + r) * cols + col..][..TILE_COLS].copy_from_slice(sums);
                }
            }
        }
    }
}

/// Rows `row .. row + height` of the left factor at inner indices `start .. start + depth`, an inner index at
/// a time.
#[inline(always)]
fn pack(left: Left<'_>, row: usize, height: usize, start: usize, depth: usize) -> [[f32; TILE_ROWS]; DEPTH] {
    let mut strip = [[0.0; TILE_ROWS]; DEPTH];
    match left {
        Left::Plain(m) => {
            for r in 0..height {
                let values = &m.row(row + r)[start..start + depth];
                for (step, &value) in strip.iter_mut().zip(values) {
                    step[r] = value;
                }
            }
        }
        Left::Transposed(m) => {
            for (p, step) in strip.iter_mut().take(depth).enumerate() {
                step[..height].copy_from_slice(&m.row(start + p)[row..row + height]);
            }
        }
    }
    strip
}

/// `tile[r][c] += Σ_p strip[p][r] · right[p · stride + c]`
#[inline(always)]
fn add_tile(
    strip: &[[f32; TILE_ROWS]],
    right: &[f32],
    stride: usize,
    tile: &mut [[f32; TILE_COLS]; TILE_ROWS],
) {
    let mut sums = *tile;
    for (p, left) in strip.iter().enumerate() {
        let right: &[f32; TILE_COLS] =
            right[p * stride..][..TILE_COLS].try_into().unwrap_or(&[0.0; TILE_COLS]);
        for r in 0..TILE_ROWS {
            for c in 0..TILE_COLS {
                sums[r][c] += left[r] * right[c];
            }
        }
    }
    *tile = sums;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::quantize::random::Random;

    fn naive(left: &dyn Fn(usize, usize) -> f32, rows: usize, right: &Matrix) -> Vec<f64> {
        let mut out = vec![0.0; rows * right.cols];
        for r in 0..rows {
            for c in 0..right.cols {
                out[r * right.cols + c] =
                    (0..right.rows).map(|p| left(r, p) as f64 * right.data[p * right.cols + c] as f64).sum();
            }
        }
        out
    }

    #[test]
    fn products_equal_their_definition_and_do_not_depend_on_threads() {
        let mut random = Random::new(3);
        let m = random.matrix(77, 530);
        let thin = random.matrix(530, 48);
        let other = random.matrix(77, 32);
        let plain = product(Left::Plain(&m), &thin, 3);
        let transposed = product(Left::Transposed(&m), &other, 3);
        let close = |got: &Matrix, want: Vec<f64>| {
            assert_eq!(got.data.len(), want.len());
            for (g, w) in got.data.iter().zip(want) {
                // 530 terms of size under 1, each sum rounded to 2^-24 of at most ~32
                assert!((*g as f64 - w).abs() < 1e-4, "{g} is not {w}");
            }
        };
        close(&plain, naive(&|r, p| m.row(r)[p], 77, &thin));
        close(&transposed, naive(&|r, p| m.row(p)[r], 530, &other));
        assert_eq!(plain.data, product(Left::Plain(&m), &thin, 1).data);
        assert_eq!(transposed.data, product(Left::Transposed(&m), &other, 1).data);
    }
}
