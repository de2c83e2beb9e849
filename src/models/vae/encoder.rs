//! Pixels to latents.

use std::path::Path;

use super::blocks::{GroupNorm, Level, Loader, Mid};
use super::check_image;
use super::config::Config;
use crate::memory::{Buf, HostMemory};
use crate::ops::Device;
use crate::weights::{Checkpoint, PartKind};
use crate::{Error, Result};

/// The encoder of a VAE. It is apart from [`super::Vae`] because text to image has no use for it.
pub struct VaeEncoder<D: Device> {
    config: Config,
    conv_in: D::Conv,
    levels: Vec<Level<D>>,
    mid: Mid<D>,
    norm_out: GroupNorm<D>,
    conv_out: D::Conv,
    quant: Option<D::Conv>,
}

/// The normal distribution of an image's latents, before the pipeline's shift and scale:
/// `[pixels, latent_channels]` each.
#[derive(Debug)]
pub struct Encoded {
    /// The mean.
    pub mean: Buf<f32>,
    /// The logarithm of the variance, from -30 to 20.
    pub logvar: Buf<f32>,
}

impl<D: Device> VaeEncoder<D> {
    /// Loads the encoder from the folder or file of [`super::Vae::load`].
    ///
    /// # Errors
    /// As there; also when the folder holds the decoder alone.
    pub fn load(dev: &D, path: &Path) -> Result<Self> {
        Self::new(dev, &Checkpoint::open_part(path, PartKind::Vae)?)
    }

    /// Loads the encoder of a VAE.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn new(dev: &D, file: &Checkpoint) -> Result<Self> {
        let config = Config::of(file)?;
        let mut l = Loader::new(dev, file, &config, ["encoder.", "quant_conv."]);
        let mut from = config.block_out_channels[0];
        let conv_in = l.conv("encoder.conv_in", from, 3, 3)?;
        let mut levels = Vec::new();
        for (i, &to) in config.block_out_channels.iter().enumerate() {
            let name = format!("encoder.down_blocks.{i}");
            let resnets = l.resnets(&name, config.layers_per_block, from, to)?;
            let resample = match i + 1 < config.block_out_channels.len() {
                true => Some(l.resample(&format!("{name}.downsamplers.0.conv"), to, false)?),
                false => None,
            };
            levels.push(Level { resnets, resample });
            from = to;
        }
        let mid = l.mid("encoder.mid_block")?;
        let norm_out = l.group_norm("encoder.conv_norm_out", from)?;
        let moments = config.latent_channels.saturating_mul(2);
        let conv_out = l.conv("encoder.conv_out", moments, from, 3)?;
        let quant = match config.use_quant_conv {
            true => Some(l.conv("quant_conv", moments, moments, 1)?),
            false => None,
        };
        l.finish()?;
        Ok(VaeEncoder { config, conv_in, levels, mid, norm_out, conv_out, quant })
    }

    /// Encodes an image, `[h · w, 3]`, RGB from -1 to 1, of `size = [h, w]`, both multiples
    /// of the factor between pixels and latents.
    ///
    /// # Errors
    /// `rgb` is not of this size, the size is not a multiple, or memory runs out.
    pub fn encode(&self, dev: &D, rgb: &[f32], size: [usize; 2]) -> Result<Encoded> {
        check_image("an image", rgb, size, 3)?;
        let factor = self.config.factor();
        if size.iter().any(|n| n % factor != 0) {
            let [h, w] = size;
            return Err(Error::InvalidArgument(format!(
                "the image's size {h} x {w} is not a multiple of {factor}"
            )));
        }
        let x = dev.upload(rgb, 3)?;
        let mut x = dev.conv(&x, size, &self.conv_in, None)?;
        let mut size = size;
        for level in &self.levels {
            x = level.forward(dev, x, size)?;
            size = size.map(|n| if level.resample.is_some() { n / 2 } else { n });
        }
        x = self.mid.forward(dev, x, size)?;
        x = self.norm_out.silu(dev, &x)?;
        x = dev.conv(&x, size, &self.conv_out, None)?;
        if let Some(conv) = &self.quant {
            x = dev.conv(&x, size, conv, None)?;
        }
        self.split(dev.memory(), &dev.download(&x)?)
    }

    /// Parts each pixel's channels into mean and log variance.
    fn split(&self, memory: &HostMemory, moments: &[f32]) -> Result<Encoded> {
        let channels = self.config.latent_channels;
        let half = || Buf::zeroed(memory, moments.len() / 2, "latents");
        let (mut mean, mut logvar) = (half()?, half()?);
        let to = mean.chunks_exact_mut(channels).zip(logvar.chunks_exact_mut(channels));
        for ((mean, logvar), pixel) in to.zip(moments.chunks_exact(2 * channels)) {
            mean.copy_from_slice(&pixel[..channels]);
            logvar.copy_from_slice(&pixel[channels..]);
            logvar.iter_mut().for_each(|v| *v = v.clamp(-30.0, 20.0));
        }
        Ok(Encoded { mean, logvar })
    }
}

impl Encoded {
    /// Turns noise, `[latent_channels, h, w]`, into a sample of the distribution, with the pipeline's shift and scale, as
    /// [`super::Vae::decode`] takes latents but for their order.
    pub fn sample<D: Device>(&self, encoder: &VaeEncoder<D>, noise: &mut [f32]) {
        let config = &encoder.config;
        let (channels, pixels) = (config.latent_channels, noise.len() / config.latent_channels);
        for (i, x) in noise.iter_mut().enumerate() {
            let at = i % pixels * channels + i / pixels;
            let z = self.mean[at] + (0.5 * self.logvar[at]).exp() * *x;
            *x = (z - config.shift_factor()) * config.scaling_factor;
        }
    }
}
