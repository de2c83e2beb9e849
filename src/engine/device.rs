//! A pipeline and its LoRAs on whichever device the context has.

use std::sync::Arc;

use super::{Context, StepTimes, Timings};
use crate::device::cpu::Cpu;
use crate::device::cuda::Cuda;
use crate::lora::LoraInfo;
use crate::memory::Buf;
use crate::ops::{Cost, Device, Profile};
use crate::pipeline::flux::{Embeddings, FluxLora, FluxPipeline, Parts, Request, Watch};
use crate::weights::Checkpoint;
use crate::{Cancel, Result};

pub(super) enum Pipeline {
    Cpu(Box<FluxPipeline<Cpu>>),
    Cuda(Box<FluxPipeline<Cuda>>),
}

/// Of the pipeline that loaded it, and for no other.
pub(super) enum LoraWeights {
    Cpu(FluxLora<Cpu>),
    Cuda(FluxLora<Cuda>),
}

impl Pipeline {
    pub(super) fn load(
        context: &Context,
        profile: Profile,
        parts: &Parts<'_>,
        max_sequence_length: usize,
        usual: &Request<'_>,
    ) -> Result<Self> {
        // Counts what is this model's.
        let memory = context.memory.part();
        Ok(match &context.gpu {
            Some(gpu) => {
                let transformer = parts.transformer;
                if transformer.rank().is_some() {
                    gpu.check(transformer.is_nvfp4(), profile)?;
                }
                let device = Cuda::new(gpu.clone(), profile).with_memory(memory);
                Pipeline::Cuda(Box::new(FluxPipeline::load(device, parts, max_sequence_length, usual)?))
            }
            None => {
                let device = Cpu::new(context.threads, profile)?.with_memory(memory);
                Pipeline::Cpu(Box::new(FluxPipeline::load(device, parts, max_sequence_length, usual)?))
            }
        })
    }

    pub(super) fn load_lora(&self, file: &Checkpoint) -> Result<(LoraWeights, LoraInfo)> {
        Ok(match self {
            Pipeline::Cpu(pipeline) => {
                let (weights, info) = pipeline.load_lora(file)?;
                (LoraWeights::Cpu(weights), info)
            }
            Pipeline::Cuda(pipeline) => {
                let (weights, info) = pipeline.load_lora(file)?;
                (LoraWeights::Cuda(weights), info)
            }
        })
    }

    /// `loras` are this pipeline's; others would be left out.
    pub(super) fn generate(
        &self,
        request: &Request<'_>,
        loras: &[(&LoraWeights, f32)],
        cancel: &Cancel,
        watch: &mut dyn Watch,
    ) -> Result<(Buf<u8>, Timings)> {
        match self {
            Pipeline::Cpu(pipeline) => {
                pipeline.generate(request, &own(loras, LoraWeights::on_cpu), cancel, watch)
            }
            Pipeline::Cuda(pipeline) => {
                pipeline.generate(request, &own(loras, LoraWeights::on_cuda), cancel, watch)
            }
        }
    }

    /// `loras` as for [`Self::generate`].
    pub(super) fn encode(
        &self,
        prompt: &str,
        loras: &[(&LoraWeights, f32)],
        cancel: &Cancel,
        watch: &mut dyn Watch,
    ) -> Result<Arc<Embeddings>> {
        match self {
            Pipeline::Cpu(pipeline) => {
                pipeline.encode(prompt, &own(loras, LoraWeights::on_cpu), cancel, watch)
            }
            Pipeline::Cuda(pipeline) => {
                pipeline.encode(prompt, &own(loras, LoraWeights::on_cuda), cancel, watch)
            }
        }
    }

    /// `loras` as for [`Self::generate`].
    pub(super) fn measure(&self, request: &Request<'_>, loras: &[(&LoraWeights, f32)]) -> Result<Cost> {
        match self {
            Pipeline::Cpu(pipeline) => pipeline.measure(request, &own(loras, LoraWeights::on_cpu)),
            Pipeline::Cuda(pipeline) => pipeline.measure(request, &own(loras, LoraWeights::on_cuda)),
        }
    }

    /// `loras` as for [`Self::generate`].
    pub(super) fn time_steps(
        &self,
        request: &Request<'_>,
        loras: &[(&LoraWeights, f32)],
    ) -> Result<StepTimes> {
        match self {
            Pipeline::Cpu(pipeline) => pipeline.time_steps(request, &own(loras, LoraWeights::on_cpu)),
            Pipeline::Cuda(pipeline) => pipeline.time_steps(request, &own(loras, LoraWeights::on_cuda)),
        }
    }

    /// Bytes of the host's memory that weights and what is computed with them take now.
    pub(super) fn host_bytes(&self) -> u64 {
        match self {
            Pipeline::Cpu(pipeline) => pipeline.device().memory().used(),
            Pipeline::Cuda(pipeline) => pipeline.device().memory().used(),
        }
    }

    /// Bytes of weights and of temporaries on the GPU.
    pub(super) fn gpu_bytes(&self) -> [u64; 2] {
        match self {
            Pipeline::Cpu(_) => [0; 2],
            Pipeline::Cuda(pipeline) => pipeline.device().bytes(),
        }
    }
}

impl LoraWeights {
    fn on_cpu(&self) -> Option<&FluxLora<Cpu>> {
        if let LoraWeights::Cpu(weights) = self { Some(weights) } else { None }
    }

    fn on_cuda(&self) -> Option<&FluxLora<Cuda>> {
        if let LoraWeights::Cuda(weights) = self { Some(weights) } else { None }
    }
}

/// Those that are on this device.
fn own<'a, D: Device>(
    loras: &[(&'a LoraWeights, f32)],
    on_device: fn(&'a LoraWeights) -> Option<&'a FluxLora<D>>,
) -> Vec<(&'a FluxLora<D>, f32)> {
    loras.iter().filter_map(|&(lora, strength)| Some((on_device(lora)?, strength))).collect()
}
