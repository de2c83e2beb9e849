//! Options that several commands share.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use lexopt::{Parser, ValueExt};
use svdq::engine::{Context, ContextOptions, DeviceSelect, Lora, Model, ModelOptions, Source};
use svdq::ops::Profile;
use svdq::weights::{Checkpoint, PartKind};

use crate::Failure;

pub(crate) const MODEL_HELP: &str = "
    --model PATH         diffusers pipeline folder; default: $SVDQ_MODEL, else the demo model. Or the transformer
                         alone, with --encoders and --vae
    --transformer PATH   transformer to use in place of the model's own: 4-bit or 16-bit, file or folder
    --encoders PATH      CLIP and T5, or one of them: a file, or a folder with both. May be given twice
    --vae PATH           VAE: a file or folder
    --lora FILE[:S]      LoRA and its strength, 1 if not given; may be repeated
    --profile NAME       activations of 4-bit layers: w4a4, w4a8 or w4a16; by default what suits the device
    --device NAME        cpu, cuda or cuda:N (the GPU of that number); default: a GPU if there is one
    --memory-budget SIZE GPU memory to take at most, as 7.5G or 7500M; default: what is free
    --threads N          CPU threads; default: one a core. Images do not depend on it
";

/// Which model to load, and where it runs.
#[derive(Default)]
pub(crate) struct ModelArgs {
    model: Option<PathBuf>,
    /// Beside the model, and what each has to be if that was said.
    parts: Vec<(PathBuf, Option<PartKind>)>,
    profile: Option<Profile>,
    device: DeviceSelect,
    threads: usize,
    memory_budget: u64,
    loras: Vec<(PathBuf, f32)>,
}

impl ModelArgs {
    /// Takes one of [`MODEL_HELP`]'s options by its long name.
    pub(crate) fn take(&mut self, name: String, args: &mut Parser) -> Result<(), lexopt::Error> {
        match name.as_str() {
            "model" => self.model = Some(args.value()?.into()),
            "transformer" => self.parts.push((args.value()?.into(), Some(PartKind::Transformer))),
            "encoders" => self.parts.push((args.value()?.into(), None)),
            "vae" => self.parts.push((args.value()?.into(), Some(PartKind::Vae))),
            "lora" => self.loras.push(lora(args.value()?)?),
            "profile" => self.profile = Some(args.value()?.parse_with(profile)?),
            "device" => self.device = args.value()?.parse_with(device)?,
            "memory-budget" => self.memory_budget = args.value()?.parse_with(bytes)?,
            "threads" => self.threads = args.value()?.parse()?,
            _ => return Err(lexopt::Error::UnexpectedOption(format!("--{name}"))),
        }
        Ok(())
    }

    /// What will be loaded.
    fn sources(&self) -> Result<Vec<PathBuf>, svdq::Error> {
        let model = match (&self.model, std::env::var_os("SVDQ_MODEL")) {
            (Some(path), _) => path.clone(),
            (None, Some(path)) => path.into(),
            (None, None) => demo_model()?,
        };
        let mut sources = vec![model];
        for (path, kind) in &self.parts {
            if let Some(kind) = kind {
                Checkpoint::open_part(path, *kind)?;
            }
            sources.push(path.clone());
        }
        Ok(sources)
    }

    /// `--model` as it was given.
    pub(crate) fn name(&self) -> Option<&str> {
        self.model.as_deref()?.to_str()
    }

    /// The activations that were asked for.
    pub(crate) fn profile(&self) -> Option<Profile> {
        self.profile
    }

    /// The device to run on.
    pub(crate) fn context(&self) -> Result<Context, svdq::Error> {
        let ModelArgs { device, threads, memory_budget, .. } = *self;
        Context::new(ContextOptions { device, threads, memory_budget, ..Default::default() })
    }

    /// Loads the model.
    pub(crate) fn load(&self) -> Result<Model, Failure> {
        self.load_into(&self.context()?)
    }

    /// Loads the model for a device that is open already.
    pub(crate) fn load_into(&self, context: &Context) -> Result<Model, Failure> {
        Ok(Model::load(context, &self.model_options()?)?)
    }

    /// What to load.
    pub(crate) fn model_options(&self) -> Result<ModelOptions, Failure> {
        let sources = self.sources()?.into_iter().map(Source::from).collect();
        Ok(ModelOptions { sources, profile: self.profile, ..Default::default() })
    }

    /// Loads the LoRAs for the model that [`Self::load`] gave.
    pub(crate) fn load_loras(&self, model: &Model) -> Result<Vec<(Lora, f32)>, Failure> {
        let mut loras = Vec::new();
        for (path, strength) in &self.loras {
            let lora = Lora::load(model, path.as_path())?;
            if let [first, ..] = &lora.info().unused[..] {
                let (path, count) = (path.display(), lora.info().unused.len());
                eprintln!("svdq: {path}: the model has no place for {count} tensors, such as `{first}`");
            }
            if lora.info().control_channels > 0 {
                let path = path.display();
                eprintln!(
                    "svdq: {path}: it is for a control image, which cannot be given yet: zeros stand for it"
                );
            }
            loras.push((lora, *strength));
        }
        Ok(loras)
    }

    /// Names and strengths of the LoRAs, for people; empty without any.
    pub(crate) fn lora_names(&self) -> String {
        let name = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        self.loras.iter().map(|(path, s)| format!("{}:{s}", name(path))).collect::<Vec<_>>().join(" ")
    }
}

/// `FILE` or `FILE:STRENGTH`. A file whose own name ends like a strength is written with one.
fn lora(value: OsString) -> Result<(PathBuf, f32), lexopt::Error> {
    let split = value.to_str().and_then(|text| text.rsplit_once(':'));
    match split.map(|(path, strength)| (path, strength.parse::<f32>())) {
        Some((path, Ok(strength))) if strength.is_finite() => Ok((path.into(), strength)),
        Some((_, Ok(strength))) => Err(format!("a strength of {strength} is no finite number").into()),
        _ => Ok((value.into(), 1.0)),
    }
}

/// A number of bytes, or of KiB, MiB or GiB with a letter behind it.
fn bytes(text: &str) -> Result<u64, String> {
    let units = [("K", 10), ("M", 20), ("G", 30)];
    let split = units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)));
    let (number, shift) = split.unwrap_or((text, 0));
    match number.parse::<f64>().map(|number| number * f64::from(1u32 << shift)) {
        Ok(bytes) if (0.0..=1e15).contains(&bytes) => Ok(bytes as u64),
        _ => Err("it is no number of bytes, such as 7.5G".into()),
    }
}

fn device(name: &str) -> Result<DeviceSelect, String> {
    match (name, name.strip_prefix("cuda:").map(str::parse)) {
        ("auto", _) => Ok(DeviceSelect::Auto),
        ("cpu", _) => Ok(DeviceSelect::Cpu),
        ("cuda", _) => Ok(DeviceSelect::Cuda(0)),
        (_, Some(Ok(index))) => Ok(DeviceSelect::Cuda(index)),
        _ => Err("it is none of auto, cpu, cuda, cuda:N".into()),
    }
}

fn profile(name: &str) -> Result<Profile, String> {
    match name {
        "w4a4" => Ok(Profile::W4A4),
        "w4a8" => Ok(Profile::W4A8),
        "w4a16" => Ok(Profile::W4A16),
        _ => Err("it is none of w4a4, w4a8, w4a16".into()),
    }
}

/// `WIDTHxHEIGHT`
pub(crate) fn size(value: &OsStr) -> Result<(u32, u32), lexopt::Error> {
    let parse = || {
        let (width, height) = value.to_str()?.split_once(['x', 'X'])?;
        Some((width.parse().ok()?, height.parse().ok()?))
    };
    match parse() {
        Some((0, _) | (_, 0)) => Err(format!("a size of {value:?} has no pixels").into()),
        Some(size) => Ok(size),
        None => Err(format!("a size is written WIDTHxHEIGHT, not {value:?}").into()),
    }
}

/// The demo model of a source checkout: `assets/demo` in the working folder or above the executable.
fn demo_model() -> Result<PathBuf, svdq::Error> {
    let executable = std::env::current_exe().unwrap_or_default();
    std::iter::once(Path::new(""))
        .chain(executable.ancestors().skip(1))
        .map(|folder| folder.join("assets/demo"))
        .find(|folder| folder.join("model_index.json").is_file())
        .ok_or_else(|| {
            svdq::Error::InvalidArgument(
                "no model was given and assets/demo is not here: use --model or SVDQ_MODEL".into(),
            )
        })
}
