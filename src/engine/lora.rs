//! LoRAs: changes to a model that a picture can ask for.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::device::LoraWeights;
use super::{Model, report};
use crate::Result;
pub use crate::lora::LoraInfo;
use crate::weights::{Checkpoint, Loading, Source};

/// A LoRA that is loaded for one model, which it keeps alive. A clone is another handle to the same weights.
///
/// It changes nothing by itself: [`super::GenerateParams::loras`] says for each picture which LoRAs to use, and how
/// strongly. The model's weights stay as they are, so that this costs no time but that of the LoRA's own ranks.
#[derive(Clone)]
pub struct Lora(Arc<Inner>);

struct Inner {
    model: Model,
    weights: LoraWeights,
    info: LoraInfo,
}

impl Lora {
    /// Loads the LoRA in `source`, a safetensors file in the naming of diffusers, PEFT, kohya's scripts, ComfyUI,
    /// Black Forest Labs or XLabs. The model may be in use meanwhile; the file may change or vanish afterwards.
    ///
    /// # Errors
    /// [`crate::Error::WrongModel`] if it was made for another model, [`crate::Error::Unsupported`] for LoKr, LoHa,
    /// DoRA and other relatives of LoRAs, [`crate::Error::BadFormat`] for a damaged file.
    pub fn load(model: &Model, source: impl Into<Source>) -> Result<Self> {
        let turn = model.scheduler().0.enter(None)?;
        let start = Instant::now();
        let loading = Loading::new(turn.cancel().clone(), model.context().memory.clone());
        let file = Checkpoint::open(source.into().location())?.with(&loading);
        let (weights, info) = model.pipeline().load_lora(&file)?;
        report::lora(model.log(), file.path(), &info, start.elapsed());
        Ok(Lora(Arc::new(Inner { model: model.clone(), weights, info })))
    }

    /// What it brings to the model.
    pub fn info(&self) -> &LoraInfo {
        &self.0.info
    }

    /// Whether both are handles of the same LoRA.
    pub(super) fn is(&self, other: &Lora) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(super) fn model(&self) -> &Model {
        &self.0.model
    }

    pub(super) fn weights(&self) -> &LoraWeights {
        &self.0.weights
    }
}

impl fmt::Debug for Lora {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lora").field(&self.0.info).finish()
    }
}
