//! Where an image starts: from noise, or from another image, as diffusers' `FluxImg2ImgPipeline` does it.

use super::Init;
use super::networks::{Job, Networks};
use crate::memory::{Buf, HostMemory};
use crate::ops::Device;
use crate::pipeline::latents;
use crate::pipeline::noise::Normal;
use crate::{Error, Result};

/// The first of `steps` steps that is run, so that `strength` of them are, at least one.
pub(super) fn first_step(steps: usize, strength: f32) -> usize {
    // The strength that was meant: 0.6, and not what is nearest to it in f32, which is above.
    let strength: f64 = strength.to_string().parse().unwrap_or(1.0);
    let run = (steps as f64 * strength).min(steps as f64);
    ((steps as f64 - run).max(0.0) as usize).min(steps.saturating_sub(1))
}

impl<D: Device> Networks<D> {
    /// Latents before the first step, as patches: `sigma · noise + (1 - sigma) · image`.
    ///
    /// The image's latents are a sample of what the VAE's encoder gives, as in diffusers. That sample is the seed's first
    /// draw of noise and the noise of the image the second; without an image, its noise is the first.
    pub(super) fn first_latents(&self, dev: &D, job: &Job<'_>) -> Result<Buf<f32>> {
        let (channels, size, memory) = (self.vae.latent_channels(), job.latent_size, dev.memory());
        let count = channels * size[0] * size[1];
        let mut normal = Normal::new(job.request.seed);
        let mut noise = Buf::zeroed(memory, count, "noise")?;
        normal.fill(&mut noise);
        if let Some(init) = job.request.init {
            let mut image = noise;
            self.sample(dev, job, init, &mut image)?;
            noise = Buf::zeroed(memory, count, "noise")?;
            normal.fill(&mut noise);
            let sigma = job.schedule.sigmas[0];
            noise.iter_mut().zip(&image).for_each(|(n, x)| *n = sigma * *n + (1.0 - sigma) * x);
        }
        latents::pack(memory, &noise, channels, size)
    }

    /// Turns noise, `[channels, h, w]`, into a sample of the image's latents.
    fn sample(&self, dev: &D, job: &Job<'_>, init: Init<'_>, noise: &mut [f32]) -> Result<()> {
        let Some(encoder) = &self.encoder else {
            return Err(Error::Internal("a model without a VAE encoder was given an image".into()));
        };
        let size = job.latent_size.map(|side| side * self.vae.factor());
        let rgb = unit(dev.memory(), init.rgb, 3 * size[0] * size[1])?;
        encoder.encode(dev, &rgb, size)?.sample(encoder, noise);
        Ok(())
    }
}

/// 8-bit values as -1 to 1; zeros where there are none, for a run that only finds out what memory it takes.
fn unit(memory: &HostMemory, bytes: &[u8], count: usize) -> Result<Buf<f32>> {
    let mut values = Buf::zeroed(memory, count, "the image to start from")?;
    values.iter_mut().zip(bytes).for_each(|(v, &byte)| *v = 2.0 * (f32::from(byte) / 255.0) - 1.0);
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::first_step;

    /// `int(max(steps - min(steps * strength, steps), 0))` in Python.
    #[test]
    fn steps_are_cut_as_in_diffusers() {
        for (steps, strength, first) in [
            (10, 0.6, 4),
            (10, 0.3, 7),
            (10, 1.0, 0),
            (28, 0.6, 11),
            (20, 0.55, 9),
            (4, 0.9, 0),
            (4, 0.1, 3),
            (1, 0.01, 0),
            (1000, f32::MIN_POSITIVE, 999),
        ] {
            assert_eq!(first_step(steps, strength), first, "{steps} steps, {strength}");
        }
    }
}
