//! The FLUX.1 recipe: prompt → embeddings → denoised latents → 8-bit RGB (diffusers' `FluxPipeline`).

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
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

/// A FLUX.1 pipeline on one device.
pub struct FluxPipeline<D: Device> {
    dev: D,
    clip_tokenizer: Tokenizer,
    t5_tokenizer: Tokenizer,
    networks: Networks<D>,
    scheduler: SchedulerConfig,
    /// What the device has reserved memory for.
    reserved: Mutex<Option<Size>>,
    /// How many LoRAs were loaded.
    loras: AtomicU64,
}

struct Networks<D: Device> {
    clip: Clip<D>,
    t5: T5<D>,
    flux: Flux<D>,
    vae: Vae<D>,
}

/// A LoRA on the device, for the networks of one pipeline: transformer, CLIP, T5.
pub struct FluxLora<D: Device> {
    patches: [Patch<D>; 3],
    /// Its number among the LoRAs that the pipeline loaded.
    number: u64,
}

/// A request with its prompt as token ids.
struct Job<'a> {
    request: &'a Request<'a>,
    clip_ids: Vec<u32>,
    t5_ids: Vec<u32>,
    schedule: Schedule,
    /// Height and width in latents.
    latent_size: [usize; 2],
}

/// What the memory that a run takes depends on: prompts are of one length.
#[derive(Clone, PartialEq, Eq)]
struct Size {
    latent_size: [usize; 2],
    steps: usize,
    loras: Vec<u64>,
}

impl<D: Device> FluxPipeline<D> {
    /// Loads the parts in `files`, and the transformer from `weights`, onto `dev`. Prompts are padded or cut to
    /// `max_sequence_length` T5 tokens. Tokenizers and schedule are FLUX.1's if no pipeline folder has others.
    pub fn load(
        dev: D,
        files: &ModelFiles,
        weights: &FluxWeights,
        max_sequence_length: usize,
    ) -> Result<Self> {
        dev.reserve(|dev| Networks::load(dev, files, weights).map(drop))?;
        let networks = Networks::load(&dev, files, weights)?;
        let (clip, t5) = (&networks.clip, &networks.t5);
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
        check_vocabulary(files.part(PartKind::Clip), &clip_tokenizer, clip.vocabulary())?;
        check_vocabulary(files.part(PartKind::T5), &t5_tokenizer, t5.vocabulary())?;
        Ok(FluxPipeline {
            dev,
            clip_tokenizer,
            t5_tokenizer,
            networks,
            scheduler,
            reserved: Mutex::default(),
            loras: AtomicU64::default(),
        })
    }

    /// The device that it was loaded onto.
    pub fn device(&self) -> &D {
        &self.dev
    }

    /// Width and height of an image are multiples of this many pixels: a patch is 2x2 latents.
    pub fn size_multiple(&self) -> usize {
        2 * self.networks.vae.factor()
    }

    /// Puts a LoRA for these networks on the device.
    ///
    /// # Errors
    /// As [`lora::load`].
    pub fn load_lora(&self, file: &Checkpoint) -> Result<(FluxLora<D>, LoraInfo)> {
        let (patches, info) = lora::load(&self.dev, file, self.networks.sites())?;
        Ok((FluxLora { patches, number: self.loras.fetch_add(1, Ordering::Relaxed) }, info))
    }

    /// Makes an image: 8-bit RGB, row by row from the top. `loras` are those to use and their strengths.
    ///
    /// # Errors
    /// [`Error::OutOfDeviceMemory`] before anything runs, [`Error::Cancelled`], and what the device has.
    pub fn generate(
        &self,
        request: &Request<'_>,
        loras: &[(&FluxLora<D>, f32)],
        progress: &mut ProgressFn<'_>,
    ) -> Result<(Vec<u8>, Timings)> {
        let start = Instant::now();
        let attached = self.networks.attach(loras)?;
        let job = self.job(request)?;
        let tokenize = start.elapsed();
        let loras =
            loras.iter().filter(|(_, strength)| *strength != 0.0).map(|(lora, _)| lora.number).collect();
        self.reserve(Size { latent_size: job.latent_size, steps: request.steps, loras }, |dev| {
            self.networks.run(dev, &job, &attached, &mut |_| ControlFlow::Continue(())).map(drop)
        })?;
        let (rgb, timings) = self.networks.run(&self.dev, &job, &attached, progress)?;
        Ok((rgb, Timings { encode: tokenize + timings.encode, ..timings }))
    }

    fn job<'a>(&self, request: &'a Request<'a>) -> Result<Job<'a>> {
        let factor = self.networks.vae.factor();
        let latent_size @ [height, width] = [request.height / factor, request.width / factor];
        Ok(Job {
            request,
            clip_ids: self.clip_tokenizer.encode(request.prompt)?,
            t5_ids: self.t5_tokenizer.encode(request.prompt)?,
            schedule: Schedule::new(&self.scheduler, request.steps, height / 2 * (width / 2))?,
            latent_size,
        })
    }

    /// Memory for `run`, which is of this size, unless it is there since the last one.
    fn reserve(&self, size: Size, run: impl FnOnce(&D) -> Result<()>) -> Result<()> {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        if reserved.as_ref() != Some(&size) {
            *reserved = None;
            self.dev.reserve(run)?;
            *reserved = Some(size);
        }
        Ok(())
    }
}

impl<D: Device> Networks<D> {
    fn load(dev: &D, files: &ModelFiles, weights: &FluxWeights) -> Result<Self> {
        let clip = Clip::load(dev, files.part(PartKind::Clip))?;
        let t5 = T5::load(dev, files.part(PartKind::T5))?;
        let vae = Vae::load(dev, files.part(PartKind::Vae))?;
        check_sizes(weights, t5.hidden(), clip.hidden(), 4 * vae.latent_channels())?;
        Ok(Networks { clip, t5, flux: Flux::load(dev, weights)?, vae })
    }

    fn sites(&self) -> [&Sites; 3] {
        [self.flux.sites(), self.clip.sites(), self.t5.sites()]
    }

    fn attach<'a>(&self, loras: &[(&'a FluxLora<D>, f32)]) -> Result<[Attached<'a, D>; 3]> {
        let attach = |network: usize| {
            let patches = loras.iter().map(|&(lora, strength)| (&lora.patches[network], strength));
            Attached::new(self.sites()[network], patches)
        };
        Ok([attach(0)?, attach(1)?, attach(2)?])
    }

    fn run(
        &self,
        dev: &D,
        job: &Job<'_>,
        attached: &[Attached<'_, D>; 3],
        progress: &mut ProgressFn<'_>,
    ) -> Result<(Vec<u8>, Timings)> {
        let [flux, clip, t5] = attached.each_ref().map(|attached| Run::with(dev, attached));
        let start = report(progress, Progress::Encode)?;
        let pooled = self.clip.encode(clip, &job.clip_ids)?.pooled;
        let text = self.t5.encode(t5, &job.t5_ids)?;
        let encode = start.elapsed();

        let start = Instant::now();
        let latents = self.denoise(flux, job, &pooled, text, progress)?;
        let denoise = start.elapsed();

        let start = report(progress, Progress::Decode)?;
        let image = self.vae.decode(dev, &latents, job.latent_size)?;
        let rgb = dev.to_rgb8(&image)?;
        Ok((rgb, Timings { encode, denoise, decode: start.elapsed() }))
    }

    /// From noise to latents, `[h · w, channels]`. What it needs of the device's memory is free afterwards.
    fn denoise(
        &self,
        run: Run<'_, D>,
        job: &Job<'_>,
        pooled: &[f32],
        text: D::Tensor,
        progress: &mut ProgressFn<'_>,
    ) -> Result<Vec<f32>> {
        let &Job { request: &Request { steps, guidance, seed, .. }, ref schedule, latent_size, .. } = job;
        // In f32 on every device, so that all make the same picture.
        let timesteps: Vec<f32> = (0..steps).map(|step| schedule.timestep(step, |value| value)).collect();
        let mut conditioning = self.flux.condition(run, &timesteps, guidance, pooled)?;
        let grid = latent_size.map(|side| side / 2);
        let sequence = self.flux.sequence(run, &text, job.t5_ids.len(), grid)?;
        drop(text);

        let channels = self.vae.latent_channels();
        let noise = randn(seed, channels * latent_size[0] * latent_size[1]);
        let mut latents = run.dev.upload(&latents::pack(&noise, channels, latent_size), 4 * channels)?;
        let mut velocity = run.dev.empty(grid[0] * grid[1], 4 * channels)?;
        for step in 0..steps {
            report(progress, Progress::Denoise { step, steps })?;
            self.flux.velocity(run, &latents, &sequence, &mut conditioning, step, &mut velocity)?;
            run.dev.euler_step(&mut latents, &velocity, schedule.dt(step))?;
        }
        Ok(latents::unpack(&run.dev.download(&latents)?, channels, latent_size))
    }
}

/// Tells where the run is, and the time.
fn report(progress: &mut ProgressFn<'_>, at: Progress) -> Result<Instant> {
    match progress(at) {
        ControlFlow::Continue(()) => Ok(Instant::now()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
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
