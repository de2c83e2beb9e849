//! A VAE's `config.json`.

use std::path::Path;

use crate::weights::{Checkpoint, Location, read_json};
use crate::{Error, Result};

/// What `config.json` says. A field left out has diffusers' default.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(default)]
pub(super) struct Config {
    #[serde(rename = "_class_name")]
    class_name: String,
    in_channels: usize,
    out_channels: usize,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    act_fn: String,
    /// Channels of each level, from the image to the latents.
    pub(super) block_out_channels: Vec<usize>,
    /// Resnets of a level; the decoder has one more.
    pub(super) layers_per_block: usize,
    pub(super) latent_channels: usize,
    pub(super) norm_num_groups: usize,
    pub(super) scaling_factor: f32,
    shift_factor: Option<f32>,
    pub(super) use_quant_conv: bool,
    pub(super) use_post_quant_conv: bool,
    pub(super) mid_block_add_attention: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            class_name: "AutoencoderKL".into(),
            in_channels: 3,
            out_channels: 3,
            down_block_types: vec!["DownEncoderBlock2D".into()],
            up_block_types: vec!["UpDecoderBlock2D".into()],
            act_fn: "silu".into(),
            block_out_channels: vec![64],
            layers_per_block: 1,
            latent_channels: 4,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            shift_factor: None,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }
}

impl Config {
    /// The config of a checkpoint: its config.json, or, of a file on its own, FLUX.1's in the sizes of the tensors.
    pub(super) fn of(checkpoint: &Checkpoint) -> Result<Self> {
        match checkpoint.config() {
            Some(at) => Config::load(&at),
            None => Config::of_tensors(checkpoint)?.check(checkpoint.path()),
        }
    }

    /// Reads and checks the file `at`.
    pub(super) fn load(at: impl Into<Location>) -> Result<Self> {
        let at = at.into();
        read_json::<Self>(&at)?.check(at.path())
    }

    fn check(self, path: &Path) -> Result<Self> {
        self.check_kind(path)?;
        self.check_sizes().map_err(|what| Error::format(path, what))?;
        Ok(self)
    }

    /// What the tensors of the decoder say, and FLUX.1's constants.
    fn of_tensors(checkpoint: &Checkpoint) -> Result<Self> {
        let channels = |name: &str, dimension: usize| {
            let tensor = checkpoint.get(name)?;
            tensor.shape.get(dimension).copied()
        };
        let level = |i: usize| channels(&format!("decoder.up_blocks.{i}.resnets.0.conv1.weight"), 0);
        let mut block_out_channels: Vec<usize> = (0..).map_while(level).collect();
        block_out_channels.reverse();
        let resnet = |j: &usize| channels(&format!("decoder.up_blocks.0.resnets.{j}.conv1.weight"), 0);
        let conv_in = "decoder.conv_in.weight";
        let levels = block_out_channels.len();
        Ok(Config {
            down_block_types: vec!["DownEncoderBlock2D".into(); levels],
            up_block_types: vec!["UpDecoderBlock2D".into(); levels],
            block_out_channels,
            layers_per_block: (0..).take_while(|j| resnet(j).is_some()).count().saturating_sub(1),
            latent_channels: channels(conv_in, 1).ok_or_else(|| checkpoint.missing(conv_in))?,
            scaling_factor: 0.3611,
            shift_factor: Some(0.1159),
            use_quant_conv: checkpoint.get("quant_conv.weight").is_some(),
            use_post_quant_conv: checkpoint.get("post_quant_conv.weight").is_some(),
            mid_block_add_attention: checkpoint.get("decoder.mid_block.attentions.0.to_q.weight").is_some(),
            ..Config::default()
        })
    }

    /// Refuses networks of another kind.
    fn check_kind(&self, path: &Path) -> Result<()> {
        if self.class_name != "AutoencoderKL" {
            let what = format!("the VAE is {}, only AutoencoderKL is supported", self.class_name);
            return Err(Error::WrongModel { path: path.into(), what });
        }
        let unsupported =
            |key: &str, value: &str| Err(Error::Unsupported(format!("{}: {key} {value}", path.display())));
        if self.act_fn != "silu" {
            return unsupported("act_fn", &self.act_fn);
        }
        if let Some(other) = self.down_block_types.iter().find(|t| *t != "DownEncoderBlock2D") {
            return unsupported("down_block_types", other);
        }
        if let Some(other) = self.up_block_types.iter().find(|t| *t != "UpDecoderBlock2D") {
            return unsupported("up_block_types", other);
        }
        if [self.in_channels, self.out_channels] != [3, 3] {
            let channels = format!("{} and {}; both have to be 3", self.in_channels, self.out_channels);
            return unsupported("in_channels and out_channels are", &channels);
        }
        Ok(())
    }

    /// Refuses sizes that contradict each other.
    fn check_sizes(&self) -> std::result::Result<(), String> {
        let levels = self.block_out_channels.len();
        if !(1..=8).contains(&levels) {
            return Err(format!("block_out_channels has {levels} entries, 1 to 8 are possible"));
        }
        let types = [self.down_block_types.len(), self.up_block_types.len()];
        if types != [levels, levels] {
            return Err(format!(
                "down_block_types, up_block_types and block_out_channels have {}, {} and {levels} entries",
                types[0], types[1]
            ));
        }
        let groups = self.norm_num_groups;
        if let Some(c) = self.block_out_channels.iter().find(|c| **c == 0 || groups == 0 || **c % groups != 0)
        {
            return Err(format!("norm_num_groups {groups} does not divide the {c} of block_out_channels"));
        }
        if self.layers_per_block == 0 || self.latent_channels == 0 {
            return Err("layers_per_block or latent_channels is 0".into());
        }
        if !self.scaling_factor.is_normal() || !self.shift_factor().is_finite() {
            return Err(format!(
                "scaling_factor {} or shift_factor {}",
                self.scaling_factor,
                self.shift_factor()
            ));
        }
        Ok(())
    }

    pub(super) fn shift_factor(&self) -> f32 {
        self.shift_factor.unwrap_or(0.0)
    }

    /// Pixels that a latent spans in each direction.
    pub(super) fn factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// Channels at the low resolution, where the mid block works.
    pub(super) fn mid_channels(&self) -> usize {
        self.block_out_channels.last().copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::weights::PartKind;

    /// The golden VAE has FLUX.1's constants, but groups of its own.
    #[test]
    fn tensors_say_what_a_config_says() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        for name in ["vae", "vae_quant"] {
            let checkpoint = Checkpoint::open_part(&folder.join(name), PartKind::Vae).unwrap();
            let stated = Config::of(&checkpoint).unwrap();
            let found = Config {
                norm_num_groups: stated.norm_num_groups,
                ..Config::of_tensors(&checkpoint).unwrap()
            };
            assert_eq!(format!("{found:?}"), format!("{stated:?}"));
        }
    }
}
