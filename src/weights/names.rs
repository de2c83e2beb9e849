//! Which part of a pipeline a checkpoint is, and the names of other makers' files turned into those that this library
//! reads: diffusers' and transformers', and Nunchaku's for 4-bit layers.

mod bfl;
mod nunchaku;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;

use super::locate::USUAL;
use super::{Checkpoint, Location};
use crate::{Error, Result};

/// A network of a FLUX.1 pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PartKind {
    /// The FLUX.1 transformer.
    Transformer,
    /// CLIP's text encoder.
    Clip,
    /// T5's encoder.
    T5,
    /// The VAE.
    Vae,
}

impl PartKind {
    /// All four.
    pub const ALL: [PartKind; 4] = [PartKind::Transformer, PartKind::Clip, PartKind::T5, PartKind::Vae];

    /// How the names of some tensors begin that every such network has, after the prefix of its file.
    fn marks(self) -> &'static [&'static str] {
        match self {
            PartKind::Transformer => &["single_transformer_blocks.0.", "double_blocks.0."],
            PartKind::Clip => &["text_model.encoder.layers.0.", "encoder.layers.0.self_attn."],
            PartKind::T5 => &["encoder.block.0.layer.0.SelfAttention."],
            PartKind::Vae => &["decoder.conv_in."],
        }
    }

    /// What stands before the names of this network's tensors in `checkpoint`, if it is there.
    fn prefix(self, checkpoint: &Checkpoint) -> Option<String> {
        self.marks().iter().find_map(|mark| {
            checkpoint.names().find_map(|name| {
                let at = name.find(mark)?;
                (at == 0 || name[..at].ends_with('.')).then(|| name[..at].to_owned())
            })
        })
    }
}

impl fmt::Display for PartKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PartKind::Transformer => "FLUX.1 transformer",
            PartKind::Clip => "CLIP text encoder",
            PartKind::T5 => "T5 text encoder",
            PartKind::Vae => "VAE",
        })
    }
}

impl Checkpoint {
    /// The networks whose tensors are here: usually one, all of them in ComfyUI's all-in-one files.
    pub fn parts(&self) -> Vec<PartKind> {
        PartKind::ALL.into_iter().filter(|kind| kind.prefix(self).is_some()).collect()
    }

    /// Opens the network `kind` of a file or folder, its tensors under the names of diffusers and transformers;
    /// 4-bit layers of a transformer under Nunchaku's.
    ///
    /// # Errors
    /// As [`Checkpoint::open`] and [`Checkpoint::into_part`].
    pub fn open_part(at: impl Into<Location>, kind: PartKind) -> Result<Self> {
        Checkpoint::open(at)?.into_part(kind)
    }

    /// The network `kind` alone, as [`Checkpoint::open_part`] gives it.
    ///
    /// # Errors
    /// [`Error::WrongModel`] if it is not here, and [`Error::BadFormat`] if its tensors cannot have these names: two of
    /// one name, fused layers with rows missing.
    pub fn into_part(mut self, kind: PartKind) -> Result<Self> {
        let Some(prefix) = kind.prefix(&self) else {
            let found = match self.parts()[..] {
                [] => self.names().next().map_or("no tensors".into(), |name| format!("`{name}` ...")),
                ref parts => {
                    format!("a {}", parts.iter().map(PartKind::to_string).collect::<Vec<_>>().join(", a "))
                }
            };
            let what = format!("no {kind}: found {found}");
            return Err(Error::WrongModel { path: self.path().into(), what });
        };
        if !prefix.is_empty() {
            self.retain(|name| name.starts_with(&prefix));
            self.rename(|name| name.strip_prefix(&prefix).map(str::to_owned))?;
        }
        match kind {
            PartKind::Transformer => {
                bfl::transformer(&mut self)?;
                nunchaku::layers(&mut self)?;
            }
            PartKind::Vae => bfl::vae(&mut self)?,
            PartKind::Clip | PartKind::T5 => {}
        }
        Ok(self)
    }

    /// The config.json of this network: that of its folder, or beside a file of a name that diffusers or transformers
    /// gives. Files on their own have none, and are what their tensors say.
    pub(crate) fn config(&self) -> Option<Location> {
        let at = self.location();
        if at.is_dir() {
            return Some(at.join("config.json"));
        }
        let name = at.path().file_name()?.to_str()?;
        let beside = at.beside("config.json");
        (USUAL.iter().any(|usual| name.starts_with(usual)) && beside.is_file()).then_some(beside)
    }
}
