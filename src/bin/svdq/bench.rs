//! `svdq bench`

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use lexopt::prelude::*;
use svdq::engine::{GenerateParams, ImageMut, PixelFormat, Progress, time_transformer};
use svdq::ops::Profile;
use svdq::weights::flux::FluxConfig;

use crate::Failure;
use crate::options::{MODEL_HELP, ModelArgs, size};
use crate::output::print;

const HELP: &str = "\
svdq bench [options]

Times whole images after one warm-up and prints medians, in milliseconds.

    --runs N             images to time; default: 7
    --size WxH           pixels; default: the model's
    --steps N            denoising steps; default: the model's
    --random-weights     time steps of a full-size transformer (--model flux.1-dev or flux.1-schnell) made
                         of random 4-bit weights; default: 3 steps at 1024x1024. Needs no files";

const PROMPT: &str = "pixel art blue potion";

pub(crate) fn run(args: &mut lexopt::Parser, start: Instant) -> Result<(), Failure> {
    let mut model = ModelArgs::default();
    let mut runs = 7usize;
    let mut random_weights = false;
    let mut params = GenerateParams { prompt: PROMPT, ..Default::default() };
    while let Some(arg) = args.next()? {
        match arg {
            Long("runs") => runs = args.value()?.parse()?,
            Long("size") => (params.width, params.height) = size(&args.value()?)?,
            Long("steps") => params.steps = args.value()?.parse()?,
            Long("random-weights") => random_weights = true,
            Short('h') | Long("help") => return print(&format!("{HELP}{MODEL_HELP}")),
            Long(name) => model.take(name.to_owned(), args)?,
            other => return Err(other.unexpected().into()),
        }
    }
    if runs == 0 {
        return Err(lexopt::Error::from("--runs has to be at least 1").into());
    }
    if random_weights {
        return steps(&model, &params);
    }

    let loaded = model.load()?;
    let loras = model.load_loras(&loaded)?;
    params.loras = &loras;
    let params = loaded.resolve(&params)?;
    let mut pixels = vec![0; params.width as usize * params.height as usize * 3];
    let mut first_step = None;
    let mut parts = Parts::default();
    for run in 0..=runs {
        let mut image = ImageMut::new(&mut pixels, PixelFormat::Rgb8, params.width, params.height, 0, false)?;
        let begin = Instant::now();
        let timings = loaded.generate(&params, &mut image, &mut |progress| {
            if matches!(progress, Progress::Denoise { .. }) {
                first_step.get_or_insert_with(|| start.elapsed());
            }
            ControlFlow::Continue(())
        })?;
        if run > 0 {
            parts.push([timings.encode, timings.denoise, timings.decode, begin.elapsed()]);
        }
    }
    let [encode, denoise, decode, whole] = parts.medians();
    print(&format!(
        "{}x{}, {} steps, {:?}, medians of {runs}\n\
         text encoders     {encode:9.1} ms\n\
         transformer       {denoise:9.1} ms\n\
         VAE               {decode:9.1} ms\n\
         whole image       {whole:9.1} ms\n\
         start of the command to its first step {:.1} ms\n",
        params.width,
        params.height,
        params.steps,
        loaded.info().profile,
        milliseconds(first_step.unwrap_or_default()),
    ))
}

/// `--random-weights`
fn steps(model: &ModelArgs, params: &GenerateParams<'_>) -> Result<(), Failure> {
    let (config, tokens) = match model.name() {
        Some("flux.1-dev") => (FluxConfig::FLUX_1_DEV, 512),
        Some("flux.1-schnell") => (FluxConfig::FLUX_1_SCHNELL, 256),
        _ => {
            return Err(
                lexopt::Error::from("--random-weights needs --model flux.1-dev or flux.1-schnell").into()
            );
        }
    };
    let or = |value: u32, default: u32| if value == 0 { default } else { value };
    let size = [or(params.width, 1024), or(params.height, 1024)];
    let profile = model.profile().unwrap_or(Profile::W4A8);
    let steps = or(params.steps, 3) as usize;
    let mut times = time_transformer(&model.context()?, &config, profile, tokens, size, steps)?;
    times.steps.sort_unstable();
    print(&format!(
        "{} with random weights, {}x{} and {tokens} tokens, {profile:?}\n         load              {:9.1} ms\n         modulation        {:9.1} ms for {steps} steps\n         step              {:9.1} ms, median of {steps}\n",
        model.name().unwrap_or_default(),
        size[0],
        size[1],
        milliseconds(times.load),
        milliseconds(times.condition),
        milliseconds(times.steps[steps / 2]),
    ))
}

/// Durations of the parts of every timed run.
#[derive(Default)]
struct Parts([Vec<Duration>; 4]);

impl Parts {
    fn push(&mut self, durations: [Duration; 4]) {
        for (part, duration) in self.0.iter_mut().zip(durations) {
            part.push(duration);
        }
    }

    fn medians(mut self) -> [f64; 4] {
        self.0.each_mut().map(|part| {
            part.sort_unstable();
            milliseconds(part[part.len() / 2])
        })
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
