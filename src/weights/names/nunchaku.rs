//! Later spellings of Nunchaku's 4-bit layers to those of its first files.

use super::Checkpoint;
use crate::Result;

/// Renames the tensors of 4-bit layers, and the layers themselves where q, k and v are one. Layers of files that keep
/// diffusers' modules (q, k, v apart) keep their names too.
pub(super) fn layers(checkpoint: &mut Checkpoint) -> Result<()> {
    if !checkpoint.names().any(|name| name.ends_with(".qweight")) {
        return Ok(());
    }
    checkpoint.rename(|name| {
        let (layer, suffix) = name.rsplit_once('.')?;
        let (_, new) = SUFFIXES.iter().find(|(old, _)| *old == suffix)?;
        Some(format!("{layer}.{new}"))
    })?;
    if !checkpoint.names().any(|name| name.ends_with(".attn.to_qkv.qweight")) {
        return Ok(());
    }
    checkpoint.rename(|name| {
        let (kind, rest) = name.split_once('.').filter(|(kind, _)| kind.ends_with("transformer_blocks"))?;
        let (block, rest) = rest.split_once('.')?;
        let (layer, suffix) = rest.rsplit_once('.')?;
        let new = match LAYERS.iter().find(|(old, _)| *old == layer) {
            Some((_, new)) => new,
            None => layer.strip_prefix("attn.").filter(|layer| layer.starts_with("norm_"))?,
        };
        Some(format!("{kind}.{block}.{new}.{suffix}"))
    })
}

const SUFFIXES: [(&str, &str); 4] = [
    ("proj_down", "lora_down"),
    ("proj_up", "lora_up"),
    ("smooth_factor", "smooth"),
    ("smooth_factor_orig", "smooth_orig"),
];

const LAYERS: [(&str, &str); 9] = [
    ("attn.to_qkv", "qkv_proj"),
    ("attn.add_qkv_proj", "qkv_proj_context"),
    ("attn.to_out.0", "out_proj"),
    ("attn.to_out", "out_proj"),
    ("attn.to_add_out", "out_proj_context"),
    ("ff.net.0.proj", "mlp_fc1"),
    ("ff.net.2", "mlp_fc2"),
    ("ff_context.net.0.proj", "mlp_context_fc1"),
    ("ff_context.net.2", "mlp_context_fc2"),
];
