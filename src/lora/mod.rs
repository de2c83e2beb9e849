//! LoRAs: low-rank updates of a network's linears, attached for a run and never merged into the weights.
//!
//! A file is read in four steps: keys are taken apart and named modules looked up (`names`), tensors of a module
//! are put together (`file`), modules are cut and joined to updates of sites (`pieces`), and these are put on
//! the device. `sites` is what the networks see.

mod describe;
mod file;
mod names;
mod pieces;
mod scale;
mod sites;
mod values;

use std::collections::BTreeSet;
use std::thread;

use crate::ops::Device;
use crate::weights::Checkpoint;
use crate::{Error, Result, threads};
pub use describe::Description;
pub use names::Network;
pub use sites::{Attached, Linear, Patch, Run, Sites, Target, Vector};

/// No trainer makes LoRAs of a larger rank.
pub const MAX_RANK: usize = 1024;

/// What a LoRA brings to a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoraInfo {
    /// Modules of the file that change the model.
    pub modules: usize,
    /// Ranks that occur.
    pub ranks: BTreeSet<usize>,
    /// Channels of a control image, as LoRAs for FLUX.1's tools (Canny, Depth) add them to the latents. No such image can be
    /// given yet: they count as zeros, and what the LoRA makes of them has no effect.
    pub control_channels: usize,
    /// Tensors of the file for which the model has no place, sorted. They have no effect.
    pub unused: Vec<String>,
}

/// Puts the LoRA in `file` on `dev`, for the networks with these sites: transformer, CLIP, T5.
///
/// # Errors
/// [`Error::OutOfDeviceMemory`] before anything is put there, [`crate::Error::WrongModel`] if it is made for another model, [`crate::Error::Unsupported`] if it is not a LoRA but
/// a relative of one, and [`crate::Error::BadFormat`] for incomplete modules, values that are not finite, and ranks
/// above [`MAX_RANK`]. All name the tensor.
pub fn load<D: Device>(dev: &D, file: &Checkpoint, sites: [&Sites; 3]) -> Result<([Patch<D>; 3], LoraInfo)> {
    let names = names::Names::new(sites);
    let contents = file::Contents::read(file, &names, sites)?;
    let mut pieces = Vec::new();
    let mut control_channels = 0;
    for update in &contents.updates {
        let sites = sites[update.network as usize];
        control_channels = control_channels.max(pieces::control_channels(sites, update));
        pieces.extend(pieces::cut(file, sites, update)?);
    }
    let groups = pieces::join(file, pieces)?;
    let sources = in_parallel(&groups, |group| pieces::source(file, group))?;
    let vectors = contents.replacements.iter().map(|replacement| {
        let file::Replacement { network, site, ref tensor } = *replacement;
        Ok((network, site, values::values(file, tensor, 0..tensor.shape[0])?))
    });
    let vectors: Vec<_> = vectors.collect::<Result<_>>()?;
    let put = |dev: &D| {
        let mut patches = Network::ALL.map(|_| Patch { updates: vec![], vectors: vec![] });
        for (group, update) in groups.iter().zip(dev.load_low_ranks(&sources)?) {
            let first = &group[0];
            patches[first.network as usize].updates.push((first.site, update, first.scale));
        }
        for (network, site, values) in &vectors {
            let vector = dev.load_tensor(values.values()?, values.count())?;
            patches[*network as usize].vectors.push((*site, vector));
        }
        Ok(patches)
    };
    dev.reserve(|dev| put(dev).map(drop))?;
    let patches = put(dev)?;
    let info = LoraInfo {
        modules: contents.updates.len() + contents.replacements.len(),
        ranks: contents.updates.iter().map(|update| update.down.shape[0]).collect(),
        control_channels,
        unused: contents.unused.iter().map(|&name| name.to_owned()).collect(),
    };
    Ok((patches, info))
}

/// `one` of every item, in their order, by several threads: values are checked as fast as memory is read.
fn in_parallel<T: Sync, R: Send>(items: &[T], one: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let count = thread::available_parallelism().map_or(1, |count| count.get().min(8));
    thread::scope(|scope| {
        let one = &one;
        let part = |items| {
            let work = move || Vec::from_iter(<[T]>::iter(items).map(one));
            threads::builder("-lora").spawn_scoped(scope, work).map_err(threads::refused)
        };
        let parts: Vec<_> = items.chunks(items.len().div_ceil(count).max(1)).map(part).collect();
        let lost = |_| Error::Internal("a thread that reads a LoRA has died".into());
        let done = parts.into_iter().map(|part| part?.join().map_err(lost));
        Vec::from_iter(done).into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect()
    })
}

#[cfg(test)]
mod tests;
