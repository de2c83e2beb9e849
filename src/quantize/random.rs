//! Random numbers for the sketch of the low-rank search.

use super::matrix::Matrix;

/// SplitMix64: a fixed sequence for each seed.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// A value in (-1, 1).
    pub(super) fn symmetric(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        ((z >> 41) as f32 + 0.5) * (2.0 / (1u64 << 23) as f32) - 1.0
    }

    /// A matrix of values in (-1, 1).
    pub(super) fn matrix(&mut self, rows: usize, cols: usize) -> Matrix {
        Matrix::new(rows, cols, (0..rows * cols).map(|_| self.symmetric()).collect())
    }
}
