//! 16-bit FLUX transformers to 4-bit SVDQuant checkpoints, without data.
//!
//! Every linear `y = W x + b` of the blocks becomes (Li et al., SVDQuant, ICLR 2025)
//! ```text
//! W diag(s) = U D + R,    y ≈ Q(R) (x / s) + U (D / s) x + b
//! ```
//! a low-rank branch in bf16 and a residual `Q(R)` in 4 bits; the smoothing `s` moves the difficulty between
//! weights and activations. The modulation linears become plain 4-bit with a scale and a zero for each group,
//! rounded with error feedback for sampled conditioning. All else stays bf16.

mod awq;
mod feedback;
mod inputs;
mod layer;
mod lowrank;
mod matrix;
mod random;
mod report;
mod round;
mod svdq;
#[cfg(test)]
mod tests;
mod writer;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::ops::{DenseSource, LinearSource};
use crate::weights::flux::{FluxConfig, FluxWeights, Part, Stream, inventory};
use crate::weights::pack::f32_to_bf16;
use crate::weights::{Checkpoint, Dtype, read_json};
use crate::{Error, Result};
use inputs::Inputs;
use layer::Layer;
pub use report::{LayerReport, Report};
use writer::Writer;

/// How [`quantize`] works.
#[derive(Clone, Debug)]
pub struct QuantizeOptions {
    /// Rank of the low-rank branches: a multiple of 16, at most 1024 and at most the model's hidden size.
    pub rank: usize,
    /// How often branch and 4-bit weights are fitted to each other, at least 1. After 5 little changes.
    pub rounds: usize,
    /// Threads; 0 for as many as the machine has. The result does not depend on it.
    pub threads: usize,
}

impl Default for QuantizeOptions {
    fn default() -> Self {
        QuantizeOptions { rank: 32, rounds: 5, threads: 0 }
    }
}

impl QuantizeOptions {
    /// The number of threads that is meant.
    fn threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        }
    }
}

/// Where a linear is.
#[derive(Clone, Copy)]
enum Block {
    Double(usize, Stream),
    Single(usize),
}

impl Block {
    /// Chunks of its modulation.
    fn chunks(self) -> usize {
        match self {
            Block::Double(..) => 6,
            Block::Single(..) => 3,
        }
    }
}

/// Quantises the transformer in `input` (a diffusers pipeline folder, its `transformer` folder, or a
/// safetensors file in diffusers' or Black Forest Labs' names) to INT4 and writes `output`, one safetensors file in Nunchaku's format. `progress` is
/// called after every linear. One linear at a time is in memory: FLUX.1's 12B parameters take under 2 GB.
///
/// The same input and options give the same bytes.
///
/// # Errors
/// The input is no dense FLUX transformer, or one whose sizes the 4-bit layout cannot hold; the output cannot
/// be written or is part of the input; an option is out of range; [`Error::Cancelled`] when `progress`
/// breaks. On any error, a file that was at `output` is still what it was, and no other is left.
pub fn quantize(
    input: &Path,
    output: &Path,
    options: &QuantizeOptions,
    progress: &mut dyn FnMut(&LayerReport) -> ControlFlow<()>,
) -> Result<Report> {
    let input = transformer(input)?;
    let weights = FluxWeights::open(&input)?;
    check(&weights, options)?;
    refuse_input_as_output(&input, output)?;

    let linears = linears(weights.config());
    let tensors = inventory(weights.config(), options.rank);
    let metadata = metadata(&input, weights.config(), options.rank)?;
    let mut writer = Writer::create(output, &metadata, tensors)?;
    let mut inputs = Inputs::sample(&weights, options.threads())?;
    let mut layers = Vec::new();
    while let Some((name, shape)) = writer.due() {
        let Some(layer_name) = name.strip_suffix(".qweight") else {
            writer.write(&name, &copy(weights.checkpoint(), &name, &shape)?)?;
            continue;
        };
        let &(block, part) =
            linears.get(layers.len()).ok_or_else(|| Error::Internal(format!("no source for `{name}`")))?;
        let dense = read(&weights, block, part, layer_name, &shape)?;
        let [n, k] = [dense.n, dense.k];
        if part == Part::Modulation {
            inputs.enter_block(&dense, block.chunks())?;
        }
        let Layer { tensors, sqnr_db } = layer::quantize(dense, part, block.chunks(), &inputs, options)?;
        for (suffix, bytes) in tensors {
            writer.write(&format!("{layer_name}.{suffix}"), &bytes)?;
        }
        let done = layers.len() + 1;
        let report = LayerReport { name: layer_name.into(), n, k, sqnr_db, done, total: linears.len() };
        if progress(&report).is_break() {
            return Err(Error::Cancelled);
        }
        layers.push(report);
    }
    Ok(Report { layers, bytes: writer.finish()? })
}

/// The transformer of a pipeline folder, or `input` itself.
fn transformer(input: &Path) -> Result<PathBuf> {
    match input.join("model_index.json").is_file() {
        true => Ok(input.join("transformer")),
        false => Ok(input.into()),
    }
}

fn check(weights: &FluxWeights, options: &QuantizeOptions) -> Result<()> {
    let path = weights.checkpoint().path();
    let hidden = weights.config().hidden();
    if weights.rank().is_some() {
        return Err(Error::WrongModel {
            path: path.into(),
            what: "is 4-bit already, 16-bit weights are expected".into(),
        });
    }
    if !hidden.is_multiple_of(128) {
        let what = format!("{} channels are not a multiple of 128, as the 4-bit layout wants", hidden);
        return Err(Error::WrongModel { path: path.into(), what });
    }
    let QuantizeOptions { rank, rounds, .. } = *options;
    if rank == 0 || !rank.is_multiple_of(16) || rank > hidden.min(1024) {
        let limit = hidden.min(1024);
        return Err(Error::InvalidArgument(format!(
            "rank {rank} is not a multiple of 16 from 16 to {limit}"
        )));
    }
    if rounds == 0 {
        return Err(Error::InvalidArgument("rounds is 0, and must be at least 1".into()));
    }
    Ok(())
}

/// The input is mapped while it is read: it must not be replaced by the output.
fn refuse_input_as_output(input: &Path, output: &Path) -> Result<()> {
    let (Ok(input), Ok(output)) = (input.canonicalize(), output.canonicalize()) else {
        return Ok(()); // no file at `output` yet
    };
    if output.starts_with(&input) {
        return Err(Error::InvalidArgument(format!("{}: is part of the input", output.display())));
    }
    Ok(())
}

/// Every linear of the blocks, in the order of the inventory.
fn linears(config: &FluxConfig) -> Vec<(Block, Part)> {
    let double =
        (0..config.num_layers).flat_map(|i| [Stream::Image, Stream::Text].map(|s| Block::Double(i, s)));
    let single = (0..config.num_single_layers).map(Block::Single);
    double.chain(single).flat_map(|block| Part::ALL.map(|part| (block, part))).collect()
}

/// A linear of the input; `shape` is that of its 4-bit codes, two in a byte.
fn read<'a>(
    weights: &'a FluxWeights,
    block: Block,
    part: Part,
    name: &str,
    shape: &[usize],
) -> Result<DenseSource<'a>> {
    let source = match block {
        Block::Double(index, stream) => weights.double(index, stream, part)?,
        Block::Single(index) => weights.single(index, part)?,
    };
    let bad = |what: String| Error::format(weights.checkpoint().path(), format!("`{name}` {what}"));
    let LinearSource::Dense(dense) = source else {
        return Err(bad("is 4-bit already".into()));
    };
    if let Some(at) = dense.weight.values()?.iter().chain(&dense.bias).position(|v| !v.is_finite()) {
        return Err(bad(format!("has a value that is not finite, at element {at} of its weight and bias")));
    }
    let elements: usize = shape.iter().product::<usize>() * if part == Part::Modulation { 8 } else { 2 };
    if elements != dense.n * dense.k {
        return Err(bad(format!(
            "is [{}, {}]: only an MLP of four times the hidden size can be written",
            dense.n, dense.k
        )));
    }
    Ok(dense)
}

/// A tensor of the output that is bf16 in the input, or rounded to it.
fn copy(input: &Checkpoint, name: &str, shape: &[usize]) -> Result<Vec<u8>> {
    let source = match name.rsplitn(3, '.').collect::<Vec<_>>()[..] {
        ["weight", norm, block] if norm.starts_with("norm_") => format!("{block}.attn.{norm}.weight"),
        _ => name.to_owned(),
    };
    let tensor = input.tensor(&source, shape)?;
    match tensor.dtype {
        Dtype::BF16 => Ok(tensor.bytes()?.to_vec()),
        _ => Ok(f32_to_bf16(&input.f32(&source, shape)?)),
    }
}

/// The config.json of a transformer that came without one.
fn diffusers_config(config: &FluxConfig) -> Value {
    json!({
        "_class_name": "FluxTransformer2DModel",
        "patch_size": 1,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "num_layers": config.num_layers,
        "num_single_layers": config.num_single_layers,
        "attention_head_dim": config.attention_head_dim,
        "num_attention_heads": config.num_attention_heads,
        "joint_attention_dim": config.joint_attention_dim,
        "pooled_projection_dim": config.pooled_projection_dim,
        "guidance_embeds": config.guidance_embeds,
        "axes_dims_rope": config.axes_dims_rope,
    })
}

/// What Nunchaku and ComfyUI want to know, as JSON texts.
fn metadata(input: &Path, config: &FluxConfig, rank: usize) -> Result<[(&'static str, String); 4]> {
    let folder = if input.is_dir() { input } else { input.parent().unwrap_or(input) };
    let diffusers: Value = match read_json(&folder.join("config.json")) {
        Err(Error::NotFound { .. }) => diffusers_config(config),
        read => read?,
    };
    let comfy = json!({
        "model_class": if config.guidance_embeds { "Flux" } else { "FluxSchnell" },
        "model_config": {
            "image_model": "flux",
            "axes_dim": config.axes_dims_rope,
            "context_in_dim": config.joint_attention_dim,
            "depth": config.num_layers,
            "depth_single_blocks": config.num_single_layers,
            "disable_unet_model_creation": true,
            "guidance_embed": config.guidance_embeds,
            "hidden_size": config.hidden(),
            "in_channels": config.in_channels / 4,
            "out_channels": config.out_channels / 4,
            "mlp_ratio": 4.0,
            "num_heads": config.num_attention_heads,
            "patch_size": 2,
            "qkv_bias": true,
            "theta": 10000,
            "vec_in_dim": config.pooled_projection_dim,
        },
    });
    let int4 = json!({ "dtype": "int4", "scale_dtype": null, "group_size": 64 });
    let quantization = json!({ "method": "svdquant", "weight": int4, "activation": int4, "rank": rank });
    Ok([
        ("config", diffusers.to_string()),
        ("comfy_config", comfy.to_string()),
        ("model_class", "NunchakuFluxTransformer2dModel".into()),
        ("quantization_config", quantization.to_string()),
    ])
}

/// `10 log10(signal / error)`
fn decibel(signal: f64, error: f64) -> f64 {
    10.0 * (signal / error).log10()
}
