//! Layers of diffusers' own layout.

use super::{DOUBLE_CHUNKS, FluxWeights, Part, Result, SINGLE_CHUNKS, Stream};
use crate::memory::Buf;
use crate::ops::{DenseSource, Storage};
use crate::weights::Numbers;

/// diffusers' names, inside of a double block, of the linears that make up a part: their outputs lie on top of one another.
pub(crate) fn double_names(stream: Stream, part: Part) -> &'static [&'static str] {
    match (stream, part) {
        (Stream::Image, Part::Modulation) => &["norm1.linear"],
        (Stream::Image, Part::Qkv) => &["attn.to_q", "attn.to_k", "attn.to_v"],
        (Stream::Image, Part::Out) => &["attn.to_out.0"],
        (Stream::Image, Part::Fc1) => &["ff.net.0.proj"],
        (Stream::Image, Part::Fc2) => &["ff.net.2"],
        (Stream::Text, Part::Modulation) => &["norm1_context.linear"],
        (Stream::Text, Part::Qkv) => &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
        (Stream::Text, Part::Out) => &["attn.to_add_out"],
        (Stream::Text, Part::Fc1) => &["ff_context.net.0.proj"],
        (Stream::Text, Part::Fc2) => &["ff_context.net.2"],
    }
}

/// As [`double_names`] for a single block, where [`Part::Out`] and [`Part::Fc2`] are columns of one linear.
pub(crate) fn single_names(part: Part) -> &'static [&'static str] {
    match part {
        Part::Modulation => &["norm.linear"],
        Part::Qkv => &["attn.to_q", "attn.to_k", "attn.to_v"],
        Part::Fc1 => &["proj_mlp"],
        Part::Out | Part::Fc2 => &["proj_out"],
    }
}

/// A linear of a double block.
pub(super) fn double<'a>(
    w: &'a FluxWeights,
    prefix: &str,
    stream: Stream,
    part: Part,
) -> Result<DenseSource<'a>> {
    let mlp = match part {
        Part::Fc1 | Part::Fc2 => w.rows(&format!("{prefix}{}.weight", double_names(stream, Part::Fc1)[0]))?,
        _ => 0,
    };
    let shape = part.shape(w.config.hidden(), mlp, DOUBLE_CHUNKS);
    let mut linear = stack(w, prefix, double_names(stream, part), shape)?;
    if part == Part::Modulation {
        add_one(&mut linear, DOUBLE_CHUNKS, &[1, 4]);
    }
    Ok(linear)
}

/// A linear of a single block.
pub(super) fn single<'a>(w: &'a FluxWeights, prefix: &str, part: Part) -> Result<DenseSource<'a>> {
    let hidden = w.config.hidden();
    let mlp = match part {
        Part::Modulation | Part::Qkv => 0,
        _ => w.rows(&format!("{prefix}proj_mlp.weight"))?,
    };
    let shape = part.shape(hidden, mlp, SINGLE_CHUNKS);
    let names = single_names(part);
    match part {
        Part::Modulation => {
            let mut linear = stack(w, prefix, names, shape)?;
            add_one(&mut linear, SINGLE_CHUNKS, &[1]);
            Ok(linear)
        }
        Part::Qkv | Part::Fc1 => stack(w, prefix, names, shape),
        Part::Out | Part::Fc2 => {
            let both = w.checkpoint.dense(&format!("{prefix}proj_out"), hidden, hidden + mlp, true)?;
            Ok(if part == Part::Out {
                DenseSource { bias: vec![], ..columns(w, both, 0, hidden)? }
            } else {
                columns(w, both, hidden, mlp)?
            })
        }
    }
}

/// Linears of the same input on top of each other, `[n, k]` together.
fn stack<'a>(
    w: &'a FluxWeights,
    prefix: &str,
    names: &[&str],
    [n, k]: [usize; 2],
) -> Result<DenseSource<'a>> {
    let mut all = DenseSource { n, k, weight: Numbers::default(), bias: vec![], storage: Storage::Bf16 };
    for name in names {
        let one = w.checkpoint.dense(&format!("{prefix}{name}"), n / names.len(), k, true)?;
        if names.len() == 1 {
            return Ok(one);
        }
        all.weight.append(one.weight)?;
        all.bias.extend(one.bias);
        if one.storage != Storage::Bf16 {
            all.storage = one.storage;
        }
    }
    Ok(all)
}

/// Columns `from .. from + k` of a linear.
fn columns<'a>(w: &FluxWeights, linear: DenseSource<'a>, from: usize, k: usize) -> Result<DenseSource<'a>> {
    let mut weight = Buf::zeroed(w.checkpoint.memory(), linear.n * k, "columns of a linear")?;
    let rows = linear.weight.values()?.chunks_exact(linear.k);
    for (to, row) in weight.chunks_exact_mut(k).zip(rows) {
        to.copy_from_slice(&row[from..from + k]);
    }
    Ok(DenseSource { k, weight: weight.into(), ..linear })
}

/// Adds 1 to the bias of the scale chunks.
fn add_one(linear: &mut DenseSource<'_>, chunks: usize, scales: &[usize]) {
    let channels = linear.n / chunks;
    for &s in scales {
        linear.bias[s * channels..][..channels].iter_mut().for_each(|b| *b += 1.0);
    }
}
