//! The files of a model when they are opened: what it is, before any weights are read.

use super::model::ModelInfo;
use crate::Result;
use crate::pipeline::flux::Parts;
use crate::weights::flux::FluxWeights;
use crate::weights::{Checkpoint, Defaults, Loading, ModelFiles, PartKind, Source};

/// The networks of a model, whose headers have been read.
pub(super) struct Opened<'a> {
    files: ModelFiles,
    transformer: FluxWeights,
    clip: Checkpoint,
    t5: Checkpoint,
    vae: Checkpoint,
    loading: &'a Loading,
}

impl<'a> Opened<'a> {
    /// Finds and opens them.
    ///
    /// # Errors
    /// As [`ModelFiles::find`], [`Checkpoint::open_part`] and [`FluxWeights::open`].
    pub(super) fn find(sources: &[Source], loading: &'a Loading) -> Result<Self> {
        let files = ModelFiles::find(sources)?;
        let open = |kind| Ok(files.open(kind)?.with(loading));
        let transformer = FluxWeights::from_checkpoint(open(PartKind::Transformer)?)?;
        let (clip, t5, vae) = (open(PartKind::Clip)?, open(PartKind::T5)?, open(PartKind::Vae)?);
        Ok(Opened { files, transformer, clip, t5, vae, loading })
    }

    /// What a pipeline is made of.
    pub(super) fn parts(&self, image_input: bool) -> Parts<'_> {
        let Opened { files, transformer, clip, t5, vae, loading } = self;
        Parts { transformer, clip, t5, vae, folder: files.folder(), loading, image_input }
    }

    /// What the model's makers recommend.
    pub(super) fn defaults(&self) -> Defaults {
        self.files.defaults()
    }
}

impl ModelInfo {
    /// What a model of these parts is.
    ///
    /// # Errors
    /// A config is missing or malformed, or parts do not fit one another.
    pub(super) fn of(parts: &Parts<'_>, defaults: &Defaults) -> Result<Self> {
        parts.check()?;
        let weights = parts.transformer;
        let guidance = weights.config().guidance_embeds;
        let side = |side: Option<usize>| side.unwrap_or(1024) as u32;
        let files = [weights.checkpoint(), parts.clip, parts.t5, parts.vae];
        Ok(ModelInfo {
            guidance,
            rank: weights.rank(),
            nvfp4: weights.is_nvfp4(),
            default_width: side(defaults.width),
            default_height: side(defaults.height),
            // What FLUX.1-dev and schnell are meant for.
            default_steps: defaults.steps.unwrap_or(if guidance { 28 } else { 4 }) as u32,
            default_guidance: if guidance { defaults.guidance_scale.unwrap_or(3.5) } else { 0.0 },
            size_multiple: parts.size_multiple()? as u32,
            stored_bytes: files.iter().map(|file| file.size()).sum(),
        })
    }
}
