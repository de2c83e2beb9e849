//! Prompts that are encoded once, and used for any number of pictures.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::model::Follow;
use super::picture::weights;
use super::{Lora, Model};
use crate::Result;
use crate::pipeline::flux::Embeddings;

/// An encoded prompt of one model, which it keeps alive. A clone is another handle to the same embeddings. They are in the
/// host's memory: 8 MB with FLUX.1-dev.
#[derive(Clone)]
pub struct Prompt(Arc<Inner>);

struct Inner {
    model: Model,
    embeddings: Arc<Embeddings>,
}

impl Prompt {
    /// Encodes `text`, with those of `loras` that change text encoders. A picture of it is the same as one of the text with
    /// the same LoRAs. Blocks; takes turns with the model's pictures.
    ///
    /// # Errors
    /// As [`Model::generate`].
    pub fn encode(model: &Model, text: &str, loras: &[(Lora, f32)]) -> Result<Self> {
        model.check_loras(loras)?;
        let (scheduler, key) = model.scheduler();
        let turn = scheduler.enter(Some(key))?;
        let go_on = &mut |_| ControlFlow::Continue(());
        let mut follow = Follow { cancel: turn.cancel(), log: model.log(), progress: go_on };
        let embeddings = model.pipeline().encode(text, &weights(loras), turn.cancel(), &mut follow)?;
        Ok(Prompt(Arc::new(Inner { model: model.clone(), embeddings })))
    }

    pub(super) fn model(&self) -> &Model {
        &self.0.model
    }

    pub(super) fn embeddings(&self) -> &Arc<Embeddings> {
        &self.0.embeddings
    }
}

impl fmt::Debug for Prompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prompt").finish_non_exhaustive()
    }
}
