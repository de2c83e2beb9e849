//! Where LoRAs attach: every linear of a network is a site with a number, found by diffusers' names.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::ops::{Device, Layer, LinearSource, Usage};
use crate::{Error, Result};

/// A linear of a network and its site.
pub struct Linear<D: Device> {
    weights: D::Linear,
    site: usize,
}

/// A constant row of a network, `[1, cols]`, that a LoRA can replace, and its site.
pub struct Vector<D: Device> {
    values: D::Tensor,
    site: usize,
}

/// The sites of one network. It is filled while the network is loaded.
#[derive(Default)]
pub struct Sites {
    linears: Vec<[usize; 2]>,
    targets: BTreeMap<String, Vec<Target>>,
    vectors: BTreeMap<String, (usize, usize)>,
}

/// The part of a site that a name stands for. A name can stand for parts of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The site.
    pub site: usize,
    /// `[N, K]` of the site.
    pub shape: [usize; 2],
    /// Outputs of the site.
    pub rows: Range<usize>,
    /// Inputs of the named linear: they are all inputs of the site.
    pub columns: Range<usize>,
}

impl Sites {
    /// Loads a linear, used as often as `usage` says, that holds those of `names` on top of one another, in equal shares. A name that is there already
    /// gets these inputs beside those that it has.
    pub fn linear<D: Device>(
        &mut self,
        dev: &D,
        usage: Usage,
        source: &LinearSource<'_>,
        names: impl ExactSizeIterator<Item = String>,
    ) -> Result<Linear<D>> {
        let shape @ [n, k] = source.shape();
        let (site, share) = (self.linears.len(), n / names.len().max(1));
        self.linears.push(shape);
        for (i, name) in names.enumerate() {
            let targets = self.targets.entry(name).or_default();
            let start = targets.last().map_or(0, |last| last.columns.end);
            let rows = i * share..(i + 1) * share;
            targets.push(Target { site, shape, rows, columns: start..start + k });
        }
        Ok(Linear { weights: dev.load_linear_for(usage, source)?, site })
    }

    /// Loads a row of constants.
    pub fn vector<D: Device>(&mut self, dev: &D, values: &[f32], name: String) -> Result<Vector<D>> {
        let site = self.vectors.len();
        self.vectors.insert(name, (site, values.len()));
        Ok(Vector { values: dev.load_tensor(values, values.len())?, site })
    }

    /// What the linear `name` is part of, inputs in order; empty if there is no such linear.
    pub fn targets(&self, name: &str) -> &[Target] {
        self.targets.get(name).map_or(&[], Vec::as_slice)
    }

    /// Site and length of the vector `name`.
    pub fn find_vector(&self, name: &str) -> Option<(usize, usize)> {
        self.vectors.get(name).copied()
    }

    /// Names of all vectors, sorted.
    pub fn vector_names(&self) -> impl Iterator<Item = &str> {
        self.vectors.keys().map(String::as_str)
    }

    /// Names of all linears, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.targets.keys().map(String::as_str)
    }
}

/// What one LoRA changes in one network, on the device.
pub struct Patch<D: Device> {
    /// Site, update, and what the update's strength is multiplied by.
    pub updates: Vec<(usize, D::LowRank, f32)>,
    /// Site and what stands in its place.
    pub vectors: Vec<(usize, D::Tensor)>,
}

/// Patches in use on one network, each with a strength.
pub struct Attached<'a, D: Device> {
    updates: Vec<Vec<(&'a D::LowRank, f32)>>,
    vectors: Vec<Option<&'a D::Tensor>>,
}

impl<'a, D: Device + 'a> Attached<'a, D> {
    /// Attaches `patches`, made for the network of `sites`, in this order. One of strength 0 is left out. This costs no
    /// work on the device.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if two of them replace the same constants.
    pub fn new(sites: &Sites, patches: impl IntoIterator<Item = (&'a Patch<D>, f32)>) -> Result<Self> {
        let mut attached = Attached {
            updates: sites.linears.iter().map(|_| Vec::new()).collect(),
            vectors: sites.vectors.iter().map(|_| None).collect(),
        };
        for (patch, strength) in patches.into_iter().filter(|&(_, strength)| strength != 0.0) {
            for (site, update, scale) in &patch.updates {
                attached.updates[*site].push((update, strength * scale));
            }
            for (site, vector) in &patch.vectors {
                if attached.vectors[*site].replace(vector).is_some() {
                    let name =
                        sites.vectors.iter().find(|(_, (s, _))| s == site).map_or("?", |(name, _)| name);
                    let what = format!("two LoRAs replace `{name}`: only one of them can be used at a time");
                    return Err(Error::InvalidArgument(what));
                }
            }
        }
        Ok(attached)
    }
}

/// A device, and what is attached to the network that runs on it.
pub struct Run<'a, D: Device> {
    /// The device.
    pub dev: &'a D,
    attached: Option<&'a Attached<'a, D>>,
}

impl<D: Device> Clone for Run<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for Run<'_, D> {}

impl<'a, D: Device> Run<'a, D> {
    /// The network as it is.
    pub fn plain(dev: &'a D) -> Self {
        Run { dev, attached: None }
    }

    /// The network with its LoRAs.
    pub fn with(dev: &'a D, attached: &'a Attached<'a, D>) -> Self {
        Run { dev, attached: Some(attached) }
    }

    /// A linear with its updates.
    pub fn layer<'b>(&self, linear: &'b Linear<D>) -> Layer<'b, D>
    where
        'a: 'b,
    {
        let updates = self.attached.map_or(&[][..], |attached| &attached.updates[linear.site]);
        Layer { weights: &linear.weights, updates }
    }

    /// Numbers that say which updates are attached to which linears, and how strongly, as long as nothing else is
    /// loaded or dropped.
    pub fn layout(&self) -> Vec<u64> {
        let sites = self.attached.map_or(&[][..], |attached| &attached.updates);
        let mut layout = Vec::new();
        for (site, updates) in sites.iter().enumerate() {
            for &(update, strength) in updates {
                layout.extend([site as u64, std::ptr::from_ref(update) as u64, strength.to_bits().into()]);
            }
        }
        layout
    }

    /// A row of constants, or what replaces it.
    pub fn vector<'b>(&self, vector: &'b Vector<D>) -> &'b D::Tensor
    where
        'a: 'b,
    {
        self.attached.and_then(|attached| attached.vectors[vector.site]).unwrap_or(&vector.values)
    }
}
