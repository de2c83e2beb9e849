//! A model on a device, and images made with it.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::device::Pipeline;
use super::opened::Opened;
use super::picture::{MAX_STEPS, Picture};
use super::scheduler::{Key, Scheduler};
use super::{Context, GenerateParams, ImageMut, Log, StepTimes, Timings, report};
use crate::memory::Buf;
use crate::ops::Profile;
use crate::pipeline::flux::{Init, Parts, Progress, ProgressFn, Prompt, Request, Watch};
use crate::weights::random::{RandomParts, RandomSizes};
use crate::weights::{Defaults, Loading, ModelFiles, PartKind, Source};
use crate::{Cancel, Result};

/// A model leaves room for its default image, but for none with longer sides than this.
const USUAL_SIDE: usize = 2048;

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

/// A loaded model. A clone is another handle to the same weights.
#[derive(Clone)]
pub struct Model(Arc<Inner>);

struct Inner {
    pipeline: Pipeline,
    info: ModelInfo,
    profile: Profile,
    image_input: bool,
    host_bytes: u64,
    context: Context,
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
        Self::of_parts(context, options, &opened.parts(options.image_input), &opened.defaults())
    }

    /// What the model in `options.sources` is, from headers and configs alone.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn inspect(options: &ModelOptions) -> Result<ModelInfo> {
        let loading = Loading::default();
        let opened = Opened::find(&options.sources, &loading)?;
        ModelInfo::of(&opened.parts(options.image_input), &opened.defaults())
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
        let loading = &Loading::new(Cancel::default(), context.memory.clone());
        let RandomParts { transformer, clip, t5, vae } = &RandomParts::new(sizes, loading)?;
        let parts = Parts { transformer, clip, t5, vae, folder: None, loading, image_input: false };
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
            prompt: Prompt::Text(""),
            width: (info.default_width as usize).min(USUAL_SIDE),
            height: (info.default_height as usize).min(USUAL_SIDE),
            steps: info.default_steps.clamp(1, MAX_STEPS) as usize,
            guidance: 0.0,
            seed: 0,
            init: parts.image_input.then_some(Init { rgb: &[], strength: 1.0 }),
            preview_every: 0,
        };
        let pipeline = Pipeline::load(context, profile, parts, tokens, &usual)?;
        let host_bytes = pipeline.host_bytes();
        let path = parts.transformer.checkpoint().path();
        report::model(context.log(), path, &info, profile, &pipeline, start.elapsed());
        let (image_input, context, key) = (options.image_input, context.clone(), Key::new());
        Ok(Model(Arc::new(Inner { pipeline, info, profile, image_input, host_bytes, context, key })))
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
        (self.0.context.scheduler(), self.0.key)
    }

    pub(super) fn context(&self) -> &Context {
        &self.0.context
    }

    /// Whether both are handles of the same model.
    pub(super) fn is(&self, other: &Model) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The context's.
    pub(super) fn log(&self) -> &Log {
        self.0.context.log()
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
    /// [`crate::Error::InvalidArgument`] names the parameter that the model cannot do, before anything runs;
    /// [`crate::Error::Cancelled`] when `progress` breaks or the context is shut down.
    pub fn generate(
        &self,
        params: &GenerateParams<'_>,
        image: &mut ImageMut<'_>,
        progress: &mut ProgressFn<'_>,
    ) -> Result<Timings> {
        let picture = self.picture(params, &self.0.context.memory)?;
        image.check_size(picture.width, picture.height)?;
        let turn = self.0.context.scheduler().enter(Some(self.0.key))?;
        let mut follow = Follow { cancel: turn.cancel(), log: self.log(), progress };
        let (rgb, timings) = self.make(&picture, turn.cancel(), &mut follow)?;
        image.write_rgb8(&rgb);
        Ok(timings)
    }

    /// Makes a picture, as 8-bit RGB, row by row from the top. It is the caller's turn.
    pub(super) fn make(
        &self,
        picture: &Picture,
        cancel: &Cancel,
        watch: &mut dyn Watch,
    ) -> Result<(Buf<u8>, Timings)> {
        self.0.pipeline.generate(&picture.request(), &picture.loras(), cancel, watch)
    }

    /// Measures the steps of an image, without making it.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub fn time_steps(&self, params: &GenerateParams<'_>) -> Result<StepTimes> {
        let picture = self.picture(params, &self.0.context.memory)?;
        let _turn = self.0.context.scheduler().enter(Some(self.0.key))?;
        self.0.pipeline.time_steps(&picture.request(), &picture.loras())
    }
}

/// A blocking call.
pub(super) struct Follow<'a, 'p> {
    pub(super) cancel: &'a Cancel,
    pub(super) log: &'a Log,
    pub(super) progress: &'a mut ProgressFn<'p>,
}

impl Watch for Follow<'_, '_> {
    fn progress(&mut self, at: Progress) -> ControlFlow<()> {
        if self.cancel.check().is_err() { ControlFlow::Break(()) } else { (self.progress)(at) }
    }

    fn warning(&mut self, line: &str) {
        self.log.warning(line);
    }
}
