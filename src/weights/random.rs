//! Checkpoints of random numbers, to measure full-size models without their files.

mod parts;

use std::path::Path;

use half::bf16;
use safetensors::Dtype;

use super::checkpoint::Placed;
use super::flux::{FluxConfig, FluxWeights, inventory};
use super::{Checkpoint, Loading};
use crate::Result;

/// Sizes of the networks of a FLUX.1 pipeline whose weights are random.
#[derive(Clone, Debug)]
pub struct RandomSizes {
    /// Of the transformer.
    pub transformer: FluxConfig,
    /// Rank of its low-rank branches.
    pub rank: usize,
    /// Layers of T5, attention heads of 64 channels, and channels of its MLP. Tokens have the channels that the
    /// transformer takes.
    pub t5: [usize; 3],
    /// Layers of CLIP.
    pub clip: usize,
    /// Channels of the VAE's levels from the image to the latents, multiples of 32. Latents have a quarter of the
    /// transformer's channels.
    pub vae: Vec<usize>,
}

impl RandomSizes {
    /// FLUX.1 with T5-XXL, CLIP-L and its own VAE.
    pub fn flux_1(transformer: FluxConfig) -> Self {
        RandomSizes { transformer, rank: 32, t5: [24, 64, 10240], clip: 12, vae: vec![128, 256, 512, 512] }
    }
}

/// The checkpoints of a pipeline.
pub(crate) struct RandomParts {
    pub(crate) transformer: FluxWeights,
    pub(crate) clip: Checkpoint,
    pub(crate) t5: Checkpoint,
    pub(crate) vae: Checkpoint,
}

impl RandomParts {
    /// Random codes, scales and weights. Norms and smoothing vectors are near 1 and everything else is small, so that
    /// activations stay finite. Takes little memory: the tensors of a checkpoint share their bytes. They belong to `loading`.
    ///
    /// # Errors
    /// As [`FluxWeights::open`], for sizes that the format cannot hold.
    pub(crate) fn new(sizes: &RandomSizes, loading: &Loading) -> Result<Self> {
        let FluxConfig { joint_attention_dim, pooled_projection_dim, in_channels, .. } = sizes.transformer;
        let random = |tensors| checkpoint("random weights", None, tensors, loading);
        Ok(RandomParts {
            transformer: FluxWeights::random(&sizes.transformer, sizes.rank, loading)?,
            clip: random(parts::clip(pooled_projection_dim, sizes.clip)),
            t5: random(parts::t5(joint_attention_dim, sizes.t5)),
            vae: random(parts::vae(in_channels / 4, &sizes.vae)),
        })
    }
}

impl FluxWeights {
    /// A 4-bit FLUX transformer of the given sizes.
    fn random(config: &FluxConfig, rank: usize, loading: &Loading) -> Result<Self> {
        let tensors = inventory(config, rank);
        let config = serde_json::json!({
            "num_layers": config.num_layers,
            "num_single_layers": config.num_single_layers,
            "num_attention_heads": config.num_attention_heads,
            "attention_head_dim": config.attention_head_dim,
            "in_channels": config.in_channels,
            "out_channels": config.out_channels,
            "joint_attention_dim": config.joint_attention_dim,
            "pooled_projection_dim": config.pooled_projection_dim,
            "guidance_embeds": config.guidance_embeds,
            "axes_dims_rope": config.axes_dims_rope,
        });
        FluxWeights::from_checkpoint(checkpoint("random weights", Some(config.to_string()), tensors, loading))
    }
}

/// Where the bytes of a tensor come from.
#[derive(Clone, Copy)]
enum Kind {
    /// Every bit is random: codes.
    Bits,
    /// bf16, 0.9 to 1.1: factors.
    Unit,
    /// bf16, -0.03 to 0.03: weights, scales, biases.
    Small,
}

impl Kind {
    fn of(name: &str, dtype: Dtype, shape: &[usize]) -> Kind {
        let vector = shape.len() == 1 && !name.ends_with("bias");
        match dtype {
            Dtype::BF16 if vector => Kind::Unit,
            Dtype::BF16 => Kind::Small,
            _ => Kind::Bits,
        }
    }

    fn fill(self, bytes: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15 ^ self as u64;
        let words = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as u32
        });
        let uniform = |word: u32| word as f32 / (1 << 23) as f32 - 1.0;
        let values = words.take(bytes / 2);
        let bf16_bytes = |value: f32| bf16::from_f32(value).to_le_bytes();
        match self {
            Kind::Bits => values.flat_map(|word| (word as u16).to_le_bytes()).collect(),
            Kind::Unit => values.flat_map(|word| bf16_bytes(1.0 + 0.1 * uniform(word))).collect(),
            Kind::Small => values.flat_map(|word| bf16_bytes(0.03 * uniform(word))).collect(),
        }
    }
}

/// A checkpoint with these tensors and this config in its metadata.
fn checkpoint(
    label: &str,
    config: Option<String>,
    tensors: Vec<(String, Dtype, Vec<usize>)>,
    loading: &Loading,
) -> Checkpoint {
    let bytes = |dtype: Dtype, shape: &[usize]| shape.iter().product::<usize>() * dtype.bitsize() / 8;
    let mut longest = [0; 3];
    let placed: Vec<Placed> = tensors
        .into_iter()
        .map(|(name, dtype, shape)| {
            let kind = Kind::of(&name, dtype, &shape) as usize;
            let size = bytes(dtype, &shape);
            longest[kind] = longest[kind].max(size);
            (name, dtype, shape, kind, 0..size)
        })
        .collect();
    let blocks = [Kind::Bits, Kind::Unit, Kind::Small].map(|kind| kind.fill(longest[kind as usize]));
    Checkpoint::from_blocks(Path::new(label), config, blocks, placed).with(loading)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn flux_1_dev_takes_little_memory() {
        let config = FluxConfig::FLUX_1_DEV;
        let weights = FluxWeights::random(&config, 32, &Loading::default()).unwrap();
        assert_eq!((weights.config(), weights.rank()), (&config, Some(32)));
        let longest = weights.checkpoint().tensors().map(|tensor| tensor.len()).max().unwrap();
        assert_eq!(longest, 2 * 6144 * 3072, "three blocks of at most this many bytes are held");
    }
}
