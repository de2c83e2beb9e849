//! What encoder and decoder are made of, and how it is loaded.

use std::collections::BTreeSet;

use super::config::Config;
use crate::ops::{
    Activation, Attention, ConvSource, DenseSource, Device, Layer, LinearSource, Mask, Norm, Storage,
};
use crate::weights::Checkpoint;
use crate::{Error, Result};

/// Takes the tensors of one half of the network from a checkpoint, and keeps account of them.
pub(super) struct Loader<'a, D> {
    dev: &'a D,
    file: &'a Checkpoint,
    config: &'a Config,
    unclaimed: BTreeSet<&'a str>,
}

impl<'a, D: Device> Loader<'a, D> {
    /// A loader of the tensors whose names begin with one of `parts`.
    pub(super) fn new(dev: &'a D, file: &'a Checkpoint, config: &'a Config, parts: [&str; 2]) -> Self {
        let unclaimed = file.names().filter(|name| parts.iter().any(|part| name.starts_with(part))).collect();
        Loader { dev, file, config, unclaimed }
    }

    /// Every tensor has to have been taken: one that is left over belongs to a network of another shape
    /// than the config's.
    pub(super) fn finish(self) -> Result<()> {
        match self.unclaimed.first() {
            None => Ok(()),
            Some(name) => Err(Error::WrongModel {
                path: self.file.path().into(),
                what: format!("config.json has no place for tensor `{name}`"),
            }),
        }
    }

    fn claim(&mut self, name: &str) {
        self.unclaimed.remove(format!("{name}.weight").as_str());
        self.unclaimed.remove(format!("{name}.bias").as_str());
    }

    /// A convolution that keeps the size.
    pub(super) fn conv(&mut self, name: &str, n: usize, c: usize, kernel: usize) -> Result<D::Conv> {
        self.claim(name);
        self.dev.load_conv(&self.file.conv(name, n, c, kernel, 1, false)?)
    }

    /// A 3x3 convolution that doubles or halves the size.
    pub(super) fn resample(&mut self, name: &str, channels: usize, up: bool) -> Result<D::Conv> {
        self.claim(name);
        let stride = if up { 1 } else { 2 };
        self.dev.load_conv(&self.file.conv(name, channels, channels, 3, stride, up)?)
    }

    pub(super) fn group_norm(&mut self, name: &str, channels: usize) -> Result<GroupNorm<D>> {
        self.claim(name);
        let vector = |part| {
            let values = self.file.f32(&format!("{name}.{part}"), &[channels])?;
            self.dev.load_tensor(&values, channels)
        };
        Ok(GroupNorm {
            weight: vector("weight")?,
            bias: vector("bias")?,
            groups: self.config.norm_num_groups,
        })
    }

    pub(super) fn resnet(&mut self, name: &str, from: usize, to: usize) -> Result<Resnet<D>> {
        Ok(Resnet {
            norm1: self.group_norm(&format!("{name}.norm1"), from)?,
            conv1: self.conv(&format!("{name}.conv1"), to, from, 3)?,
            norm2: self.group_norm(&format!("{name}.norm2"), to)?,
            conv2: self.conv(&format!("{name}.conv2"), to, to, 3)?,
            shortcut: match from == to {
                true => None,
                false => Some(self.conv(&format!("{name}.conv_shortcut"), to, from, 1)?),
            },
        })
    }

    /// `count` resnets, the first of which goes from `from` to `to` channels.
    pub(super) fn resnets(
        &mut self,
        name: &str,
        count: usize,
        from: usize,
        to: usize,
    ) -> Result<Vec<Resnet<D>>> {
        (0..count)
            .map(|i| self.resnet(&format!("{name}.resnets.{i}"), if i == 0 { from } else { to }, to))
            .collect()
    }

    /// The mid block: resnet, attention, resnet.
    pub(super) fn mid(&mut self, name: &str) -> Result<Mid<D>> {
        let channels = self.config.mid_channels();
        Ok(Mid {
            first: self.resnet(&format!("{name}.resnets.0"), channels, channels)?,
            attention: match self.config.mid_block_add_attention {
                true => Some(self.attention(&format!("{name}.attentions.0"), channels)?),
                false => None,
            },
            second: self.resnet(&format!("{name}.resnets.1"), channels, channels)?,
        })
    }

    fn attention(&mut self, name: &str, channels: usize) -> Result<SelfAttention<D>> {
        let [q, k, v] = [["to_q", "query"], ["to_k", "key"], ["to_v", "value"]];
        let mut qkv = self.projection(name, q, channels)?;
        for part in [k, v] {
            let next = self.projection(name, part, channels)?;
            qkv.n += next.n;
            qkv.weight.append(next.weight)?;
            qkv.bias.extend(next.bias);
            if next.storage != qkv.storage {
                qkv.storage = Storage::F32;
            }
        }
        let out = self.projection(name, ["to_out.0", "proj_attn"], channels)?;
        Ok(SelfAttention {
            norm: self.group_norm(&format!("{name}.group_norm"), channels)?,
            qkv: self.dev.load_linear(&LinearSource::Dense(qkv))?,
            out: self.dev.load_linear(&LinearSource::Dense(out))?,
            channels,
        })
    }

    /// A linear by its present or its legacy name, stored as a matrix or as a 1x1 convolution.
    fn projection(&mut self, block: &str, names: [&str; 2], channels: usize) -> Result<DenseSource<'a>> {
        let [present, legacy] = names.map(|name| format!("{block}.{name}"));
        let stored = |name: &str| self.file.get(&format!("{name}.weight"));
        let name = if stored(&present).is_none() && stored(&legacy).is_some() { legacy } else { present };
        let is_conv = stored(&name).is_some_and(|tensor| tensor.shape.len() == 4);
        self.claim(&name);
        if !is_conv {
            return self.file.dense(&name, channels, channels, true);
        }
        let ConvSource { n, c, weight, bias, .. } = self.file.conv(&name, channels, channels, 1, 1, false)?;
        Ok(DenseSource { n, k: c, weight: weight.into(), bias, storage: Storage::F32 })
    }
}

/// GroupNorm over a pixel's channels and all pixels.
pub(super) struct GroupNorm<D: Device> {
    weight: D::Tensor,
    bias: D::Tensor,
    groups: usize,
}

impl<D: Device> GroupNorm<D> {
    fn plain(&self, dev: &D, x: &D::Tensor) -> Result<D::Tensor> {
        dev.group_norm(x, self.groups, &self.weight, &self.bias, false)
    }

    pub(super) fn silu(&self, dev: &D, x: &D::Tensor) -> Result<D::Tensor> {
        dev.group_norm(x, self.groups, &self.weight, &self.bias, true)
    }
}

/// `shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))`
pub(super) struct Resnet<D: Device> {
    norm1: GroupNorm<D>,
    conv1: D::Conv,
    norm2: GroupNorm<D>,
    conv2: D::Conv,
    shortcut: Option<D::Conv>,
}

impl<D: Device> Resnet<D> {
    /// Assigns over what is no longer needed: at full resolution every tensor counts.
    fn forward(&self, dev: &D, mut x: D::Tensor, size: [usize; 2]) -> Result<D::Tensor> {
        let mut h = self.norm1.silu(dev, &x)?;
        h = dev.conv(&h, size, &self.conv1, None)?;
        h = self.norm2.silu(dev, &h)?;
        if let Some(shortcut) = &self.shortcut {
            x = dev.conv(&x, size, shortcut, None)?;
        }
        dev.conv(&h, size, &self.conv2, Some(&x))
    }
}

/// `x + out(attention(qkv(norm(x))))` over all pixels, in one head.
struct SelfAttention<D: Device> {
    norm: GroupNorm<D>,
    qkv: D::Linear,
    out: D::Linear,
    channels: usize,
}

impl<D: Device> SelfAttention<D> {
    fn forward(&self, dev: &D, mut x: D::Tensor, pixels: usize) -> Result<D::Tensor> {
        let mut h = self.norm.plain(dev, &x)?;
        let input = dev.prepare(&h, 0..pixels, Norm::None, Layer::plain(&self.qkv))?;
        h = dev.linear(&input, Layer::plain(&self.qkv), Activation::None)?;
        let scale = 1.0 / (self.channels as f32).sqrt();
        h = dev.attention(&h, Attention { heads: 1, scale, mask: Mask::None })?;
        let input = dev.prepare(&h, 0..pixels, Norm::None, Layer::plain(&self.out))?;
        dev.linear_add(&input, Layer::plain(&self.out), None, &mut x, 0)?;
        Ok(x)
    }
}

/// The block between the two halves of encoder and decoder.
pub(super) struct Mid<D: Device> {
    first: Resnet<D>,
    attention: Option<SelfAttention<D>>,
    second: Resnet<D>,
}

impl<D: Device> Mid<D> {
    pub(super) fn forward(&self, dev: &D, x: D::Tensor, size: [usize; 2]) -> Result<D::Tensor> {
        let mut x = self.first.forward(dev, x, size)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(dev, x, size[0] * size[1])?;
        }
        self.second.forward(dev, x, size)
    }
}

/// The resnets of one resolution, and the way to the next one.
pub(super) struct Level<D: Device> {
    pub(super) resnets: Vec<Resnet<D>>,
    pub(super) resample: Option<D::Conv>,
}

impl<D: Device> Level<D> {
    pub(super) fn forward(&self, dev: &D, mut x: D::Tensor, size: [usize; 2]) -> Result<D::Tensor> {
        for resnet in &self.resnets {
            x = resnet.forward(dev, x, size)?;
        }
        match &self.resample {
            Some(conv) => dev.conv(&x, size, conv, None),
            None => Ok(x),
        }
    }
}
