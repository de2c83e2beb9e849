//! What the log says of models and LoRAs.

use std::path::Path;
use std::time::Duration;

use super::device::Pipeline;
use super::{Log, LoraInfo, ModelInfo};
use crate::ops::Profile;
use crate::{Error, Result};

/// A model was loaded.
pub(super) fn model(
    log: &Log,
    path: &Path,
    info: &ModelInfo,
    profile: Profile,
    pipeline: &Pipeline,
    time: Duration,
) {
    let family = if info.guidance { "FLUX.1-dev" } else { "FLUX.1-schnell" };
    let weights = match (info.rank, info.nvfp4) {
        (None, _) => "16 bits".into(),
        (Some(rank), nvfp4) => {
            let format = if nvfp4 { "NVFP4" } else { "INT4" };
            format!("{format} of rank {rank} in {profile:?}")
        }
    };
    let kept = match pipeline {
        Pipeline::Cpu(_) => "in the host's memory".into(),
        Pipeline::Cuda(pipeline) => {
            format!("{} bytes on the GPU, {}", pipeline.device().bytes()[0], pipeline.device().kept())
        }
    };
    log.info(format_args!("{}: {family}, {weights}: {kept}; {} ms", path.display(), time.as_millis()));
}

/// A LoRA was loaded.
pub(super) fn lora(log: &Log, path: &Path, info: &LoraInfo, time: Duration) {
    let path = path.display();
    if let [first, ..] = &info.unused[..] {
        log.warning(format_args!(
            "{path}: the model has no place for {} of the LoRA's tensors, such as `{first}`",
            info.unused.len()
        ));
    }
    if info.control_channels > 0 {
        log.warning(format_args!(
            "{path}: the LoRA is for a control image, which cannot be given yet: zeros stand for it"
        ));
    }
    let rank = info.ranks.last().copied().unwrap_or(0);
    log.info(format_args!(
        "{path}: LoRA of rank {rank} for {} modules; {} ms",
        info.modules,
        time.as_millis()
    ));
}

/// A job has come to its end.
pub(super) fn job<T>(log: &Log, what: &str, result: &Result<T>, time: Duration) {
    let time = time.as_millis();
    match result {
        Ok(_) => log.debug(format_args!("{what}: done in {time} ms")),
        Err(Error::Cancelled) => log.debug(format_args!("{what}: cancelled after {time} ms")),
        Err(error) => log.error(format_args!("{what}: {error}")),
    }
}
