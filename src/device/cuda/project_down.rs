//! The first half of low-rank branches on compute capability 9.0: the kernels of kernels/project_down_sm90.cu.

#![allow(unsafe_code, reason = "launches kernels")]

use std::ffi::CStr;
use std::sync::Arc;

use super::driver::Context;
use super::hopper::{self, DownMap, Matrix, TensorMap};
use super::kernels::{Grid, Kernel, Module, argument};
use super::low_rank::{self, MAX_PARTS, Part};
use crate::Result;
use crate::ops::Work;

/// `ProjectDownParams`
#[repr(C)]
struct Params {
    h: TensorMap,
    lora: u64,
    m: i32,
    k: i32,
    rank: i32,
    tile: i32,
    parts: [DownMap; MAX_PARTS],
}

/// The functions for up to 64, 128, 192 and 256 ranks a tile, by how many blocks share a tile's channels.
const NAMES: [[&CStr; 2]; 4] = [
    [c"project_down_64_3_sm90", c"project_down_64_8_sm90"],
    [c"project_down_128_3_sm90", c"project_down_128_8_sm90"],
    [c"project_down_192_3_sm90", c"project_down_192_8_sm90"],
    [c"project_down_256_3_sm90", c"project_down_256_8_sm90"],
];
const SHARES: [usize; 2] = [3, 8];
/// Most ranks of a tile.
const RANKS: usize = 64 * NAMES.len();

/// `Shape::SMEM_BYTES`
const fn shared_bytes(ranks: usize) -> u32 {
    let stages = if ranks == 128 { 3 } else { 4 };
    (stages * ((128 + ranks) * 128 + 2 * 8) + ranks / 16 * 4) as u32
}

/// Ranks of a box of a part: tiles of a multiple of 32 cut none in two.
fn box_ranks(begin: usize, rank: usize) -> usize {
    if begin.is_multiple_of(32) && rank.is_multiple_of(32) { 32 } else { 16 }
}

pub(super) struct ProjectDown {
    context: Arc<Context>,
    _module: Module,
    kernels: [[Kernel; 2]; 4],
    sum_low_rank: Kernel,
}

impl ProjectDown {
    /// # Errors
    /// [`Error::DeviceUnsupported`](crate::Error::DeviceUnsupported) when this build lacks the kernels.
    pub(super) fn load(context: &Arc<Context>) -> Result<Self> {
        let module = Module::load(context, "project_down_sm90")?;
        let mut kernels = Vec::new();
        for (i, names) in NAMES.iter().enumerate() {
            let shared = shared_bytes(64 * (i + 1));
            kernels.push([module.kernel(names[0], shared)?, module.kernel(names[1], shared)?]);
        }
        let kernels = std::array::from_fn(|i| kernels[i]);
        let sum_low_rank = module.kernel(c"sum_low_rank_sm90", 0)?;
        Ok(ProjectDown { context: context.clone(), _module: module, kernels, sum_low_rank })
    }

    /// `lora[m,r] = strength · Σ_k h[m,k] down[r,k]` for the ranks of all parts: to `lora`, `[rows, rank]` bf16, from `h`,
    /// `[rows, k]` bf16.
    pub(super) fn run(&self, h: u64, [rows, k]: [usize; 2], parts: &[Part], lora: u64) -> Result<()> {
        let rank = low_rank::rank(parts);
        if rows == 0 || rank == 0 {
            return Ok(());
        }
        let columns = rank.div_ceil(RANKS);
        let tile = rank.div_ceil(columns).next_multiple_of(32);
        let tiles = [rows.div_ceil(128), columns];
        // Eight shares where these find room on the GPU at once.
        let many = tiles[0] * tiles[1] * SHARES[1] <= self.context.multiprocessors as usize;
        let ranks = tile.next_multiple_of(64);
        let params = Params {
            h: TensorMap::new(&self.context, &Matrix { at: h, rows, cols: k, bf16: true }, 128)?,
            lora,
            m: rows as i32,
            k: k as i32,
            rank: rank as i32,
            tile: tile as i32,
            parts: hopper::down_maps(&self.context, parts, k, box_ranks)?,
        };
        let blocks = [(tiles[0] * SHARES[usize::from(many)]) as u32, tiles[1] as u32, 1];
        let grid = Grid { blocks, threads: 288, shared_bytes: shared_bytes(ranks) };
        let kernel = self.kernels[ranks / 64 - 1][usize::from(many)];
        let kernel = kernel.doing([rows, rank, k], Work::bf16(rows, rank, k));
        // SAFETY: `Params` is the kernel's; its matrices are as large as their maps say.
        unsafe { kernel.launch(&self.context, grid, &mut [argument(&params)]) }
    }

    /// `lora`, `[rows, rank]` bf16, from the sums `[slots, rows, rank]` that a linear before a GELU left.
    pub(super) fn sum(&self, sums: u64, lora: u64, slots: usize, count: usize) -> Result<()> {
        let grid = Grid { blocks: [count.div_ceil(4 * 256) as u32, 1, 1], threads: 256, shared_bytes: 0 };
        let bytes = (4 * slots + 2) * count;
        let kernel = self.sum_low_rank.doing([slots, count, 0], Work::Bytes(bytes as f64));
        let (slots, count) = (slots as i32, count as i32);
        let mut arguments = [argument(&sums), argument(&lora), argument(&slots), argument(&count)];
        // SAFETY: (partials, lora, slots, count)
        unsafe { kernel.launch(&self.context, grid, &mut arguments) }
    }
}
