//! Layers of diffusers' own layout.

use super::{DOUBLE_CHUNKS, FluxWeights, Part, Result, SINGLE_CHUNKS, Stream};
use crate::ops::{DenseSource, Storage};

/// A linear of a double block.
pub(super) fn double(w: &FluxWeights, prefix: &str, stream: Stream, part: Part) -> Result<DenseSource> {
    let [norm, qkv, out, fc1, fc2] = match stream {
        Stream::Image => [
            &["norm1.linear"][..],
            &["attn.to_q", "attn.to_k", "attn.to_v"],
            &["attn.to_out.0"],
            &["ff.net.0.proj"],
            &["ff.net.2"],
        ],
        Stream::Text => [
            &["norm1_context.linear"][..],
            &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
            &["attn.to_add_out"],
            &["ff_context.net.0.proj"],
            &["ff_context.net.2"],
        ],
    };
    let names = match part {
        Part::Modulation => norm,
        Part::Qkv => qkv,
        Part::Out => out,
        Part::Fc1 => fc1,
        Part::Fc2 => fc2,
    };
    let mlp = match part {
        Part::Fc1 | Part::Fc2 => w.rows(&format!("{prefix}{}.weight", fc1[0]))?,
        _ => 0,
    };
    let shape = part.shape(w.config.hidden(), mlp, DOUBLE_CHUNKS);
    let mut linear = stack(w, prefix, names, shape)?;
    if part == Part::Modulation {
        add_one(&mut linear, DOUBLE_CHUNKS, &[1, 4]);
    }
    Ok(linear)
}

/// A linear of a single block.
pub(super) fn single(w: &FluxWeights, prefix: &str, part: Part) -> Result<DenseSource> {
    let hidden = w.config.hidden();
    let mlp = match part {
        Part::Modulation | Part::Qkv => 0,
        _ => w.rows(&format!("{prefix}proj_mlp.weight"))?,
    };
    let shape = part.shape(hidden, mlp, SINGLE_CHUNKS);
    match part {
        Part::Modulation => {
            let mut linear = stack(w, prefix, &["norm.linear"], shape)?;
            add_one(&mut linear, SINGLE_CHUNKS, &[1]);
            Ok(linear)
        }
        Part::Qkv => stack(w, prefix, &["attn.to_q", "attn.to_k", "attn.to_v"], shape),
        Part::Fc1 => stack(w, prefix, &["proj_mlp"], shape),
        Part::Out | Part::Fc2 => {
            let both = w.checkpoint.dense(&format!("{prefix}proj_out"), hidden, hidden + mlp, true)?;
            Ok(if part == Part::Out {
                DenseSource { bias: vec![], ..columns(both, 0, hidden) }
            } else {
                columns(both, hidden, mlp)
            })
        }
    }
}

/// Linears of the same input on top of each other, `[n, k]` together.
fn stack(w: &FluxWeights, prefix: &str, names: &[&str], [n, k]: [usize; 2]) -> Result<DenseSource> {
    let mut all = DenseSource { n, k, weight: vec![], bias: vec![], storage: Storage::Bf16 };
    for name in names {
        let one = w.checkpoint.dense(&format!("{prefix}{name}"), n / names.len(), k, true)?;
        if names.len() == 1 {
            return Ok(one);
        }
        all.weight.extend(one.weight);
        all.bias.extend(one.bias);
        if one.storage != Storage::Bf16 {
            all.storage = one.storage;
        }
    }
    Ok(all)
}

/// Columns `from .. from + k` of a linear.
fn columns(linear: DenseSource, from: usize, k: usize) -> DenseSource {
    let weight = linear.weight.chunks_exact(linear.k).flat_map(|row| &row[from..from + k]).copied().collect();
    DenseSource { k, weight, ..linear }
}

/// Adds 1 to the bias of the scale chunks.
fn add_one(linear: &mut DenseSource, chunks: usize, scales: &[usize]) {
    let channels = linear.n / chunks;
    for &s in scales {
        linear.bias[s * channels..][..channels].iter_mut().for_each(|b| *b += 1.0);
    }
}
