//! The tensors of text encoders and VAEs, by the sizes of the networks alone.

use safetensors::Dtype;

/// Token ids of FLUX.1's tokenizers, in rows of the encoders' tables.
const T5_VOCABULARY: usize = 32128;
const CLIP_VOCABULARY: usize = 49408;
/// Tokens that CLIP takes.
const CLIP_POSITIONS: usize = 77;
/// Buckets of distances in T5's attention bias.
const T5_BUCKETS: usize = 32;

#[derive(Default)]
struct Tensors(Vec<(String, Dtype, Vec<usize>)>);

impl Tensors {
    fn add(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.0.push((name.into(), Dtype::BF16, shape.to_vec()));
    }

    /// A weight of this shape with a bias.
    fn layer(&mut self, name: &str, shape: &[usize]) {
        self.add(format!("{name}.weight"), shape);
        self.add(format!("{name}.bias"), &shape[..1]);
    }
}

/// T5 v1.1's encoder: layers, heads of 64 channels, channels of the MLP.
pub(super) fn t5(channels: usize, [layers, heads, wide]: [usize; 3]) -> Vec<(String, Dtype, Vec<usize>)> {
    let mut all = Tensors::default();
    all.add("shared.weight", &[T5_VOCABULARY, channels]);
    let distances = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
    all.add(distances, &[T5_BUCKETS, heads]);
    for i in 0..layers {
        let name = |part: &str| format!("encoder.block.{i}.layer.{part}.weight");
        for part in ["q", "k", "v"] {
            all.add(name(&format!("0.SelfAttention.{part}")), &[64 * heads, channels]);
        }
        all.add(name("0.SelfAttention.o"), &[channels, 64 * heads]);
        all.add(name("1.DenseReluDense.wi_0"), &[wide, channels]);
        all.add(name("1.DenseReluDense.wi_1"), &[wide, channels]);
        all.add(name("1.DenseReluDense.wo"), &[channels, wide]);
        all.add(name("0.layer_norm"), &[channels]);
        all.add(name("1.layer_norm"), &[channels]);
    }
    all.add("encoder.final_layer_norm.weight", &[channels]);
    all.0
}

/// CLIP's text encoder.
pub(super) fn clip(channels: usize, layers: usize) -> Vec<(String, Dtype, Vec<usize>)> {
    let mut all = Tensors::default();
    all.add("embeddings.token_embedding.weight", &[CLIP_VOCABULARY, channels]);
    all.add("embeddings.position_embedding.weight", &[CLIP_POSITIONS, channels]);
    for i in 0..layers {
        let name = |part: &str| format!("encoder.layers.{i}.{part}");
        for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            all.layer(&name(&format!("self_attn.{part}")), &[channels, channels]);
        }
        all.layer(&name("mlp.fc1"), &[4 * channels, channels]);
        all.layer(&name("mlp.fc2"), &[channels, 4 * channels]);
        all.layer(&name("layer_norm1"), &[channels]);
        all.layer(&name("layer_norm2"), &[channels]);
    }
    all.layer("final_layer_norm", &[channels]);
    all.0
}

/// A VAE's decoder with three resnets a level. `levels` are channels from the image to the latents.
pub(super) fn vae(latent: usize, levels: &[usize]) -> Vec<(String, Dtype, Vec<usize>)> {
    let mut all = Tensors::default();
    let mid = levels.last().copied().unwrap_or_default();
    let resnet = |all: &mut Tensors, name: &str, from: usize, to: usize| {
        all.layer(&format!("{name}.norm1"), &[from]);
        all.layer(&format!("{name}.conv1"), &[to, from, 3, 3]);
        all.layer(&format!("{name}.norm2"), &[to]);
        all.layer(&format!("{name}.conv2"), &[to, to, 3, 3]);
        if from != to {
            all.layer(&format!("{name}.conv_shortcut"), &[to, from, 1, 1]);
        }
    };
    all.layer("decoder.conv_in", &[mid, latent, 3, 3]);
    for i in 0..2 {
        resnet(&mut all, &format!("decoder.mid_block.resnets.{i}"), mid, mid);
    }
    let attention = "decoder.mid_block.attentions.0";
    all.layer(&format!("{attention}.group_norm"), &[mid]);
    for part in ["to_q", "to_k", "to_v", "to_out.0"] {
        all.layer(&format!("{attention}.{part}"), &[mid, mid]);
    }
    let mut from = mid;
    for (i, &to) in levels.iter().rev().enumerate() {
        let name = format!("decoder.up_blocks.{i}");
        for j in 0..3 {
            resnet(&mut all, &format!("{name}.resnets.{j}"), if j == 0 { from } else { to }, to);
        }
        if i + 1 < levels.len() {
            all.layer(&format!("{name}.upsamplers.0.conv"), &[to, to, 3, 3]);
        }
        from = to;
    }
    all.layer("decoder.conv_norm_out", &[from]);
    all.layer("decoder.conv_out", &[3, from, 3, 3]);
    all.0
}
