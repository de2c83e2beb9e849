//! The FLUX.1 recipe: prompt → embeddings → denoised latents → 8-bit RGB (diffusers' `FluxPipeline`).

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use super::latents;
use super::noise::randn;
use super::sampler::{Schedule, SchedulerConfig};
use super::tokenizer::{Kind, Tokenizer};
use crate::lora::{self, Attached, LoraInfo, Patch, Run, Sites};
use crate::models::{clip::Clip, flux::Flux, t5::T5, vae::Vae};
use crate::ops::Device;
use crate::weights::flux::FluxWeights;
use crate::weights::{Checkpoint, ModelFiles, PartKind};
use crate::{Error, Result};

/// One image to make. Every field is already checked against the model.
pub struct Request<'a> {
    /// What to draw.
    pub prompt: &'a str,
    /// Pixels, a multiple of [`FluxPipeline::size_multiple`].
    pub width: usize,
    /// Pixels, likewise.
    pub height: usize,
    /// Denoising steps.
    pub steps: usize,
    /// Distilled guidance scale.
    pub guidance: f32,
    /// Of the initial noise.
    pub seed: u64,
}

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The prompt is about to be encoded.
    Encode,
    /// `step` of `steps` is about to run; counts from 0.
    Denoise {
        /// The step about to run.
        step: usize,
        /// How many there are.
        steps: usize,
    },
    /// The latents are about to be decoded.
    Decode,
}

/// Asked before every phase and every step; `Break` ends the run with [`Error::Cancelled`].
pub type ProgressFn<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// How long the parts of a run took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Tokenizers and text encoders.
    pub encode: Duration,
    /// The transformer, modulation tables included.
    pub denoise: Duration,
    /// The VAE and the conversion to 8 bits.
    pub decode: Duration,
}

/// All networks of a FLUX.1 pipeline on one device.
pub struct FluxPipeline<D: Device> {
    dev: D,
    clip_tokenizer: Tokenizer,
    t5_tokenizer: Tokenizer,
    clip: Clip<D>,
    t5: T5<D>,
    flux: Flux<D>,
    vae: Vae<D>,
    scheduler: SchedulerConfig,
}

/// A LoRA on the device, for the networks of one pipeline: transformer, CLIP, T5.
pub struct FluxLora<D: Device>([Patch<D>; 3]);

impl<D: Device> FluxPipeline<D> {
    /// Loads the parts in `files`, and the transformer from `weights`, onto `dev`. Prompts are padded or cut to
    /// `max_sequence_length` T5 tokens. Tokenizers and schedule are FLUX.1's if no pipeline folder has others.
    pub fn load(
        dev: D,
        files: &ModelFiles,
        weights: &FluxWeights,
        max_sequence_length: usize,
    ) -> Result<Self> {
        let [clip_path, t5_path] = [PartKind::Clip, PartKind::T5].map(|kind| files.part(kind));
        let clip = Clip::load(&dev, clip_path)?;
        let t5 = T5::load(&dev, t5_path)?;
        let vae = Vae::load(&dev, files.part(PartKind::Vae))?;
        check_sizes(weights, t5.hidden(), clip.hidden(), 4 * vae.latent_channels())?;
        let (clip_tokenizer, t5_tokenizer, scheduler) = match files.folder() {
            Some(folder) => (
                Tokenizer::open(&folder.tokenizer(), Kind::Clip, clip.max_tokens())?,
                Tokenizer::open(&folder.tokenizer_2(), Kind::T5, max_sequence_length)?,
                SchedulerConfig::load(&folder.scheduler())?,
            ),
            None => (
                Tokenizer::flux_1(Kind::Clip, clip.max_tokens())?,
                Tokenizer::flux_1(Kind::T5, max_sequence_length)?,
                SchedulerConfig::flux_1(weights.config().guidance_embeds),
            ),
        };
        check_vocabulary(clip_path, &clip_tokenizer, clip.vocabulary())?;
        check_vocabulary(t5_path, &t5_tokenizer, t5.vocabulary())?;
        let flux = Flux::load(&dev, weights)?;
        Ok(FluxPipeline { clip_tokenizer, t5_tokenizer, scheduler, flux, dev, clip, t5, vae })
    }

    /// Width and height of an image are multiples of this many pixels: a patch is 2x2 latents.
    pub fn size_multiple(&self) -> usize {
        2 * self.vae.factor()
    }

    /// Puts a LoRA for these networks on the device.
    ///
    /// # Errors
    /// As [`lora::load`].
    pub fn load_lora(&self, file: &Checkpoint) -> Result<(FluxLora<D>, LoraInfo)> {
        let (patches, info) = lora::load(&self.dev, file, self.sites())?;
        Ok((FluxLora(patches), info))
    }

    fn sites(&self) -> [&Sites; 3] {
        [self.flux.sites(), self.clip.sites(), self.t5.sites()]
    }

    /// Makes an image: 8-bit RGB, row by row from the top. `loras` are those to use and their strengths.
    pub fn generate(
        &self,
        request: &Request<'_>,
        loras: &[(&FluxLora<D>, f32)],
        progress: &mut ProgressFn<'_>,
    ) -> Result<(Vec<u8>, Timings)> {
        let mut report = |at| match progress(at) {
            ControlFlow::Continue(()) => Ok(Instant::now()),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        };
        let latent_size = [request.height / self.vae.factor(), request.width / self.vae.factor()];
        let grid = latent_size.map(|side| side / 2);

        let [flux, clip, t5] = self.attach(loras)?;
        let [flux, clip, t5] = [&flux, &clip, &t5].map(|attached| Run::with(&self.dev, attached));
        let start = report(Progress::Encode)?;
        let pooled = self.clip.encode(clip, &self.clip_tokenizer.encode(request.prompt)?)?.pooled;
        let tokens = self.t5_tokenizer.encode(request.prompt)?;
        let text = self.t5.encode(t5, &tokens)?;
        let encode = start.elapsed();

        let start = Instant::now();
        let schedule = Schedule::new(&self.scheduler, request.steps, grid[0] * grid[1])?;
        // In f32 on every device, so that all make the same picture.
        let timesteps: Vec<f32> =
            (0..request.steps).map(|step| schedule.timestep(step, |value| value)).collect();
        let conditioning = self.flux.condition(flux, &timesteps, request.guidance, &pooled)?;
        let sequence = self.flux.sequence(flux, &text, tokens.len(), grid)?;

        let channels = self.vae.latent_channels();
        let noise = randn(request.seed, channels * latent_size[0] * latent_size[1]);
        let mut latents = self.dev.upload(&latents::pack(&noise, channels, latent_size), 4 * channels)?;
        for step in 0..request.steps {
            report(Progress::Denoise { step, steps: request.steps })?;
            let velocity = self.flux.velocity(flux, &latents, &sequence, &conditioning, step)?;
            self.dev.euler_step(&mut latents, &velocity, schedule.dt(step))?;
        }
        let latents = latents::unpack(&self.dev.download(&latents)?, channels, latent_size);
        let denoise = start.elapsed();

        let start = report(Progress::Decode)?;
        let image = self.vae.decode(&self.dev, &latents, latent_size)?;
        let rgb = self.dev.to_rgb8(&image)?;
        Ok((rgb, Timings { encode, denoise, decode: start.elapsed() }))
    }

    fn attach<'a>(&self, loras: &[(&'a FluxLora<D>, f32)]) -> Result<[Attached<'a, D>; 3]> {
        let attach = |network: usize| {
            Attached::new(
                self.sites()[network],
                loras.iter().map(|&(lora, strength)| (&lora.0[network], strength)),
            )
        };
        Ok([attach(0)?, attach(1)?, attach(2)?])
    }
}

/// The transformer must fit the text encoders' widths and the `patch` channels of 2x2 latents.
fn check_sizes(weights: &FluxWeights, t5: usize, clip: usize, patch: usize) -> Result<()> {
    let (config, path) = (weights.config(), weights.checkpoint().path());
    if config.in_channels > patch && config.out_channels == patch {
        return Err(Error::Unsupported(format!(
            "{}: the transformer takes {} channels, {patch} of noise and the rest of images to work from, as FLUX.1 Fill, \
             Canny and Depth do: this cannot be run yet",
            path.display(),
            config.in_channels
        )));
    }
    for (name, value, other, wanted) in [
        ("joint_attention_dim", config.joint_attention_dim, "T5's d_model", t5),
        ("pooled_projection_dim", config.pooled_projection_dim, "CLIP's hidden_size", clip),
        ("in_channels", config.in_channels, "4 x the VAE's latent_channels", patch),
        ("out_channels", config.out_channels, "in_channels", config.in_channels),
    ] {
        if value != wanted {
            let what = format!("the transformer's {name} is {value}, but {other} is {wanted}");
            return Err(Error::WrongModel { path: path.into(), what });
        }
    }
    Ok(())
}

/// Every token of the tokenizer must have a row in its encoder's table.
fn check_vocabulary(encoder: &Path, tokenizer: &Tokenizer, rows: usize) -> Result<()> {
    let tokens = tokenizer.vocabulary();
    if tokens <= rows {
        return Ok(());
    }
    let what = format!(
        "has {rows} tokens, but its tokenizer {tokens}: of a model with tokenizers of its own, the pipeline folder is needed"
    );
    Err(Error::WrongModel { path: encoder.into(), what })
}
