//! The FLUX.1 recipe: prompt → embeddings → denoised latents → 8-bit RGB (diffusers' `FluxPipeline`).

mod bench;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use bench::StepTimes;

use super::latents;
use super::noise::randn;
use super::sampler::{Schedule, SchedulerConfig};
use super::tokenizer::{Kind, Tokenizer};
use crate::lora::{self, Attached, LoraInfo, Patch, Run, Sites};
use crate::memory::Buf;
use crate::models::clip::{self, Clip};
use crate::models::flux::{Conditioning, Flux, Sequence};
use crate::models::t5::{self, T5};
use crate::models::vae::{self, Vae};
use crate::ops::{Cost, Device};
use crate::weights::flux::FluxWeights;
use crate::weights::{Checkpoint, Loading, PipelineFolder};
use crate::{Error, Result};

/// One image to make. Every field is already checked against the model.
pub struct Request<'a> {
    /// What to draw.
    pub prompt: &'a str,
    /// Pixels, a multiple of [`Parts::size_multiple`].
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

/// What a pipeline is made of.
pub struct Parts<'a> {
    /// The transformer.
    pub transformer: &'a FluxWeights,
    /// CLIP's text encoder.
    pub clip: &'a Checkpoint,
    /// T5's encoder.
    pub t5: &'a Checkpoint,
    /// The VAE.
    pub vae: &'a Checkpoint,
    /// Of tokenizers and schedule; FLUX.1's if there is none.
    pub folder: Option<&'a PipelineFolder>,
    /// What is told of the progress. All parts belong to it.
    pub loading: &'a Loading,
}

impl Parts<'_> {
    /// Whether the networks fit one another, by their configs and headers.
    ///
    /// # Errors
    /// [`Error::WrongModel`], [`Error::Unsupported`], and what is wrong with a config.
    pub fn check(&self) -> Result<()> {
        let (t5, clip) = (t5::width(self.t5)?, clip::width(self.clip)?);
        check_sizes(self.transformer, t5, clip, 4 * vae::latent_channels(self.vae)?)
    }

    /// Width and height of an image are multiples of this many pixels: a patch is 2x2 latents.
    ///
    /// # Errors
    /// What is wrong with the VAE's config.
    pub fn size_multiple(&self) -> Result<usize> {
        Ok(2 * vae::factor(self.vae)?)
    }
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

impl Job<'_> {
    /// Rows and columns of patches.
    fn grid(&self) -> [usize; 2] {
        self.latent_size.map(|side| side / 2)
    }
}

/// What the memory that a run takes depends on: prompts are of one length.
#[derive(Clone, PartialEq, Eq)]
struct Size {
    latent_size: [usize; 2],
    steps: usize,
    loras: Vec<u64>,
}

impl<D: Device> FluxPipeline<D> {
    /// Loads `parts` onto `dev`. Prompts are padded or cut to `max_sequence_length` T5 tokens. `usual` is what will be
    /// asked for, whatever its prompt: the device keeps weights so that there is room for it.
    pub fn load(
        mut dev: D,
        parts: &Parts<'_>,
        max_sequence_length: usize,
        usual: &Request<'_>,
    ) -> Result<Self> {
        let scheduler = match parts.folder {
            Some(folder) => SchedulerConfig::load(folder.scheduler())?,
            None => SchedulerConfig::flux_1(parts.transformer.config().guidance_embeds),
        };
        let run = |dev: &D, networks: &Networks<D>| {
            let (clip_ids, t5_ids) = (networks.clip.any_ids(), vec![0; max_sequence_length]);
            let job = networks.job(&scheduler, usual, clip_ids, t5_ids)?;
            networks.run(dev, &job, &networks.attach(&[])?, &mut |_| ControlFlow::Continue(())).map(drop)
        };
        dev.fit(|dev| Networks::load(dev, parts), run)?;
        parts.loading.begin();
        let networks = Networks::load(&dev, parts)?;
        let (clip, t5) = (&networks.clip, &networks.t5);
        let (clip_tokenizer, t5_tokenizer) = match parts.folder {
            Some(folder) => (
                Tokenizer::open(folder.tokenizer(), Kind::Clip, clip.max_tokens())?,
                Tokenizer::open(folder.tokenizer_2(), Kind::T5, max_sequence_length)?,
            ),
            None => (
                Tokenizer::flux_1(Kind::Clip, clip.max_tokens())?,
                Tokenizer::flux_1(Kind::T5, max_sequence_length)?,
            ),
        };
        check_vocabulary(parts.clip, &clip_tokenizer, clip.vocabulary())?;
        check_vocabulary(parts.t5, &t5_tokenizer, t5.vocabulary())?;
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
    ) -> Result<(Buf<u8>, Timings)> {
        let start = Instant::now();
        let (attached, job) = (self.networks.attach(loras)?, self.job(request)?);
        let tokenize = start.elapsed();
        self.reserve(&job, &attached, loras)?;
        let (rgb, timings) = self.networks.run(&self.dev, &job, &attached, progress)?;
        Ok((rgb, Timings { encode: tokenize + timings.encode, ..timings }))
    }

    /// What [`Self::generate`] takes, without making an image.
    ///
    /// # Errors
    /// As [`Self::generate`], but for memory of the device.
    pub fn measure(&self, request: &Request<'_>, loras: &[(&FluxLora<D>, f32)]) -> Result<Cost> {
        let (attached, job) = (self.networks.attach(loras)?, self.job(request)?);
        let go_on = &mut |_| ControlFlow::Continue(());
        self.dev.measure(|dev| self.networks.run(dev, &job, &attached, go_on).map(drop))
    }

    fn job<'a>(&self, request: &'a Request<'a>) -> Result<Job<'a>> {
        let clip_ids = self.clip_tokenizer.encode(request.prompt)?;
        let t5_ids = self.t5_tokenizer.encode(request.prompt)?;
        self.networks.job(&self.scheduler, request, clip_ids, t5_ids)
    }

    /// Memory for the run, unless it is there since the last one.
    fn reserve(
        &self,
        job: &Job<'_>,
        attached: &[Attached<'_, D>; 3],
        loras: &[(&FluxLora<D>, f32)],
    ) -> Result<()> {
        let used = loras.iter().filter(|(_, strength)| *strength != 0.0);
        let size = Size {
            latent_size: job.latent_size,
            steps: job.request.steps,
            loras: used.map(|(lora, _)| lora.number).collect(),
        };
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        if reserved.as_ref() != Some(&size) || !self.dev.is_reserved() {
            *reserved = None;
            let go_on = &mut |_| ControlFlow::Continue(());
            self.dev.reserve(|dev| self.networks.run(dev, job, attached, go_on).map(drop))?;
            *reserved = Some(size);
        }
        Ok(())
    }
}

impl<D: Device> Networks<D> {
    fn load(dev: &D, parts: &Parts<'_>) -> Result<Self> {
        let (clip, t5) = (Clip::new(dev, parts.clip)?, T5::new(dev, parts.t5)?);
        let vae = Vae::new(dev, parts.vae)?;
        Ok(Networks { clip, t5, flux: Flux::load(dev, parts.transformer)?, vae })
    }

    fn job<'a>(
        &self,
        scheduler: &SchedulerConfig,
        request: &'a Request<'a>,
        clip_ids: Vec<u32>,
        t5_ids: Vec<u32>,
    ) -> Result<Job<'a>> {
        // Whole patches, at least one.
        let patches = |side: usize| (side / (2 * self.vae.factor())).max(1);
        let grid @ [rows, columns] = [request.height, request.width].map(patches);
        let schedule = Schedule::new(scheduler, request.steps, rows * columns)?;
        Ok(Job { request, clip_ids, t5_ids, schedule, latent_size: grid.map(|side| 2 * side) })
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
    ) -> Result<(Buf<u8>, Timings)> {
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
    ) -> Result<Buf<f32>> {
        let mut image = self.noise(run, job, pooled, text)?;
        for step in 0..job.request.steps {
            report(progress, Progress::Denoise { step, steps: job.request.steps })?;
            image.step(step)?;
        }
        let (channels, packed) = (self.vae.latent_channels(), run.dev.download(&image.latents)?);
        latents::unpack(run.dev.memory(), &packed, channels, job.latent_size)
    }

    /// The image before its first step.
    fn noise<'a>(
        &'a self,
        run: Run<'a, D>,
        job: &'a Job<'_>,
        pooled: &[f32],
        text: D::Tensor,
    ) -> Result<Denoising<'a, D>> {
        let &Job { request: &Request { steps, guidance, seed, .. }, ref schedule, latent_size, .. } = job;
        // In f32 on every device, so that all make the same picture.
        let timesteps: Vec<f32> = (0..steps).map(|step| schedule.timestep(step, |value| value)).collect();
        let conditioning = self.flux.condition(run, &timesteps, guidance, pooled)?;
        let grid = job.grid();
        let sequence = self.flux.sequence(run, &text, job.t5_ids.len(), grid)?;
        drop(text);

        let channels = self.vae.latent_channels();
        let memory = run.dev.memory();
        let mut noise = Buf::zeroed(memory, channels * latent_size[0] * latent_size[1], "noise")?;
        randn(seed, &mut noise);
        let packed = latents::pack(memory, &noise, channels, latent_size)?;
        let latents = run.dev.upload(&packed, 4 * channels)?;
        let velocity = run.dev.empty(grid[0] * grid[1], 4 * channels)?;
        Ok(Denoising { flux: &self.flux, run, schedule, sequence, conditioning, latents, velocity })
    }
}

/// An image between two steps.
struct Denoising<'a, D: Device> {
    flux: &'a Flux<D>,
    run: Run<'a, D>,
    schedule: &'a Schedule,
    sequence: Sequence<D>,
    conditioning: Conditioning<D>,
    latents: D::Tensor,
    velocity: D::Tensor,
}

impl<D: Device> Denoising<'_, D> {
    fn step(&mut self, step: usize) -> Result<()> {
        let Denoising { flux, run, ref sequence, .. } = *self;
        flux.velocity(run, &self.latents, sequence, &mut self.conditioning, step, &mut self.velocity)?;
        run.dev.euler_step(&mut self.latents, &self.velocity, self.schedule.dt(step))
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
fn check_vocabulary(encoder: &Checkpoint, tokenizer: &Tokenizer, rows: usize) -> Result<()> {
    let tokens = tokenizer.vocabulary();
    if tokens <= rows {
        return Ok(());
    }
    let what = format!(
        "has {rows} tokens, but its tokenizer {tokens}: of a model with tokenizers of its own, the pipeline folder is needed"
    );
    Err(Error::WrongModel { path: encoder.path().into(), what })
}
