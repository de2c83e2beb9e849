#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use safetensors::tensor::TensorView;

use std::path::Path;

use super::*;
use crate::models::testing::Golden;
use crate::ops::LinearSource;
use crate::weights::flux::{FluxWeights, Part, Stream};
use crate::weights::testing::TempDir;
use crate::weights::{Dtype, Tensor};

/// Types, shapes and bytes of tensors by name.
pub(crate) type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn golden(name: &str) -> Tensors {
    read(&Golden::open(name).folder.join("model.safetensors"))
}

/// All tensors of a file or folder.
pub(crate) fn read(path: &Path) -> Tensors {
    let owned = |t: Tensor<'_>| (t.name.to_owned(), (t.dtype, t.shape.to_vec(), t.bytes().unwrap().to_vec()));
    Checkpoint::open(path).unwrap().tensors().map(owned).collect()
}

/// The bytes of a file of them.
pub(crate) fn file(tensors: &Tensors) -> Vec<u8> {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

fn part(tensors: &Tensors, kind: PartKind) -> Result<Checkpoint> {
    Checkpoint::from_bytes(Path::new("x.safetensors"), file(tensors))?.into_part(kind)
}

/// Every tensor of `original` is in `got` under the same name, with the same values.
fn same(got: &Checkpoint, original: &Tensors) {
    assert_eq!(got.names().collect::<Vec<_>>(), original.keys().collect::<Vec<_>>());
    for (name, (dtype, _, bytes)) in original {
        let tensor = got.get(name).unwrap();
        assert_eq!((tensor.dtype, tensor.bytes().unwrap()), (*dtype, &bytes[..]), "{name}");
    }
}

pub(crate) fn renamed(tensors: &Tensors, new: impl Fn(&str) -> String) -> Tensors {
    tensors.iter().map(|(name, tensor)| (new(name), tensor.clone())).collect()
}

/// BFL's names by diffusers', as the two projects' definitions of the network have them.
#[rustfmt::skip]
const BFL: &[(&str, &str)] = &[
    ("x_embedder", "img_in"), ("context_embedder", "txt_in"),
    ("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    ("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    ("time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
    ("time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
    ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
    ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
    ("single_transformer_blocks", "single_blocks"), ("transformer_blocks", "double_blocks"),
    ("norm1.linear", "img_mod.lin"), ("norm1_context.linear", "txt_mod.lin"),
    ("ff.net.0.proj", "img_mlp.0"), ("ff.net.2", "img_mlp.2"),
    ("ff_context.net.0.proj", "txt_mlp.0"), ("ff_context.net.2", "txt_mlp.2"),
    ("attn.to_out.0", "img_attn.proj"), ("attn.to_add_out", "txt_attn.proj"),
    (".norm.linear", ".modulation.lin"),
];

/// A dense transformer as Black Forest Labs would have saved it.
pub(crate) fn as_bfl(mut tensors: Tensors, prefix: &str) -> Tensors {
    let mut take = |name: &str| tensors.remove(name);
    let mut bfl = Tensors::new();
    for suffix in ["weight", "bias"] {
        let mut swapped = take(&format!("norm_out.linear.{suffix}")).unwrap();
        let half = swapped.2.len() / 2;
        swapped.2 = [&swapped.2[half..], &swapped.2[..half]].concat();
        bfl.insert(format!("final_layer.adaLN_modulation.1.{suffix}"), swapped);
        bfl.insert(format!("final_layer.linear.{suffix}"), take(&format!("proj_out.{suffix}")).unwrap());
        for (from, to, names) in [
            (
                "transformer_blocks",
                "double_blocks.N.img_attn.qkv",
                &["attn.to_q", "attn.to_k", "attn.to_v"][..],
            ),
            (
                "transformer_blocks",
                "double_blocks.N.txt_attn.qkv",
                &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
            ),
            (
                "single_transformer_blocks",
                "single_blocks.N.linear1",
                &["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
            ),
        ] {
            for block in 0.. {
                let parts: Vec<_> = names
                    .iter()
                    .filter_map(|name| take(&format!("{from}.{block}.{name}.{suffix}")))
                    .collect();
                let [first, ..] = &parts[..] else { break };
                let mut shape = first.1.clone();
                shape[0] = parts.iter().map(|part| part.1[0]).sum();
                let bytes = parts.iter().flat_map(|part| part.2.clone()).collect();
                let name = to.replace('N', &block.to_string());
                bfl.insert(format!("{name}.{suffix}"), (first.0, shape, bytes));
            }
        }
    }
    for (name, tensor) in tensors {
        let mut new = name.clone();
        for (from, to) in BFL {
            new = new.replacen(from, to, 1);
        }
        if let Some(block) = name.strip_prefix("single_") {
            new = format!("single_blocks.{}", &new["single_blocks.".len()..])
                .replace(".proj_out.", ".linear2.");
            assert!(block.starts_with("transformer_blocks"));
        }
        for (from, to) in [
            ("norm_added_q", "txt_attn.norm.query_norm"),
            ("norm_added_k", "txt_attn.norm.key_norm"),
            ("norm_q", "img_attn.norm.query_norm"),
            ("norm_k", "img_attn.norm.key_norm"),
        ] {
            if new.ends_with(&format!("attn.{from}.weight")) {
                let to = if new.starts_with("single") { to.replace("img_attn.", "") } else { to.into() };
                new = new.replace(&format!("attn.{from}.weight"), &format!("{to}.scale"));
            }
        }
        bfl.insert(new, tensor);
    }
    renamed(&bfl, |name| format!("{prefix}{name}"))
}

#[test]
fn bfls_transformer_is_diffusers() {
    for name in ["flux", "flux_schnell"] {
        for prefix in ["", "model.diffusion_model."] {
            let tensors = golden(name);
            let bfl = as_bfl(tensors.clone(), prefix);
            assert!(bfl.keys().all(|name| !name.contains("transformer_blocks") && !name.contains("embed")));
            same(&part(&bfl, PartKind::Transformer).unwrap(), &tensors);
        }
    }
}

/// A whole network in BFL's names and FP8, with a scale for every matrix, against one whose values are those.
#[test]
fn bfls_fp8_layers_keep_their_scales() {
    let tensors = golden("flux");
    let hidden = tensors["x_embedder.bias"].1[0];
    let mut fp8 = Tensors::new();
    for (name, (dtype, shape, bytes)) in as_bfl(tensors, "") {
        let codes = (0..shape.iter().product()).map(|i: usize| 0x20 + (i * 31 % 0x40) as u8).collect();
        if let Some(layer) = name.strip_suffix(".weight").filter(|_| shape.len() == 2) {
            let scale = (layer.len() as f32 / 64.0).to_le_bytes();
            fp8.insert(format!("{layer}.scale_weight"), (Dtype::F32, vec![], scale.to_vec()));
            fp8.insert(name, (Dtype::F8_E4M3, shape, codes));
        } else {
            fp8.insert(name, (dtype, shape, bytes));
        }
    }
    let weights = part(&fp8, PartKind::Transformer).unwrap();
    let k = weights.dense("single_transformer_blocks.0.attn.to_k", hidden, hidden, true).unwrap();
    let (_, shape, codes) = &fp8["single_blocks.0.linear1.weight"];
    assert_eq!(shape[1], hidden);
    let scale = "single_blocks.0.linear1".len() as f32 / 64.0;
    for (got, &code) in k.weight.values().unwrap().iter().zip(&codes[hidden * hidden..]) {
        assert_eq!(*got, crate::weights::float::E4M3[usize::from(code)] * scale);
    }
}

#[test]
fn fused_layers_without_their_rows_are_refused() {
    let bfl = as_bfl(golden("flux"), "");
    for (name, shape, expected) in [
        (
            "double_blocks.0.img_attn.qkv.weight",
            vec![2, 2],
            "`double_blocks.0.img_attn.qkv.weight` has shape [2, 2], rows 2..4",
        ),
        (
            "double_blocks.0.img_attn.qkv.weight",
            vec![64],
            "`double_blocks.0.img_attn.qkv.weight` is no matrix",
        ),
        ("single_blocks.0.linear1.bias", vec![3], "`single_blocks.0.linear1.bias` has shape [3]"),
        ("single_blocks.0.linear1.bias", vec![], "`single_blocks.0.linear1.bias` has shape []"),
        (
            "transformer_blocks.0.attn.to_q.weight",
            vec![1],
            "are both `transformer_blocks.0.attn.to_q.weight`",
        ),
    ] {
        let mut tensors = bfl.clone();
        let size = shape.iter().product::<usize>() * 4;
        tensors.insert(name.into(), (Dtype::F32, shape, vec![0; size]));
        let text = part(&tensors, PartKind::Transformer).err().unwrap().to_string();
        assert!(text.starts_with("x.safetensors: ") && text.contains(expected), "{text}");
    }
}

/// A VAE of four levels as Black Forest Labs would have saved it.
pub(crate) fn vae_as_bfl(tensors: &Tensors) -> Tensors {
    let levels = 4;
    renamed(tensors, |name| {
        let mut new = name.to_owned();
        for (from, to) in [
            ("mid_block.resnets.0", "mid.block_1"),
            ("mid_block.resnets.1", "mid.block_2"),
            ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
            ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
            ("mid_block.attentions.0.to_", "mid.attn_1."),
            ("conv_norm_out", "norm_out"),
            ("conv_shortcut", "nin_shortcut"),
            (".resnets.", ".block."),
            ("downsamplers.0", "downsample"),
            ("upsamplers.0", "upsample"),
            ("down_blocks", "down"),
        ] {
            new = new.replace(from, to);
        }
        for i in 0..levels {
            new = new.replace(&format!("up_blocks.{i}"), &format!("up.{}", levels - 1 - i));
        }
        new
    })
}

#[test]
fn bfls_vae_is_diffusers() {
    let tensors = golden("vae");
    let bfl = vae_as_bfl(&tensors);
    assert!(
        bfl.contains_key("decoder.up.3.block.0.conv1.weight")
            && bfl.contains_key("decoder.mid.attn_1.q.weight")
    );
    for prefix in ["", "vae.", "first_stage_model."] {
        same(&part(&renamed(&bfl, |name| format!("{prefix}{name}")), PartKind::Vae).unwrap(), &tensors);
    }
    assert!(part(&bfl, PartKind::T5).err().unwrap().to_string().contains("no T5 text encoder: found a VAE"));
}

/// ComfyUI's all-in-one files: every network under a prefix of its own.
#[test]
fn networks_in_one_file_are_told_apart() {
    let parts = [
        ("flux", "model.diffusion_model."),
        ("vae", "vae."),
        ("t5", "text_encoders.t5xxl.transformer."),
        ("clip", "text_encoders.clip_l.transformer."),
    ];
    let mut all = Tensors::new();
    for (name, prefix) in parts {
        let tensors = if name == "flux" { as_bfl(golden(name), "") } else { golden(name) };
        all.extend(renamed(&tensors, |name| format!("{prefix}{name}")));
    }
    let raw = Checkpoint::from_bytes(Path::new("all.safetensors"), file(&all)).unwrap();
    assert_eq!(raw.parts(), PartKind::ALL);
    for (name, kind) in [
        ("flux", PartKind::Transformer),
        ("vae", PartKind::Vae),
        ("t5", PartKind::T5),
        ("clip", PartKind::Clip),
    ] {
        same(&part(&all, kind).unwrap(), &golden(name));
    }
}

#[test]
fn what_is_no_part_is_refused() {
    let mut lora = Tensors::new();
    lora.insert("lora_unet_x.lora_down.weight".into(), (Dtype::F32, vec![1], vec![0; 4]));
    for kind in PartKind::ALL {
        let text = part(&lora, kind).err().unwrap().to_string();
        assert!(text.contains(&format!("no {kind}: found `lora_unet_x.lora_down.weight` ...")), "{text}");
    }
}

/// The demo model's 4-bit file in the later spelling gives the same layers.
#[test]
fn both_spellings_of_4_bit_layers_are_the_same() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
    let path = crate::weights::PipelineFolder::open(&demo).unwrap().transformer().to_owned();
    let first = FluxWeights::open(&path).unwrap();
    let mut tensors: Tensors = first
        .checkpoint()
        .tensors()
        .map(|t| (t.name.to_owned(), (t.dtype, t.shape.to_vec(), t.bytes().unwrap().to_vec())))
        .collect();
    tensors = renamed(&tensors, |name| {
        let mut new = name.to_owned();
        let out = if name.starts_with("single") { "attn.to_out." } else { "attn.to_out.0." };
        for (from, to) in [
            (".qkv_proj_context.", ".attn.add_qkv_proj."),
            (".qkv_proj.", ".attn.to_qkv."),
            (".out_proj_context.", ".attn.to_add_out."),
            (".out_proj.", &format!(".{out}")),
            (".norm_q.", ".attn.norm_q."),
            (".norm_k.", ".attn.norm_k."),
            (".norm_added_q.", ".attn.norm_added_q."),
            (".norm_added_k.", ".attn.norm_added_k."),
            (".lora_down", ".proj_down"),
            (".lora_up", ".proj_up"),
            (".smooth", ".smooth_factor"),
        ] {
            new = new.replace(from, to);
        }
        if !name.starts_with("single") {
            for (from, to) in [
                (".mlp_fc1.", ".ff.net.0.proj."),
                (".mlp_fc2.", ".ff.net.2."),
                (".mlp_context_fc1.", ".ff_context.net.0.proj."),
                (".mlp_context_fc2.", ".ff_context.net.2."),
            ] {
                new = new.replace(from, to);
            }
        }
        new
    });
    assert!(tensors.contains_key("transformer_blocks.0.attn.to_qkv.smooth_factor_orig"));
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    let metadata = ["config", "quantization_config"]
        .map(|key| (key.to_owned(), first.checkpoint().metadata(key).unwrap().to_owned()));
    let bytes = safetensors::serialize(views, Some(metadata.into_iter().collect())).unwrap();
    let dir = TempDir::new();
    let second = FluxWeights::open(&dir.write("v2.safetensors", &bytes)).unwrap();
    assert_eq!((first.rank(), first.config()), (second.rank(), second.config()));
    for part in [Part::Qkv, Part::Out, Part::Fc1, Part::Fc2] {
        for stream in [Stream::Image, Stream::Text] {
            let (LinearSource::Svdq(a), LinearSource::Svdq(b)) =
                (first.double(0, stream, part).unwrap(), second.double(0, stream, part).unwrap())
            else {
                panic!()
            };
            assert_eq!(
                (&a.qweight, &a.smooth, &a.lora_up, a.unsigned),
                (&b.qweight, &b.smooth, &b.lora_up, b.unsigned)
            );
        }
        let (LinearSource::Svdq(a), LinearSource::Svdq(b)) =
            (first.single(0, part).unwrap(), second.single(0, part).unwrap())
        else {
            panic!()
        };
        assert_eq!((&a.qweight, &a.lora_down, a.unsigned), (&b.qweight, &b.lora_down, b.unsigned));
    }
    assert_eq!(first.double_norms(0, Stream::Text).unwrap(), second.double_norms(0, Stream::Text).unwrap());
}
