//! A pipeline and its LoRAs on whichever device the context has.

use super::{Context, Timings};
use crate::Result;
use crate::device::cpu::Cpu;
use crate::device::cuda::Cuda;
use crate::lora::LoraInfo;
use crate::ops::Profile;
use crate::pipeline::flux::{FluxLora, FluxPipeline, ProgressFn, Request};
use crate::weights::flux::FluxWeights;
use crate::weights::{Checkpoint, ModelFiles};

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
        files: &ModelFiles,
        weights: &FluxWeights,
        max_sequence_length: usize,
    ) -> Result<Self> {
        Ok(match &context.gpu {
            Some(gpu) => {
                let device = Cuda::new(gpu.clone(), profile)?;
                Pipeline::Cuda(Box::new(FluxPipeline::load(device, files, weights, max_sequence_length)?))
            }
            None => {
                let device = Cpu::new(context.threads, profile)?;
                Pipeline::Cpu(Box::new(FluxPipeline::load(device, files, weights, max_sequence_length)?))
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
        progress: &mut ProgressFn<'_>,
    ) -> Result<(Vec<u8>, Timings)> {
        let loras = loras.iter().copied();
        match self {
            Pipeline::Cpu(pipeline) => {
                let own: Vec<_> = loras
                    .filter_map(|(lora, strength)| match lora {
                        LoraWeights::Cpu(weights) => Some((weights, strength)),
                        LoraWeights::Cuda(_) => None,
                    })
                    .collect();
                pipeline.generate(request, &own, progress)
            }
            Pipeline::Cuda(pipeline) => {
                let own: Vec<_> = loras
                    .filter_map(|(lora, strength)| match lora {
                        LoraWeights::Cuda(weights) => Some((weights, strength)),
                        LoraWeights::Cpu(_) => None,
                    })
                    .collect();
                pipeline.generate(request, &own, progress)
            }
        }
    }

    pub(super) fn size_multiple(&self) -> usize {
        match self {
            Pipeline::Cpu(pipeline) => pipeline.size_multiple(),
            Pipeline::Cuda(pipeline) => pipeline.size_multiple(),
        }
    }
}
