//! Matrices in memory.

use crate::{Error, Result};

/// A row-major matrix of f32.
pub struct Tensor {
    pub(super) data: Vec<f32>,
    pub(super) cols: usize,
}

impl Tensor {
    /// # Errors
    /// [`Error::OutOfHostMemory`], where `vec!` would abort: activations grow with the picture.
    pub(super) fn zeros(rows: usize, cols: usize) -> Result<Self> {
        let len = rows * cols;
        let mut data = Vec::new();
        data.try_reserve_exact(len).map_err(|_| Error::OutOfHostMemory {
            what: format!("activations of {rows} x {cols} values"),
            bytes: 4 * len as u64,
        })?;
        data.resize(len, 0.0);
        Ok(Tensor { data, cols })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.data.len() / self.cols
    }

    pub(super) fn row(&self, m: usize) -> &[f32] {
        &self.data[m * self.cols..][..self.cols]
    }
}
