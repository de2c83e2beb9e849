//! What a LoRA file is, without the model that it is for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::names::{Key, Role, dialect, is_text_encoder, parse};
use crate::weights::Checkpoint;
use crate::weights::flux::FluxConfig;

/// What the keys of a LoRA file tell. Displays as a few lines for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Whose names the modules have.
    naming: BTreeSet<&'static str>,
    /// Number of modules and their ranks, of the transformer and of text encoders.
    networks: BTreeMap<&'static str, (usize, BTreeSet<usize>)>,
    /// The method, if it is one that cannot be used.
    unsupported: BTreeSet<&'static str>,
    /// Blocks of FLUX are named.
    flux: bool,
    /// Channels that the embedder of latents takes beside those of FLUX.1-dev.
    control_channels: usize,
    /// Types of elements.
    dtypes: BTreeSet<String>,
    /// Number of tensors and their bytes.
    total: (usize, usize),
}

impl Description {
    /// Describes `file`; `None` if no key is that of a LoRA or of a relative.
    pub fn of(file: &Checkpoint) -> Option<Self> {
        let mut found = Description {
            naming: BTreeSet::new(),
            networks: BTreeMap::new(),
            unsupported: BTreeSet::new(),
            flux: false,
            control_channels: 0,
            dtypes: BTreeSet::new(),
            total: (0, 0),
        };
        for tensor in file.tensors() {
            found.dtypes.insert(tensor.dtype.to_string());
            found.total = (found.total.0 + 1, found.total.1 + tensor.len());
            match parse(tensor.name) {
                Key::Unsupported(method) => drop(found.unsupported.insert(method)),
                Key::Of(module, Role::Down) => {
                    let text = is_text_encoder(module);
                    let network = if text { "text encoders" } else { "transformer" };
                    let (modules, ranks) = found.networks.entry(network).or_default();
                    *modules += 1;
                    ranks.extend(tensor.shape.first());
                    found.naming.insert(dialect(module));
                    let flat = module.replace('.', "_");
                    if !text && (flat.ends_with("x_embedder") || flat.ends_with("img_in")) {
                        let columns = tensor.shape.get(1).copied().unwrap_or(0);
                        let more = columns.saturating_sub(FluxConfig::FLUX_1_DEV.in_channels);
                        found.control_channels = found.control_channels.max(more);
                    }
                    found.flux |= ["double_blocks_", "single_blocks_", "transformer_blocks_"]
                        .iter()
                        .any(|part| !text && flat.contains(part));
                }
                _ => {}
            }
        }
        (!found.networks.is_empty() || !found.unsupported.is_empty()).then_some(found)
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |names: &BTreeSet<&str>| names.iter().copied().collect::<Vec<_>>().join(", ");
        if !self.unsupported.is_empty() {
            writeln!(f, "  {}: cannot be used", list(&self.unsupported))?;
        }
        if !self.networks.is_empty() {
            let family = if self.flux { " for FLUX.1" } else { "" };
            writeln!(f, "  LoRA{family}, names: {}", list(&self.naming))?;
        }
        for (network, (modules, ranks)) in &self.networks {
            let ranks: Vec<String> = ranks.iter().map(usize::to_string).collect();
            writeln!(f, "  {network:<24}{modules:>6} modules, rank {}", ranks.join(", "))?;
        }
        if self.control_channels > 0 {
            let channels = self.control_channels;
            writeln!(
                f,
                "  {channels} channels of a control image, which `generate` takes for zeros: none can be given yet"
            )?;
        }
        let dtypes: Vec<&str> = self.dtypes.iter().map(String::as_str).collect();
        let (tensors, bytes) = self.total;
        writeln!(f, "  {:<24}{tensors:>6} tensors {:>12.3} MB", dtypes.join(", "), bytes as f64 / 1e6)
    }
}
