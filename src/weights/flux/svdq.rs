//! Layers of Nunchaku's 4-bit layout.

use serde::Deserialize;

use super::{Checkpoint, DOUBLE_CHUNKS, Dtype, Error, FluxWeights, Part, Result, SINGLE_CHUNKS, Stream};
use crate::ops::{AwqSource, LinearSource, SvdqSource};
use crate::weights::parse_json;

/// Channels that share a scale.
pub(super) const GROUP: usize = 64;

/// Name of a linear inside a double block.
pub(super) fn double_name(stream: Stream, part: Part) -> &'static str {
    match (stream, part) {
        (Stream::Image, Part::Modulation) => "norm1.linear",
        (Stream::Image, Part::Qkv) => "qkv_proj",
        (Stream::Image, Part::Out) => "out_proj",
        (Stream::Image, Part::Fc1) => "mlp_fc1",
        (Stream::Image, Part::Fc2) => "mlp_fc2",
        (Stream::Text, Part::Modulation) => "norm1_context.linear",
        (Stream::Text, Part::Qkv) => "qkv_proj_context",
        (Stream::Text, Part::Out) => "out_proj_context",
        (Stream::Text, Part::Fc1) => "mlp_context_fc1",
        (Stream::Text, Part::Fc2) => "mlp_context_fc2",
    }
}

/// Name of a linear inside a single block.
pub(super) fn single_name(part: Part) -> &'static str {
    match part {
        Part::Modulation => "norm.linear",
        _ => double_name(Stream::Image, part),
    }
}

/// A linear of a double block.
pub(super) fn double<'a>(
    w: &'a FluxWeights,
    prefix: &str,
    stream: Stream,
    part: Part,
) -> Result<LinearSource<'a>> {
    layer(w, prefix, |part| double_name(stream, part), part, DOUBLE_CHUNKS)
}

/// A linear of a single block.
pub(super) fn single<'a>(w: &'a FluxWeights, prefix: &str, part: Part) -> Result<LinearSource<'a>> {
    layer(w, prefix, single_name, part, SINGLE_CHUNKS)
}

fn layer<'a>(
    w: &'a FluxWeights,
    prefix: &str,
    name_of: impl Fn(Part) -> &'static str,
    part: Part,
    chunks: usize,
) -> Result<LinearSource<'a>> {
    let mlp = match part {
        Part::Fc1 | Part::Fc2 => w.rows(&format!("{prefix}{}.qweight", name_of(Part::Fc1)))?,
        _ => 0,
    };
    let shape = part.shape(w.config.hidden(), mlp, chunks);
    let name = format!("{prefix}{}", name_of(part));
    match part {
        Part::Modulation => awq(&w.checkpoint, &name, shape, chunks).map(LinearSource::Awq),
        _ => svdq(&w.checkpoint, &name, shape, part == Part::Fc2).map(LinearSource::Svdq),
    }
}

fn svdq<'a>(
    checkpoint: &'a Checkpoint,
    name: &str,
    [n, k]: [usize; 2],
    unsigned: bool,
) -> Result<SvdqSource<'a>> {
    if !n.is_multiple_of(128) || !k.is_multiple_of(GROUP) {
        let what = format!("is of a linear [{n}, {k}], 4-bit linears are multiples of [128, {GROUP}]");
        return Err(checkpoint.bad(&format!("{name}.qweight"), what));
    }
    let bf16 =
        |suffix: &str, shape: &[usize]| checkpoint.bytes(&format!("{name}.{suffix}"), Dtype::BF16, shape);
    let rank = rank(checkpoint, name)?;
    Ok(SvdqSource {
        n,
        k,
        rank,
        unsigned,
        qweight: checkpoint.bytes(&format!("{name}.qweight"), Dtype::I8, &[n, k / 2])?,
        wscales: bf16("wscales", &[k / GROUP, n])?,
        bias: bf16("bias", &[n])?,
        smooth: bf16("smooth", &[k])?,
        lora_down: if rank > 0 { bf16("lora_down", &[k, rank])? } else { &[] },
        lora_up: if rank > 0 { bf16("lora_up", &[n, rank])? } else { &[] },
    })
}

/// Columns of `lora_down`; a linear without either factor has no branch.
fn rank(checkpoint: &Checkpoint, name: &str) -> Result<usize> {
    let (down, up) = (format!("{name}.lora_down"), format!("{name}.lora_up"));
    let Some(tensor) = checkpoint.get(&down) else {
        return match checkpoint.get(&up) {
            Some(_) => Err(checkpoint.missing(&down)),
            None => Ok(0),
        };
    };
    match *tensor.shape {
        [_, rank] if rank.is_multiple_of(16) => Ok(rank),
        ref other => Err(checkpoint
            .bad(&down, format!("has shape {other:?}, a matrix with a multiple of 16 columns is expected"))),
    }
}

fn awq<'a>(
    checkpoint: &'a Checkpoint,
    name: &str,
    [n, k]: [usize; 2],
    chunks: usize,
) -> Result<AwqSource<'a>> {
    if !n.is_multiple_of(4 * chunks) || !k.is_multiple_of(GROUP) {
        let what =
            format!("is of a linear [{n}, {k}], {chunks} chunks are multiples of [{}, {GROUP}]", 4 * chunks);
        return Err(checkpoint.bad(&format!("{name}.qweight"), what));
    }
    let bf16 =
        |suffix: &str, shape: &[usize]| checkpoint.bytes(&format!("{name}.{suffix}"), Dtype::BF16, shape);
    Ok(AwqSource {
        n,
        k,
        chunks,
        qweight: checkpoint.bytes(&format!("{name}.qweight"), Dtype::I32, &[n / 4, k / 2])?,
        wscales: bf16("wscales", &[k / GROUP, n])?,
        wzeros: bf16("wzeros", &[k / GROUP, n])?,
        bias: bf16("bias", &[n])?,
    })
}

/// Nunchaku's `quantization_config`.
#[derive(Deserialize)]
struct Quantization {
    method: String,
    weight: Weight,
    rank: Option<usize>,
}

#[derive(Deserialize)]
struct Weight {
    dtype: String,
    group_size: usize,
}

/// The largest rank of a 4-bit checkpoint, `None` if it holds no 4-bit weights.
///
/// # Errors
/// [`Error::Unsupported`] for 4-bit weights other than INT4 in groups of 64, and [`Error::BadFormat`] if the
/// metadata contradicts the tensors.
pub(super) fn check_precision(checkpoint: &Checkpoint) -> Result<Option<usize>> {
    let path = checkpoint.path();
    let unsupported = |what: String| Err(Error::Unsupported(format!("{}: {what}", path.display())));
    let stated: Option<Quantization> = match checkpoint.metadata("quantization_config") {
        Some(text) => Some(parse_json(path, "quantization_config", text)?),
        None => None,
    };
    let is_fp4 = |t: super::super::Tensor<'_>| t.name.ends_with(".wscales") && t.dtype == Dtype::F8_E4M3;
    if let Some(tensor) = checkpoint.tensors().find(|&t| is_fp4(t)) {
        return unsupported(format!("NVFP4 weights (`{}`) cannot be run yet, only INT4", tensor.name));
    }
    if let Some(Quantization { method, weight: Weight { dtype, group_size }, .. }) = &stated
        && (method.as_str(), dtype.as_str(), *group_size) != ("svdquant", "int4", GROUP)
    {
        return unsupported(format!(
            "{method} with {dtype} in groups of {group_size} cannot be run, only svdquant with int4 in groups of {GROUP}"
        ));
    }
    if !checkpoint.names().any(|name| name.ends_with(".qweight")) {
        return match stated {
            Some(_) => Err(Error::format(
                path,
                "`quantization_config` says svdquant, but there is no tensor `*.qweight`",
            )),
            None => Ok(None),
        };
    }
    let columns = |t: super::super::Tensor<'_>| t.shape.last().copied().unwrap_or(0);
    let found =
        checkpoint.tensors().filter(|t| t.name.ends_with(".lora_down")).map(columns).max().unwrap_or(0);
    match stated.and_then(|q| q.rank) {
        Some(rank) if rank != found => Err(Error::format(
            path,
            format!("`quantization_config`: `rank` is {rank}, the tensors are of rank {found}"),
        )),
        _ => Ok(Some(found)),
    }
}
