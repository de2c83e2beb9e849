//! The weights of a FLUX.1 transformer by layer, whether they lie in a diffusers folder or in a 4-bit file.

mod config;
mod dense;
mod inventory;
mod lite;
mod svdq;
#[cfg(test)]
pub(crate) mod tests;

use super::{Checkpoint, Dtype, Location, PartKind};
use crate::ops::LinearSource;
use crate::{Error, Result};
pub use config::FluxConfig;
pub(crate) use dense::{double_names, single_names};
pub use inventory::inventory;

/// The two streams of a double block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Image patches.
    Image,
    /// Text tokens.
    Text,
}

/// The linears of a block. With `D` hidden channels and `M` in the MLP:
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `[6D, D]` in double blocks: shift, scale, gate of attention, then of the MLP; `[3D, D]` in single blocks: shift,
    /// scale, gate. The bias of scale chunks holds `1 +`.
    Modulation,
    /// `[3D, D]`: q, k, v.
    Qkv,
    /// `[D, D]`: of the attention's output. In single blocks it has no bias of its own.
    Out,
    /// `[M, D]`
    Fc1,
    /// `[D, M]`
    Fc2,
}

impl Part {
    /// All five.
    pub const ALL: [Part; 5] = [Part::Modulation, Part::Qkv, Part::Out, Part::Fc1, Part::Fc2];

    /// `[N, K]`, given the number of modulation chunks.
    fn shape(self, hidden: usize, mlp: usize, chunks: usize) -> [usize; 2] {
        match self {
            Part::Modulation => [chunks * hidden, hidden],
            Part::Qkv => [3 * hidden, hidden],
            Part::Out => [hidden, hidden],
            Part::Fc1 => [mlp, hidden],
            Part::Fc2 => [hidden, mlp],
        }
    }
}

/// Modulation chunks of a double block.
const DOUBLE_CHUNKS: usize = 6;
/// Modulation chunks of a single block.
const SINGLE_CHUNKS: usize = 3;

/// More than any MLP is wide.
const MAX_MLP: usize = 1 << 20;

/// An opened transformer. Every accessor checks names, types and shapes of what it gives.
pub struct FluxWeights {
    checkpoint: Checkpoint,
    config: FluxConfig,
    /// Largest rank of the low-rank branches; `None` for dense weights.
    rank: Option<usize>,
    /// 4-bit layers under the names of diffusers' modules.
    lite: bool,
}

impl FluxWeights {
    /// Opens a transformer: a 4-bit file of Nunchaku's, INT4 or NVFP4 (or its older folder of two files, or a folder of
    /// diffusers with 4-bit layers), or a dense one: a diffusers folder with `config.json`, or a file in diffusers' or
    /// Black Forest Labs' names. A file says its config in its metadata, in a `config.json` beside it, or by its tensors.
    ///
    /// # Errors
    /// Beside those of [`Checkpoint::open_part`]: a config that contradicts the tensors, or quantisation by another method.
    pub fn open(at: impl Into<Location>) -> Result<Self> {
        Self::from_checkpoint(Checkpoint::open(at)?)
    }

    /// As [`FluxWeights::open`], with a checkpoint that is open already.
    ///
    /// # Errors
    /// As [`FluxWeights::open`].
    pub fn from_checkpoint(checkpoint: Checkpoint) -> Result<Self> {
        let checkpoint = checkpoint.into_part(PartKind::Transformer)?;
        let rank = svdq::check_quantization(&checkpoint)?;
        let config = FluxConfig::of(&checkpoint)?;
        let lite = checkpoint.names().any(|name| name.ends_with(".attn.to_q.qweight"));
        Ok(FluxWeights { checkpoint, config, rank, lite })
    }

    /// Sizes of the network.
    pub fn config(&self) -> &FluxConfig {
        &self.config
    }

    /// The largest rank of the low-rank branches of a 4-bit checkpoint; `None` if the weights are dense.
    pub fn rank(&self) -> Option<usize> {
        self.rank
    }

    /// Whether 4-bit weights are NVFP4.
    pub fn is_nvfp4(&self) -> bool {
        self.checkpoint.tensors().any(|t| t.name.ends_with(".wscales") && t.dtype == Dtype::F8_E4M3)
    }

    /// The tensors by name.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// A linear of a double block.
    ///
    /// # Errors
    /// A tensor of it is missing, or of another type or shape; there is no such block.
    pub fn double(&self, block: usize, stream: Stream, part: Part) -> Result<LinearSource<'_>> {
        let prefix = format!("transformer_blocks.{block}.");
        match self.rank {
            None => dense::double(self, &prefix, stream, part).map(LinearSource::Dense),
            Some(_) => svdq::double(self, &prefix, stream, part),
        }
    }

    /// A linear of a single block. [`Part::Out`] and [`Part::Fc2`] are the left and the right columns of diffusers' `proj_out`.
    ///
    /// # Errors
    /// As [`FluxWeights::double`].
    pub fn single(&self, block: usize, part: Part) -> Result<LinearSource<'_>> {
        let prefix = format!("single_transformer_blocks.{block}.");
        match self.rank {
            None => dense::single(self, &prefix, part).map(LinearSource::Dense),
            Some(_) => svdq::single(self, &prefix, part),
        }
    }

    /// RMSNorm weights of the heads of q and k, `[head_dim]` each.
    ///
    /// # Errors
    /// As [`FluxWeights::double`].
    pub fn double_norms(&self, block: usize, stream: Stream) -> Result<[Vec<f32>; 2]> {
        let names = match stream {
            Stream::Image => ["norm_q", "norm_k"],
            Stream::Text => ["norm_added_q", "norm_added_k"],
        };
        self.norms(&format!("transformer_blocks.{block}."), names)
    }

    /// RMSNorm weights of the heads of q and k, `[head_dim]` each.
    ///
    /// # Errors
    /// As [`FluxWeights::double`].
    pub fn single_norms(&self, block: usize) -> Result<[Vec<f32>; 2]> {
        self.norms(&format!("single_transformer_blocks.{block}."), ["norm_q", "norm_k"])
    }

    fn norms(&self, prefix: &str, [q, k]: [&str; 2]) -> Result<[Vec<f32>; 2]> {
        let read = |name| {
            let [short, long] = ["", "attn."].map(|attn| format!("{prefix}{attn}{name}.weight"));
            let name = if self.checkpoint.get(&short).is_some() { short } else { long };
            self.checkpoint.f32(&name, &[self.config.attention_head_dim]).map(|norm| norm.to_vec())
        };
        Ok([read(q)?, read(k)?])
    }

    /// A linear outside of the blocks, by its diffusers name without `.weight`; it has a bias.
    ///
    /// # Errors
    /// As [`Checkpoint::dense`].
    pub fn plain(&self, name: &str, n: usize, k: usize) -> Result<LinearSource<'_>> {
        self.checkpoint.dense(name, n, k, true).map(LinearSource::Dense)
    }

    /// The modulation of the last norm, `[2D, D]`: scale (its bias holds `1 +`), then shift.
    ///
    /// # Errors
    /// As [`Checkpoint::dense`].
    pub fn norm_out(&self) -> Result<LinearSource<'_>> {
        let hidden = self.config.hidden();
        let mut linear = self.checkpoint.dense("norm_out.linear", 2 * hidden, hidden, true)?;
        linear.bias[..hidden].iter_mut().for_each(|b| *b += 1.0);
        Ok(LinearSource::Dense(linear))
    }

    /// Rows of `name`, the first linear of an MLP: its width is in no config.
    fn rows(&self, name: &str) -> Result<usize> {
        let tensor = self.checkpoint.get(name).ok_or_else(|| self.checkpoint.missing(name))?;
        match *tensor.shape {
            [n, _] if (1..=MAX_MLP).contains(&n) => Ok(n),
            ref other => {
                let what = format!("has shape {other:?}, a matrix of 1 to {MAX_MLP} rows is expected");
                Err(self.checkpoint.bad(name, what))
            }
        }
    }
}
