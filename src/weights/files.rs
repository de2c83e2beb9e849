//! The files of one model, recognised by what is in them.

use std::collections::BTreeMap;

use super::locate::locate;
use super::{Checkpoint, Defaults, Location, PartKind, PipelineFolder, Source};
use crate::{Error, Result};

/// Where the parts of a FLUX.1 model are: each in a file or folder of its own, together in one file, or in a pipeline
/// folder.
#[derive(Clone)]
pub struct ModelFiles {
    parts: BTreeMap<PartKind, Location>,
    folder: Option<PipelineFolder>,
}

impl ModelFiles {
    /// Recognises `sources`, in any order: a diffusers pipeline folder, files and folders of single networks, folders with
    /// many files, files with many networks. A network of its own replaces the one of a pipeline folder or of a file
    /// with many.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] names a network that is there twice or missing, or a named source that is no file of a
    /// model; [`Error::WrongModel`] a source that is no part of such a model; beside what [`Checkpoint::open`] and
    /// [`PipelineFolder::open`] find.
    pub fn find(sources: &[Source]) -> Result<Self> {
        let (mut single, mut shared) = (BTreeMap::new(), BTreeMap::new());
        let mut folder: Option<PipelineFolder> = None;
        let sources = Source::locations(sources)?;
        for source in &sources {
            check_names(source)?;
            if source.join("model_index.json").exists() {
                let next = PipelineFolder::open(source)?;
                if let Some(first) = folder.replace(next) {
                    return Err(twice("pipeline folder", first.location(), source));
                }
                continue;
            }
            for (at, kinds) in contents(source)? {
                let parts = if kinds.len() == 1 { &mut single } else { &mut shared };
                for kind in kinds {
                    if let Some(first) = parts.insert(kind, at.clone()) {
                        return Err(twice(&kind.to_string(), &first, &at));
                    }
                }
            }
        }
        let of_folder = |kind| folder.as_ref().map(|folder| folder.part(kind));
        let mut parts = BTreeMap::new();
        for kind in PartKind::ALL {
            let at = single.remove(&kind).or_else(|| shared.remove(&kind)).or_else(|| of_folder(kind));
            parts.insert(kind, at.ok_or_else(|| missing(kind, &sources))?);
        }
        Ok(ModelFiles { parts, folder })
    }

    /// Opens a network.
    ///
    /// # Errors
    /// As [`Checkpoint::open_part`].
    pub fn open(&self, kind: PartKind) -> Result<Checkpoint> {
        match self.parts.get(&kind) {
            Some(at) => Checkpoint::open_part(at, kind),
            None => Err(missing(kind, &[])),
        }
    }

    /// The pipeline folder among the sources: it has tokenizers and a scheduler's config too.
    pub fn folder(&self) -> Option<&PipelineFolder> {
        self.folder.as_ref()
    }

    /// What the makers of the pipeline folder recommend.
    pub fn defaults(&self) -> Defaults {
        self.folder.as_ref().map(|folder| folder.defaults().clone()).unwrap_or_default()
    }
}

/// Names that nothing will ask for are mistakes, and a mistake in a name must not go unnoticed.
fn check_names(source: &Location) -> Result<()> {
    if !source.is_named_sources() {
        return Ok(());
    }
    let names = source.names()?;
    let pipeline = names.contains("model_index.json");
    let file = |name: &str| name.ends_with(".safetensors") && (!pipeline || name.starts_with("svdq-"));
    let folder =
        |name: &str| source.join(name).is_dir() && (!pipeline || PipelineFolder::FOLDERS.contains(&name));
    let json = |name: &str| pipeline && PipelineFolder::FILES.contains(&name);
    match names.iter().find(|name| !file(name) && !folder(name) && !json(name)) {
        None => Ok(()),
        Some(name) if pipeline => Err(Error::InvalidArgument(format!(
            "{name:?} is no name in a pipeline folder: a file with a network to use beside it has no name"
        ))),
        Some(name) => Err(Error::InvalidArgument(format!(
            "{name:?} is no name of a file with a network, and there is no \"model_index.json\" for a pipeline folder"
        ))),
    }
}

/// The networks at `source`, file by file. In a folder of many files, those that hold none are passed over.
fn contents(source: &Location) -> Result<Vec<(Location, Vec<PartKind>)>> {
    if source.is_named_sources() {
        let all =
            source.names()?.iter().map(|name| contents(&source.join(name))).collect::<Result<Vec<_>>>()?;
        return Ok(all.concat());
    }
    let parts = |at: &Location| Ok((at.clone(), Checkpoint::open(at)?.parts()));
    let found = match many(source)? {
        Some(files) => files.iter().map(parts).collect::<Result<Vec<_>>>()?,
        None => vec![parts(source)?],
    };
    let found: Vec<_> = found.into_iter().filter(|(_, kinds)| !kinds.is_empty()).collect();
    if found.is_empty() {
        let what = "no FLUX.1 transformer, CLIP or T5 text encoder, or VAE: its tensors have other names";
        return Err(Error::WrongModel { path: source.path().into(), what: what.into() });
    }
    Ok(found)
}

/// The files in a folder that holds more than the shards of one checkpoint.
fn many(folder: &Location) -> Result<Option<Vec<Location>>> {
    if !folder.is_dir() || locate(folder).is_ok() {
        return Ok(None);
    }
    let names = folder.names()?.into_iter().filter(|name| name.ends_with(".safetensors"));
    let files: Vec<Location> = names.map(|name| folder.join(&name)).collect();
    Ok((files.len() > 1).then_some(files))
}

fn twice(what: &str, first: &Location, second: &Location) -> Error {
    let [first, second] = [first, second].map(|at| at.path().display());
    Error::InvalidArgument(format!("{first} and {second} are both a {what}"))
}

fn missing(kind: PartKind, sources: &[Location]) -> Error {
    let sources: Vec<String> = sources.iter().map(|at| at.path().display().to_string()).collect();
    let sources = if sources.is_empty() { "no files".into() } else { sources.join(", ") };
    Error::InvalidArgument(format!("a {kind} is missing: the model was to be read from {sources}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::weights::testing::{TempDir, safetensors};

    /// A file with one tensor of each name.
    fn file(names: &[&str]) -> Vec<u8> {
        let entries: Vec<_> = names
            .iter()
            .map(|n| format!(r#""{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#))
            .collect();
        safetensors(&format!("{{{}}}", entries.join(",")), 0)
    }

    const TRANSFORMER: &str = "double_blocks.0.img_attn.qkv.weight";
    const CLIP: &str = "text_model.encoder.layers.0.mlp.fc1.weight";
    const T5: &str = "encoder.block.0.layer.0.SelfAttention.q.weight";
    const VAE: &str = "decoder.conv_in.weight";

    #[test]
    fn sources_are_recognised_in_any_order() {
        let dir = TempDir::new();
        let write = |name: &str, names: &[&str]| dir.write(name, &file(names));
        let flux = write("flux.safetensors", &[TRANSFORMER]);
        write("encoders/clip_l.safetensors", &[CLIP]);
        write("encoders/t5.safetensors", &[T5]);
        write("encoders/style.safetensors", &["lora.weight"]);
        let encoders = dir.path().join("encoders");
        let vae = write("ae.safetensors", &[VAE]);
        let find = |sources: &[&PathBuf]| {
            ModelFiles::find(&sources.iter().map(|path| path.as_path().into()).collect::<Vec<_>>())
        };
        let part = |found: &ModelFiles, kind| found.parts[&kind].path().to_owned();
        let found = find(&[&vae, &encoders, &flux]).unwrap();
        assert_eq!(
            PartKind::ALL.map(|kind| part(&found, kind)),
            [flux.clone(), encoders.join("clip_l.safetensors"), encoders.join("t5.safetensors"), vae.clone()]
        );
        assert!(found.folder().is_none());

        let all = write("all.safetensors", &[TRANSFORMER, CLIP, T5, VAE]);
        let found = find(&[&all, &flux]).unwrap();
        assert_eq!([part(&found, PartKind::Transformer), part(&found, PartKind::Vae)], [flux.clone(), all]);

        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
        let found = find(&[&vae, &demo]).unwrap();
        assert_eq!(
            [part(&found, PartKind::Vae), part(&found, PartKind::Clip)],
            [vae.clone(), demo.join("text_encoder")]
        );
        assert_eq!(found.defaults().steps, PipelineFolder::open(&demo).unwrap().defaults().steps);

        let say = |sources: &[&PathBuf]| find(sources).err().unwrap().to_string();
        let again = write("vae2.safetensors", &[VAE]);
        let other = write("other.safetensors", &["lora.weight"]);
        assert!(say(&[&vae, &flux, &again]).contains("vae2.safetensors are both a VAE"));
        assert!(say(&[&demo, &demo]).contains("are both a pipeline folder"));
        assert!(say(&[&flux, &vae]).contains("a CLIP text encoder is missing"));
        assert!(say(&[&flux, &encoders]).contains("a VAE is missing: the model was to be read from"));
        assert!(say(&[]).contains("a FLUX.1 transformer is missing: the model was to be read from no files"));
        assert!(say(&[&other]).contains("other.safetensors: no FLUX.1 transformer, CLIP or T5"));
        assert!(say(&[&dir.path().join("gone")]).contains("gone"));
        dir.write("encoders/broken.safetensors", b"no");
        assert!(say(&[&encoders]).contains("broken.safetensors: 2 bytes are too few"));
    }
}
