//! The networks of a pipeline, and a run of them.

use std::sync::Arc;
use std::time::Instant;

use super::{
    Embeddings, FluxLora, LinearMap, Parts, Preview, Progress, Request, Schedule, SchedulerConfig, Text,
    Timings, Watch, report,
};
use crate::Result;
use crate::lora::{Attached, Run, Sites};
use crate::memory::Buf;
use crate::models::clip::Clip;
use crate::models::flux::{Conditioning, Flux, Sequence};
use crate::models::t5::T5;
use crate::models::vae::{Vae, VaeEncoder};
use crate::ops::Device;
use crate::pipeline::latents;

pub(super) struct Networks<D: Device> {
    pub(super) clip: Clip<D>,
    pub(super) t5: T5<D>,
    pub(super) flux: Flux<D>,
    pub(super) vae: Vae<D>,
    /// For images to start from.
    pub(super) encoder: Option<VaeEncoder<D>>,
}

/// A request, made ready.
pub(super) struct Job<'a> {
    pub(super) request: &'a Request<'a>,
    pub(super) text: Text,
    /// Of the steps that are run.
    pub(super) schedule: Schedule,
    /// Height and width in latents.
    pub(super) latent_size: [usize; 2],
    /// For previews, if it is known.
    pub(super) map: Option<Arc<LinearMap>>,
}

impl Job<'_> {
    /// Rows and columns of patches.
    pub(super) fn grid(&self) -> [usize; 2] {
        self.latent_size.map(|side| side / 2)
    }
}

/// What comes of a run.
pub(super) struct Made {
    /// 8-bit RGB, row by row from the top.
    pub(super) rgb: Buf<u8>,
    pub(super) timings: Timings,
    pub(super) embeddings: Arc<Embeddings>,
    /// If there were previews.
    pub(super) map: Option<Arc<LinearMap>>,
}

impl<D: Device> Networks<D> {
    pub(super) fn load(dev: &D, parts: &Parts<'_>) -> Result<Self> {
        let (clip, t5) = (Clip::new(dev, parts.clip)?, T5::new(dev, parts.t5)?);
        let vae = Vae::new(dev, parts.vae)?;
        let encoder = parts.image_input.then(|| VaeEncoder::new(dev, parts.vae)).transpose()?;
        Ok(Networks { clip, t5, flux: Flux::load(dev, parts.transformer)?, vae, encoder })
    }

    pub(super) fn job<'a>(
        &self,
        scheduler: &SchedulerConfig,
        request: &'a Request<'a>,
        text: Text,
        map: Option<Arc<LinearMap>>,
    ) -> Result<Job<'a>> {
        // Whole patches, at least one.
        let patches = |side: usize| (side / (2 * self.vae.factor())).max(1);
        let grid @ [rows, columns] = [request.height, request.width].map(patches);
        let schedule = Schedule::new(scheduler, request.steps, rows * columns)?;
        let schedule = schedule.starting_at(request.first_step());
        Ok(Job { request, text, schedule, latent_size: grid.map(|side| 2 * side), map })
    }

    pub(super) fn sites(&self) -> [&Sites; 3] {
        [self.flux.sites(), self.clip.sites(), self.t5.sites()]
    }

    pub(super) fn attach<'a>(&self, loras: &[(&'a FluxLora<D>, f32)]) -> Result<[Attached<'a, D>; 3]> {
        let attach = |network: usize| {
            let patches = loras.iter().map(|&(lora, strength)| (&lora.patches[network], strength));
            Attached::new(self.sites()[network], patches)
        };
        Ok([attach(0)?, attach(1)?, attach(2)?])
    }

    pub(super) fn run(
        &self,
        dev: &D,
        job: &Job<'_>,
        attached: &[Attached<'_, D>; 3],
        watch: &mut dyn Watch,
    ) -> Result<Made> {
        let start = report(watch, Progress::Encode)?;
        let map = match &job.map {
            _ if !job.request.has_previews() => None,
            Some(map) => Some(map.clone()),
            None => Some(Arc::new(LinearMap::fit(dev, &self.vae)?)),
        };
        let embeddings = match &job.text {
            Text::Known(embeddings) => embeddings.clone(),
            Text::Unknown(key) => self.encode(dev, key, attached)?,
        };
        let first = self.first_latents(dev, job)?;
        let encode = start.elapsed();

        let start = Instant::now();
        let run = Run::with(dev, &attached[0]);
        let latents = self.denoise(run, job, &embeddings, first, map.as_deref(), watch)?;
        let denoise = start.elapsed();

        let start = report(watch, Progress::Decode)?;
        let image = self.vae.decode(dev, &latents, job.latent_size)?;
        let rgb = dev.to_rgb8(&image)?;
        Ok(Made { rgb, timings: Timings { encode, denoise, decode: start.elapsed() }, embeddings, map })
    }

    /// From the first latents, as patches, to the last, `[h · w, channels]`. What it needs of the device's memory is free
    /// afterwards.
    fn denoise(
        &self,
        run: Run<'_, D>,
        job: &Job<'_>,
        embeddings: &Embeddings,
        first: Buf<f32>,
        map: Option<&LinearMap>,
        watch: &mut dyn Watch,
    ) -> Result<Buf<f32>> {
        let mut image = self.denoising(run, job, embeddings, first)?;
        let steps = job.schedule.steps();
        for step in 0..steps {
            report(watch, Progress::Denoise { step, steps })?;
            image.step(step)?;
            run.dev.keep_pace()?;
            if let Some(map) = map
                && (step + 1).is_multiple_of(job.request.preview_every)
            {
                let latents = latents::unpack(
                    run.dev.memory(),
                    &image.predicted(step)?,
                    self.vae.latent_channels(),
                    job.latent_size,
                )?;
                let [height, width] = job.latent_size.map(|side| side as u32);
                watch.preview(Preview { rgb: map.colours(run.dev.memory(), &latents)?, width, height });
            }
        }
        let (channels, packed) = (self.vae.latent_channels(), run.dev.download(&image.latents)?);
        latents::unpack(run.dev.memory(), &packed, channels, job.latent_size)
    }

    /// The image before its first step.
    pub(super) fn denoising<'a>(
        &'a self,
        run: Run<'a, D>,
        job: &'a Job<'_>,
        embeddings: &Embeddings,
        first: Buf<f32>,
    ) -> Result<Denoising<'a, D>> {
        let schedule = &job.schedule;
        // In f32 on every device, so that all make the same picture.
        let timesteps: Vec<f32> =
            (0..schedule.steps()).map(|step| schedule.timestep(step, |value| value)).collect();
        let conditioning = self.flux.condition(run, &timesteps, job.request.guidance, &embeddings.pooled)?;
        let grid = job.grid();
        let text = embeddings.text(run.dev)?;
        let sequence = self.flux.sequence(run, &text, embeddings.tokens(), grid)?;
        drop(text);

        let channels = 4 * self.vae.latent_channels();
        let latents = run.dev.upload(&first, channels)?;
        drop(first);
        let velocity = run.dev.empty(grid[0] * grid[1], channels)?;
        Ok(Denoising { flux: &self.flux, run, schedule, sequence, conditioning, latents, velocity })
    }
}

/// An image between two steps.
pub(super) struct Denoising<'a, D: Device> {
    flux: &'a Flux<D>,
    run: Run<'a, D>,
    schedule: &'a Schedule,
    sequence: Sequence<D>,
    conditioning: Conditioning<D>,
    pub(super) latents: D::Tensor,
    velocity: D::Tensor,
}

impl<D: Device> Denoising<'_, D> {
    pub(super) fn step(&mut self, step: usize) -> Result<()> {
        let Denoising { flux, run, ref sequence, .. } = *self;
        flux.velocity(run, &self.latents, sequence, &mut self.conditioning, step, &mut self.velocity)?;
        run.dev.euler_step(&mut self.latents, &self.velocity, self.schedule.dt(step))
    }

    /// What the latents would be in the end if the velocity stayed that of `step`, which is done, as patches:
    /// `latents - sigma · velocity`.
    fn predicted(&self, step: usize) -> Result<Buf<f32>> {
        let mut latents = self.run.dev.download(&self.latents)?;
        let velocity = self.run.dev.download(&self.velocity)?;
        let sigma = self.schedule.sigmas[step + 1];
        latents.iter_mut().zip(&velocity).for_each(|(x, v)| *x -= sigma * v);
        Ok(latents)
    }
}
