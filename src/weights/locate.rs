//! Which safetensors files make up a checkpoint.

use std::collections::{BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::json::read_json;
use crate::{Error, Result};

/// Base names under which diffusers and transformers save the weights of a model.
pub(super) const USUAL: [&str; 2] = ["diffusion_pytorch_model", "model"];
/// The two files of a Nunchaku folder, as made before 2025's single files.
const NUNCHAKU: [&str; 2] = ["transformer_blocks.safetensors", "unquantized_layers.safetensors"];

/// The files of one checkpoint.
pub(super) struct Files {
    /// At least one, sorted.
    pub(super) shards: Vec<PathBuf>,
    /// The index, if there is one, and what it says: tensor name to file name.
    pub(super) index: Option<(PathBuf, HashMap<String, String>)>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// `path` itself, or the weights in the folder `path`.
pub(super) fn locate(path: &Path) -> Result<Files> {
    if !path.is_dir() {
        return Ok(Files { shards: vec![path.to_owned()], index: None });
    }
    let names = file_names(path)?;
    let has = |name: &str| names.contains(name);
    let with = |end: &str| names.iter().filter(|n| n.ends_with(end)).map(String::as_str).collect::<Vec<_>>();

    let indices = with(".safetensors.index.json");
    if let Some(index) = usual(&names, ".safetensors.index.json").or(only(&indices)) {
        return from_index(path, &path.join(index));
    }
    let single = |name: &str| Ok(Files { shards: vec![path.join(name)], index: None });
    if let Some(name) = usual(&names, ".safetensors") {
        return single(&name);
    }
    if NUNCHAKU.iter().all(|n| has(n)) {
        return Ok(Files { shards: NUNCHAKU.map(|n| path.join(n)).to_vec(), index: None });
    }
    match with(".safetensors")[..] {
        [name] => single(name),
        [] => {
            Err(Error::NotFound { path: path.into(), what: "the folder holds no .safetensors file".into() })
        }
        ref many => Err(Error::format(
            path,
            format!(
                "the folder holds {} .safetensors files ({}, ...) and no index of them",
                many.len(),
                many[0]
            ),
        )),
    }
}

fn usual(names: &BTreeSet<String>, end: &str) -> Option<String> {
    USUAL.iter().map(|base| format!("{base}{end}")).find(|name| names.contains(name))
}

fn only(names: &[&str]) -> Option<String> {
    match names {
        [name] => Some((*name).to_owned()),
        _ => None,
    }
}

/// Names in a folder, less those that are not Unicode: no model has such.
pub(super) fn file_names(folder: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let entry = entry.map_err(|e| Error::io(folder, e))?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

fn from_index(folder: &Path, path: &Path) -> Result<Files> {
    let Index { weight_map } = read_json(path)?;
    let files: BTreeSet<&String> = weight_map.values().collect();
    if let Some(bad) = files.iter().find(|name| !is_plain_name(name)) {
        return Err(Error::format(
            path,
            format!("`weight_map`: {bad:?} is not the name of a file beside the index"),
        ));
    }
    if files.is_empty() {
        return Err(Error::format(path, "`weight_map` is empty"));
    }
    let shards = files.into_iter().map(|name| folder.join(name)).collect();
    Ok(Files { shards, index: Some((path.to_owned(), weight_map)) })
}

/// A name that stays in its folder on every system: no separators, drives, streams, or `..`.
fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
        && !name.contains(['/', '\\', ':', '\0'])
}
