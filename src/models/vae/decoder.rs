//! Latents to pixels.

use std::path::Path;

use super::blocks::{GroupNorm, Level, Loader, Mid};
use super::check_image;
use super::config::Config;
use crate::Result;
use crate::memory::Buf;
use crate::ops::Device;
use crate::weights::{Checkpoint, PartKind};

/// The decoder of a VAE.
pub struct Vae<D: Device> {
    config: Config,
    post_quant: Option<D::Conv>,
    conv_in: D::Conv,
    mid: Mid<D>,
    levels: Vec<Level<D>>,
    norm_out: GroupNorm<D>,
    conv_out: D::Conv,
}

impl<D: Device> Vae<D> {
    /// Loads the decoder from a diffusers folder, `config.json` and safetensors, or from a file on its own, in diffusers'
    /// or Black Forest Labs' names, with or without the encoder's tensors.
    ///
    /// # Errors
    /// A file is missing or malformed, the config asks for another kind of network, or config and
    /// tensors contradict each other.
    pub fn load(dev: &D, path: &Path) -> Result<Self> {
        Self::new(dev, &Checkpoint::open_part(path, PartKind::Vae)?)
    }

    /// As [`Vae::load`], with a checkpoint that is open already.
    pub(crate) fn new(dev: &D, file: &Checkpoint) -> Result<Self> {
        let config = Config::of(file)?;
        let mut l = Loader::new(dev, file, &config, ["decoder.", "post_quant_conv."]);
        let (latent, mid) = (config.latent_channels, config.mid_channels());
        let post_quant = match config.use_post_quant_conv {
            true => Some(l.conv("post_quant_conv", latent, latent, 1)?),
            false => None,
        };
        let conv_in = l.conv("decoder.conv_in", mid, latent, 3)?;
        let mid_block = l.mid("decoder.mid_block")?;
        let (mut levels, mut from) = (Vec::new(), mid);
        for (i, &to) in config.block_out_channels.iter().rev().enumerate() {
            let name = format!("decoder.up_blocks.{i}");
            let resnets = l.resnets(&name, config.layers_per_block.saturating_add(1), from, to)?;
            let resample = match i + 1 < config.block_out_channels.len() {
                true => Some(l.resample(&format!("{name}.upsamplers.0.conv"), to, true)?),
                false => None,
            };
            levels.push(Level { resnets, resample });
            from = to;
        }
        let norm_out = l.group_norm("decoder.conv_norm_out", from)?;
        let conv_out = l.conv("decoder.conv_out", 3, from, 3)?;
        l.finish()?;
        Ok(Vae { config, post_quant, conv_in, mid: mid_block, levels, norm_out, conv_out })
    }

    /// Channels of a latent.
    pub fn latent_channels(&self) -> usize {
        self.config.latent_channels
    }

    /// Pixels that a latent spans in each direction: 8 in FLUX.
    pub fn factor(&self) -> usize {
        self.config.factor()
    }

    /// Decodes `latents`, `[h · w, latent_channels]` as the sampler leaves them, to an image of
    /// `factor()` times that `size = [h, w]`: `[pixels, 3]`, RGB around -1 to 1, not clamped.
    ///
    /// # Errors
    /// `latents` are not of this size, or memory runs out.
    pub fn decode(&self, dev: &D, latents: &[f32], size: [usize; 2]) -> Result<D::Tensor> {
        check_image("latents", latents, size, self.config.latent_channels)?;
        let (scale, shift) = (self.config.scaling_factor, self.config.shift_factor());
        let mut z = Buf::copy_of(dev.memory(), latents, "latents")?;
        z.iter_mut().for_each(|x| *x = *x / scale + shift);
        let mut x = dev.upload(&z, self.config.latent_channels)?;
        drop(z);
        if let Some(conv) = &self.post_quant {
            x = dev.conv(&x, size, conv, None)?;
        }
        x = dev.conv(&x, size, &self.conv_in, None)?;
        x = self.mid.forward(dev, x, size)?;
        let mut size = size;
        for level in &self.levels {
            x = level.forward(dev, x, size)?;
            size = size.map(|n| if level.resample.is_some() { 2 * n } else { n });
        }
        x = self.norm_out.silu(dev, &x)?;
        dev.conv(&x, size, &self.conv_out, None)
    }
}
