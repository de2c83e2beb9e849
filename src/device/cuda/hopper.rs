//! Kernels for compute capability 9.0: 4-bit linears of profiles W4A8 and W4A4, and attention with heads of 128 channels.
//!
//! Parameters are laid out as the structs of the same names in kernels/*.cu, where they are explained.

#![allow(unsafe_code, reason = "launches kernels")]

use std::sync::Arc;

use super::api::{CUtensorMap, Fill, Interleave, Promotion, Swizzle, TensorMapType};
use super::driver::Context;
use super::kernels::{Grid, Kernel, Module, argument};
use super::linear::Epilogue;
use super::low_rank::{self, MAX_PARTS, Part};
use super::memory::Range;
use super::project_down::ProjectDown;
use super::quantize::{Kind, Quantizer};
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
        let (element, bytes) = match matrix.bf16 {
            true => (TensorMapType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2),
            false => (TensorMapType::CU_TENSOR_MAP_DATA_TYPE_UINT8, 1),
        };
        let sizes = [matrix.cols as u64, matrix.rows as u64];
        let strides = [matrix.cols as u64 * bytes];
        let tile = [128 / bytes as u32, box_rows];
        Self::encode(context, element, matrix.at, sizes, &strides, tile, Swizzle::CU_TENSOR_MAP_SWIZZLE_128B)
    }

    /// Of the group scales `[n/128, k/64, 128]` f32, for two groups in two blocks of columns at a time.
    fn group_scales(context: &Context, at: u64, [n, k]: [usize; 2]) -> Result<Self> {
        let sizes = [128, k as u64 / 64, n as u64 / 128];
        let strides = [128 * 4, sizes[1] * 128 * 4];
        let element = TensorMapType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
        Self::encode(context, element, at, sizes, &strides, [128, 2, 2], Swizzle::CU_TENSOR_MAP_SWIZZLE_NONE)
    }

    /// Of a tensor of so many elements along each dimension, the innermost first, with `strides` bytes from one to the next
    /// along the others.
    fn encode<const D: usize>(
        context: &Context,
        element: TensorMapType,
        at: u64,
        sizes: [u64; D],
        strides: &[u64],
        tile: [u32; D],
        swizzle: Swizzle,
    ) -> Result<Self> {
        assert_eq!(strides.len(), D - 1, "the innermost elements have no gaps");
        let mut map = TensorMap([0; 16]);
        let _current = context.enter()?;
        // SAFETY: describes memory without touching it; the arrays are as long as the driver reads them; a map is 128 bytes
        // at a multiple of 64.
        let code = unsafe {
            context.api.cuTensorMapEncodeTiled(
                std::ptr::from_mut(&mut map).cast::<CUtensorMap>(),
                element,
                D as u32,
                at as *mut _,
                sizes.as_ptr(),
                strides.as_ptr(),
                tile.as_ptr(),
                [1; D].as_ptr(),
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

/// `DownMap`
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct DownMap {
    down: TensorMap,
    strength: f32,
    end: i32,
    ranks: i32,
}

/// `UpMap`
#[repr(C)]
#[derive(Clone, Copy)]
struct UpMap {
    up: TensorMap,
    end: i32,
    first: i32,
    last: i32,
}

/// No map.
const NONE: TensorMap = TensorMap([0; 16]);

/// The parts as kernels that project down take them, of a linear with `k` inputs.
pub(super) fn down_maps(context: &Context, parts: &[Part], k: usize) -> Result<[DownMap; MAX_PARTS]> {
    let mut out = [DownMap { down: NONE, strength: 0.0, end: 0, ranks: 0 }; MAX_PARTS];
    let mut begin = 0;
    for (to, part) in out.iter_mut().zip(parts) {
        let end = begin + part.rank;
        // Tiles and slots of a multiple of 32 ranks cut no box in two.
        let ranks = if begin.is_multiple_of(32) && end.is_multiple_of(32) { 32 } else { 16 };
        (to.strength, to.end, to.ranks) = (part.strength, end as i32, ranks as i32);
        if part.rank > 0 {
            let down = Matrix { at: part.down, rows: part.rank, cols: k, bf16: true };
            to.down = TensorMap::new(context, &down, ranks)?;
        }
        begin = end;
    }
    Ok(out)
}

/// The parts as kernels that project up take them, for tiles of so many columns.
fn up_maps(context: &Context, parts: &[Part], columns: usize) -> Result<[UpMap; MAX_PARTS]> {
    let mut out = [UpMap { up: NONE, end: 0, first: 0, last: 0 }; MAX_PARTS];
    let mut end = 0;
    for (to, part) in out.iter_mut().zip(parts) {
        end += part.rank as i32;
        let [first, last] = part.rows;
        (to.end, to.first, to.last) = (end, first as i32, last as i32);
        if part.rank > 0 {
            let up = Matrix { at: part.up, rows: last - first, cols: part.rank, bf16: true };
            to.up = TensorMap::new(context, &up, columns as u32 / 2)?;
        }
    }
    Ok(out)
}

/// `GemmParams`
#[repr(C)]
struct GemmParams {
    x: TensorMap,
    w: TensorMap,
    lora: TensorMap,
    out: TensorMap,
    scales: TensorMap,
    xs: u64,
    ws: u64,
    bias: u64,
    columns: u64,
    reciprocal: u64,
    rope: u64,
    next_scales: u64,
    next_lora: u64,
    m: i32,
    n: i32,
    k: i32,
    rank: i32,
    next_rank: i32,
    next_slots: i32,
    parts: [UpMap; MAX_PARTS],
    next_parts: [DownMap; MAX_PARTS],
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
    pub(super) project_down: ProjectDown,
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

/// The clusters of a linear before a GELU, and the slots in which they add up what it projects down.
pub(super) struct GeluGrid {
    clusters: usize,
    pub(super) slots: usize,
}

impl GeluGrid {
    /// Floats of all slots.
    pub(super) fn sums(&self, rows: usize, rank: usize) -> usize {
        self.slots * rows.next_multiple_of(8) * rank
    }

    /// As few slots as can be without one more tile for any cluster, of `most` at most. Tiles go round the clusters, along
    /// the rows first: so often does one have the same rows again.
    fn new(rows: usize, n: usize, most: usize) -> Self {
        let (down, across) = (rows.div_ceil(256).max(1), n.div_ceil(STORE_COLUMNS));
        let tiles = down * across;
        let rounds = tiles.div_ceil(most);
        let slots = |clusters: usize| (clusters / gcd(clusters, down)).min(across);
        let choices = (tiles.div_ceil(rounds)..=most.min(tiles)).rev();
        let best = choices.map(|clusters| GeluGrid { clusters, slots: slots(clusters) });
        best.min_by_key(|grid| grid.slots).unwrap_or(GeluGrid { clusters: tiles, slots: across })
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
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
            project_down: ProjectDown::load(context)?,
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

    /// Clusters of two blocks that run at once.
    fn clusters(&self) -> usize {
        self.context.multiprocessors as usize / 2
    }

    /// How [`Epilogue::Gelu`] of `rows` rows and `n` outputs is launched.
    pub(super) fn gelu_grid(&self, rows: usize, n: usize) -> GeluGrid {
        GeluGrid::new(rows, n, self.clusters())
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
        let scales = match w.profile {
            Profile::W4A4 => TensorMap::group_scales(&self.context, w.scales.at(), [n, k])?,
            _ => NONE,
        };
        let mut params = GemmParams {
            x: x_map,
            w: w_map,
            lora,
            out: x_map,
            scales,
            parts: up_maps(&self.context, w.parts, columns)?,
            next_parts: down_maps(&self.context, &[], n)?,
            xs: x.scales.at(),
            ws: w.scales.at(),
            bias: w.bias.at(),
            columns: 0,
            reciprocal: 0,
            rope: 0,
            next_scales: 0,
            next_lora: 0,
            m: m as i32,
            n: n as i32,
            k: k as i32,
            rank: rank as i32,
            next_rank: 0,
            next_slots: 0,
        };
        // Clusters of two, one block a multiprocessor.
        let tiles = m.div_ceil(256) * n.div_ceil(columns);
        let mut clusters = tiles.min(self.clusters());
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
                params.next_parts = down_maps(&self.context, parts, n)?;
                (params.reciprocal, params.next_scales) = (reciprocal, scales);
                (params.next_lora, params.next_rank) = (partials, low_rank::rank(parts) as i32);
                let grid = self.gelu_grid(m, n);
                (clusters, params.next_slots) = (grid.clusters, grid.slots as i32);
            }
        }
        let shared_bytes = gemm_shared(columns, linears.scale_bytes);
        let grid = Grid { blocks: [2 * clusters as u32, 1, 1], threads: 384, shared_bytes };
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
            quantizer: Quantizer::load(context, c"quantize_w4a8", Kind::Leaving)?,
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
            quantizer: Quantizer::load(context, c"quantize_w4a4_sm90", Kind::Leaving)?,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_of_a_slot_are_one_clusters() {
        for (rows, n, most) in [
            (4608, 12288, 66),
            (4096, 12288, 66),
            (512, 12288, 66),
            (1, 256, 66),
            (300, 640, 57),
            (7777, 3072, 1),
        ] {
            let GeluGrid { clusters, slots } = GeluGrid::new(rows, n, most);
            let (down, across) = (rows.div_ceil(256), n.div_ceil(256));
            assert!(clusters <= most && clusters <= down * across);
            assert_eq!((down * across).div_ceil(clusters), (down * across).div_ceil(most), "more rounds");
            for tile in 0..down * across {
                // The one before in its slot, in the same rows.
                if let Some(before) = tile.checked_sub(down * slots) {
                    assert_eq!(before % clusters, tile % clusters, "{rows} rows of {n}");
                }
            }
        }
        assert_eq!(GeluGrid::new(4608, 12288, 66).slots, 7);
        assert_eq!(GeluGrid::new(4096, 12288, 66).slots, 4);
    }
}
