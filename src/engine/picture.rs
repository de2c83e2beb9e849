//! What a picture is to be, checked against the model that makes it.

use std::sync::Arc;

use super::device::LoraWeights;
use super::{ImageRef, Lora, Model, Prompt};
use crate::memory::{Buf, HostMemory};
use crate::pipeline::flux::{self, Embeddings, Init, Request};
use crate::{Error, Result};

/// Sides and area beyond which an image is refused. FLUX.1 is trained up to 2 megapixels.
const MAX_SIDE: u32 = 8192;
const MAX_AREA: u64 = 2048 * 2048;
/// No schedule of FLUX.1 gains from more steps.
pub(super) const MAX_STEPS: u32 = 1000;
/// What is replaced of an image to start from, unless told otherwise; as in diffusers.
const INIT_STRENGTH: f32 = 0.6;

/// An image to make. A zero width, height or number of steps, and a guidance or strength of 0, mean the default.
#[derive(Clone, Debug, Default)]
pub struct GenerateParams<'a> {
    /// What to draw.
    pub prompt: &'a str,
    /// What to draw, encoded by the same model; `prompt` is not looked at.
    pub encoded: Option<&'a Prompt>,
    /// Pixels, a multiple of [`super::ModelInfo::size_multiple`].
    pub width: u32,
    /// Pixels, likewise.
    pub height: u32,
    /// Denoising steps, at most 1000.
    pub steps: u32,
    /// Distilled guidance scale; ignored by models without its embedding.
    pub guidance: f32,
    /// Seed of the noise: the one that `torch.Generator("cpu").manual_seed` would be given in diffusers.
    pub seed: u64,
    /// LoRAs of this model and their strengths: 1 is what a LoRA was trained for, 0 leaves it out. Those that change text
    /// encoders do so to `prompt`; an encoded one stays what it is.
    pub loras: &'a [(Lora, f32)],
    /// An image of the picture's size to start from, instead of from noise alone. For models that were loaded for it
    /// ([`super::ModelOptions::image_input`]).
    pub init: Option<ImageRef<'a>>,
    /// How much of `init` is replaced, above 0 to 1: this part of the steps is run, the last ones, as in diffusers'
    /// `FluxImg2ImgPipeline`.
    pub init_strength: f32,
    /// Steps from one preview to the next; 0 for none. Only jobs have previews. They do not change the picture.
    pub preview_every: u32,
}

/// What a picture takes, and whether that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerateCost {
    /// Temporaries on the GPU, in bytes, at the peak.
    pub device_bytes: u64,
    /// Temporaries in the host's memory, likewise.
    pub host_bytes: u64,
    /// The GPU's free memory and the memory budget suffice now.
    pub fits: bool,
}

/// A picture to make: all that it needs is here.
pub(super) struct Picture {
    text: String,
    encoded: Option<Arc<Embeddings>>,
    loras: Vec<(Lora, f32)>,
    /// 8-bit RGB, without gaps.
    init: Option<Buf<u8>>,
    init_strength: f32,
    pub(super) width: u32,
    pub(super) height: u32,
    steps: u32,
    guidance: f32,
    pub(super) seed: u64,
    preview_every: u32,
}

impl Picture {
    pub(super) fn request(&self) -> Request<'_> {
        let prompt = match &self.encoded {
            Some(embeddings) => flux::Prompt::Encoded(embeddings),
            None => flux::Prompt::Text(&self.text),
        };
        let strength = self.init_strength;
        Request {
            prompt,
            width: self.width as usize,
            height: self.height as usize,
            steps: self.steps as usize,
            guidance: self.guidance,
            seed: self.seed,
            init: self.init.as_deref().map(|rgb| Init { rgb, strength }),
            preview_every: self.preview_every as usize,
        }
    }

    pub(super) fn loras(&self) -> Vec<(&LoraWeights, f32)> {
        weights(&self.loras)
    }

    /// Steps that are run.
    pub(super) fn steps(&self) -> u32 {
        self.request().steps_run() as u32
    }
}

pub(super) fn weights(loras: &[(Lora, f32)]) -> Vec<(&LoraWeights, f32)> {
    loras.iter().map(|(lora, strength)| (lora.weights(), *strength)).collect()
}

impl Model {
    /// The picture of these parameters, in memory of its own.
    ///
    /// # Errors
    /// As [`Self::resolve`]; [`Error::OutOfHostMemory`] for the image to start from.
    pub(super) fn picture(&self, params: &GenerateParams<'_>, memory: &HostMemory) -> Result<Picture> {
        let params = self.resolve(params)?;
        Ok(Picture {
            text: if params.encoded.is_some() { String::new() } else { params.prompt.to_owned() },
            encoded: params.encoded.map(|prompt| prompt.embeddings().clone()),
            loras: params.loras.to_vec(),
            init: params.init.map(|image| image.rgb8(memory)).transpose()?,
            init_strength: params.init_strength,
            width: params.width,
            height: params.height,
            steps: params.steps,
            guidance: params.guidance,
            seed: params.seed,
            preview_every: params.preview_every,
        })
    }

    /// What a picture takes beside the model, exactly, and whether that is there. Nothing is done for it and no memory is
    /// taken that counts. A prompt that the model has seen last, or that is encoded, makes a difference.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub fn check(&self, params: &GenerateParams<'_>) -> Result<GenerateCost> {
        let pixels = HostMemory::default();
        let picture = self.picture(params, &pixels)?;
        let cost = self.pipeline().measure(&picture.request(), &picture.loras())?;
        let fits = match self.context().gpu_room()? {
            None => true,
            // Temporaries of the last picture are there to be used again.
            Some(room) => cost.device_bytes <= room.saturating_add(self.gpu_bytes()[1]),
        };
        Ok(GenerateCost {
            device_bytes: cost.device_bytes,
            host_bytes: cost.host_bytes + pixels.used(),
            fits,
        })
    }

    /// The parameters with the model's defaults in place of zeros.
    ///
    /// # Errors
    /// As [`Self::generate`], for parameters that the model cannot do.
    pub fn resolve<'a>(&self, params: &GenerateParams<'a>) -> Result<GenerateParams<'a>> {
        let info = self.info();
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
        if params.encoded.is_some_and(|prompt| !prompt.model().is(self)) {
            return invalid("the prompt was encoded by another model".into());
        }
        self.check_loras(params.loras)?;
        let init_strength = if params.init_strength == 0.0 { INIT_STRENGTH } else { params.init_strength };
        if let Some(init) = &params.init {
            if !self.takes_images() {
                return invalid("init is given, but the model was loaded without image input".into());
            }
            if (init.width(), init.height()) != (width, height) {
                let (w, h) = (init.width(), init.height());
                return invalid(format!(
                    "init is {w}x{h} pixels, but the picture is to have {width}x{height}"
                ));
            }
            if !(init_strength > 0.0 && init_strength <= 1.0) {
                return invalid(format!("init_strength is {init_strength}, not above 0 and up to 1"));
            }
        }
        Ok(GenerateParams { width, height, steps, guidance, init_strength, ..params.clone() })
    }

    /// # Errors
    /// [`Error::InvalidArgument`] if they are not this model's, not different, or not of finite strength.
    pub(super) fn check_loras(&self, loras: &[(Lora, f32)]) -> Result<()> {
        let invalid = |what: String| Err(Error::InvalidArgument(what));
        for (i, (lora, strength)) in loras.iter().enumerate() {
            if !lora.model().is(self) {
                return invalid(format!("LoRA {i} is loaded for another model"));
            }
            if !strength.is_finite() {
                return invalid(format!(
                    "the strength of LoRA {i} is {strength}: it has to be a finite number"
                ));
            }
            if let Some(first) = loras[..i].iter().position(|(other, _)| other.is(lora)) {
                return invalid(format!("LoRA {i} is the same as LoRA {first}"));
            }
        }
        Ok(())
    }
}
