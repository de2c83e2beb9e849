#![allow(clippy::unwrap_used)]

use super::*;
use crate::device::cpu::Cpu;
use crate::memory::Buf;
use crate::models::testing::{Golden, relative_error};
use crate::ops::Profile;
use crate::ops::shapes::{Shape, Shapes};

/// The velocity that a golden network on the CPU gives for the golden's inputs.
pub(crate) fn velocity(run: Run<'_, Cpu>, flux: &Flux<Cpu>, golden: &Golden) -> Buf<f32> {
    let cpu = run.dev;
    let text = cpu.upload(&golden.values("txt"), flux.config().joint_attention_dim).unwrap();
    let latents = cpu.upload(&golden.values("img"), flux.config().in_channels).unwrap();
    let guidance = if flux.config().guidance_embeds { golden.values("guidance")[0] } else { 0.0 };
    let timestep = golden.values("timestep")[0] * 1000.0;
    // The golden's step is the second of two, so that the rows of the tables matter.
    let mut conditioning =
        flux.condition(run, &[900.0, timestep], guidance, &golden.values("pooled")).unwrap();
    let text_rows = golden.values("txt_ids").len() / 3;
    let sequence = flux.sequence(run, &text, text_rows, [4, 6]).unwrap();
    let mut velocity = cpu.zeros(24, flux.config().out_channels).unwrap();
    flux.velocity(run, &latents, &sequence, &mut conditioning, 1, &mut velocity).unwrap();
    cpu.download(&velocity).unwrap()
}

/// How far a golden network on the CPU is from diffusers in float32.
fn error_of(name: &str) -> f32 {
    let golden = Golden::open(name);
    let cpu = Cpu::new(2, Profile::W4A8).unwrap();
    let flux = Flux::load(&cpu, &FluxWeights::open(&golden.folder).unwrap()).unwrap();
    relative_error(&velocity(Run::plain(&cpu), &flux, &golden), &golden.values("out"))
}

/// Relative to the largest output: 1e-4. Float32 sums of another order over two layers of each kind.
#[test]
fn velocities_equal_diffusers() {
    for name in ["flux", "flux_schnell"] {
        let error = error_of(name);
        assert!(error < 1e-4, "{name}: {error}");
    }
}

/// FLUX.1's real sizes: every layer of a 4-bit file resolves, and every operation's shapes fit.
#[test]
fn flux_1_dev_and_schnell_fit() {
    for guidance_embeds in [true, false] {
        let (_folder, weights) = crate::weights::flux::tests::sparse_flux_1(guidance_embeds);
        let flux = Flux::load(&Shapes, &weights).unwrap();
        let run = Run::plain(&Shapes);
        let mut conditioning = flux.condition(run, &[1000.0, 500.0], 3.5, &[0.0; 768]).unwrap();
        for grid in [[64, 64], [67, 120]] {
            let text = Shapes.zeros(512, 4096).unwrap();
            let sequence = flux.sequence(run, &text, 512, grid).unwrap();
            let latents = Shape { rows: grid[0] * grid[1], cols: 64 };
            let mut velocity = latents;
            flux.velocity(run, &latents, &sequence, &mut conditioning, 1, &mut velocity).unwrap();
        }
    }
}
