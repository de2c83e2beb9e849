//! How LoRA files name what they change, whatever trained them.
//!
//! A key is the name of a module and what its tensor is of it: `double_blocks.0.img_mlp.0` and `lora_A.weight`. Trainers
//! differ in prefixes, in whether names are diffusers' or those of Black Forest Labs, and in whether `.` is written `_`.
//! So every name that a module may have is put into one form, without prefix and with `_`, and looked up in a table
//! that is made from the sites of the network.

use std::collections::HashMap;

use super::Sites;

/// What a tensor is of its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Role {
    /// `A`, `[rank, k]`
    Down,
    /// `B`, `[n, rank]`
    Up,
    /// `[n]`, of `B`.
    Bias,
    /// A number: the update is multiplied by alpha / rank.
    Alpha,
    /// What stands in the place of a vector of the network.
    Vector,
}

/// A network that LoRAs change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Network {
    /// The FLUX transformer.
    Transformer,
    /// CLIP.
    TextEncoder,
    /// T5.
    TextEncoder2,
}

impl Network {
    /// All three.
    pub const ALL: [Network; 3] = [Network::Transformer, Network::TextEncoder, Network::TextEncoder2];
}

/// What is known of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key<'a> {
    /// A tensor of a module.
    Of(&'a str, Role),
    /// A tensor of something that is no LoRA; the method's name.
    Unsupported(&'static str),
    /// Neither.
    Unknown,
}

/// Ends of keys. What PEFT calls an adapter, `default`, may stand before the last word.
const ROLES: [(&str, Role); 14] = [
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_B.bias", Role::Bias),
    (".lora_A.default.weight", Role::Down),
    (".lora_B.default.weight", Role::Up),
    (".lora_B.default.bias", Role::Bias),
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    (".lora_up.bias", Role::Bias),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    (".alpha", Role::Alpha),
    (".down.weight", Role::Down),
    (".up.weight", Role::Up),
];

/// Parts of keys that tell of other methods.
const UNSUPPORTED: [(&str, &str); 7] = [
    (".lokr_", "LoKr"),
    (".hada_", "LoHa"),
    (".oft_", "OFT"),
    (".dora_scale", "DoRA"),
    (".lora_magnitude_vector", "DoRA"),
    (".lora_embedding_", "updates of embeddings"),
    (".lora_mid.", "LoCon"),
];

/// Takes a key apart.
pub(super) fn parse(key: &str) -> Key<'_> {
    if key.ends_with(".diff") || key.ends_with(".diff_b") {
        return Key::Unsupported("differences of whole weights");
    }
    if let Some((_, method)) = UNSUPPORTED.iter().find(|(part, _)| key.contains(part)) {
        return Key::Unsupported(method);
    }
    for (end, role) in ROLES {
        if let Some(module) = key.strip_suffix(end) {
            return Key::Of(module, role);
        }
    }
    match key.strip_suffix(".weight").or(key.strip_suffix(".scale")) {
        Some(module) if module.contains("norm") => Key::Of(module, Role::Vector),
        _ => Key::Unknown,
    }
}

/// What stands before names, with `_` for `.`, and the network that it tells.
const PREFIXES: [(&str, Network); 16] = [
    ("", Network::Transformer),
    ("transformer_", Network::Transformer),
    ("diffusion_model_", Network::Transformer),
    ("model_diffusion_model_", Network::Transformer),
    ("lora_unet_", Network::Transformer),
    ("lora_transformer_", Network::Transformer),
    ("unet_", Network::Transformer),
    ("text_encoder_", Network::TextEncoder),
    ("text_encoders_clip_l_transformer_", Network::TextEncoder),
    ("lora_te_", Network::TextEncoder),
    ("lora_te1_", Network::TextEncoder),
    ("text_encoder_2_", Network::TextEncoder2),
    ("text_encoders_t5xxl_transformer_", Network::TextEncoder2),
    // kohya's scripts call T5 the third text encoder, as in Stable Diffusion 3
    ("lora_te2_", Network::TextEncoder2),
    ("lora_te3_", Network::TextEncoder2),
    ("text_encoders_t5xxl_", Network::TextEncoder2),
];

/// Whether the module `name` is of CLIP or T5.
pub(super) fn is_text_encoder(name: &str) -> bool {
    let name = name.strip_prefix(PEFT).unwrap_or(name).replace('.', "_");
    PREFIXES.iter().any(|&(prefix, network)| network != Network::Transformer && name.starts_with(prefix))
}

/// What PEFT puts before names.
const PEFT: &str = "base_model.model.";

/// What a module of a LoRA file changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Module {
    /// Names of the sites' linears whose outputs lie on top of one another in the module's. Of a vector, its name.
    pub(super) layers: Vec<String>,
    /// The two halves of the outputs are the other way round.
    pub(super) swapped: bool,
}

/// All names that modules of one pipeline may have.
pub(super) struct Names {
    modules: [HashMap<String, Module>; 3],
}

impl Names {
    /// The names for networks with these sites.
    pub(super) fn new(sites: [&Sites; 3]) -> Self {
        let mut names = Names { modules: Default::default() };
        for (network, sites) in Network::ALL.into_iter().zip(sites) {
            for name in sites.names().chain(sites.vector_names()) {
                names.add(network, name, &[name]);
            }
        }
        let [transformer, ..] = sites;
        for (theirs, ours) in OUTSIDE {
            names.add(Network::Transformer, theirs, &[ours]);
        }
        for (end, kind, table) in
            [(".norm1.linear", "double_blocks", &DOUBLE[..]), (".norm.linear", "single_blocks", &SINGLE[..])]
        {
            for block in transformer.names().filter_map(|name| name.strip_suffix(end)) {
                let index = block.rsplit('.').next().unwrap_or_default();
                for (theirs, ours) in table {
                    let ours: Vec<String> = ours.iter().map(|name| format!("{block}.{name}")).collect();
                    let ours: Vec<&str> = ours.iter().map(String::as_str).collect();
                    names.add(Network::Transformer, &format!("{kind}.{index}.{theirs}"), &ours);
                }
            }
        }
        names
    }

    fn add(&mut self, network: Network, name: &str, layers: &[&str]) {
        let layers = layers.iter().map(|&name| name.to_owned()).collect();
        let swapped = name == SWAPPED;
        self.modules[network as usize].insert(name.replace('.', "_"), Module { layers, swapped });
    }

    /// What the module `name` of a file changes; `None` if it is nothing of this pipeline.
    pub(super) fn find(&self, name: &str) -> Option<(Network, &Module)> {
        let name = name.strip_prefix(PEFT).unwrap_or(name).replace('.', "_");
        PREFIXES.iter().find_map(|&(prefix, network)| {
            let name = name.strip_prefix(prefix)?;
            let name = match network {
                Network::TextEncoder => name.strip_prefix("text_model_").unwrap_or(name),
                _ => name,
            };
            Some((network, self.modules[network as usize].get(name)?))
        })
    }
}

/// Black Forest Labs' modulation of the last layer has shift before scale, diffusers' has scale before shift.
const SWAPPED: &str = "final_layer.adaLN_modulation.1";

/// Black Forest Labs' names outside of the blocks, and diffusers'.
const OUTSIDE: [(&str, &str); 10] = [
    ("img_in", "x_embedder"),
    ("txt_in", "context_embedder"),
    ("time_in.in_layer", "time_text_embed.timestep_embedder.linear_1"),
    ("time_in.out_layer", "time_text_embed.timestep_embedder.linear_2"),
    ("guidance_in.in_layer", "time_text_embed.guidance_embedder.linear_1"),
    ("guidance_in.out_layer", "time_text_embed.guidance_embedder.linear_2"),
    ("vector_in.in_layer", "time_text_embed.text_embedder.linear_1"),
    ("vector_in.out_layer", "time_text_embed.text_embedder.linear_2"),
    (SWAPPED, "norm_out.linear"),
    ("final_layer.linear", "proj_out"),
];

type Table<const N: usize> = [(&'static str, &'static [&'static str]); N];

/// Names inside of a double block, those of XLabs' trainer last.
const DOUBLE: Table<18> = [
    ("img_mod.lin", &["norm1.linear"]),
    ("txt_mod.lin", &["norm1_context.linear"]),
    ("img_attn.qkv", &["attn.to_q", "attn.to_k", "attn.to_v"]),
    ("txt_attn.qkv", &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]),
    ("img_attn.proj", &["attn.to_out.0"]),
    ("txt_attn.proj", &["attn.to_add_out"]),
    ("img_mlp.0", &["ff.net.0.proj"]),
    ("img_mlp.2", &["ff.net.2"]),
    ("txt_mlp.0", &["ff_context.net.0.proj"]),
    ("txt_mlp.2", &["ff_context.net.2"]),
    ("img_attn.norm.query_norm", &["attn.norm_q"]),
    ("img_attn.norm.key_norm", &["attn.norm_k"]),
    ("txt_attn.norm.query_norm", &["attn.norm_added_q"]),
    ("txt_attn.norm.key_norm", &["attn.norm_added_k"]),
    ("processor.qkv_lora1", &["attn.to_q", "attn.to_k", "attn.to_v"]),
    ("processor.qkv_lora2", &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]),
    ("processor.proj_lora1", &["attn.to_out.0"]),
    ("processor.proj_lora2", &["attn.to_add_out"]),
];

/// Names inside of a single block, those of XLabs' trainer last.
const SINGLE: Table<7> = [
    ("modulation.lin", &["norm.linear"]),
    ("linear1", &["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]),
    ("linear2", &["proj_out"]),
    ("norm.query_norm", &["attn.norm_q"]),
    ("norm.key_norm", &["attn.norm_k"]),
    ("processor.qkv_lora", &["attn.to_q", "attn.to_k", "attn.to_v"]),
    ("processor.proj_lora", &["proj_out"]),
];

/// The naming of a module, for people.
pub(super) fn dialect(module: &str) -> &'static str {
    let flat = module.replace('.', "_");
    let outside = OUTSIDE.iter().any(|(theirs, _)| flat.ends_with(&theirs.replace('.', "_")));
    let theirs = outside || flat.contains("double_blocks_") || flat.contains("single_blocks_");
    match () {
        () if module.contains(".processor.") => "XLabs",
        () if module.starts_with("lora_unet_") => "kohya",
        () if module.starts_with("lora_transformer_") => "kohya with diffusers' names",
        () if module.starts_with("lora_te") => "kohya",
        () if theirs => "Black Forest Labs",
        () => "diffusers",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_taken_apart() {
        for (key, module, role) in [
            ("transformer.x_embedder.lora_A.weight", "transformer.x_embedder", Role::Down),
            ("a.to_q.lora_B.default.weight", "a.to_q", Role::Up),
            ("a.to_q.lora_B.bias", "a.to_q", Role::Bias),
            ("lora_unet_img_in.alpha", "lora_unet_img_in", Role::Alpha),
            ("model.diffusion_model.img_in.lora_up.weight", "model.diffusion_model.img_in", Role::Up),
            (
                "double_blocks.0.processor.qkv_lora1.down.weight",
                "double_blocks.0.processor.qkv_lora1",
                Role::Down,
            ),
            ("a.norm.query_norm.scale", "a.norm.query_norm", Role::Vector),
            ("a.norm_added_q.weight", "a.norm_added_q", Role::Vector),
        ] {
            assert_eq!(parse(key), Key::Of(module, role));
        }
        for key in ["", "alpha", "img_in.weight", "transformer_blocks.0.mlp_fc1.lora_down", "a.lora_A.bias"] {
            assert_eq!(parse(key), Key::Unknown, "{key}");
        }
        assert!(matches!(parse("model.diffusion_model.img_in.diff"), Key::Unsupported(_)));
    }

    #[test]
    fn text_encoders_are_told_by_their_prefix() {
        for name in [
            "lora_te1_text_model_x",
            "text_encoder.x",
            "text_encoder_2.x",
            "lora_te3_encoder_block_0",
            "base_model.model.text_encoders.t5xxl.transformer.x",
        ] {
            assert!(is_text_encoder(name), "{name}");
        }
        for name in ["lora_unet_x", "transformer.x", "double_blocks.0", "txt_in", "text"] {
            assert!(!is_text_encoder(name), "{name}");
        }
    }
}
