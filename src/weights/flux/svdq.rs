//! 4-bit layers: Nunchaku's fused ones, and those of diffusers' modules ([`super::lite`]).

use serde::Deserialize;

use super::{
    Checkpoint, DOUBLE_CHUNKS, Dtype, Error, FluxWeights, Part, Result, SINGLE_CHUNKS, Stream, lite,
};
use crate::ops::{AwqSource, Codes, LinearSource, SvdqSource};
use crate::weights::float::{E4M3, decode_one};
use crate::weights::{Tensor, pack, parse_json};

/// Channels that share a scale in INT4 and AWQ.
pub(super) const GROUP: usize = 64;
/// NVFP4's.
const FP4_GROUP: usize = 16;

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
    if w.lite {
        return lite::double(w, prefix, stream, part);
    }
    layer(w, prefix, |part| double_name(stream, part), part, DOUBLE_CHUNKS)
}

/// A linear of a single block.
pub(super) fn single<'a>(w: &'a FluxWeights, prefix: &str, part: Part) -> Result<LinearSource<'a>> {
    if w.lite {
        return lite::single(w, prefix, part);
    }
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
        _ => {
            let source = svdq(&w.checkpoint, &name, shape)?;
            let unsigned = part == Part::Fc2 && source.codes == Codes::Int4;
            Ok(LinearSource::Svdq(SvdqSource { unsigned, ..source }))
        }
    }
}

/// The SVDQuant linear `name`, its input signed.
pub(super) fn svdq<'a>(checkpoint: &'a Checkpoint, name: &str, [n, k]: [usize; 2]) -> Result<SvdqSource<'a>> {
    if !n.is_multiple_of(128) || !k.is_multiple_of(GROUP) {
        let what = format!("is of a linear [{n}, {k}], 4-bit linears are multiples of [128, {GROUP}]");
        return Err(checkpoint.bad(&format!("{name}.qweight"), what));
    }
    let bytes =
        |suffix: &str, dtype, shape: &[usize]| checkpoint.bytes(&format!("{name}.{suffix}"), dtype, shape);
    let bf16 = |suffix: &str, shape: &[usize]| bytes(suffix, Dtype::BF16, shape);
    let rank = rank(checkpoint, name)?;
    let scales = format!("{name}.wscales");
    let fp4 = checkpoint.get(&scales).is_some_and(|tensor| tensor.dtype == Dtype::F8_E4M3);
    let (codes, wscales) = match fp4 {
        false => (Codes::Int4, bf16("wscales", &[k / GROUP, n])?),
        true => {
            let wscales = bytes("wscales", Dtype::F8_E4M3, &[k / FP4_GROUP, n])?;
            if wscales.iter().any(|&code| E4M3[usize::from(code)].is_nan()) {
                return Err(checkpoint.bad(&scales, "has values that are not numbers"));
            }
            (Codes::Fp4 { channel_scales: channel_scales(checkpoint, name, n)? }, wscales)
        }
    };
    Ok(SvdqSource {
        n,
        k,
        rank,
        unsigned: false,
        codes,
        qweight: bytes("qweight", Dtype::I8, &[n, k / 2])?.into(),
        wscales: wscales.into(),
        bias: bf16("bias", &[n])?.into(),
        smooth: bf16("smooth", &[k])?.into(),
        lora_down: if rank > 0 { bf16("lora_down", &[k, rank])? } else { &[] }.into(),
        lora_up: if rank > 0 { bf16("lora_up", &[n, rank])? } else { &[] }.into(),
    })
}

/// `wtscale · wcscales[channel]`; what is not there is 1.
fn channel_scales(checkpoint: &Checkpoint, name: &str, n: usize) -> Result<Vec<f32>> {
    let tensor_scale = format!("{name}.wtscale");
    let all = match checkpoint.get(&tensor_scale) {
        None => 1.0,
        Some(tensor) => match decode_one(tensor.dtype, tensor.bytes()?) {
            Some(value) if value.is_finite() => value,
            _ => {
                let what = format!("is {} {:?}; one finite number is expected", tensor.dtype, tensor.shape);
                return Err(checkpoint.bad(&tensor_scale, what));
            }
        },
    };
    let channels = format!("{name}.wcscales");
    if checkpoint.get(&channels).is_none() {
        return Ok(vec![all; n]);
    }
    let scales = pack::unpack_vector(checkpoint.bytes(&channels, Dtype::BF16, &[n])?);
    Ok(scales.into_iter().map(|scale| all * scale).collect())
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

/// The AWQ linear `name`, its rows stored in so many interleaved chunks.
pub(super) fn awq<'a>(
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
        group: GROUP,
        chunks,
        qweight: checkpoint.bytes(&format!("{name}.qweight"), Dtype::I32, &[n / 4, k / 2])?.into(),
        wscales: bf16("wscales", &[k / GROUP, n])?.into(),
        wzeros: bf16("wzeros", &[k / GROUP, n])?.into(),
        bias: bf16("bias", &[n])?.into(),
    })
}

/// Nunchaku's `quantization_config`.
#[derive(Deserialize)]
struct Quantization {
    method: String,
    rank: Option<usize>,
}

/// The largest rank of a 4-bit checkpoint, `None` if it holds no 4-bit weights. What the weights are, the tensors say;
/// the metadata must not contradict them.
///
/// # Errors
/// [`Error::Unsupported`] for another method, and [`Error::BadFormat`] if the metadata contradicts the tensors.
pub(super) fn check_quantization(checkpoint: &Checkpoint) -> Result<Option<usize>> {
    let path = checkpoint.path();
    let stated: Option<Quantization> = match checkpoint.metadata("quantization_config") {
        Some(text) => Some(parse_json(path, "quantization_config", text)?),
        None => None,
    };
    if let Some(Quantization { method, .. }) = &stated
        && !["svdquant", "nunchaku_lite"].contains(&method.as_str())
    {
        return Err(Error::Unsupported(format!("{}: {method} cannot be run, only svdquant", path.display())));
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
    let columns = |t: Tensor<'_>| t.shape.last().copied().unwrap_or(0);
    let ranks: Vec<usize> =
        checkpoint.tensors().filter(|t| t.name.ends_with(".lora_down")).map(columns).collect();
    let found = ranks.iter().copied().max().unwrap_or(0);
    match stated.and_then(|q| q.rank) {
        Some(rank) if rank != found && !ranks.contains(&rank) => Err(Error::format(
            path,
            format!("`quantization_config`: `rank` is {rank}, the tensors are of rank {found}"),
        )),
        _ => Ok(Some(found)),
    }
}
