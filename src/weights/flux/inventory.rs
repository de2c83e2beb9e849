//! What a 4-bit FLUX file holds, by the sizes of the network alone.

use super::config::TIME_CHANNELS;
use super::svdq::{GROUP, double_name, single_name};
use super::{DOUBLE_CHUNKS, Dtype, FluxConfig, Part, SINGLE_CHUNKS, Stream};

/// Name, type and shape of every tensor of a Nunchaku INT4 file, block by block, then those outside of the blocks.
/// The MLP is four times as wide as a token, as in every FLUX.1.
pub fn inventory(config: &FluxConfig, rank: usize) -> Vec<(String, Dtype, Vec<usize>)> {
    let mut list = List { tensors: vec![], rank };
    let (hidden, head_dim) = (config.hidden(), config.attention_head_dim);
    for block in 0..config.num_layers {
        let prefix = format!("transformer_blocks.{block}.");
        for (stream, norms) in
            [(Stream::Image, ["norm_q", "norm_k"]), (Stream::Text, ["norm_added_q", "norm_added_k"])]
        {
            for part in Part::ALL {
                let shape = part.shape(hidden, 4 * hidden, DOUBLE_CHUNKS);
                list.layer(&format!("{prefix}{}", double_name(stream, part)), part, shape);
            }
            list.norms(&prefix, norms, head_dim);
        }
    }
    for block in 0..config.num_single_layers {
        let prefix = format!("single_transformer_blocks.{block}.");
        for part in Part::ALL {
            let shape = part.shape(hidden, 4 * hidden, SINGLE_CHUNKS);
            list.layer(&format!("{prefix}{}", single_name(part)), part, shape);
        }
        list.norms(&prefix, ["norm_q", "norm_k"], head_dim);
    }
    for (name, n, k) in plain(config) {
        list.bf16(&name, "weight", &[n, k]);
        list.bf16(&name, "bias", &[n]);
    }
    list.tensors
}

/// Linears outside of the blocks: diffusers' name, N, K.
fn plain(config: &FluxConfig) -> Vec<(String, usize, usize)> {
    let hidden = config.hidden();
    let mut all = vec![
        ("x_embedder".to_owned(), hidden, config.in_channels),
        ("context_embedder".to_owned(), hidden, config.joint_attention_dim),
    ];
    let guidance = config.guidance_embeds.then_some(("guidance", TIME_CHANNELS));
    for (embedder, k) in [("timestep", TIME_CHANNELS)]
        .into_iter()
        .chain(guidance)
        .chain([("text", config.pooled_projection_dim)])
    {
        all.push((format!("time_text_embed.{embedder}_embedder.linear_1"), hidden, k));
        all.push((format!("time_text_embed.{embedder}_embedder.linear_2"), hidden, hidden));
    }
    all.push(("norm_out.linear".to_owned(), 2 * hidden, hidden));
    all.push(("proj_out".to_owned(), config.out_channels, hidden));
    all
}

struct List {
    tensors: Vec<(String, Dtype, Vec<usize>)>,
    rank: usize,
}

impl List {
    fn push(&mut self, name: &str, suffix: &str, dtype: Dtype, shape: &[usize]) {
        self.tensors.push((format!("{name}.{suffix}"), dtype, shape.to_vec()));
    }

    fn bf16(&mut self, name: &str, suffix: &str, shape: &[usize]) {
        self.push(name, suffix, Dtype::BF16, shape);
    }

    fn norms(&mut self, prefix: &str, names: [&str; 2], head_dim: usize) {
        for name in names {
            self.bf16(&format!("{prefix}{name}"), "weight", &[head_dim]);
        }
    }

    fn layer(&mut self, name: &str, part: Part, [n, k]: [usize; 2]) {
        if part == Part::Modulation {
            self.push(name, "qweight", Dtype::I32, &[n / 4, k / 2]);
            self.bf16(name, "wscales", &[k / GROUP, n]);
            self.bf16(name, "wzeros", &[k / GROUP, n]);
            self.bf16(name, "bias", &[n]);
            return;
        }
        self.push(name, "qweight", Dtype::I8, &[n, k / 2]);
        self.bf16(name, "wscales", &[k / GROUP, n]);
        self.bf16(name, "bias", &[n]);
        self.bf16(name, "smooth", &[k]);
        self.bf16(name, "smooth_orig", &[k]);
        if self.rank > 0 {
            self.bf16(name, "lora_down", &[k, self.rank]);
            self.bf16(name, "lora_up", &[n, self.rank]);
        }
    }
}
