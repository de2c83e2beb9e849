//! Sizes of the network, from diffusers' config and the tensors.

use serde::Deserialize;

use super::{Checkpoint, Error, Result};
use crate::weights::{parse_json, read_json};

/// Sizes of a FLUX.1 transformer, in diffusers' terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FluxConfig {
    /// Double blocks.
    pub num_layers: usize,
    /// Single blocks.
    pub num_single_layers: usize,
    /// Heads of every attention.
    pub num_attention_heads: usize,
    /// Channels of a head: even.
    pub attention_head_dim: usize,
    /// Channels of a latent patch that goes in (4 x the VAE's latent channels, more with conditioning images).
    pub in_channels: usize,
    /// Channels of a latent patch that comes out.
    pub out_channels: usize,
    /// Channels of a T5 token.
    pub joint_attention_dim: usize,
    /// Channels of CLIP's pooled output.
    pub pooled_projection_dim: usize,
    /// The guidance scale is an input (FLUX.1-dev; schnell has none).
    pub guidance_embeds: bool,
    /// Channels of a head that each axis (index, row, column) rotates: even, their sum is `attention_head_dim`.
    pub axes_dims_rope: [usize; 3],
}

/// diffusers' config.json. What has a default here is absent from FLUX.1's own files.
#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "_class_name")]
    class_name: Option<String>,
    #[serde(default = "one")]
    patch_size: usize,
    in_channels: usize,
    out_channels: Option<usize>,
    num_layers: usize,
    num_single_layers: usize,
    attention_head_dim: usize,
    num_attention_heads: usize,
    joint_attention_dim: usize,
    pooled_projection_dim: usize,
    guidance_embeds: bool,
    #[serde(default = "flux_axes")]
    axes_dims_rope: Vec<usize>,
}

fn one() -> usize {
    1
}

fn flux_axes() -> Vec<usize> {
    FLUX_AXES.to_vec()
}

const FLUX_AXES: [usize; 3] = [16, 56, 56];
const MAX_DIM: usize = 65536;
const MAX_LAYERS: usize = 1024;
/// Channels of the sinusoids of timestep and guidance.
pub(super) const TIME_CHANNELS: usize = 256;

impl FluxConfig {
    /// FLUX.1-dev: 12 B parameters.
    pub const FLUX_1_DEV: FluxConfig = FluxConfig {
        num_layers: 19,
        num_single_layers: 38,
        num_attention_heads: 24,
        attention_head_dim: 128,
        in_channels: 64,
        out_channels: 64,
        joint_attention_dim: 4096,
        pooled_projection_dim: 768,
        guidance_embeds: true,
        axes_dims_rope: FLUX_AXES,
    };
    /// FLUX.1-schnell: as dev, without the guidance embedding.
    pub const FLUX_1_SCHNELL: FluxConfig = FluxConfig { guidance_embeds: false, ..Self::FLUX_1_DEV };

    /// Channels of a token inside the blocks: heads x head_dim.
    pub fn hidden(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// The config that `checkpoint` states, held against its tensors.
    pub(in crate::weights) fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let path = checkpoint.path();
        let at = checkpoint.location();
        let beside = if at.is_dir() { at.join("config.json") } else { at.beside("config.json") };
        let raw: Raw = match checkpoint.metadata("config") {
            Some(text) => parse_json(path, "config", text)?,
            None if at.is_dir() || beside.is_file() => read_json(&beside)?,
            None => return FluxConfig::from_tensors(checkpoint)?.validate(checkpoint, FLUX_AXES.to_vec()),
        };
        if let Some(class) = raw.class_name.filter(|c| !CLASSES.contains(&c.as_str())) {
            let what = format!("config: `_class_name` is {class}, {} is expected", CLASSES[0]);
            return Err(Error::WrongModel { path: path.into(), what });
        }
        if raw.patch_size != 1 {
            let what =
                format!("{}: config: `patch_size` {} cannot be run, only 1", path.display(), raw.patch_size);
            return Err(Error::Unsupported(what));
        }
        let config = FluxConfig {
            num_layers: raw.num_layers,
            num_single_layers: raw.num_single_layers,
            num_attention_heads: raw.num_attention_heads,
            attention_head_dim: raw.attention_head_dim,
            in_channels: raw.in_channels,
            out_channels: raw.out_channels.unwrap_or(raw.in_channels),
            joint_attention_dim: raw.joint_attention_dim,
            pooled_projection_dim: raw.pooled_projection_dim,
            guidance_embeds: raw.guidance_embeds,
            axes_dims_rope: [0; 3],
        }
        .validate(checkpoint, raw.axes_dims_rope)?;
        config.compare(checkpoint)?;
        Ok(config)
    }

    /// What the tensors say; of the axes they say nothing.
    fn from_tensors(checkpoint: &Checkpoint) -> Result<Self> {
        let matrix = |name: &str| match checkpoint.get(name).map(|t| t.shape) {
            Some(&[n, k]) => Ok([n, k]),
            Some(other) => Err(checkpoint.bad(name, format!("has shape {other:?}, a matrix is expected"))),
            None => Err(checkpoint.missing(name)),
        };
        let norm = ["transformer_blocks.0.norm_q.weight", "transformer_blocks.0.attn.norm_q.weight"]
            .into_iter()
            .find_map(|name| checkpoint.get(name))
            .ok_or_else(|| checkpoint.missing("transformer_blocks.0.norm_q.weight"))?;
        let [hidden, in_channels] = matrix("x_embedder.weight")?;
        let head_dim = norm.shape.iter().product::<usize>();
        if head_dim == 0 || !hidden.is_multiple_of(head_dim) {
            let what = format!(
                "has shape {:?}, whose size does not divide the {hidden} rows of `x_embedder.weight`",
                norm.shape
            );
            return Err(checkpoint.bad(norm.name, what));
        }
        Ok(FluxConfig {
            num_layers: blocks(checkpoint, "transformer_blocks."),
            num_single_layers: blocks(checkpoint, "single_transformer_blocks."),
            num_attention_heads: hidden / head_dim,
            attention_head_dim: head_dim,
            in_channels,
            out_channels: matrix("proj_out.weight")?[0],
            joint_attention_dim: matrix("context_embedder.weight")?[1],
            pooled_projection_dim: matrix("time_text_embed.text_embedder.linear_1.weight")?[1],
            guidance_embeds: checkpoint.get("time_text_embed.guidance_embedder.linear_1.weight").is_some(),
            axes_dims_rope: [0; 3],
        })
    }

    /// Every size is within what the arithmetic of this library is made for, and the axes fill a head.
    fn validate(mut self, checkpoint: &Checkpoint, axes: Vec<usize>) -> Result<Self> {
        let bad = |what: String| Err(Error::format(checkpoint.path(), format!("config: {what}")));
        for (key, value, limit) in [
            ("num_layers", self.num_layers, MAX_LAYERS),
            ("num_single_layers", self.num_single_layers, MAX_LAYERS),
            ("num_attention_heads", self.num_attention_heads, MAX_DIM),
            ("attention_head_dim", self.attention_head_dim, MAX_DIM),
            ("in_channels", self.in_channels, MAX_DIM),
            ("out_channels", self.out_channels, MAX_DIM),
            ("joint_attention_dim", self.joint_attention_dim, MAX_DIM),
            ("pooled_projection_dim", self.pooled_projection_dim, MAX_DIM),
        ] {
            if value == 0 || value > limit {
                return bad(format!("`{key}` is {value}, and must be between 1 and {limit}"));
            }
        }
        let (heads, head_dim) = (self.num_attention_heads, self.attention_head_dim);
        if heads.checked_mul(head_dim).is_none_or(|hidden| hidden > MAX_DIM) {
            return bad(format!("{heads} heads of {head_dim} channels are more than {MAX_DIM} channels"));
        }
        let sum = axes.iter().try_fold(0usize, |sum, &d| sum.checked_add(d));
        let axes_fit = sum == Some(head_dim) && axes.iter().all(|d| d.is_multiple_of(2));
        match <[usize; 3]>::try_from(axes) {
            Ok(axes) if axes_fit => self.axes_dims_rope = axes,
            Ok(axes) => {
                return bad(format!(
                    "`axes_dims_rope` {axes:?} are not even numbers that add up to a head's {head_dim}"
                ));
            }
            Err(axes) => return bad(format!("`axes_dims_rope` {axes:?} are not three")),
        }
        Ok(self)
    }

    /// Stated sizes against those of the tensors.
    fn compare(&self, checkpoint: &Checkpoint) -> Result<()> {
        let found = FluxConfig::from_tensors(checkpoint)?;
        for (key, stated, found) in [
            ("num_layers", self.num_layers, found.num_layers),
            ("num_single_layers", self.num_single_layers, found.num_single_layers),
            ("attention_head_dim", self.attention_head_dim, found.attention_head_dim),
            ("num_attention_heads", self.num_attention_heads, found.num_attention_heads),
            ("in_channels", self.in_channels, found.in_channels),
            ("out_channels", self.out_channels, found.out_channels),
            ("joint_attention_dim", self.joint_attention_dim, found.joint_attention_dim),
            ("pooled_projection_dim", self.pooled_projection_dim, found.pooled_projection_dim),
            ("guidance_embeds", self.guidance_embeds.into(), found.guidance_embeds.into()),
        ] {
            if stated != found {
                let what = format!("config: `{key}` is {stated}, the tensors are those of {found}");
                return Err(Error::format(checkpoint.path(), what));
            }
        }
        Ok(())
    }
}

/// Classes whose configs these are.
const CLASSES: [&str; 3] =
    ["FluxTransformer2DModel", "NunchakuFluxTransformer2dModel", "NunchakuFluxTransformer2DModelV2"];

/// One more than the largest number after `prefix`.
fn blocks(checkpoint: &Checkpoint, prefix: &str) -> usize {
    let numbers = checkpoint
        .names()
        .filter_map(|name| name.strip_prefix(prefix)?.split('.').next()?.parse::<usize>().ok());
    numbers.max().map_or(0, |last| last.saturating_add(1))
}
