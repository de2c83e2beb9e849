//! Matrices on the GPU.

use super::memory::Range;

/// A row-major matrix: f32 as uploaded, bf16 as computed.
pub struct Tensor {
    pub(super) data: Range,
    pub(super) f32: bool,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// A rotary table's pairs as fp16.
    pub(super) pairs: Option<Range>,
}

impl Tensor {
    pub(super) fn new(data: Range, f32: bool, rows: usize, cols: usize) -> Self {
        Tensor { data, f32, rows, cols, pairs: None }
    }

    /// All elements from row `row` and column `col` on.
    pub(super) fn at(&self, row: usize, col: usize) -> Elements {
        let bytes = if self.f32 { 4 } else { 2 };
        Elements { data: self.data.at() + ((row * self.cols + col) * bytes) as u64, f32: self.f32.into() }
    }
}

/// `Elements` of kernels/common/elements.cuh: f32 if `f32` is 1, else bf16.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Elements {
    pub(super) data: u64,
    pub(super) f32: i32,
}

impl Elements {
    pub(super) const NONE: Elements = Elements { data: 0, f32: 0 };

    /// Bytes of an element.
    pub(super) fn bytes(self) -> usize {
        if self.f32 == 1 { 4 } else { 2 }
    }

    pub(super) fn bf16(data: u64) -> Self {
        Elements { data, f32: 0 }
    }

    pub(super) fn f32(data: u64) -> Self {
        Elements { data, f32: 1 }
    }
}
