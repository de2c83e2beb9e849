//! Names of Black Forest Labs' own files, which ComfyUI uses too, to diffusers'.

use std::ops::Range;

use super::Checkpoint;
use crate::Result;

/// `double_blocks`, `single_blocks` and what surrounds them; nothing if there are none.
pub(super) fn transformer(checkpoint: &mut Checkpoint) -> Result<()> {
    if !checkpoint.names().any(|name| name.starts_with("double_blocks.")) {
        return Ok(());
    }
    split_fused(checkpoint)?;
    checkpoint.rename(transformer_name)?;
    // Here the last modulation is shift, then scale; diffusers has them the other way round.
    for suffix in ["weight", "bias"] {
        let name = format!("norm_out.linear.{suffix}");
        if checkpoint.get(&name).is_some() {
            checkpoint.swap_halves(&name)?;
        }
    }
    Ok(())
}

/// Parts `qkv` and `linear1` into the linears that are stacked in them. A scale belongs to all of them.
fn split_fused(checkpoint: &mut Checkpoint) -> Result<()> {
    let names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
    for name in &names {
        let Some((layer, suffix)) = name.rsplit_once('.') else { continue };
        let Some((block, parts)) = fused(layer) else { continue };
        for (i, part) in parts.iter().enumerate() {
            let new = format!("{block}.{part}.{suffix}");
            let rows = match suffix {
                "weight" | "bias" => Some(rows(checkpoint, layer, name, i, i + 1 == parts.len())?),
                _ => None,
            };
            checkpoint.add_rows(name, new, rows)?;
        }
    }
    checkpoint.retain(|name| name.rsplit_once('.').and_then(|(layer, _)| fused(layer)).is_none());
    Ok(())
}

/// Rows of part `i` of a fused linear: as many as it has columns, and all that are left for the last part.
fn rows(checkpoint: &Checkpoint, layer: &str, name: &str, i: usize, last: bool) -> Result<Range<usize>> {
    let shape = |name: &str| checkpoint.get(name).map(|tensor| tensor.shape);
    let weight = format!("{layer}.weight");
    let Some(&[_, hidden]) = shape(&weight) else {
        return Err(checkpoint.bad(&weight, "is no matrix"));
    };
    let count = shape(name).and_then(|shape| shape.first().copied()).unwrap_or(0);
    let from = i.saturating_mul(hidden);
    Ok(from..if last { count } else { from.saturating_add(hidden) })
}

/// The block of a fused linear, and the linears in it from the top, each `hidden` rows and the last one the rest.
fn fused(layer: &str) -> Option<(&str, &'static [&'static str])> {
    if let Some(block) = layer.strip_suffix(".img_attn.qkv") {
        Some((block, &["attn.to_q", "attn.to_k", "attn.to_v"]))
    } else if let Some(block) = layer.strip_suffix(".txt_attn.qkv") {
        Some((block, &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]))
    } else {
        let block = layer.strip_suffix(".linear1").filter(|block| block.starts_with("single_blocks."))?;
        Some((block, &["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]))
    }
}

fn transformer_name(name: &str) -> Option<String> {
    let block = |from: &str, to: &str, layers: &[(&str, &str)]| {
        let (number, layer) = name.strip_prefix(from)?.split_once('.')?;
        Some(format!("{to}{number}.{}", replace_start(layer, layers).unwrap_or(layer.into())))
    };
    block("double_blocks.", "transformer_blocks.", DOUBLE)
        .or_else(|| block("single_blocks.", "single_transformer_blocks.", SINGLE))
        .or_else(|| replace_start(name, OUTSIDE))
}

/// `name` with the beginning in `pairs` replaced.
fn replace_start(name: &str, pairs: &[(&str, &str)]) -> Option<String> {
    pairs.iter().find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)))
}

const DOUBLE: &[(&str, &str)] = &[
    ("img_mod.lin.", "norm1.linear."),
    ("txt_mod.lin.", "norm1_context.linear."),
    ("img_attn.norm.query_norm.scale", "attn.norm_q.weight"),
    ("img_attn.norm.key_norm.scale", "attn.norm_k.weight"),
    ("txt_attn.norm.query_norm.scale", "attn.norm_added_q.weight"),
    ("txt_attn.norm.key_norm.scale", "attn.norm_added_k.weight"),
    ("img_attn.proj.", "attn.to_out.0."),
    ("txt_attn.proj.", "attn.to_add_out."),
    ("img_mlp.0.", "ff.net.0.proj."),
    ("img_mlp.2.", "ff.net.2."),
    ("txt_mlp.0.", "ff_context.net.0.proj."),
    ("txt_mlp.2.", "ff_context.net.2."),
];

const SINGLE: &[(&str, &str)] = &[
    ("modulation.lin.", "norm.linear."),
    ("norm.query_norm.scale", "attn.norm_q.weight"),
    ("norm.key_norm.scale", "attn.norm_k.weight"),
    ("linear2.", "proj_out."),
];

const OUTSIDE: &[(&str, &str)] = &[
    ("img_in.", "x_embedder."),
    ("txt_in.", "context_embedder."),
    ("time_in.in_layer.", "time_text_embed.timestep_embedder.linear_1."),
    ("time_in.out_layer.", "time_text_embed.timestep_embedder.linear_2."),
    ("guidance_in.in_layer.", "time_text_embed.guidance_embedder.linear_1."),
    ("guidance_in.out_layer.", "time_text_embed.guidance_embedder.linear_2."),
    ("vector_in.in_layer.", "time_text_embed.text_embedder.linear_1."),
    ("vector_in.out_layer.", "time_text_embed.text_embedder.linear_2."),
    ("final_layer.adaLN_modulation.1.", "norm_out.linear."),
    ("final_layer.linear.", "proj_out."),
];

/// `ae.safetensors`; nothing if the names are diffusers'.
pub(super) fn vae(checkpoint: &mut Checkpoint) -> Result<()> {
    let level = |name: &str| name.strip_prefix("decoder.up.")?.split('.').next()?.parse::<usize>().ok();
    let Some(last) = checkpoint.names().filter_map(level).max() else { return Ok(()) };
    checkpoint.rename(|name| vae_name(name, last))
}

/// In the decoder the levels are numbered from the image, in diffusers from the latents.
fn vae_name(name: &str, last: usize) -> Option<String> {
    let (half, rest) = name.split_once('.')?;
    if let Some(mid) = rest.strip_prefix("mid.") {
        return Some(format!("{half}.mid_block.{}", replace_start(mid, MID)?));
    }
    if let Some(end) = rest.strip_prefix("norm_out.") {
        return Some(format!("{half}.conv_norm_out.{end}"));
    }
    let (direction, rest) = rest.split_once('.')?;
    let (number, layer) = rest.split_once('.')?;
    let number: usize = number.parse().ok()?;
    let (blocks, number) = match (half, direction) {
        ("encoder", "down") => ("down_blocks", number),
        ("decoder", "up") => ("up_blocks", last - number.min(last)),
        _ => return None,
    };
    let layer = replace_start(layer, LEVEL)?.replace("nin_shortcut", "conv_shortcut");
    Some(format!("{half}.{blocks}.{number}.{layer}"))
}

const MID: &[(&str, &str)] = &[
    ("block_1.", "resnets.0."),
    ("block_2.", "resnets.1."),
    ("attn_1.norm.", "attentions.0.group_norm."),
    ("attn_1.q.", "attentions.0.to_q."),
    ("attn_1.k.", "attentions.0.to_k."),
    ("attn_1.v.", "attentions.0.to_v."),
    ("attn_1.proj_out.", "attentions.0.to_out.0."),
];

const LEVEL: &[(&str, &str)] = &[
    ("block.", "resnets."),
    ("downsample.conv.", "downsamplers.0.conv."),
    ("upsample.conv.", "upsamplers.0.conv."),
];
