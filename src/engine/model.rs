//! A model on a device, and images made with it.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::device::{LoraWeights, Pipeline};
use super::opened::Opened;
use super::scheduler::{Key, Scheduler};
use super::{Context, ImageMut, Log, Lora, StepTimes, Timings, report};
use crate::memory::Buf;
use crate::ops::Profile;
use crate::pipeline::flux::{Parts, ProgressFn, Request};
use crate::weights::random::{RandomParts, RandomSizes};
use crate::weights::{Defaults, Loading, ModelFiles, PartKind, Source};
use crate::{Cancel, Error, Result};

/// Sides and area beyond which an image is refused. FLUX.1 is trained up to 2 megapixels.
const MAX_SIDE: u32 = 8192;
const MAX_AREA: u64 = 2048 * 2048;
/// A model leaves room for its default image, but for none with longer sides than this.
const USUAL_SIDE: usize = 2048;
/// No schedule of FLUX.1 gains from more steps.
const MAX_STEPS: u32 = 1000;

/// What to load.
#[derive(Clone, Debug, Default)]
pub struct ModelOptions {
    /// Files and folders with the transformer, CLIP's and T5's encoder and the VAE, in any order: each is recognised by
    /// its tensors. A diffusers pipeline folder has them all (a `svdq-*.safetensors` file in it goes before its
    /// `transformer`); what is there besides replaces its own. Without one, tokenizers and schedule are FLUX.1's.
    pub sources: Vec<Source>,
    /// How activations are quantised in 4-bit layers; [`Context::default_profile`] if `None`.
    pub profile: Option<Profile>,
    /// Pictures are to be made from others: the VAE's encoder is kept too.
    pub image_input: bool,
}

/// What a model is, and what it does unless told otherwise.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// Whether the model has a guidance embedding (FLUX.1-dev) or ignores guidance (schnell).
    pub guidance: bool,
    /// Rank of the low-rank branches; `None` for a 16-bit transformer.
    pub rank: Option<usize>,
    /// 4-bit weights are NVFP4; else INT4.
    pub nvfp4: bool,
    /// Pixels.
    pub default_width: u32,
    /// Pixels.
    pub default_height: u32,
    /// Denoising steps.
    pub default_steps: u32,
    /// Guidance scale.
    pub default_guidance: f32,
    /// Width and height of images are multiples of this.
    pub size_multiple: u32,
    /// Bytes of all tensors of the networks, as the files have them.
    pub stored_bytes: u64,
}

/// An image to make. A zero width, height or number of steps, and a guidance of 0, mean the model's default.
#[derive(Clone, Debug, Default)]
pub struct GenerateParams<'a> {
    /// What to draw.
    pub prompt: &'a str,
    /// Pixels, a multiple of [`ModelInfo::size_multiple`].
    pub width: u32,
    /// Pixels, likewise.
    pub height: u32,
    /// Denoising steps, at most 1000.
    pub steps: u32,
    /// Distilled guidance scale; ignored by models without its embedding.
    pub guidance: f32,
    /// Seed of the noise: the one that `torch.Generator("cpu").manual_seed` would be given in diffusers.
    pub seed: u64,
    /// LoRAs of this model and their strengths: 1 is what a LoRA was trained for, 0 leaves it out.
    pub loras: &'a [(Lora, f32)],
}

/// A loaded model. A clone is another handle to the same weights.
#[derive(Clone)]
pub struct Model(Arc<Inner>);

struct Inner {
    pipeline: Pipeline,
    info: ModelInfo,
    profile: Profile,
    image_input: bool,
    host_bytes: u64,
    log: Log,
    scheduler: Scheduler,
    /// One image at a time: others wait.
    key: Key,
}

impl Model {
    /// Loads a model for `context`'s device. Blocks until all weights are read; the files may change or
    /// vanish afterwards.
    ///
    /// # Errors
    /// Names the file, and the tensor or key in it, that is missing, broken or contradicts another.
    pub fn load(context: &Context, options: &ModelOptions) -> Result<Self> {
        let turn = context.scheduler().enter(None)?;
        Self::load_with(context, options, &Loading::new(turn.cancel().clone(), context.memory.clone()))
    }

    /// As [`Model::load`], as the load that `loading` can cancel and knows the progress of, whose turn it is.
    ///
    /// # Errors
    /// As [`Model::load`]; [`Error::Cancelled`].
    pub(super) fn load_with(context: &Context, options: &ModelOptions, loading: &Loading) -> Result<Self> {
        let opened = Opened::find(&options.sources, loading)?;
        Self::of_parts(context, options, &opened.parts(), &opened.defaults())
    }

    /// What the model in `options.sources` is, from headers and configs alone.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn inspect(options: &ModelOptions) -> Result<ModelInfo> {
        let loading = Loading::default();
        let opened = Opened::find(&options.sources, &loading)?;
        ModelInfo::of(&opened.parts(), &opened.defaults())
    }

    /// How long it takes to read the tensors of the model in `options.sources` and to copy them to the device, which is what
    /// loading it takes at least; and how many bytes they have. On a GPU it takes memory for a while.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn time_reading(context: &Context, options: &ModelOptions) -> Result<(Duration, u64)> {
        let files = ModelFiles::find(&options.sources)?;
        let (start, mut bytes) = (Instant::now(), 0);
        for kind in PartKind::ALL {
            let part = files.open(kind)?;
            bytes += part.size();
            let tensors = part.tensors().map(|tensor| tensor.bytes()).collect::<Result<Vec<_>>>()?;
            match &context.gpu {
                Some(gpu) => gpu.copy(tensors.into_iter())?,
                None => tensors.into_iter().for_each(|tensor| drop(black_box(tensor.to_vec()))),
            }
        }
        Ok((start.elapsed(), bytes))
    }

    /// A model of these sizes whose weights are random: it is as fast as a real one.
    ///
    /// # Errors
    /// As [`Model::load`], for sizes that make no model.
    pub fn random(context: &Context, sizes: &RandomSizes, profile: Option<Profile>) -> Result<Self> {
        let RandomParts { transformer, clip, t5, vae } = &RandomParts::new(sizes)?;
        let loading = &Loading::default();
        let parts = Parts { transformer, clip, t5, vae, folder: None, loading };
        let options = ModelOptions { profile, ..Default::default() };
        Self::of_parts(context, &options, &parts, &Defaults::default())
    }

    fn of_parts(
        context: &Context,
        options: &ModelOptions,
        parts: &Parts<'_>,
        defaults: &Defaults,
    ) -> Result<Self> {
        let start = Instant::now();
        let info = ModelInfo::of(parts, defaults)?;
        let profile = options.profile.unwrap_or_else(|| context.default_profile(info.nvfp4));
        // What FLUX.1-dev and schnell are meant for.
        let tokens = defaults.max_sequence_length.unwrap_or(if info.guidance { 512 } else { 256 });
        let usual = Request {
            prompt: "",
            width: (info.default_width as usize).min(USUAL_SIDE),
            height: (info.default_height as usize).min(USUAL_SIDE),
            steps: info.default_steps.clamp(1, MAX_STEPS) as usize,
            guidance: 0.0,
            seed: 0,
        };
        let pipeline = Pipeline::load(context, profile, parts, tokens, &usual)?;
        let host_bytes = pipeline.host_bytes();
        let path = parts.transformer.checkpoint().path();
        report::model(context.log(), path, &info, profile, &pipeline, start.elapsed());
        let (image_input, log) = (options.image_input, context.log().clone());
        let (scheduler, key) = (context.scheduler().clone(), Key::new());
        let inner = Inner { pipeline, info, profile, image_input, host_bytes, log, scheduler, key };
        Ok(Model(Arc::new(inner)))
    }

    /// Bytes of GPU memory that the model takes: its weights and those of its LoRAs, and the temporaries of its images,
    /// which stay for the next one. Zeros on the CPU.
    pub fn gpu_bytes(&self) -> [u64; 2] {
        self.0.pipeline.gpu_bytes()
    }

    /// Activation precision of 4-bit layers.
    pub fn profile(&self) -> Profile {
        self.0.profile
    }

    /// Whether it was loaded to make pictures from others.
    pub fn takes_images(&self) -> bool {
        self.0.image_input
    }

    /// Bytes of the model's weights in the host's memory.
    pub fn host_bytes(&self) -> u64 {
        self.0.host_bytes
    }

    /// Where calls wait for their turn at this model.
    pub(super) fn scheduler(&self) -> (&Scheduler, Key) {
        (&self.0.scheduler, self.0.key)
    }

    /// The context's.
    pub(super) fn log(&self) -> &Log {
        &self.0.log
    }

    pub(super) fn pipeline(&self) -> &Pipeline {
        &self.0.pipeline
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.0.info
    }

    /// Makes an image in the caller's pixels, which are written only on success. Blocks; may be called from any thread.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] names the parameter that the model cannot do, before anything runs;
    /// [`Error::Cancelled`] when `progress` breaks or the context is shut down.
    pub fn generate(
        &self,
        params: &GenerateParams<'_>,
        image: &mut ImageMut<'_>,
        progress: &mut ProgressFn<'_>,
    ) -> Result<Timings> {
        let params = self.resolve(params)?;
        image.check_size(params.width, params.height)?;
        let turn = self.0.scheduler.enter(Some(self.0.key))?;
        let (rgb, timings) = self.make(&params, turn.cancel(), progress)?;
        image.write_rgb8(&rgb);
        Ok(timings)
    }

    /// Makes an image, as 8-bit RGB, row by row from the top. `params` are resolved, and it is the caller's turn.
    pub(super) fn make(
        &self,
        params: &GenerateParams<'_>,
        cancel: &Cancel,
        progress: &mut ProgressFn<'_>,
    ) -> Result<(Buf<u8>, Timings)> {
        let mut progress = |at| match cancel.check() {
            Ok(()) => progress(at),
            Err(_) => ControlFlow::Break(()),
        };
        self.0.pipeline.generate(&request(params), &weights(params), &mut progress)
    }

    /// Measures the steps of an image, without making it.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub fn time_steps(&self, params: &GenerateParams<'_>) -> Result<StepTimes> {
        let params = self.resolve(params)?;
        let _turn = self.0.scheduler.enter(Some(self.0.key))?;
        self.0.pipeline.time_steps(&request(&params), &weights(&params))
    }

    /// The parameters with the model's defaults in place of zeros.
    ///
    /// # Errors
    /// As [`Self::generate`], for parameters that the model cannot do.
    pub fn resolve<'a>(&self, params: &GenerateParams<'a>) -> Result<GenerateParams<'a>> {
        let info = &self.0.info;
        let or = |value, default| if value == 0 { default } else { value };
        let invalid = |what: String| Err(Error::InvalidArgument(what));
        let (width, height) = (or(params.width, info.default_width), or(params.height, info.default_height));
        let steps = or(params.steps, info.default_steps);
        let guidance = if params.guidance == 0.0 { info.default_guidance } else { params.guidance };
        for (name, side) in [("width", width), ("height", height)] {
            if side % info.size_multiple != 0 {
                return invalid(format!(
                    "{name} is {side}, which is not a multiple of {}",
                    info.size_multiple
                ));
            }
            if side > MAX_SIDE {
                return invalid(format!("{name} is {side}, at most {MAX_SIDE} is allowed"));
            }
        }
        if u64::from(width) * u64::from(height) > MAX_AREA {
            return invalid(format!("{width}x{height} pixels are too many: at most {MAX_AREA} are allowed"));
        }
        if steps > MAX_STEPS {
            return invalid(format!("steps is {steps}, at most {MAX_STEPS} are allowed"));
        }
        if !guidance.is_finite() || guidance < 0.0 {
            return invalid(format!("guidance is {guidance}: it has to be a finite number, 0 or above"));
        }
        for (i, (lora, strength)) in params.loras.iter().enumerate() {
            if !Arc::ptr_eq(&lora.model().0, &self.0) {
                return invalid(format!("LoRA {i} is loaded for another model"));
            }
            if !strength.is_finite() {
                return invalid(format!(
                    "the strength of LoRA {i} is {strength}: it has to be a finite number"
                ));
            }
            if let Some(first) = params.loras[..i].iter().position(|(other, _)| other.is(lora)) {
                return invalid(format!("LoRA {i} is the same as LoRA {first}"));
            }
        }
        Ok(GenerateParams { width, height, steps, guidance, ..params.clone() })
    }
}

/// What the pipeline is asked for. `params` are resolved.
fn request<'a>(params: &GenerateParams<'a>) -> Request<'a> {
    Request {
        prompt: params.prompt,
        width: params.width as usize,
        height: params.height as usize,
        steps: params.steps as usize,
        guidance: params.guidance,
        seed: params.seed,
    }
}

fn weights<'a>(params: &GenerateParams<'a>) -> Vec<(&'a LoraWeights, f32)> {
    params.loras.iter().map(|(lora, strength)| (lora.weights(), *strength)).collect()
}
