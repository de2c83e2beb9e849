//! The FLUX.1 recipe: prompt → embeddings → denoised latents → 8-bit RGB (diffusers' `FluxPipeline`).

mod bench;
mod image_input;
mod networks;
mod preview;
mod prompt;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use bench::StepTimes;
use image_input::first_step;
use networks::{Job, Made, Networks};
use preview::LinearMap;
pub use prompt::Embeddings;
use prompt::{Key, Text};

use super::sampler::{Schedule, SchedulerConfig};
use super::tokenizer::{Kind, Tokenizer};
use crate::lora::{self, Attached, LoraInfo, Patch};
use crate::memory::Buf;
use crate::models::{clip, t5, vae};
use crate::ops::{Cost, Device};
use crate::weights::flux::FluxWeights;
use crate::weights::{Checkpoint, Loading, PipelineFolder};
use crate::{Cancel, Error, Result};

/// One image to make. Every field is already checked against the model.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// What to draw.
    pub prompt: Prompt<'a>,
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
    /// What to start from; noise alone if `None`.
    pub init: Option<Init<'a>>,
    /// Steps from one preview to the next; 0 for none.
    pub preview_every: usize,
}

impl Request<'_> {
    /// Steps that are run: an image to start from cuts off the first ones.
    pub fn steps_run(&self) -> usize {
        self.steps - self.first_step()
    }

    /// Whether a step comes after which there is a preview.
    fn has_previews(&self) -> bool {
        (1..=self.steps_run()).contains(&self.preview_every)
    }

    fn first_step(&self) -> usize {
        self.init.map_or(0, |init| first_step(self.steps, init.strength))
    }
}

/// What to draw.
#[derive(Clone, Copy)]
pub enum Prompt<'a> {
    /// In words.
    Text(&'a str),
    /// As [`FluxPipeline::encode`] has it.
    Encoded(&'a Arc<Embeddings>),
}

/// An image to start from.
#[derive(Clone, Copy)]
pub struct Init<'a> {
    /// 8-bit RGB of the request's size, row by row from the top.
    pub rgb: &'a [u8],
    /// What of it is replaced, above 0 to 1: so large a part of the steps is run, as in diffusers' `FluxImg2ImgPipeline`.
    pub strength: f32,
}

/// What an image would look like, roughly: a pixel a latent.
pub struct Preview {
    /// 8-bit RGB, row by row from the top.
    pub rgb: Buf<u8>,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
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

/// Who follows a run.
pub trait Watch {
    /// As [`ProgressFn`].
    fn progress(&mut self, at: Progress) -> ControlFlow<()>;

    /// Is told of what is not as it was asked for.
    fn warning(&mut self, line: &str) {
        let _ = line;
    }

    /// Is given every preview.
    fn preview(&mut self, preview: Preview) {
        let _ = preview;
    }
}

/// Nobody follows.
struct Nobody;

impl Watch for Nobody {
    fn progress(&mut self, _: Progress) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

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
    /// The prompt of the last image.
    last: Mutex<Option<Arc<Embeddings>>>,
    /// From latents to the colours of previews, once it is known.
    map: Mutex<Option<Arc<LinearMap>>>,
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
    /// Whether images are to be made from others.
    pub image_input: bool,
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

/// A LoRA on the device, for the networks of one pipeline: transformer, CLIP, T5.
pub struct FluxLora<D: Device> {
    patches: [Patch<D>; 3],
    /// Its number among the LoRAs that the pipeline loaded.
    number: u64,
}

/// What the memory that a run takes depends on: prompts are of one length.
#[derive(Clone, PartialEq, Eq)]
struct Size {
    latent_size: [usize; 2],
    steps: usize,
    loras: Vec<u64>,
    /// The prompt has to be encoded, an image too, there are previews, and their map has to be found.
    parts: [bool; 4],
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
            let text = Text::Unknown(networks.any_prompt(max_sequence_length));
            let job = networks.job(&scheduler, usual, text, None)?;
            networks.run(dev, &job, &networks.attach(&[])?, &mut Nobody).map(drop)
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
            last: Mutex::default(),
            map: Mutex::default(),
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

    /// Encodes a prompt with `loras`, to be used any number of times.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub fn encode(
        &self,
        prompt: &str,
        loras: &[(&FluxLora<D>, f32)],
        cancel: &Cancel,
        watch: &mut dyn Watch,
    ) -> Result<Arc<Embeddings>> {
        let attached = self.networks.attach(loras)?;
        match self.text(Prompt::Text(prompt), loras)? {
            Text::Known(embeddings) => Ok(embeddings),
            Text::Unknown(key) => {
                if let Some(line) = key.cut() {
                    watch.warning(&line);
                }
                // The memory may be less than an image needs, whose turn may be next.
                *lock(&self.reserved) = None;
                self.dev.reserve(|dev| self.networks.encode(dev, &key, &attached).map(drop))?;
                self.until(cancel, |dev| self.networks.encode(dev, &key, &attached))
            }
        }
    }

    /// Makes an image: 8-bit RGB, row by row from the top. `loras` are those to use and their strengths.
    ///
    /// # Errors
    /// [`Error::OutOfDeviceMemory`] before anything runs, [`Error::Cancelled`], and what the device has.
    pub fn generate(
        &self,
        request: &Request<'_>,
        loras: &[(&FluxLora<D>, f32)],
        cancel: &Cancel,
        watch: &mut dyn Watch,
    ) -> Result<(Buf<u8>, Timings)> {
        let start = Instant::now();
        let (attached, job) = (self.networks.attach(loras)?, self.job(request, loras)?);
        let tokenize = start.elapsed();
        if let Text::Unknown(key) = &job.text
            && let Some(line) = key.cut()
        {
            watch.warning(&line);
        }
        self.reserve(&job, &attached, loras)?;
        let Made { rgb, timings, embeddings, map } =
            self.until(cancel, |dev| self.networks.run(dev, &job, &attached, watch))?;
        // An image that was cancelled or failed leaves nothing behind.
        *lock(&self.last) = Some(embeddings);
        if map.is_some() {
            *lock(&self.map) = map;
        }
        Ok((rgb, Timings { encode: tokenize + timings.encode, ..timings }))
    }

    /// What [`Self::generate`] takes, without making an image.
    ///
    /// # Errors
    /// As [`Self::generate`], but for memory of the device.
    pub fn measure(&self, request: &Request<'_>, loras: &[(&FluxLora<D>, f32)]) -> Result<Cost> {
        let (attached, job) = (self.networks.attach(loras)?, self.job(request, loras)?);
        self.dev.measure(|dev| self.networks.run(dev, &job, &attached, &mut Nobody).map(drop))
    }

    /// Does `work`, which ends early once `cancel` asks for it.
    fn until<T>(&self, cancel: &Cancel, work: impl FnOnce(&D) -> Result<T>) -> Result<T> {
        self.dev.set_cancel(cancel.clone());
        let done = work(&self.dev);
        self.dev.set_cancel(Cancel::default());
        done
    }

    fn job<'a>(&self, request: &'a Request<'a>, loras: &[(&FluxLora<D>, f32)]) -> Result<Job<'a>> {
        let text = self.text(request.prompt, loras)?;
        self.networks.job(&self.scheduler, request, text, lock(&self.map).clone())
    }

    /// The embeddings of a prompt if they are known, or else its tokens.
    fn text(&self, prompt: Prompt<'_>, loras: &[(&FluxLora<D>, f32)]) -> Result<Text> {
        let text = match prompt {
            Prompt::Encoded(embeddings) => return Ok(Text::Known(embeddings.clone())),
            Prompt::Text(text) => text,
        };
        let ids = [self.clip_tokenizer.encode(text)?, self.t5_tokenizer.encode(text)?];
        let key = Key::new(ids, loras);
        Ok(match &*lock(&self.last) {
            Some(last) if last.key == key => Text::Known(last.clone()),
            _ => Text::Unknown(key),
        })
    }

    /// Memory for the run, unless it is there since the last one.
    fn reserve(
        &self,
        job: &Job<'_>,
        attached: &[Attached<'_, D>; 3],
        loras: &[(&FluxLora<D>, f32)],
    ) -> Result<()> {
        let used = loras.iter().filter(|(_, strength)| *strength != 0.0);
        let previews = job.request.has_previews();
        let encodes = matches!(job.text, Text::Unknown(_));
        let size = Size {
            latent_size: job.latent_size,
            steps: job.schedule.steps(),
            loras: used.map(|(lora, _)| lora.number).collect(),
            parts: [encodes, job.request.init.is_some(), previews, previews && job.map.is_none()],
        };
        let mut reserved = lock(&self.reserved);
        if reserved.as_ref() != Some(&size) || !self.dev.is_reserved() {
            *reserved = None;
            self.dev.reserve(|dev| self.networks.run(dev, job, attached, &mut Nobody).map(drop))?;
            *reserved = Some(size);
        }
        Ok(())
    }
}

/// Tells where the run is, and the time.
fn report(watch: &mut dyn Watch, at: Progress) -> Result<Instant> {
    match watch.progress(at) {
        ControlFlow::Continue(()) => Ok(Instant::now()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}

/// What is behind these locks is whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
