//! Which safetensors files make up a checkpoint.

use std::collections::{BTreeSet, HashMap};

use serde::Deserialize;

use super::json::read_json;
use super::location::{Location, is_plain_name};
use crate::{Error, Result};

/// Base names under which diffusers and transformers save the weights of a model.
pub(super) const USUAL: [&str; 2] = ["diffusion_pytorch_model", "model"];
/// The two files of a Nunchaku folder, as made before 2025's single files.
const NUNCHAKU: [&str; 2] = ["transformer_blocks.safetensors", "unquantized_layers.safetensors"];

/// The files of one checkpoint.
pub(super) struct Files {
    /// At least one, sorted.
    pub(super) shards: Vec<Location>,
    /// The index, if there is one, and what it says: tensor name to file name.
    pub(super) index: Option<(Location, HashMap<String, String>)>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// The file `at` itself, or the weights in the folder `at`.
pub(super) fn locate(at: &Location) -> Result<Files> {
    if !at.is_dir() {
        return Ok(Files { shards: vec![at.clone()], index: None });
    }
    let names = at.names()?;
    let has = |name: &str| names.contains(name);
    let with = |end: &str| names.iter().filter(|n| n.ends_with(end)).map(String::as_str).collect::<Vec<_>>();

    let indices = with(".safetensors.index.json");
    if let Some(index) = usual(&names, ".safetensors.index.json").or(only(&indices)) {
        return from_index(at, at.join(&index));
    }
    let single = |name: &str| Ok(Files { shards: vec![at.join(name)], index: None });
    if let Some(name) = usual(&names, ".safetensors") {
        return single(&name);
    }
    if NUNCHAKU.iter().all(|n| has(n)) {
        return Ok(Files { shards: NUNCHAKU.map(|n| at.join(n)).to_vec(), index: None });
    }
    match with(".safetensors")[..] {
        [name] => single(name),
        [] => Err(Error::NotFound {
            path: at.path().into(),
            what: "the folder holds no .safetensors file".into(),
        }),
        ref many => Err(Error::format(
            at.path(),
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

fn from_index(folder: &Location, at: Location) -> Result<Files> {
    let Index { weight_map } = read_json(&at)?;
    let files: BTreeSet<&String> = weight_map.values().collect();
    if let Some(bad) = files.iter().find(|name| !is_plain_name(name)) {
        return Err(Error::format(
            at.path(),
            format!("`weight_map`: {bad:?} is not the name of a file beside the index"),
        ));
    }
    if files.is_empty() {
        return Err(Error::format(at.path(), "`weight_map` is empty"));
    }
    let shards = files.into_iter().map(|name| folder.join(name)).collect();
    Ok(Files { shards, index: Some((at, weight_map)) })
}
