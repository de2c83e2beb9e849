//! What a denoising step takes.

use std::time::{Duration, Instant};

use super::{FluxLora, FluxPipeline, Request, Text};
use crate::Result;
use crate::lora::Run;
use crate::ops::{Device, KernelTime};

/// So many steps are waited for at a time, and so often.
const STEPS: usize = 4;
const BATCHES: usize = 5;

/// Times of a step. Where they are several, medians.
#[derive(Clone, Debug)]
pub struct StepTimes {
    /// The device's, with steps one right after the other.
    pub step: Duration,
    /// Of the calling thread, until a step is asked for and before it is done: a step that ran before.
    pub asked: Duration,
    /// Likewise, of a step that is asked for operation by operation.
    pub asked_anew: Duration,
    /// Of such a step, until it is done.
    pub step_anew: Duration,
    /// The modulation of all steps.
    pub condition: Duration,
    /// Attaching the LoRAs, or others in their place.
    pub attach: Duration,
    /// What a step's kernels took, in the order in which they first ran; none on the CPU.
    pub kernels: Vec<KernelTime>,
}

impl<D: Device> FluxPipeline<D> {
    /// Measures the steps of `request`, which is not finished.
    ///
    /// # Errors
    /// As [`FluxPipeline::generate`].
    pub fn time_steps(&self, request: &Request<'_>, loras: &[(&FluxLora<D>, f32)]) -> Result<StepTimes> {
        let begin = Instant::now();
        let attached = self.networks.attach(loras)?;
        let attach = begin.elapsed();
        let job = self.job(request, loras)?;
        self.reserve(&job, &attached, loras)?;
        let dev = &self.dev;
        let embeddings = match &job.text {
            Text::Known(embeddings) => embeddings.clone(),
            Text::Unknown(key) => self.networks.encode(dev, key, &attached)?,
        };
        let first = self.networks.first_latents(dev, &job)?;
        let begin = Instant::now();
        let mut run = self.networks.denoising(Run::with(dev, &attached[0]), &job, &embeddings, first)?;
        dev.download(&run.latents)?;
        let condition = begin.elapsed();
        let noise = dev.upload(&dev.download(&run.latents)?, self.networks.flux.config().in_channels)?;
        // Every batch begins with the same latents, so that their values stay what a model sees.
        let mut time = |steps: usize| -> Result<[Duration; 2]> {
            let rows = job.grid()[0] * job.grid()[1];
            dev.copy_rows(&noise, 0..rows, &mut run.latents, 0)?;
            dev.download(&noise)?;
            let begin = Instant::now();
            run.step(0)?;
            let asked = begin.elapsed();
            for step in 1..steps {
                run.step(step % request.steps_run())?;
            }
            dev.download(&run.latents)?;
            Ok([asked, begin.elapsed()])
        };
        time(1)?;
        // As long as something else is held, a step finds other memory than it did before.
        let (mut held, mut anew) = (Vec::new(), [vec![], vec![]]);
        for _ in 0..BATCHES {
            held.push(dev.empty(1, 64)?);
            let [asked, done] = time(1)?;
            anew[0].push(asked);
            anew[1].push(done);
        }
        drop(held);
        time(STEPS)?;
        let mut known = [vec![], vec![]];
        for _ in 0..BATCHES {
            let [asked, done] = time(STEPS)?;
            known[0].push(asked);
            known[1].push(done / STEPS as u32);
        }
        // The device is busy with one step while the kernels of the next are asked for.
        run.step(0)?;
        let kernels = dev.profile(&mut || run.step(0))?;
        let [[asked, step], [asked_anew, step_anew]] = [known, anew].map(|times| times.map(median));
        Ok(StepTimes { step, asked, asked_anew, step_anew, condition, attach, kernels })
    }
}

/// The middle of them; zero without any.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
