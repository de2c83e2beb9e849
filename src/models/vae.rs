//! AutoencoderKL: latents to pixels, and back.
//!
//! An image is a tensor with a pixel a row, so every layer is a convolution or works pixel by pixel. Each
//! level of the network halves (encoder) or doubles (decoder) height and width, except the last one.

mod blocks;
mod config;
mod decoder;
mod encoder;

pub use decoder::Vae;
pub use encoder::{Encoded, VaeEncoder};

use crate::weights::Checkpoint;
use crate::{Error, Result};

/// Pixels that a latent of the VAE in `file` spans in each direction.
pub(crate) fn factor(file: &Checkpoint) -> Result<usize> {
    Ok(config::Config::of(file)?.factor())
}

/// Channels of a latent of the VAE in `file`.
pub(crate) fn latent_channels(file: &Checkpoint) -> Result<usize> {
    Ok(config::Config::of(file)?.latent_channels)
}

/// Checks that `values` are an image of `size` with so many channels.
fn check_image(what: &str, values: &[f32], size: [usize; 2], channels: usize) -> Result<()> {
    let [h, w] = size;
    let count = h.checked_mul(w).and_then(|pixels| pixels.checked_mul(channels));
    if count.is_none_or(|n| n == 0 || n != values.len()) {
        let got = values.len();
        let what = format!("{what} of {h} x {w} with {channels} channels cannot have {got} values");
        return Err(Error::InvalidArgument(what));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
