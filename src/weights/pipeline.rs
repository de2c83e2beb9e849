//! A diffusers pipeline folder: where its parts are.

use serde::Deserialize;

use super::{Location, PartKind, read_json};
use crate::{Error, Result};

/// A folder with a `model_index.json` of diffusers' `FluxPipeline` or one of its variants.
#[derive(Clone)]
pub struct PipelineFolder {
    dir: Location,
    transformer: Location,
    defaults: Defaults,
}

/// What the makers of a model recommend, from `svdq.json` beside `model_index.json`. All are optional.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Defaults {
    /// Pixels.
    pub width: Option<usize>,
    /// Pixels.
    pub height: Option<usize>,
    /// T5 tokens of a prompt, padding included.
    pub max_sequence_length: Option<usize>,
    /// Denoising steps.
    pub steps: Option<usize>,
    /// Guidance scale of guidance-distilled models.
    pub guidance_scale: Option<f32>,
}

#[derive(Deserialize)]
struct ModelIndex {
    #[serde(rename = "_class_name")]
    class_name: String,
}

/// Classes of pipelines with these parts. Those of FLUX.1's tools have transformers that take an image too: that is refused
/// where the transformer is loaded.
const CLASSES: [&str; 4] = ["FluxPipeline", "FluxKontextPipeline", "FluxFillPipeline", "FluxControlPipeline"];

impl PipelineFolder {
    /// Files in such a folder beside its `svdq-*.safetensors`.
    pub(super) const FILES: [&str; 2] = ["model_index.json", "svdq.json"];
    /// Folders in it.
    pub(super) const FOLDERS: [&str; 7] =
        ["transformer", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae", "scheduler"];

    /// Opens the folder and checks that all its parts are there.
    ///
    /// # Errors
    /// [`Error::NotFound`] naming the part, [`Error::WrongModel`] for a pipeline of another class, and what is wrong with
    /// `model_index.json` or `svdq.json`.
    pub fn open(dir: impl Into<Location>) -> Result<Self> {
        let dir = dir.into();
        let index = dir.join("model_index.json");
        if dir.is_dir() && !index.exists() {
            let what = "no model_index.json in it: this is no diffusers pipeline folder";
            return Err(Error::NotFound { path: dir.path().into(), what: what.into() });
        }
        let ModelIndex { class_name } = read_json(&index)?;
        if !CLASSES.contains(&class_name.as_str()) {
            let what = format!("`_class_name` is {class_name}, {} is expected", CLASSES[0]);
            return Err(Error::WrongModel { path: index.path().into(), what });
        }
        let quantised =
            dir.names()?.into_iter().find(|n| n.starts_with("svdq-") && n.ends_with(".safetensors"));
        let transformer = dir.join(quantised.as_deref().unwrap_or("transformer"));
        let defaults = Defaults::read(&dir.join("svdq.json"))?;
        let folder = PipelineFolder { dir, transformer, defaults };
        let parts = [
            folder.transformer().clone(),
            folder.text_encoder(),
            folder.text_encoder_2(),
            folder.tokenizer(),
            folder.tokenizer_2(),
            folder.vae(),
            folder.scheduler(),
        ];
        match parts.into_iter().find(|part| !part.exists()) {
            Some(part) => Err(Error::NotFound {
                path: part.path().into(),
                what: "missing from the pipeline folder".into(),
            }),
            None => Ok(folder),
        }
    }

    /// The folder itself.
    pub fn location(&self) -> &Location {
        &self.dir
    }

    /// The first `svdq-*.safetensors` by name, or else the folder `transformer`.
    pub fn transformer(&self) -> &Location {
        &self.transformer
    }

    /// The 16-bit transformer that the pipeline came with. It may be absent where there is a 4-bit one.
    pub fn dense_transformer(&self) -> Location {
        self.dir.join("transformer")
    }

    /// Folder of CLIP.
    pub fn text_encoder(&self) -> Location {
        self.dir.join("text_encoder")
    }

    /// Folder of T5.
    pub fn text_encoder_2(&self) -> Location {
        self.dir.join("text_encoder_2")
    }

    /// Folder of CLIP's tokenizer.
    pub fn tokenizer(&self) -> Location {
        self.dir.join("tokenizer")
    }

    /// Folder of T5's tokenizer.
    pub fn tokenizer_2(&self) -> Location {
        self.dir.join("tokenizer_2")
    }

    /// Folder of the VAE.
    pub fn vae(&self) -> Location {
        self.dir.join("vae")
    }

    /// Config file of the scheduler.
    pub fn scheduler(&self) -> Location {
        self.dir.join("scheduler/scheduler_config.json")
    }

    /// File or folder of a network.
    pub fn part(&self, kind: PartKind) -> Location {
        match kind {
            PartKind::Transformer => self.transformer.clone(),
            PartKind::Clip => self.text_encoder(),
            PartKind::T5 => self.text_encoder_2(),
            PartKind::Vae => self.vae(),
        }
    }

    /// What the model's makers recommend.
    pub fn defaults(&self) -> &Defaults {
        &self.defaults
    }
}

impl Defaults {
    /// Reads `svdq.json`; without one there are no recommendations.
    fn read(at: &Location) -> Result<Self> {
        if !at.exists() {
            return Ok(Defaults::default());
        }
        let defaults: Defaults = read_json(at)?;
        for (key, value, limit) in [
            ("width", defaults.width, 16384),
            ("height", defaults.height, 16384),
            ("max_sequence_length", defaults.max_sequence_length, 512),
            ("steps", defaults.steps, 1000),
        ] {
            if let Some(value) = value.filter(|v| !(1..=limit).contains(v)) {
                return Err(Error::format(
                    at.path(),
                    format!("`{key}` is {value}, and must be between 1 and {limit}"),
                ));
            }
        }
        match defaults.guidance_scale {
            Some(g) if !(0.0..=1000.0).contains(&g) => Err(Error::format(
                at.path(),
                format!("`guidance_scale` is {g}, and must be between 0 and 1000"),
            )),
            _ => Ok(defaults),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use super::*;
    use crate::weights::testing::TempDir;

    fn folder() -> TempDir {
        let dir = TempDir::new();
        dir.write(
            "model_index.json",
            br#"{"_class_name": "FluxPipeline", "vae": ["diffusers", "AutoencoderKL"]}"#,
        );
        for part in ["transformer", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae"] {
            dir.write(&format!("{part}/config.json"), b"{}");
        }
        dir.write("scheduler/scheduler_config.json", b"{}");
        dir
    }

    #[test]
    fn the_4_bit_transformer_goes_before_the_dense_one() {
        let dir = folder();
        let open = || PipelineFolder::open(dir.path()).unwrap();
        assert_eq!(open().transformer().path(), dir.path().join("transformer"));
        assert_eq!(open().defaults(), &Defaults::default());
        dir.write("svdq-int4_r64-x.safetensors", b"");
        dir.write("svdq-int4_r32-x.safetensors", b"");
        assert_eq!(open().transformer().path(), dir.path().join("svdq-int4_r32-x.safetensors"));
        std::fs::remove_dir_all(dir.path().join("transformer")).unwrap();
        dir.write("svdq.json", br#"{"width": 128, "height": 64, "steps": 20, "guidance_scale": 3.5}"#);
        let defaults = open().defaults().clone();
        assert_eq!(
            (defaults.width, defaults.height, defaults.max_sequence_length),
            (Some(128), Some(64), None)
        );
        assert_eq!((defaults.steps, defaults.guidance_scale), (Some(20), Some(3.5)));
    }

    #[test]
    fn folders_that_are_no_flux_pipelines_are_refused() {
        let say = |dir: &TempDir| PipelineFolder::open(dir.path()).err().unwrap().to_string();
        assert!(say(&TempDir::new()).contains("no model_index.json in it"));
        let gone = PipelineFolder::open(Path::new("/nonexistent")).err().unwrap();
        assert!(matches!(gone, Error::NotFound { .. }), "{gone}");

        for (file, text, expected) in [
            (
                "model_index.json",
                r#"{"_class_name": "StableDiffusion3Pipeline"}"#,
                "`_class_name` is StableDiffusion3Pipeline",
            ),
            ("model_index.json", r#"{}"#, "model_index.json: missing field `_class_name`"),
            ("model_index.json", r#"PNG"#, "model_index.json: expected"),
            ("svdq.json", r#"{"width": 0}"#, "svdq.json: `width` is 0"),
            ("svdq.json", r#"{"height": 100000}"#, "`height` is 100000, and must be between 1 and 16384"),
            ("svdq.json", r#"{"steps": -1}"#, "near key `steps`"),
            ("svdq.json", r#"{"max_sequence_length": 513}"#, "`max_sequence_length` is 513"),
            ("svdq.json", r#"{"guidance_scale": -1}"#, "`guidance_scale` is -1"),
            ("svdq.json", r#"{"guidance": 1}"#, "unknown field `guidance`"),
        ] {
            let dir = folder();
            dir.write(file, text.as_bytes());
            assert!(say(&dir).contains(expected), "{text}: {}", say(&dir));
        }
        for part in ["transformer", "text_encoder_2", "scheduler"] {
            let dir = folder();
            std::fs::remove_dir_all(dir.path().join(part)).unwrap();
            assert!(say(&dir).contains(part) && say(&dir).contains("missing from the pipeline folder"));
        }
    }
}
