//! The first half of low-rank branches on compute capability 9.0: the kernels of kernels/project_down_sm90.cu.

#![allow(unsafe_code, reason = "launches kernels")]

use std::ffi::CStr;
use std::sync::Arc;

use super::driver::Context;
use super::hopper::{self, DownMap, Matrix, TensorMap};
use super::kernels::{Grid, Kernel, Module, argument};
use super::low_rank::{self, DownPart, MAX_PARTS, Part};
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

/// `SumLowRankParams`
#[repr(C)]
struct SumParams {
    sums: u64,
    lora: u64,
    slots: i32,
    m: i32,
    rank: i32,
    parts: [DownPart; MAX_PARTS],
}

/// The functions, with the most ranks of a tile and the blocks that share its channels.
const KERNELS: [(&CStr, usize, usize); 10] = [
    (c"project_down_64_2_sm90", 64, 2),
    (c"project_down_64_3_sm90", 64, 3),
    (c"project_down_64_8_sm90", 64, 8),
    (c"project_down_128_2_sm90", 128, 2),
    (c"project_down_128_3_sm90", 128, 3),
    (c"project_down_192_2_sm90", 192, 2),
    (c"project_down_192_3_sm90", 192, 3),
    (c"project_down_256_2_sm90", 256, 2),
    (c"project_down_256_3_sm90", 256, 3),
    (c"project_down_416_3_sm90", WIDEST, 3),
];
/// Most ranks of a tile: q, k and v of a LoRA of rank 128 beside their linear's 32.
const WIDEST: usize = 416;

/// `Shape::SMEM_BYTES`
const fn shared_bytes(ranks: usize) -> u32 {
    let stages = if ranks == 128 || ranks == WIDEST { 3 } else { 4 };
    let (ring, sums) = (stages * (128 + ranks) * 128, 128 * (ranks + 8) * 4);
    ((if ring > sums { ring } else { sums }) + stages * 2 * 8 + ranks / 16 * 4) as u32
}

/// How ranks and channels are divided among blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tiling {
    /// Ranks of a tile: a multiple of 32.
    tile: usize,
    /// Blocks that share its channels.
    shares: usize,
}

impl Tiling {
    /// Three shares of tiles as small as can be so that all blocks run at once, one a multiprocessor, or two shares; eight if
    /// there is room for so many. The widest tiles, which read the rows least often, where nothing fits.
    fn new(rows: usize, rank: usize, multiprocessors: usize) -> Self {
        let down = rows.div_ceil(128);
        let tile = |across: usize| rank.div_ceil(across).next_multiple_of(32);
        for shares in [3, 2] {
            let across = multiprocessors / (down * shares);
            if across == 0 || tile(across) > 256 {
                continue;
            }
            let tile = tile(across).max(64.min(tile(1)));
            let many = tile <= 64 && down * rank.div_ceil(tile) * 8 <= multiprocessors;
            return Tiling { tile, shares: if many { 8 } else { shares } };
        }
        Tiling { tile: tile(rank.div_ceil(WIDEST)), shares: 3 }
    }

    /// The place in [`KERNELS`] of the one for this.
    fn kernel(self) -> usize {
        let fits = |&(_, ranks, shares): &(&CStr, usize, usize)| ranks >= self.tile && shares == self.shares;
        KERNELS.iter().position(fits).expect("there is a kernel for every tiling")
    }
}

pub(super) struct ProjectDown {
    context: Arc<Context>,
    _module: Module,
    /// Of [`KERNELS`].
    kernels: Vec<Kernel>,
    sum_low_rank: Kernel,
}

impl ProjectDown {
    /// # Errors
    /// [`Error::DeviceUnsupported`](crate::Error::DeviceUnsupported) when this build lacks the kernels.
    pub(super) fn load(context: &Arc<Context>) -> Result<Self> {
        let module = Module::load(context, "project_down_sm90")?;
        let load = |(name, ranks, _)| module.kernel(name, shared_bytes(ranks));
        let kernels = KERNELS.into_iter().map(load).collect::<Result<_>>()?;
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
        let tiling = Tiling::new(rows, rank, self.context.multiprocessors as usize);
        let (_, ranks, shares) = KERNELS[tiling.kernel()];
        let params = Params {
            h: TensorMap::new(&self.context, &Matrix { at: h, rows, cols: k, bf16: true }, 128)?,
            lora,
            m: rows as i32,
            k: k as i32,
            rank: rank as i32,
            tile: tiling.tile as i32,
            parts: hopper::down_maps(&self.context, parts, k)?,
        };
        let blocks = [(rows.div_ceil(128) * shares) as u32, rank.div_ceil(tiling.tile) as u32, 1];
        let threads = if ranks == WIDEST { 384 } else { 288 };
        let grid = Grid { blocks, threads, shared_bytes: shared_bytes(ranks) };
        let kernel = self.kernels[tiling.kernel()].doing([rows, rank, k], Work::bf16(rows, rank, k));
        // SAFETY: `Params` is the kernel's; its matrices are as large as their maps say.
        unsafe { kernel.launch(&self.context, grid, &mut [argument(&params)]) }
    }

    /// `lora`, `[rows, rank]` bf16 for the ranks of all parts, from the sums in `slots` slots that a linear before a GELU
    /// left.
    pub(super) fn sum(&self, sums: u64, lora: u64, slots: usize, rows: usize, parts: &[Part]) -> Result<()> {
        let rank = low_rank::rank(parts);
        let (threads, bytes) = (rows.next_multiple_of(8) * rank / 4, (4 * slots + 2) * rows * rank);
        let grid = Grid { blocks: [threads.div_ceil(256) as u32, 1, 1], threads: 256, shared_bytes: 0 };
        let kernel = self.sum_low_rank.doing([slots, rows * rank, 0], Work::Bytes(bytes as f64));
        let params = SumParams {
            sums,
            lora,
            slots: slots as i32,
            m: rows as i32,
            rank: rank as i32,
            parts: low_rank::down_parts(parts, |_| 0),
        };
        // SAFETY: `SumLowRankParams` is the kernel's.
        unsafe { kernel.launch(&self.context, grid, &mut [argument(&params)]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tiling_has_a_kernel() {
        for multiprocessors in [1, 78, 114, 132] {
            for rows in [1, 128, 512, 1024, 1536, 4096, 4608, 8000, 20000] {
                for rank in (16..2049).step_by(16) {
                    let tiling = Tiling::new(rows, rank, multiprocessors);
                    let (_, ranks, shares) = KERNELS[tiling.kernel()];
                    assert!(
                        tiling.tile <= ranks && tiling.tile.is_multiple_of(32),
                        "{rows} rows, rank {rank}"
                    );
                    assert_eq!(shares, tiling.shares);
                }
            }
        }
    }

    #[test]
    fn blocks_run_at_once() {
        let tiling = |rows, rank| Tiling::new(rows, rank, 132);
        assert_eq!(tiling(4608, 160), Tiling { tile: 160, shares: 3 });
        assert_eq!(tiling(4608, 416), Tiling { tile: 416, shares: 3 });
        assert_eq!(tiling(4096, 416), Tiling { tile: 224, shares: 2 });
        assert_eq!(tiling(1536, 160), Tiling { tile: 64, shares: 3 });
        assert_eq!(tiling(512, 32), Tiling { tile: 32, shares: 8 });
        assert_eq!(tiling(512, 416), Tiling { tile: 64, shares: 3 });
    }
}
