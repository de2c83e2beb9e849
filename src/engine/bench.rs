//! The speed of a full-size transformer, without its files.

use std::time::{Duration, Instant};

use super::Context;
use crate::device::cpu::Cpu;
use crate::device::cuda::Cuda;
use crate::lora::Run;
use crate::models::flux::Flux;
use crate::ops::{Device, Profile};
use crate::pipeline::noise::randn;
use crate::weights::flux::{FluxConfig, FluxWeights};
use crate::{Error, Result};

/// Rank of the random weights: that of the published FLUX.1 checkpoints.
const RANK: usize = 32;

/// What [`time_transformer`] measured.
#[derive(Clone, Debug)]
pub struct TransformerTimes {
    /// From random bytes in memory to weights on the device.
    pub load: Duration,
    /// The modulation of all steps.
    pub condition: Duration,
    /// Every step, with the transfer of its latents back to the host.
    pub steps: Vec<Duration>,
}

/// Times `steps` denoising steps of a transformer made of random 4-bit weights: `text_rows` text tokens and an image of
/// `width` x `height` pixels, 16 pixels a patch.
///
/// # Errors
/// [`Error::InvalidArgument`] for sizes that are zero or no multiples of 16.
pub fn time_transformer(
    context: &Context,
    config: &FluxConfig,
    profile: Profile,
    text_rows: usize,
    [width, height]: [u32; 2],
    steps: usize,
) -> Result<TransformerTimes> {
    if [width, height].iter().any(|side| *side == 0 || side % 16 != 0) || steps == 0 || text_rows == 0 {
        let what =
            format!("{width}x{height} pixels, {text_rows} tokens, {steps} steps: sides are multiples of 16");
        return Err(Error::InvalidArgument(what));
    }
    let grid = [height, width].map(|side| side as usize / 16);
    match &context.gpu {
        Some(gpu) => time_on(&Cuda::new(gpu.clone(), profile)?, config, text_rows, grid, steps),
        None => time_on(&Cpu::new(context.threads, profile)?, config, text_rows, grid, steps),
    }
}

fn time_on<D: Device>(
    dev: &D,
    config: &FluxConfig,
    text_rows: usize,
    grid: [usize; 2],
    steps: usize,
) -> Result<TransformerTimes> {
    let weights = FluxWeights::random(config, RANK)?;
    let start = Instant::now();
    let flux = Flux::load(dev, &weights)?;
    let load = start.elapsed();
    let run = Run::plain(dev);

    let start = Instant::now();
    let timesteps: Vec<f32> = (0..steps).map(|step| 1000.0 * (1.0 - step as f32 / steps as f32)).collect();
    let mut conditioning = flux.condition(run, &timesteps, 3.5, &randn(1, config.pooled_projection_dim))?;
    let width = config.joint_attention_dim;
    let text = dev.upload(&randn(2, text_rows * width), width)?;
    let sequence = flux.sequence(run, &text, text_rows, grid)?;
    let mut latents = dev.upload(&randn(3, grid[0] * grid[1] * config.in_channels), config.in_channels)?;
    dev.download(&latents)?;
    let condition = start.elapsed();

    let mut times = Vec::with_capacity(steps);
    let mut velocity = dev.empty(grid[0] * grid[1], config.out_channels)?;
    for step in 0..steps {
        let start = Instant::now();
        flux.velocity(run, &latents, &sequence, &mut conditioning, step, &mut velocity)?;
        dev.euler_step(&mut latents, &velocity, -1.0 / steps as f32)?;
        let values = dev.download(&latents)?;
        times.push(start.elapsed());
        if values.iter().any(|value| !value.is_finite()) {
            return Err(Error::Internal(format!(
                "step {step} of random weights gave values that are not finite"
            )));
        }
    }
    Ok(TransformerTimes { load, condition, steps: times })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::engine::ContextOptions;

    #[test]
    fn random_transformers_run() {
        let context = Context::new(ContextOptions::default()).unwrap();
        let config = FluxConfig {
            num_layers: 1,
            num_single_layers: 1,
            num_attention_heads: 2,
            ..FluxConfig::FLUX_1_SCHNELL
        };
        let run = |size, steps| time_transformer(&context, &config, Profile::W4A8, 8, size, steps);
        assert_eq!(run([64, 32], 3).unwrap().steps.len(), 3);
        assert!(matches!(run([60, 32], 3), Err(Error::InvalidArgument(_))));
        assert!(matches!(run([64, 32], 0), Err(Error::InvalidArgument(_))));
    }
}
