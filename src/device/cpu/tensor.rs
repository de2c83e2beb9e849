//! Matrices in memory.

use super::on::On;
use crate::Result;
use crate::memory::Buf;

/// A row-major matrix of f32.
pub struct Tensor {
    /// Empty on an idle device.
    pub(super) data: Buf<f32>,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl Tensor {
    /// # Errors
    /// [`crate::Error::OutOfHostMemory`]
    pub(super) fn zeros(on: &On<'_>, rows: usize, cols: usize) -> Result<Self> {
        let what = format_args!("activations of {rows} x {cols} values");
        Ok(Tensor { data: on.zeros(rows.saturating_mul(cols), what)?, rows, cols })
    }

    pub(super) fn row(&self, m: usize) -> &[f32] {
        &self.data[m * self.cols..][..self.cols]
    }
}
