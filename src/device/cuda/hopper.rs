//! Kernels for compute capability 9.0: 4-bit linears of profiles W4A8 and W4A4, and attention with heads of 128 channels.
//!
//! Parameters are laid out as the structs of the same names in kernels/*.cu, where they are explained.

#![allow(unsafe_code, reason = "launches kernels")]

use std::sync::Arc;

use super::api::{CUtensorMap, Fill, Interleave, Promotion, Swizzle, TensorMapType};
use super::driver::Context;
use super::kernels::{Grid, Kernel, Module, argument};
use super::linear::Epilogue;
use super::low_rank::{self, DownPart, MAX_PARTS, Part, UpPart};
use super::memory::Range;
use super::quantize::Quantizer;
use crate::Result;
use crate::ops::{Profile, Work};

/// A matrix as the copy engine sees it.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(super) struct TensorMap([u64; 16]);

/// What a [`TensorMap`] is made of.
pub(super) struct Matrix {
    pub(super) at: u64,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// bf16, or bytes.
    pub(super) bf16: bool,
}

impl TensorMap {
    /// Of boxes of `box_rows` rows of 128 bytes.
    pub(super) fn new(context: &Context, matrix: &Matrix, box_rows: u32) -> Result<Self> {
        Self::of_boxes(context, matrix, box_rows, 128, Swizzle::CU_TENSOR_MAP_SWIZZLE_128B)
    }

    fn of_boxes(
        context: &Context,
        matrix: &Matrix,
        box_rows: u32,
        box_bytes: u32,
        swizzle: Swizzle,
    ) -> Result<Self> {
        let (element, bytes) = match matrix.bf16 {
            true => (TensorMapType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2),
            false => (TensorMapType::CU_TENSOR_MAP_DATA_TYPE_UINT8, 1),
        };
        let sizes = [matrix.cols as u64, matrix.rows as u64];
        let strides = [matrix.cols as u64 * bytes];
        let tile = [box_bytes / bytes as u32, box_rows];
        let mut map = TensorMap([0; 16]);
        let _current = context.enter()?;
        // SAFETY: describes memory without touching it; a map is 128 bytes at a multiple of 64.
        let code = unsafe {
            context.api.cuTensorMapEncodeTiled(
                std::ptr::from_mut(&mut map).cast::<CUtensorMap>(),
                element,
                2,
                matrix.at as *mut _,
                sizes.as_ptr(),
                strides.as_ptr(),
                tile.as_ptr(),
                [1, 1].as_ptr(),
                Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        context.check("cuTensorMapEncodeTiled", code)?;
        Ok(map)
    }
}

/// The maps of a part of a low-rank branch, as they lie in the GPU's memory one after another.
pub(super) struct PartMaps([TensorMap; 3]);

impl PartMaps {
    /// How many bytes they take.
    pub(super) const BYTES: usize = 3 * 128;

    /// Of a linear with `k` inputs: `down`, `[rank, k]`, and `up`, `[outputs, rank]`.
    pub(super) fn new(context: &Context, down: u64, up: u64, sizes: [usize; 3]) -> Result<Self> {
        let [k, outputs, rank] = sizes;
        let up = Matrix { at: up, rows: outputs, cols: rank, bf16: true };
        let of_up = |columns: usize| {
            let swizzle = Swizzle::CU_TENSOR_MAP_SWIZZLE_32B;
            TensorMap::of_boxes(context, &up, columns as u32 / 2, 32, swizzle)
        };
        let down = TensorMap::new(context, &Matrix { at: down, rows: rank, cols: k, bf16: true }, 16)?;
        Ok(PartMaps([of_up(STORE_COLUMNS)?, of_up(ADD_COLUMNS)?, down]))
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|map| map.0).flat_map(u64::to_le_bytes).collect()
    }

    /// Of `up`, for tiles of so many columns, among maps that begin at `at`.
    fn up(at: u64, columns: usize) -> u64 {
        at + if columns == ADD_COLUMNS { 128 } else { 0 }
    }

    fn down(at: u64) -> u64 {
        at + 2 * 128
    }
}

/// `GemmParams`
#[repr(C)]
struct GemmParams {
    x: TensorMap,
    w: TensorMap,
    lora: TensorMap,
    out: TensorMap,
    xs: u64,
    ws: u64,
    bias: u64,
    columns: u64,
    reciprocal: u64,
    rope: u64,
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

/// `AttentionParams`
#[repr(C)]
struct AttentionParams {
    q: TensorMap,
    kv: TensorMap,
    out: TensorMap,
    tokens: i32,
    heads: i32,
    scale: f32,
}

/// The functions of a GPU of compute capability 9.0.
pub(super) struct Kernels {
    context: Arc<Context>,
    _modules: [Module; 4],
    unpack: Kernel,
    unpack_scales: Kernel,
    unpack_nvfp4: Kernel,
    unpack_nvfp4_scales: Kernel,
    unpack_exact: Kernel,
    w4a8: Linears,
    w4a4: Linears,
    attention: Kernel,
}

/// The functions for the linears of one profile.
struct Linears {
    _module: Module,
    quantizer: Quantizer,
    store: Kernel,
    add: Kernel,
    add_unsigned: Kernel,
    qkv: Kernel,
    gelu: Kernel,
    /// Columns of a tile of those that add.
    add_columns: usize,
    /// `Format::SCALE_BYTES`
    scale_bytes: u32,
}

/// Columns of a tile of the entry points that do not add.
const STORE_COLUMNS: usize = 256;
/// The same of those that add in profile W4A8.
const ADD_COLUMNS: usize = 192;
const ATTENTION_SHARED: u32 = 128 * 128 * 2 + 2 * 2 * (ATTENTION_KEYS * 128 * 2) + 8 * (1 + 4 * 2);
const ATTENTION_KEYS: u32 = 128;

/// `Shape::SMEM_BYTES` of a format
const fn gemm_shared(columns: usize, scale_bytes: u32) -> u32 {
    let slot = 128 * (128 + columns as u32) + scale_bytes;
    let stages = 196608 / slot;
    stages * slot + 2 * (2 * 64 * 128) + 2 * 8 * stages
}

/// The input of a 4-bit linear on its way to the tensor cores.
pub(super) struct Quantized<'a> {
    pub(super) rows: usize,
    /// `[rows, k]`. W4A8: int8, or uint8 if unsigned. W4A4: e4m3.
    pub(super) codes: &'a Range,
    /// f32. W4A8: `[rows]`, or `[k/256, rows]` if unsigned. W4A4: `[k/64, rows]`.
    pub(super) scales: &'a Range,
    /// `[rows, rank]` bf16, the ranks of all parts side by side
    pub(super) lora: &'a Range,
    /// Codes without a sign: fc2's.
    pub(super) unsigned: bool,
}

/// A 4-bit linear's weights as the kernels want them.
pub(super) struct Weights<'a> {
    /// W4A8 or W4A4: which numbers these are.
    pub(super) profile: Profile,
    pub(super) n: usize,
    pub(super) k: usize,
    /// `[n, k]`. W4A8: int8. W4A4: e4m3.
    pub(super) codes: &'a Range,
    /// f32. W4A8: `[n]`. W4A4: `[n/128, k/64, 128]`, in the checkpoint's order.
    pub(super) scales: &'a Range,
    /// `[n]` bf16
    pub(super) bias: &'a Range,
    /// The low-rank branch.
    pub(super) parts: &'a [Part],
}

impl Kernels {
    /// # Errors
    /// [`Error::DeviceUnsupported`](crate::Error::DeviceUnsupported) when this build lacks the kernels.
    pub(super) fn load(context: &Arc<Context>) -> Result<Self> {
        let attention = Module::load(context, "attention_sm90")?;
        let unpack = Module::load(context, "unpack_w4a8")?;
        let unpack_nvfp4 = Module::load(context, "unpack_nvfp4_w4a8")?;
        let unpack_exact = Module::load(context, "unpack_w4a4_sm90")?;
        Ok(Kernels {
            context: context.clone(),
            unpack: unpack.kernel(c"unpack_w4a8", 0)?,
            unpack_scales: unpack.kernel(c"unpack_w4a8_scales", 0)?,
            unpack_nvfp4: unpack_nvfp4.kernel(c"unpack_nvfp4_w4a8", 0)?,
            unpack_nvfp4_scales: unpack_nvfp4.kernel(c"unpack_nvfp4_w4a8_scales", 0)?,
            unpack_exact: unpack_exact.kernel(c"unpack_w4a4_sm90", 0)?,
            w4a8: Linears::load_w4a8(context)?,
            w4a4: Linears::load_w4a4(context)?,
            attention: attention.kernel(c"attention_d128_sm90", ATTENTION_SHARED)?,
            _modules: [attention, unpack, unpack_nvfp4, unpack_exact],
        })
    }

    fn linears(&self, profile: Profile) -> &Linears {
        match profile {
            Profile::W4A8 => &self.w4a8,
            Profile::W4A4 => &self.w4a4,
            Profile::W4A16 => panic!("rows are quantised here"),
        }
    }

    /// What quantises rows in a profile.
    pub(super) fn quantizer(&self, profile: Profile) -> &Quantizer {
        &self.linears(profile).quantizer
    }

    /// The weights `[n, k]` as e4m3 codes at `wq` with group scales at `ws`, from a checkpoint's packed 4-bit codes
    /// and group scales.
    pub(super) fn unpack_exact(
        &self,
        [codes, scales]: [u64; 2],
        [wq, ws]: [u64; 2],
        [n, k]: [usize; 2],
    ) -> Result<()> {
        let grid = Grid { blocks: [k as u32 / 64, n as u32 / 128, 1], threads: 256, shared_bytes: 0 };
        let k = k as i32;
        let mut arguments = [argument(&codes), argument(&scales), argument(&wq), argument(&ws), argument(&k)];
        // SAFETY: (codes, scales, wq, ws, k)
        unsafe { self.unpack_exact.launch(&self.context, grid, &mut arguments) }
    }

    /// The row scales, at `ws`, of the weights `[n, k]` as int8, from a checkpoint's packed 4-bit codes and group scales,
    /// and for NVFP4 the channels' scales.
    pub(super) fn unpack_scales(
        &self,
        [codes, scales]: [u64; 2],
        channels: Option<u64>,
        ws: u64,
        [n, k]: [usize; 2],
    ) -> Result<()> {
        let (rows, k) = (n as u32 / 128, k as i32);
        let grid = Grid { blocks: [rows, 1, 1], threads: 128, shared_bytes: 0 };
        let kernel = if channels.is_none() { self.unpack_scales } else { self.unpack_nvfp4_scales };
        let from = [argument(&codes), argument(&scales)].into_iter().chain(channels.as_ref().map(argument));
        let mut arguments: Vec<_> = from.chain([argument(&ws), argument(&k)]).collect();
        // SAFETY: (codes, scales, [channels,] ws, k)
        unsafe { kernel.launch(&self.context, grid, &mut arguments) }
    }

    /// The weights `[n, k]` as int8 codes at `wq`, for the row scales at `ws`, from what [`Self::unpack_scales`] takes.
    pub(super) fn unpack(
        &self,
        [codes, scales]: [u64; 2],
        channels: Option<u64>,
        [wq, ws]: [u64; 2],
        [n, k]: [usize; 2],
    ) -> Result<()> {
        let (rows, groups, k) = (n as u32 / 128, k as u32 / 64, k as i32);
        let grid = Grid { blocks: [groups, rows, 1], threads: 256, shared_bytes: 0 };
        let kernel = if channels.is_none() { self.unpack } else { self.unpack_nvfp4 };
        let from = [argument(&codes), argument(&scales)].into_iter().chain(channels.as_ref().map(argument));
        let mut arguments: Vec<_> = from.chain([argument(&ws), argument(&wq), argument(&k)]).collect();
        // SAFETY: (codes, scales, [channels,] ws, wq, k)
        unsafe { kernel.launch(&self.context, grid, &mut arguments) }
    }

    /// A 4-bit linear.
    pub(super) fn linear(&self, x: &Quantized<'_>, w: &Weights<'_>, epilogue: &Epilogue<'_>) -> Result<()> {
        let (m, n, k) = (x.rows, w.n, w.k);
        if m == 0 {
            return Ok(());
        }
        let linears = self.linears(w.profile);
        let (kernel, columns) = match (epilogue, x.unsigned) {
            (Epilogue::Store { .. }, false) => (linears.store, STORE_COLUMNS),
            (Epilogue::Qkv { .. }, false) => (linears.qkv, STORE_COLUMNS),
            (Epilogue::Gelu { .. }, false) => (linears.gelu, STORE_COLUMNS),
            (Epilogue::Add { .. }, false) => (linears.add, linears.add_columns),
            (Epilogue::Add { .. }, true) => (linears.add_unsigned, linears.add_columns),
            (_, true) => panic!("unsigned inputs are fc2's, whose results are added"),
        };
        let map = |at, rows, cols, bf16, box_rows| {
            TensorMap::new(&self.context, &Matrix { at, rows, cols, bf16 }, box_rows)
        };
        let box_w = columns as u32 / 2;
        let x_map = map(x.codes.at(), m, k, false, 128)?;
        let w_map = map(w.codes.at(), n, k, false, box_w)?;
        let rank = low_rank::rank(w.parts);
        let lora = if rank == 0 { x_map } else { map(x.lora.at(), m, rank, true, 128)? };
        let mut params = GemmParams {
            x: x_map,
            w: w_map,
            lora,
            out: x_map,
            xs: x.scales.at(),
            ws: w.scales.at(),
            bias: w.bias.at(),
            columns: 0,
            reciprocal: 0,
            rope: 0,
            next_scales: 0,
            next_lora: 0,
            parts: low_rank::up_parts(w.parts, |part| PartMaps::up(part.maps, columns)),
            next_parts: low_rank::down_parts(&[], |_| 0),
            m: m as i32,
            n: n as i32,
            k: k as i32,
            rank: rank as i32,
            next_rank: 0,
        };
        match *epilogue {
            Epilogue::Store { out } => params.out = map(out, m, n, true, 64)?,
            Epilogue::Add { out, gate } => {
                params.out = map(out, m, n, true, 64)?;
                params.columns = gate;
            }
            Epilogue::Qkv { out, norms, rope } => {
                params.out = map(out, m, n, true, 64)?;
                (params.columns, params.rope) = (norms, rope);
            }
            Epilogue::Gelu { codes, scales, reciprocal, parts, partials } => {
                params.out = map(codes, m, n, false, 64)?;
                params.next_parts = low_rank::down_parts(parts, |part| PartMaps::down(part.maps));
                (params.reciprocal, params.next_scales) = (reciprocal, scales);
                (params.next_lora, params.next_rank) = (partials, low_rank::rank(parts) as i32);
            }
        }
        // Clusters of two, one block a multiprocessor.
        let tiles = m.div_ceil(256) * n.div_ceil(columns);
        let clusters = tiles.min(self.context.multiprocessors as usize / 2) as u32;
        let shared_bytes = gemm_shared(columns, linears.scale_bytes);
        let grid = Grid { blocks: [2 * clusters, 1, 1], threads: 384, shared_bytes };
        let kernel = kernel.doing([m, n, k], Work::int8(m, n, k));
        // SAFETY: `GemmParams` is the kernel's; its matrices are as large as their maps say.
        unsafe { kernel.launch(&self.context, grid, &mut [argument(&params)]) }
    }

    /// Attention over all `tokens` of `qkv`, `[tokens, 3 · heads · 128]` bf16.
    pub(super) fn attention(
        &self,
        qkv: u64,
        out: u64,
        tokens: usize,
        heads: usize,
        scale: f32,
    ) -> Result<()> {
        let map = |at, cols, box_rows| {
            TensorMap::new(&self.context, &Matrix { at, rows: tokens, cols, bf16: true }, box_rows)
        };
        let params = AttentionParams {
            q: map(qkv, 3 * heads * 128, 128)?,
            kv: map(qkv, 3 * heads * 128, ATTENTION_KEYS)?,
            out: map(out, heads * 128, 64)?,
            tokens: tokens as i32,
            heads: heads as i32,
            scale,
        };
        let blocks = [tokens.div_ceil(128) as u32, heads as u32, 1];
        let grid = Grid { blocks, threads: 384, shared_bytes: ATTENTION_SHARED };
        let kernel = self.attention.doing([tokens, heads, 128], Work::bf16(2 * tokens, tokens, heads * 128));
        // SAFETY: `AttentionParams` is the kernel's; its matrices are as large as their maps say.
        unsafe { kernel.launch(&self.context, grid, &mut [argument(&params)]) }
    }
}

impl Linears {
    fn load_w4a8(context: &Arc<Context>) -> Result<Self> {
        let module = Module::load(context, "gemm_w4a8_sm90")?;
        let [store, add] = [gemm_shared(STORE_COLUMNS, 0), gemm_shared(ADD_COLUMNS, 0)];
        Ok(Linears {
            quantizer: Quantizer::load(context, c"quantize_w4a8", 8)?,
            store: module.kernel(c"gemm_w4a8_store_sm90", store)?,
            qkv: module.kernel(c"gemm_w4a8_qkv_sm90", store)?,
            gelu: module.kernel(c"gemm_w4a8_gelu_sm90", store)?,
            add: module.kernel(c"gemm_w4a8_add_sm90", add)?,
            add_unsigned: module.kernel(c"gemm_w4a8_add_u8_sm90", add)?,
            add_columns: ADD_COLUMNS,
            scale_bytes: 0,
            _module: module,
        })
    }

    fn load_w4a4(context: &Arc<Context>) -> Result<Self> {
        const SCALE_BYTES: u32 = 2048;
        let module = Module::load(context, "gemm_w4a4_sm90")?;
        let shared = gemm_shared(STORE_COLUMNS, SCALE_BYTES);
        let add = module.kernel(c"gemm_w4a4_add_sm90", shared)?;
        Ok(Linears {
            quantizer: Quantizer::load(context, c"quantize_w4a4_sm90", 8)?,
            store: module.kernel(c"gemm_w4a4_store_sm90", shared)?,
            qkv: module.kernel(c"gemm_w4a4_qkv_sm90", shared)?,
            gelu: module.kernel(c"gemm_w4a4_gelu_sm90", shared)?,
            add,
            add_unsigned: add,
            add_columns: STORE_COLUMNS,
            scale_bytes: SCALE_BYTES,
            _module: module,
        })
    }
}
