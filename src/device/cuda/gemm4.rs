//! Kernels of profile W4A4 where tensor cores multiply 4-bit numbers: integers before Hopper, NVFP4 on sm_120.
//!
//! Parameters are laid out as the structs of the same names in kernels/*.cu, where they are explained.

#![allow(unsafe_code, reason = "launches kernels")]

use std::sync::Arc;

use super::choice::Format;
use super::driver::Context;
use super::kernels::{Grid, Kernel, Module, argument};
use super::linear::Epilogue;
use super::low_rank::{self, DownPart, MAX_PARTS, Part, UpPart};
use super::quantize::{Kind, Quantizer};
use crate::Result;
use crate::ops::Work;

/// The operands that come first in the parameters of both formats.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Operands {
    pub(super) x: u64,
    pub(super) xs: u64,
    pub(super) w: u64,
    pub(super) ws: u64,
}

/// What follows the operands.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Rest {
    lora: u64,
    bias: u64,
    out: u64,
    columns: u64,
    rope: u64,
    reciprocal: u64,
    next_x: u64,
    next_scales: u64,
    next_lora: u64,
    parts: [UpPart; MAX_PARTS],
    next_parts: [DownPart; MAX_PARTS],
    m: i32,
    n: i32,
    k: i32,
    rank: i32,
    next_rank: i32,
}

/// `GemmW4A4Params`
#[repr(C)]
struct GemmW4A4Params {
    operands: Operands,
    rest: Rest,
}

/// `GemmNvfp4Params`
#[repr(C)]
struct GemmNvfp4Params {
    operands: Operands,
    channels: u64,
    rest: Rest,
}

/// A product: rows that are ready, and weights.
pub(super) struct Product<'a> {
    pub(super) operands: Operands,
    /// NVFP4: `[n]` f32
    pub(super) channels: u64,
    /// `[m, rank]` bf16
    pub(super) lora: u64,
    /// The low-rank branch, the first part packed.
    pub(super) parts: &'a [Part],
    /// `[n]` bf16
    pub(super) bias: u64,
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    /// Codes of `x` have no sign. INT4 only.
    pub(super) unsigned: bool,
}

/// The functions for the format that a GPU has.
pub(super) struct Kernels {
    context: Arc<Context>,
    _module: Module,
    format: Format,
    shared_bytes: u32,
    pub(super) quantizer: Quantizer,
    store: Kernel,
    add: Kernel,
    add_unsigned: Kernel,
    qkv: Kernel,
    gelu: Kernel,
}

/// `SMEM_BYTES` of both formats: some steps of codes and scales.
const fn shared_bytes(format: Format, capability: u32) -> u32 {
    let steps = if capability >= 80 { 4 } else { 2 };
    let scales = match format {
        Format::Int4 => 128 * 4 + 128 * 2,
        Format::Nvfp4 => 128 * 4 + 512,
    };
    steps * (2 * 4096 + scales)
}

impl Kernels {
    /// # Errors
    /// [`Error::DeviceUnsupported`](crate::Error::DeviceUnsupported) when this build lacks the kernels.
    pub(super) fn load(context: &Arc<Context>, format: Format) -> Result<Self> {
        let int4 = format == Format::Int4;
        let module = Module::load(context, if int4 { "gemm_w4a4" } else { "gemm_nvfp4_sm120" })?;
        let shared_bytes = shared_bytes(format, context.info.compute_capability);
        let kernel =
            |int4_name, nvfp4_name| module.kernel(if int4 { int4_name } else { nvfp4_name }, shared_bytes);
        Ok(Kernels {
            context: context.clone(),
            format,
            shared_bytes,
            quantizer: Quantizer::load(
                context,
                if int4 { c"quantize_w4a4" } else { c"quantize_nvfp4" },
                Kind::Projecting,
            )?,
            store: kernel(c"gemm_w4a4_store", c"gemm_nvfp4_store")?,
            add: kernel(c"gemm_w4a4_add", c"gemm_nvfp4_add")?,
            add_unsigned: kernel(c"gemm_w4a4_add_u4", c"gemm_nvfp4_add")?,
            qkv: kernel(c"gemm_w4a4_qkv", c"gemm_nvfp4_qkv")?,
            gelu: kernel(c"gemm_w4a4_gelu", c"gemm_nvfp4_gelu")?,
            _module: module,
        })
    }

    /// A 4-bit linear.
    pub(super) fn linear(&self, product: &Product<'_>, epilogue: &Epilogue<'_>) -> Result<()> {
        let &Product { operands, channels, lora, parts, bias, m, n, k, unsigned } = product;
        let [m_, n_, k_, rank] = [m, n, k, low_rank::rank(parts)].map(|size| size as i32);
        let parts = low_rank::up_parts(parts, |part| part.up);
        let mut rest = Rest { lora, parts, bias, m: m_, n: n_, k: k_, rank, ..Rest::default() };
        let kernel = match (epilogue, unsigned) {
            (Epilogue::Store { .. }, false) => self.store,
            (Epilogue::Add { .. }, false) => self.add,
            (Epilogue::Add { .. }, true) => self.add_unsigned,
            (Epilogue::Qkv { .. }, false) => self.qkv,
            (Epilogue::Gelu { .. }, false) => self.gelu,
            (_, true) => panic!("unsigned inputs are fc2's, whose results are added"),
        };
        match *epilogue {
            Epilogue::Store { out } => rest.out = out,
            Epilogue::Add { out, gate } => (rest.out, rest.columns) = (out, gate),
            Epilogue::Qkv { out, norms, rope } => (rest.out, rest.columns, rest.rope) = (out, norms, rope),
            Epilogue::Gelu { codes, scales, reciprocal, parts, partials } => {
                (rest.next_x, rest.next_scales, rest.reciprocal) = (codes, scales, reciprocal);
                rest.next_parts = low_rank::down_parts(parts, |part| part.down);
                (rest.next_lora, rest.next_rank) = (partials, low_rank::rank(parts) as i32);
            }
        }
        let kernel = kernel.doing([m, n, k], Work::Small);
        let blocks = [m.div_ceil(128) as u32, n as u32 / 128, 1];
        let grid = Grid { blocks, threads: 256, shared_bytes: self.shared_bytes };
        match self.format {
            Format::Int4 => {
                let params = GemmW4A4Params { operands, rest };
                // SAFETY: `GemmW4A4Params` is the kernel's.
                unsafe { kernel.launch(&self.context, grid, &mut [argument(&params)]) }
            }
            Format::Nvfp4 => {
                let params = GemmNvfp4Params { operands, channels, rest };
                // SAFETY: `GemmNvfp4Params` is the kernel's.
                unsafe { kernel.launch(&self.context, grid, &mut [argument(&params)]) }
            }
        }
    }
}
