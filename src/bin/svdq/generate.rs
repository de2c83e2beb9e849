//! `svdq generate`

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::PathBuf;

use lexopt::prelude::*;
use svdq::engine::{GenerateParams, ImageMut, PixelFormat, Progress};
use svdq::ops::Profile;

use crate::Failure;
use crate::options::{MODEL_HELP, ModelArgs, size};
use crate::output::{PngFile, print};

const HELP: &str = "\
svdq generate PROMPT [options]

    -o, --output FILE    PNG to write, its parameters in its metadata; default: image.png
    --size WxH           pixels; default: the model's
    --steps N            denoising steps; default: the model's
    --guidance G         distilled guidance scale; default: the model's
    --seed N             default 0. The same seed, model and device make the same image";

pub(crate) fn run(args: &mut lexopt::Parser) -> Result<(), Failure> {
    let mut model = ModelArgs::default();
    let mut output = PathBuf::from("image.png");
    let mut prompt: Option<String> = None;
    let mut params = GenerateParams::default();
    while let Some(arg) = args.next()? {
        match arg {
            Short('o') | Long("output") => output = args.value()?.into(),
            Long("size") => (params.width, params.height) = size(&args.value()?)?,
            Long("steps") => params.steps = positive(args.value()?, "--steps")?,
            Long("guidance") => params.guidance = args.value()?.parse()?,
            Long("seed") => params.seed = args.value()?.parse()?,
            Short('h') | Long("help") => return print(&format!("{HELP}{MODEL_HELP}")),
            Value(value) if prompt.is_none() => prompt = Some(value.string()?),
            Long(name) => model.take(name.to_owned(), args)?,
            other => return Err(other.unexpected().into()),
        }
    }
    let prompt = prompt.ok_or_else(|| lexopt::Error::from("no prompt was given"))?;
    params.prompt = &prompt;

    let file = PngFile::create(&output)?;
    let loaded = model.load()?;
    let loras = model.load_loras(&loaded)?;
    params.loras = &loras;
    let params = loaded.resolve(&params)?;
    let bytes = ImageMut::bytes_needed(PixelFormat::Rgb8, params.width, params.height, 0)?;
    let mut pixels = vec![0; bytes as usize];
    let mut image = ImageMut::new(&mut pixels, PixelFormat::Rgb8, params.width, params.height, 0, false)?;

    let terminal = std::io::stderr().is_terminal();
    loaded.generate(&params, &mut image, &mut |progress| {
        if terminal {
            show(progress);
        }
        ControlFlow::Continue(())
    })?;
    file.write(
        &pixels,
        params.width,
        params.height,
        &metadata(&params, &model.lora_names(), loaded.profile()),
    )?;
    if terminal {
        eprintln!("\r\x1b[K{}", output.display());
    }
    Ok(())
}

fn positive(value: std::ffi::OsString, name: &str) -> Result<u32, lexopt::Error> {
    match value.parse()? {
        0 => Err(format!("{name} has to be at least 1").into()),
        value => Ok(value),
    }
}

fn show(progress: Progress) {
    match progress {
        Progress::Encode => eprint!("\r\x1b[Kreading the prompt"),
        Progress::Denoise { step, steps } => eprint!("\r\x1b[Kstep {}/{steps}", step + 1),
        Progress::Decode => eprint!("\r\x1b[Kdecoding"),
    }
}

/// The text that image viewers and web interfaces for diffusion models read back.
fn metadata(params: &GenerateParams<'_>, loras: &str, profile: Profile) -> String {
    let loras = if loras.is_empty() { String::new() } else { format!(", LoRAs: {loras}") };
    format!(
        "{}\nSteps: {}, Sampler: FlowMatchEuler, Guidance: {}, Seed: {}, Size: {}x{}, Profile: {:?}{loras}, Version: svdq {}",
        params.prompt,
        params.steps,
        params.guidance,
        params.seed,
        params.width,
        params.height,
        profile,
        env!("CARGO_PKG_VERSION"),
    )
}
