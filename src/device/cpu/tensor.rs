//! Matrices in memory.

/// A row-major matrix of f32.
pub struct Tensor {
    pub(super) data: Vec<f32>,
    pub(super) cols: usize,
}

impl Tensor {
    pub(super) fn zeros(rows: usize, cols: usize) -> Self {
        Tensor { data: vec![0.0; rows * cols], cols }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.data.len() / self.cols
    }

    pub(super) fn row(&self, m: usize) -> &[f32] {
        &self.data[m * self.cols..][..self.cols]
    }
}
