//! What a checkpoint is, from its headers and configs alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use super::flux::FluxConfig;
use super::{Checkpoint, Dtype, PartKind, PipelineFolder, Tensor};
use crate::Result;

/// A checkpoint, or the parts of a pipeline folder. Displays as a few lines for people.
#[derive(Clone, Debug)]
pub struct Summary {
    /// What was inspected.
    pub path: PathBuf,
    /// One, or all parts of a pipeline or of an all-in-one file.
    pub parts: Vec<Part>,
}

/// One network.
#[derive(Clone, Debug)]
pub struct Part {
    /// A file or a folder.
    pub path: PathBuf,
    /// Which one, if it is of a kind that this library knows.
    pub kind: Option<PartKind>,
    /// Sizes of the network, if it is a FLUX transformer.
    pub flux: Option<FluxConfig>,
    /// `INT4`, `NVFP4`, `INT4 (AWQ)`, or the types of the elements.
    pub precision: String,
    /// Ranks of the low-rank branches; empty without such.
    pub ranks: BTreeSet<usize>,
    /// What the bytes are.
    pub kinds: BTreeMap<&'static str, Amount>,
}

/// Number of tensors and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many.
    pub tensors: usize,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// Inspects a safetensors file, a folder with weights, or a pipeline folder. No weights are read.
///
/// # Errors
/// Those of [`Checkpoint::open`] and [`PipelineFolder::open`]; a FLUX config that contradicts its tensors.
pub fn inspect(path: &Path) -> Result<Summary> {
    let parts = match path.join("model_index.json").exists() {
        true => {
            let folder = PipelineFolder::open(path)?;
            let of = |kind| Part::of(&Checkpoint::open_part(folder.part(kind), kind)?, Some(kind));
            PartKind::ALL.into_iter().map(of).collect::<Result<_>>()?
        }
        false => {
            let file = Checkpoint::open(path)?;
            match &file.parts()[..] {
                [] => vec![Part::of(&file, None)?],
                kinds => kinds
                    .iter()
                    .map(|&kind| Part::of(&Checkpoint::open_part(path, kind)?, Some(kind)))
                    .collect::<Result<_>>()?,
            }
        }
    };
    Ok(Summary { path: path.into(), parts })
}

impl Part {
    fn of(checkpoint: &Checkpoint, part: Option<PartKind>) -> Result<Part> {
        let mut kinds = BTreeMap::<_, Amount>::new();
        let mut dtypes = BTreeSet::new();
        let mut ranks = BTreeSet::new();
        for tensor in checkpoint.tensors() {
            let amount = kinds.entry(kind(checkpoint, &tensor)).or_default();
            amount.tensors += 1;
            amount.bytes += tensor.len() as u64;
            dtypes.insert(tensor.dtype.to_string());
            if tensor.name.ends_with(".lora_down") {
                ranks.extend(tensor.shape.last());
            }
        }
        let is_fp4 = |t: Tensor<'_>| t.name.ends_with(".wscales") && t.dtype == Dtype::F8_E4M3;
        let packed = |t: Tensor<'_>| t.name.ends_with(".qweight");
        let precision = if checkpoint.tensors().any(is_fp4) {
            "NVFP4".to_owned()
        } else if checkpoint.tensors().any(|t| packed(t) && t.dtype == Dtype::I16) {
            "INT4 (AWQ)".to_owned()
        } else if checkpoint.tensors().any(packed) {
            "INT4".to_owned()
        } else {
            dtypes.into_iter().collect::<Vec<_>>().join(", ")
        };
        let is_flux = part == Some(PartKind::Transformer);
        let flux = if is_flux { Some(FluxConfig::of(checkpoint)?) } else { None };
        Ok(Part { path: checkpoint.path().into(), kind: part, flux, precision, ranks, kinds })
    }

    /// All tensors.
    pub fn total(&self) -> Amount {
        self.kinds.values().fold(Amount::default(), |sum, a| Amount {
            tensors: sum.tensors + a.tensors,
            bytes: sum.bytes + a.bytes,
        })
    }
}

/// What the bytes of a tensor are.
fn kind(checkpoint: &Checkpoint, tensor: &Tensor<'_>) -> &'static str {
    let (layer, suffix) = tensor.name.rsplit_once('.').unwrap_or(("", tensor.name));
    match (checkpoint.get(&format!("{layer}.qweight")).map(|q| q.dtype), suffix) {
        (Some(Dtype::I32), _) => "4-bit modulation",
        (Some(Dtype::I16), _) => "4-bit linears",
        (Some(_), "qweight") => "4-bit codes",
        (Some(_), "wscales") => "scales of the codes",
        (Some(_), "lora_down" | "lora_up") => "low-rank branches",
        (Some(_), _) => "vectors (bias, smooth)",
        (None, _) => "plain",
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.is_dir() {
            _ if self.parts.len() < 2 => {}
            true => writeln!(f, "{}: FLUX.1 pipeline", self.path.display())?,
            false => writeln!(f, "{}: {} networks in one file", self.path.display(), self.parts.len())?,
        }
        self.parts.iter().try_for_each(|part| part.fmt(f))
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.path.display())?;
        if let Some(c) = &self.flux {
            let family = if c.guidance_embeds { "with guidance (dev)" } else { "without guidance (schnell)" };
            writeln!(f, "  FLUX.1 transformer {family}")?;
            writeln!(
                f,
                "  {} double and {} single blocks, {} channels in {} heads, T5 {}, CLIP {}, latents {} -> {}",
                c.num_layers,
                c.num_single_layers,
                c.hidden(),
                c.num_attention_heads,
                c.joint_attention_dim,
                c.pooled_projection_dim,
                c.in_channels,
                c.out_channels
            )?;
            if c.in_channels != c.out_channels {
                writeln!(
                    f,
                    "  its latents carry an image beside the noise, which `generate` cannot make yet"
                )?;
            }
        } else if let Some(kind) = self.kind {
            writeln!(f, "  {kind}")?;
        }
        write!(f, "  {}", self.precision)?;
        match self.ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(", ") {
            ranks if ranks.is_empty() => writeln!(f)?,
            ranks => writeln!(f, ", rank {ranks}")?,
        }
        if self.kinds.len() > 1 {
            for (kind, amount) in &self.kinds {
                writeln!(f, "  {kind:<24}{amount}")?;
            }
        }
        writeln!(f, "  {:<24}{}", "total", self.total())
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>6} tensors {:>12.3} MB", self.tensors, self.bytes as f64 / 1e6)
    }
}
