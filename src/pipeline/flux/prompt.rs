//! Prompts as the transformer sees them.

use std::sync::Arc;

use super::FluxLora;
use super::networks::Networks;
use crate::Result;
use crate::lora::{Attached, Run};
use crate::memory::Buf;
use crate::ops::Device;
use crate::pipeline::tokenizer::Tokens;

/// An encoded prompt, in the host's memory. Devices compute in formats of which f32 keeps every bit, so that it makes no
/// difference when a prompt was encoded.
pub struct Embeddings {
    pub(super) key: Key,
    /// CLIP's pooled output.
    pub(super) pooled: Vec<f32>,
    /// T5's last hidden state, `[tokens, width]`.
    text: Buf<f32>,
    width: usize,
}

/// What embeddings depend on: the prompt's tokens, and the LoRAs that change text encoders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    clip: Tokens,
    t5: Tokens,
    /// Numbers, and strengths by their bits.
    loras: Vec<(u64, u32)>,
}

/// A prompt of an image.
pub(super) enum Text {
    Known(Arc<Embeddings>),
    /// To be encoded.
    Unknown(Key),
}

impl Key {
    pub(super) fn new<D: Device>([clip, t5]: [Tokens; 2], loras: &[(&FluxLora<D>, f32)]) -> Self {
        let changes_text = |lora: &FluxLora<D>| {
            lora.patches[1..].iter().any(|patch| !patch.updates.is_empty() || !patch.vectors.is_empty())
        };
        let loras = loras.iter().filter(|(lora, strength)| *strength != 0.0 && changes_text(lora));
        let loras = loras.map(|(lora, strength)| (lora.number, strength.to_bits())).collect();
        Key { clip, t5, loras }
    }

    /// What is to be said of a prompt that is longer than what the encoders see.
    pub(super) fn cut(&self) -> Option<String> {
        let cut = |(name, Tokens { ids, count }): (_, &Tokens)| {
            (*count > ids.len()).then(|| format!("{name} sees {} of its {count} tokens", ids.len()))
        };
        let cut: Vec<_> = [("CLIP", &self.clip), ("T5", &self.t5)].into_iter().filter_map(cut).collect();
        (!cut.is_empty()).then(|| format!("the prompt is cut: {}", cut.join(", ")))
    }
}

impl Embeddings {
    pub(super) fn tokens(&self) -> usize {
        self.key.t5.ids.len()
    }

    /// The hidden state as T5 leaves it on the device.
    pub(super) fn text<D: Device>(&self, dev: &D) -> Result<D::Tensor> {
        let values = dev.upload(&self.text, self.width)?;
        let mut text = dev.empty(self.tokens(), self.width)?;
        dev.copy_rows(&values, 0..self.tokens(), &mut text, 0)?;
        Ok(text)
    }
}

impl<D: Device> Networks<D> {
    /// Some prompt of so many tokens.
    pub(super) fn any_prompt(&self, t5_tokens: usize) -> Key {
        let whole = |ids: Vec<u32>| Tokens { count: ids.len(), ids };
        Key { clip: whole(self.clip.any_ids()), t5: whole(vec![0; t5_tokens]), loras: vec![] }
    }

    pub(super) fn encode(
        &self,
        dev: &D,
        key: &Key,
        [_, clip, t5]: &[Attached<'_, D>; 3],
    ) -> Result<Arc<Embeddings>> {
        let pooled = self.clip.encode(Run::with(dev, clip), &key.clip.ids)?.pooled;
        let text = self.t5.encode(Run::with(dev, t5), &key.t5.ids)?;
        let text = dev.download(&text)?;
        Ok(Arc::new(Embeddings { key: key.clone(), pooled, text, width: self.t5.hidden() }))
    }
}
