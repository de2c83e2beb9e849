//! Sound single files as other makers name their tensors, with any faults in names, types and shapes: every network in them
//! comes out whole, or is refused with an error.
//!
//! An input is a byte that says which files are in it, and then faults of four bytes: those of [`super::tensors`], and
//! 255 as the change gives the tensor the name of another.

use std::path::Path;

use svdq::weights::flux::{FluxConfig, FluxWeights, inventory};
use svdq::weights::{Checkpoint, Dtype, PartKind};

use super::flux::{SOUND, layers};
use super::tensors::{Tensors, apply, file};

pub fn run(input: &[u8]) {
    let Some((&which, faults)) = input.split_first() else { return };
    let mut tensors = files(which);
    for fault in faults.as_chunks().0 {
        match *fault {
            [low, high, 255, other] if !tensors.is_empty() => {
                let at = usize::from(u16::from_le_bytes([low, high])) % tensors.len();
                tensors[at].0 = tensors[usize::from(other) % tensors.len()].0.clone();
            }
            _ => apply(&mut tensors, fault),
        }
    }
    let Some(file) = file(&tensors, serde_json::json!({})) else { return };
    let mut found = 0;
    for kind in PartKind::ALL {
        let Ok(checkpoint) = Checkpoint::from_bytes(Path::new("fuzz.safetensors"), file.clone()) else {
            return;
        };
        let Ok(part) = checkpoint.into_part(kind) else { continue };
        for tensor in part.tensors() {
            let elements: usize = tensor.shape.iter().product();
            assert_eq!(elements * tensor.dtype.bitsize(), tensor.len() * 8, "{}", tensor.name);
        }
        if kind == PartKind::Transformer
            && let Ok(weights) = FluxWeights::from_checkpoint(part)
        {
            layers(&weights, |_| ());
        }
        found += 1;
    }
    assert!(
        found > 0 || !faults.is_empty() || ![1, 2, 4, 8, 16].contains(&which),
        "sound file {which} is refused"
    );
}

/// The files whose bits are set in `which`; a transformer has the prefix of ComfyUI's all-in-one files if the highest is.
fn files(which: u8) -> Tensors {
    let mut tensors = Tensors::new();
    if which & 1 != 0 {
        tensors.extend(bfl_transformer());
    }
    if which & 2 != 0 {
        tensors.extend(later_nunchaku());
    }
    if which & 128 != 0 {
        tensors.iter_mut().for_each(|(name, ..)| name.insert_str(0, "model.diffusion_model."));
    }
    if which & 4 != 0 {
        tensors.extend(bfl_vae("vae."));
    }
    if which & 8 != 0 {
        tensors.extend(bfl_vae(""));
    }
    if which & 16 != 0 {
        let name = "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight";
        tensors.push((name.into(), Dtype::F8_E4M3, vec![8, 8]));
    }
    tensors
}

fn linear(tensors: &mut Tensors, name: &str, n: usize, k: usize) {
    tensors.push((format!("{name}.weight"), Dtype::BF16, vec![n, k]));
    tensors.push((format!("{name}.bias"), Dtype::BF16, vec![n]));
}

/// Black Forest Labs' names.
fn bfl_transformer() -> Tensors {
    let FluxConfig { in_channels, joint_attention_dim, pooled_projection_dim, .. } = SOUND;
    let (d, mlp) = (SOUND.hidden(), 2 * SOUND.hidden());
    let mut tensors = Tensors::new();
    for (name, n, k) in [
        ("img_in", d, in_channels),
        ("txt_in", d, joint_attention_dim),
        ("time_in.in_layer", d, 256),
        ("time_in.out_layer", d, d),
        ("guidance_in.in_layer", d, 256),
        ("guidance_in.out_layer", d, d),
        ("vector_in.in_layer", d, pooled_projection_dim),
        ("vector_in.out_layer", d, d),
        ("final_layer.adaLN_modulation.1", 2 * d, d),
        ("final_layer.linear", in_channels, d),
        ("single_blocks.0.modulation.lin", 3 * d, d),
        ("single_blocks.0.linear1", 3 * d + mlp, d),
        ("single_blocks.0.linear2", d, d + mlp),
    ] {
        linear(&mut tensors, name, n, k);
    }
    for stream in ["img", "txt"] {
        for (part, n, k) in [
            ("mod.lin", 6 * d, d),
            ("attn.qkv", 3 * d, d),
            ("attn.proj", d, d),
            ("mlp.0", mlp, d),
            ("mlp.2", d, mlp),
        ] {
            linear(&mut tensors, &format!("double_blocks.0.{stream}_{part}"), n, k);
        }
    }
    for norm in ["double_blocks.0.img_attn.norm", "double_blocks.0.txt_attn.norm", "single_blocks.0.norm"] {
        for vector in ["query_norm", "key_norm"] {
            tensors.push((format!("{norm}.{vector}.scale"), Dtype::BF16, vec![SOUND.attention_head_dim]));
        }
    }
    tensors
}

/// A 4-bit file in the spelling of Nunchaku's later ones.
fn later_nunchaku() -> Tensors {
    let mut tensors = inventory(&SOUND, 16);
    for (name, ..) in &mut tensors {
        let single = name.starts_with("single_");
        let pairs: &[(&str, &str)] = &[
            (".qkv_proj_context.", ".attn.add_qkv_proj."),
            (".qkv_proj.", ".attn.to_qkv."),
            (".out_proj_context.", ".attn.to_add_out."),
            (".out_proj.", if single { ".attn.to_out." } else { ".attn.to_out.0." }),
            (".mlp_fc1.", if single { ".mlp_fc1." } else { ".ff.net.0.proj." }),
            (".mlp_fc2.", if single { ".mlp_fc2." } else { ".ff.net.2." }),
            (".mlp_context_fc1.", ".ff_context.net.0.proj."),
            (".mlp_context_fc2.", ".ff_context.net.2."),
            (".norm_", ".attn.norm_"),
            (".lora_down", ".proj_down"),
            (".lora_up", ".proj_up"),
            (".smooth", ".smooth_factor"),
        ];
        for (from, to) in pairs {
            *name = name.replace(from, to);
        }
    }
    tensors
}

/// `ae.safetensors`, in part.
fn bfl_vae(prefix: &str) -> Tensors {
    let mut tensors = Tensors::new();
    for name in [
        "decoder.conv_in",
        "decoder.norm_out",
        "decoder.mid.block_1.conv1",
        "decoder.mid.attn_1.q",
        "decoder.mid.attn_1.proj_out",
        "decoder.up.0.block.1.nin_shortcut",
        "decoder.up.3.upsample.conv",
        "encoder.down.0.block.0.norm1",
        "encoder.down.1.downsample.conv",
        "encoder.mid.attn_1.norm",
    ] {
        linear(&mut tensors, &format!("{prefix}{name}"), 4, 4);
    }
    tensors
}
