//! Activations on their way into 4-bit linears: the kernels of kernels/quantize.cu, one of them for each profile.

#![allow(unsafe_code, reason = "launches kernels")]

use std::ffi::CStr;
use std::sync::Arc;

use super::choice;
use super::driver::Context;
use super::kernels::{Grid, Kernel, Module, argument};
use super::low_rank::{DownPart, MAX_PARTS};
use super::memory::Range;
use crate::ops::Work;
use crate::{Error, Result};

/// `QuantizeParams`
#[repr(C)]
pub(super) struct QuantizeParams {
    pub(super) x: u64,
    pub(super) scale: u64,
    pub(super) shift: u64,
    pub(super) reciprocal: u64,
    pub(super) xq: u64,
    pub(super) xs: u64,
    pub(super) lora: u64,
    pub(super) h: u64,
    pub(super) m: i32,
    pub(super) k: i32,
    /// Of all parts.
    pub(super) rank: i32,
    pub(super) parts: [DownPart; MAX_PARTS],
}

/// Rows made ready for a 4-bit linear. What codes and scales are is the linear's family's.
pub(super) struct Rows {
    pub(super) count: usize,
    pub(super) codes: Range,
    pub(super) scales: Range,
    /// `[count, rank]` bf16, the ranks of all parts side by side
    pub(super) lora: Range,
    pub(super) rank: usize,
}

/// What quantises to one kind of numbers.
pub(super) struct Quantizer {
    context: Arc<Context>,
    _module: Module,
    quantize: Kernel,
    sum_low_rank: Kernel,
    kind: Kind,
    /// Bytes of shared memory that a block may have.
    shared_memory: u32,
}

/// The kernels of the two kinds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Codes of 4 bits. They project down themselves.
    Projecting,
    /// Codes of 8 bits. They leave what is to be projected.
    Leaving,
}

impl Kind {
    /// `quantize::smem_bytes`
    const fn shared_bytes(self, k: usize, rows: u32) -> usize {
        let scratch = (rows / 2 * rows * 32 * 4) as usize;
        match self {
            Kind::Projecting => rows as usize * (k + 32) * 2 + scratch,
            Kind::Leaving => rows as usize * (2 * k + 32),
        }
    }

    /// Rows that a block may have, the best number first.
    const fn rows(self) -> &'static [u32] {
        match self {
            Kind::Projecting => &[16, 8],
            Kind::Leaving => &[4],
        }
    }
}

impl Quantizer {
    /// The kernel `name`.
    ///
    /// # Errors
    /// [`Error::DeviceUnsupported`] when this build lacks the kernels.
    pub(super) fn load(context: &Arc<Context>, name: &'static CStr, kind: Kind) -> Result<Self> {
        let module = Module::load(context, "quantize")?;
        let shared_memory = choice::shared_memory(context.info.compute_capability);
        Ok(Quantizer {
            context: context.clone(),
            quantize: module.kernel(name, shared_memory)?,
            sum_low_rank: module.kernel(c"sum_low_rank", 0)?,
            kind,
            shared_memory,
            _module: module,
        })
    }

    /// # Errors
    /// [`Error::Unsupported`] for rows of `k` channels if a block's do not fit into shared memory.
    pub(super) fn check(&self, k: usize) -> Result<()> {
        self.rows(k).map(drop)
    }

    /// Rows of a block.
    fn rows(&self, k: usize) -> Result<u32> {
        let fits = |rows: &&u32| self.kind.shared_bytes(k, **rows) <= self.shared_memory as usize;
        self.kind.rows().iter().find(fits).copied().ok_or_else(|| {
            Error::Unsupported(format!(
                "a 4-bit linear with {k} input channels: that is more than rows on {} can have",
                self.context.info.name
            ))
        })
    }

    /// Rows made ready for a 4-bit linear.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub(super) fn quantize(&self, params: &QuantizeParams) -> Result<()> {
        let k = params.k as usize;
        let rows = self.rows(k)?;
        let blocks = [(params.m as u32).div_ceil(rows), 1, 1];
        let shared_bytes = self.kind.shared_bytes(k, rows) as u32;
        let grid = Grid { blocks, threads: 32 * rows, shared_bytes };
        let [m, rank] = [params.m as usize, params.rank as usize];
        let results = match self.kind {
            Kind::Projecting => k / 2 + 2 * rank,
            Kind::Leaving => k + if params.h == 0 { 0 } else { 2 * k },
        };
        let kernel = self.quantize.doing([m, k, rank], Work::Bytes((m * (2 * k + results)) as f64));
        // SAFETY: `QuantizeParams` is the kernel's.
        unsafe { kernel.launch(&self.context, grid, &mut [argument(params)]) }
    }

    /// `lora[m,r] = Σ_b partials[b,m,r]` in bf16, of `count = rows · rank` sums.
    pub(super) fn sum_low_rank(&self, partials: u64, lora: u64, blocks: usize, count: usize) -> Result<()> {
        let grid = Grid { blocks: [count.div_ceil(4 * 256) as u32, 1, 1], threads: 256, shared_bytes: 0 };
        let (blocks, count) = (blocks as i32, count as i32);
        let mut arguments = [argument(&partials), argument(&lora), argument(&blocks), argument(&count)];
        let bytes = (4 * blocks as usize + 2) * count as usize;
        let kernel = self.sum_low_rank.doing([blocks as usize, count as usize, 0], Work::Bytes(bytes as f64));
        // SAFETY: (partials, lora, blocks, count)
        unsafe { kernel.launch(&self.context, grid, &mut arguments) }
    }
}
