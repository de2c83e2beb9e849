//! What a LoRA file holds: which tensors make up which update.

use std::collections::BTreeMap;

use super::names::{Key, Module, Names, Network, Role, is_text_encoder, parse};
use super::scale::Scales;
use super::values::{Loaded, number};
use super::{MAX_RANK, Sites};
use crate::weights::{Checkpoint, Tensor};
use crate::{Error, Result};

/// One module of the file: `scale · B A` and a bias.
pub(super) struct Update<'a> {
    pub(super) network: Network,
    pub(super) target: &'a Module,
    /// `[rank, k]`
    pub(super) down: Loaded<'a>,
    /// `[n, rank]`
    pub(super) up: Loaded<'a>,
    /// `[n]`
    pub(super) bias: Option<Loaded<'a>>,
    pub(super) scale: f32,
}

/// A tensor that stands in the place of a vector of a network.
pub(super) struct Replacement<'a> {
    pub(super) network: Network,
    pub(super) site: usize,
    pub(super) tensor: Loaded<'a>,
}

/// All of a file.
#[derive(Default)]
pub(super) struct Contents<'a> {
    pub(super) updates: Vec<Update<'a>>,
    pub(super) replacements: Vec<Replacement<'a>>,
    /// Tensors for which the model has no place.
    pub(super) unused: Vec<&'a str>,
}

/// The tensors of a module as they are found.
#[derive(Default)]
struct Tensors<'a>([Option<Tensor<'a>>; 4]);

impl<'a> Contents<'a> {
    /// Sorts the tensors of `file` by module.
    pub(super) fn read(file: &'a Checkpoint, names: &'a Names, sites: [&Sites; 3]) -> Result<Self> {
        let mut contents = Contents::default();
        let mut modules = BTreeMap::<&str, (Network, &Module, Tensors<'_>)>::new();
        for tensor in file.tensors() {
            let (name, role) = match parse(tensor.name) {
                Key::Of(name, role) => (name, role),
                Key::Unsupported(method) => {
                    let path = file.path().display();
                    let what = format!("{path}: `{}` is of {method}, only LoRAs can be used", tensor.name);
                    return Err(Error::Unsupported(what));
                }
                Key::Unknown => {
                    contents.unused.push(tensor.name);
                    continue;
                }
            };
            let found = names.find(name).map(|(network, target)| {
                (network, target, sites[network as usize].find_vector(&target.layers[0]))
            });
            match found {
                Some((network, _, Some((site, len)))) if role == Role::Vector => {
                    if tensor.shape != [len] {
                        let what = format!("has shape {:?}, [{len}] is expected", tensor.shape);
                        return Err(wrong(file, tensor.name, what));
                    }
                    let same = |r: &&Replacement<'_>| (r.network, r.site) == (network, site);
                    if let Some(other) = contents.replacements.iter().find(same) {
                        let what = format!("replaces the same vector as `{}`", other.tensor.name);
                        return Err(file.bad(tensor.name, what));
                    }
                    let tensor = Loaded::of(&tensor)?;
                    contents.replacements.push(Replacement { network, site, tensor });
                }
                Some((network, target, None)) if role != Role::Vector => {
                    let (.., tensors) = modules.entry(name).or_insert((network, target, Tensors::default()));
                    if let Some(other) = tensors.0[role as usize].replace(tensor) {
                        return Err(file.bad(tensor.name, format!("is the same as `{}`", other.name)));
                    }
                }
                _ => contents.unused.push(tensor.name),
            }
        }
        let scales = Scales::read(file)?;
        for (name, (network, target, tensors)) in modules {
            contents.updates.push(tensors.complete(file, &scales, name, network, target)?);
        }
        contents.check_model(file)?;
        Ok(contents)
    }

    /// A LoRA of another model's transformer may well fit CLIP, which many models share: that is refused too.
    fn check_model(&self, file: &Checkpoint) -> Result<()> {
        let networks = self.updates.iter().map(|u| u.network);
        let mut networks = networks.chain(self.replacements.iter().map(|r| r.network)).peekable();
        let text_only = networks.peek().is_some() && networks.all(|network| network != Network::Transformer);
        let foreign = self.unused.iter().find(|name| !is_text_encoder(name));
        let what = match (self.updates.is_empty() && self.replacements.is_empty(), text_only, foreign) {
            (false, false, _) | (false, true, None) => return Ok(()),
            (_, _, Some(name)) => format!("no LoRA of this model, which has no place for `{name}`"),
            (true, _, None) => "no LoRA of this model: the file has nothing for it".into(),
        };
        Err(Error::WrongModel { path: file.path().into(), what })
    }
}

impl<'a> Tensors<'a> {
    /// Checks that the factors are there and fit each other.
    fn complete(
        self,
        file: &Checkpoint,
        scales: &Scales,
        name: &str,
        network: Network,
        target: &'a Module,
    ) -> Result<Update<'a>> {
        let [down, up, bias, alpha] = self.0;
        let (down, up) = match (down, up) {
            (Some(down), Some(up)) => (down, up),
            (None, None) => {
                let only = bias.or(alpha).map_or(name, |tensor| tensor.name);
                return Err(file.bad(only, "belongs to a module without weights"));
            }
            (one, other) => {
                let (there, missing) = if one.is_some() { (one, "up (B)") } else { (other, "down (A)") };
                let there = there.map_or(name, |tensor| tensor.name);
                return Err(file.bad(there, format!("has no {missing} factor beside it")));
            }
        };
        let &[rank, _] = down.shape else {
            return Err(file.bad(down.name, format!("has shape {:?}, a matrix is expected", down.shape)));
        };
        if rank == 0 || rank > MAX_RANK {
            return Err(file.bad(down.name, format!("is of rank {rank}; 1 to {MAX_RANK} can be used")));
        }
        let &[n, columns] = up.shape else {
            return Err(file.bad(up.name, format!("has shape {:?}, a matrix is expected", up.shape)));
        };
        if columns != rank {
            let what = format!("has {columns} columns, but `{}` is of rank {rank}", down.name);
            return Err(file.bad(up.name, what));
        }
        if let Some(bias) = bias.filter(|bias| bias.shape != [n]) {
            return Err(file.bad(bias.name, format!("has shape {:?}, [{n}] is expected", bias.shape)));
        }
        let scale = match alpha {
            Some(alpha) => number(file, &Loaded::of(&alpha)?)? / rank as f32,
            None => scales.of(network, name, rank),
        };
        let (down, up) = (Loaded::of(&down)?, Loaded::of(&up)?);
        let bias = bias.map(|bias| Loaded::of(&bias)).transpose()?;
        Ok(Update { network, target, down, up, bias, scale })
    }
}

/// A tensor that another model would have.
pub(super) fn wrong(file: &Checkpoint, name: &str, what: String) -> Error {
    Error::WrongModel { path: file.path().into(), what: format!("tensor `{name}` {what}") }
}
