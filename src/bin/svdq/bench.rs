//! `svdq bench`

mod report;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use lexopt::prelude::*;
use report::{Bench, Parts, Size};
use svdq::engine::{Context, GenerateParams, ImageMut, Lora, Model, PixelFormat, Progress, RandomSizes};
use svdq::weights::flux::FluxConfig;

use crate::Failure;
use crate::options::{MODEL_HELP, ModelArgs, size};
use crate::output::print;

const HELP: &str = "\
svdq bench [options]

Times steps and their kernels, and whole images after one warm-up. Prints medians.

    --runs N             images to time; default: 7, with random weights 3
    --size WxH           pixels; default: the model's, with random weights 512x512 and 1024x1024
    --steps N            denoising steps; default: the model's
    --random-weights     a full-size model (--model flux.1-dev or flux.1-schnell) made of random weights: it needs
                         no files
    --json               everything as JSON";

const PROMPT: &str = "pixel art blue potion";

pub(crate) fn run(args: &mut lexopt::Parser, start: Instant) -> Result<(), Failure> {
    let mut model = ModelArgs::default();
    let mut runs = None;
    let (mut random_weights, mut json) = (false, false);
    let mut params = GenerateParams { prompt: PROMPT, ..Default::default() };
    while let Some(arg) = args.next()? {
        match arg {
            Long("runs") => runs = Some(args.value()?.parse::<usize>()?),
            Long("size") => (params.width, params.height) = size(&args.value()?)?,
            Long("steps") => params.steps = args.value()?.parse()?,
            Long("random-weights") => random_weights = true,
            Long("json") => json = true,
            Short('h') | Long("help") => return print(&format!("{HELP}{MODEL_HELP}")),
            Long(name) => model.take(name.to_owned(), args)?,
            other => return Err(other.unexpected().into()),
        }
    }
    let runs = runs.unwrap_or(if random_weights { 3 } else { 7 });
    if runs == 0 {
        return Err(lexopt::Error::from("--runs has to be at least 1").into());
    }
    let bench = measure(&model, random_weights, &params, runs, start)?;
    print(&if json { bench.json() } else { bench.text() })
}

fn measure(
    args: &ModelArgs,
    random_weights: bool,
    params: &GenerateParams<'_>,
    runs: usize,
    start: Instant,
) -> Result<Bench, Failure> {
    let sizes = if random_weights { Some(random(args)?) } else { None };
    let begin = Instant::now();
    let context = args.context()?;
    let open = begin.elapsed();
    let begin = Instant::now();
    let model = match &sizes {
        Some(sizes) => Model::random(&context, sizes, args.profile())?,
        None => args.load_into(&context)?,
    };
    let load = begin.elapsed();
    let memory = |context: &Context| context.memory().map(|memory| memory.gpu);
    let resident = memory(&context)?.map(|gpu| gpu.used);
    let (loras, lora_load) = load_loras(args, &model)?;
    let params = GenerateParams { loras: &loras, ..params.clone() };
    let sides = if random_weights && params.width == 0 { &[512, 1024][..] } else { &[0] };
    let mut bench = Bench::new(&context, &model, args.name().unwrap_or("demo"), load, runs);
    for &side in sides {
        let or = |given: u32| if given == 0 { side } else { given };
        let params = GenerateParams { width: or(params.width), height: or(params.height), ..params.clone() };
        bench.sizes.push(measure_size(&model, &params, runs, start)?);
    }
    (bench.open, bench.lora_load) = (open, lora_load);
    bench.memory = resident.zip(memory(&context)?).map(|(resident, gpu)| [resident, gpu.peak]);
    if !random_weights {
        bench.reading = Some(Model::time_reading(&context, &args.model_options()?)?);
    }
    Ok(bench)
}

/// How often LoRAs are loaded again.
const LORA_LOADS: usize = 5;

/// The LoRAs, if any, and how long they took to load for the first time and, as the median, again.
#[expect(clippy::type_complexity, reason = "one caller")]
fn load_loras(args: &ModelArgs, model: &Model) -> Result<(Vec<(Lora, f32)>, Option<[Duration; 2]>), Failure> {
    let load = || -> Result<_, Failure> {
        let begin = Instant::now();
        Ok((args.load_loras(model)?, begin.elapsed()))
    };
    let (loras, first) = load()?;
    if loras.is_empty() {
        return Ok((loras, None));
    }
    let mut again = (0..LORA_LOADS).map(|_| load().map(|(_, time)| time)).collect::<Result<Vec<_>, _>>()?;
    again.sort_unstable();
    Ok((loras, Some([first, again[LORA_LOADS / 2]])))
}

/// The sizes that `--model` names.
fn random(args: &ModelArgs) -> Result<RandomSizes, lexopt::Error> {
    match args.name() {
        Some("flux.1-dev") => Ok(RandomSizes::flux_1(FluxConfig::FLUX_1_DEV)),
        Some("flux.1-schnell") => Ok(RandomSizes::flux_1(FluxConfig::FLUX_1_SCHNELL)),
        _ => Err("--random-weights needs --model flux.1-dev or flux.1-schnell".into()),
    }
}

fn measure_size(
    model: &Model,
    params: &GenerateParams<'_>,
    runs: usize,
    start: Instant,
) -> Result<Size, Failure> {
    let params = model.resolve(params)?;
    let mut pixels = vec![0; params.width as usize * params.height as usize * 3];
    let (mut first_step, mut parts) = (None, Parts::default());
    for run in 0..=runs {
        let mut image = ImageMut::new(&mut pixels, PixelFormat::Rgb8, params.width, params.height, 0, false)?;
        // The prompt of the picture before would not be encoded again.
        let prompt = format!("{} {run}", params.prompt);
        let params = GenerateParams { prompt: &prompt, ..params.clone() };
        let begin = Instant::now();
        let timings = model.generate(&params, &mut image, &mut |progress| {
            if matches!(progress, Progress::Denoise { .. }) {
                first_step.get_or_insert_with(|| start.elapsed());
            }
            ControlFlow::Continue(())
        })?;
        if run > 0 {
            parts.push([timings.encode, timings.denoise, timings.decode, begin.elapsed()]);
        }
    }
    Ok(Size {
        width: params.width,
        height: params.height,
        steps: params.steps,
        first_step: first_step.unwrap_or_default(),
        image: parts.medians(),
        step: model.time_steps(&params)?,
    })
}
