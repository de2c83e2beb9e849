//! The FLUX.1 transformer (Black Forest Labs, 2024; diffusers' `FluxTransformer2DModel`).
//!
//! Tokens of text and image live in one tensor, text first. A double block runs the two streams
//! through their own weights and joins them in attention; a single block runs all rows through one
//! set. Everything that depends only on timestep, guidance and pooled text is computed for all steps
//! before the first one ([`Flux::condition`]).

mod rope;

use std::ops::Range;

use crate::Result;
use crate::ops::{Activation, Attention, Chunk, Device, Mask, Norm, QkNormRope};
use crate::pipeline::sampler::sinusoidal;
use crate::weights::flux::{FluxConfig, FluxWeights, Part, Stream};

/// Width of the sinusoidal embedding of a timestep or guidance value.
const SINUSOID: usize = 256;

/// The transformer's weights on a device.
pub struct Flux<D: Device> {
    config: FluxConfig,
    x_embedder: D::Linear,
    context_embedder: D::Linear,
    timestep: Embedder<D>,
    guidance: Option<Embedder<D>>,
    pooled: Embedder<D>,
    double: Vec<DoubleBlock<D>>,
    single: Vec<Block<D>>,
    norm_out: D::Linear,
    proj_out: D::Linear,
}

/// Two linears with a SiLU between.
struct Embedder<D: Device> {
    linear_1: D::Linear,
    linear_2: D::Linear,
}

/// One stream of a double block, or a single block.
struct Block<D: Device> {
    modulation: D::Linear,
    qkv: D::Linear,
    norm_q: D::Tensor,
    norm_k: D::Tensor,
    out: D::Linear,
    fc1: D::Linear,
    fc2: D::Linear,
}

struct DoubleBlock<D: Device> {
    text: Block<D>,
    image: Block<D>,
}

/// Modulation tables of every block for every step, `[steps, chunks · hidden]` each.
pub struct Conditioning<D: Device> {
    double: Vec<[D::Tensor; 2]>,
    single: Vec<D::Tensor>,
    norm_out: D::Tensor,
}

/// What stays the same over all steps of one image.
pub struct Sequence<D: Device> {
    text: D::Input,
    text_rows: usize,
    image_rows: usize,
    rope: D::Tensor,
}

impl<D: Device> Flux<D> {
    /// Puts the weights on `dev`.
    pub fn load(dev: &D, weights: &FluxWeights) -> Result<Self> {
        let config = weights.config().clone();
        let hidden = config.hidden();
        let plain = |name: &str, n, k| dev.load_linear(&weights.plain(name, n, k)?);
        let embedder = |name: &str, k| -> Result<Embedder<D>> {
            Ok(Embedder {
                linear_1: plain(&format!("time_text_embed.{name}.linear_1"), hidden, k)?,
                linear_2: plain(&format!("time_text_embed.{name}.linear_2"), hidden, hidden)?,
            })
        };
        let double = |index| -> Result<DoubleBlock<D>> {
            Ok(DoubleBlock {
                text: Block::load_stream(dev, weights, index, Stream::Text)?,
                image: Block::load_stream(dev, weights, index, Stream::Image)?,
            })
        };
        Ok(Flux {
            x_embedder: plain("x_embedder", hidden, config.in_channels)?,
            context_embedder: plain("context_embedder", hidden, config.joint_attention_dim)?,
            timestep: embedder("timestep_embedder", SINUSOID)?,
            guidance: config.guidance_embeds.then(|| embedder("guidance_embedder", SINUSOID)).transpose()?,
            pooled: embedder("text_embedder", config.pooled_projection_dim)?,
            double: (0..config.num_layers).map(double).collect::<Result<_>>()?,
            single: (0..config.num_single_layers)
                .map(|index| Block::load_single(dev, weights, index))
                .collect::<Result<_>>()?,
            norm_out: dev.load_linear(&weights.norm_out()?)?,
            proj_out: plain("proj_out", config.out_channels, hidden)?,
            config,
        })
    }

    /// Sizes of the network.
    pub fn config(&self) -> &FluxConfig {
        &self.config
    }

    /// The modulation of all blocks for all `timesteps` (0..1000, in the order of the steps):
    /// ```text
    /// temb = mlp(sin(timestep)) + mlp(sin(1000 · guidance)) + mlp(pooled)
    /// table = modulation(silu(temb))
    /// ```
    /// `pooled` is CLIP's embedding of the prompt; `guidance` is ignored by models without its embedding.
    pub fn condition(
        &self,
        dev: &D,
        timesteps: &[f32],
        guidance: f32,
        pooled: &[f32],
    ) -> Result<Conditioning<D>> {
        let steps = timesteps.len();
        let sinusoids: Vec<f32> = timesteps.iter().flat_map(|&t| sinusoidal(t, SINUSOID)).collect();
        let hidden = self.timestep.hidden(dev, &sinusoids, SINUSOID)?;
        let mut temb = dev.linear(&hidden, &self.timestep.linear_2, Activation::None)?;
        if let Some(embedder) = &self.guidance {
            let scaled = dev.round(dev.round(guidance) * 1000.0);
            let hidden = embedder.hidden(dev, &sinusoidal(scaled, SINUSOID).repeat(steps), SINUSOID)?;
            dev.linear_add(&hidden, &embedder.linear_2, None, &mut temb, 0)?;
        }
        let hidden = self.pooled.hidden(dev, &pooled.repeat(steps), pooled.len())?;
        dev.linear_add(&hidden, &self.pooled.linear_2, None, &mut temb, 0)?;

        let table = |modulation: &D::Linear| -> Result<D::Tensor> {
            let input = dev.prepare(&temb, 0..steps, Norm::Silu, modulation)?;
            dev.linear(&input, modulation, Activation::None)
        };
        Ok(Conditioning {
            double: self
                .double
                .iter()
                .map(|block| Ok([table(&block.text.modulation)?, table(&block.image.modulation)?]))
                .collect::<Result<_>>()?,
            single: self.single.iter().map(|block| table(&block.modulation)).collect::<Result<_>>()?,
            norm_out: table(&self.norm_out)?,
        })
    }

    /// Makes the text embedding (`[text_rows, joint_attention_dim]`) and the positions of an image of
    /// `grid = [rows, columns]` patches ready for [`Self::velocity`].
    pub fn sequence(
        &self,
        dev: &D,
        text: &D::Tensor,
        text_rows: usize,
        grid: [usize; 2],
    ) -> Result<Sequence<D>> {
        let rope = rope::table(&self.config.axes_dims_rope, text_rows, grid);
        Ok(Sequence {
            text: dev.prepare(text, 0..text_rows, Norm::None, &self.context_embedder)?,
            text_rows,
            image_rows: grid[0] * grid[1],
            rope: dev.upload(&rope, self.config.attention_head_dim)?,
        })
    }

    /// The velocity of `latents` (`[patches, in_channels]`) at `step`: `[patches, out_channels]`.
    pub fn velocity(
        &self,
        dev: &D,
        latents: &D::Tensor,
        sequence: &Sequence<D>,
        conditioning: &Conditioning<D>,
        step: usize,
    ) -> Result<D::Tensor> {
        let hidden = self.config.hidden();
        let rows = sequence.text_rows + sequence.image_rows;
        let image = sequence.text_rows..rows;
        let mut x = dev.zeros(rows, hidden)?;
        dev.linear_add(&sequence.text, &self.context_embedder, None, &mut x, 0)?;
        let patches = dev.prepare(latents, 0..sequence.image_rows, Norm::None, &self.x_embedder)?;
        dev.linear_add(&patches, &self.x_embedder, None, &mut x, image.start)?;

        for (block, [text_table, image_table]) in self.double.iter().zip(&conditioning.double) {
            let streams = [
                Rows { block: &block.text, table: text_table, step, hidden, rows: 0..sequence.text_rows },
                Rows { block: &block.image, table: image_table, step, hidden, rows: image.clone() },
            ];
            let attention = self.attend(dev, &x, &streams, sequence)?;
            for stream in &streams {
                stream.add_attention(dev, &attention, &mut x)?;
                stream.add_mlp(dev, stream.mlp(dev, &x, [3, 4])?, &mut x, 5)?;
            }
        }
        for (block, table) in self.single.iter().zip(&conditioning.single) {
            let all = [Rows { block, table, step, hidden, rows: 0..rows }];
            let mlp = all[0].mlp(dev, &x, [0, 1])?;
            let attention = self.attend(dev, &x, &all, sequence)?;
            all[0].add_attention(dev, &attention, &mut x)?;
            all[0].add_mlp(dev, mlp, &mut x, 2)?;
        }

        let chunk = |index: usize| Chunk { table: &conditioning.norm_out, row: step, start: index * hidden };
        let last =
            dev.prepare(&x, image, Norm::Modulate { scale: chunk(0), shift: chunk(1) }, &self.proj_out)?;
        dev.linear(&last, &self.proj_out, Activation::None)
    }

    /// Joint attention of all streams: `[rows, hidden]`.
    fn attend(
        &self,
        dev: &D,
        x: &D::Tensor,
        streams: &[Rows<'_, D>],
        sequence: &Sequence<D>,
    ) -> Result<D::Tensor> {
        let mut qkv = dev.zeros(sequence.text_rows + sequence.image_rows, 3 * self.config.hidden())?;
        for stream in streams {
            stream.qkv(dev, x, &sequence.rope, &mut qkv)?;
        }
        let scale = (self.config.attention_head_dim as f32).sqrt().recip();
        dev.attention(&qkv, Attention { heads: self.config.num_attention_heads, scale, mask: Mask::None })
    }
}

impl<D: Device> Embedder<D> {
    /// `silu(linear_1(data))`, ready for `linear_2`.
    fn hidden(&self, dev: &D, data: &[f32], cols: usize) -> Result<D::Input> {
        let rows = data.len() / cols;
        let input = dev.prepare(&dev.upload(data, cols)?, 0..rows, Norm::None, &self.linear_1)?;
        let hidden = dev.linear(&input, &self.linear_1, Activation::Silu)?;
        dev.prepare(&hidden, 0..rows, Norm::None, &self.linear_2)
    }
}

impl<D: Device> Block<D> {
    fn load_stream(dev: &D, weights: &FluxWeights, index: usize, stream: Stream) -> Result<Self> {
        let linear = |part| dev.load_linear(&weights.double(index, stream, part)?);
        Self::load(dev, linear, weights.double_norms(index, stream)?)
    }

    fn load_single(dev: &D, weights: &FluxWeights, index: usize) -> Result<Self> {
        let linear = |part| dev.load_linear(&weights.single(index, part)?);
        Self::load(dev, linear, weights.single_norms(index)?)
    }

    fn load(
        dev: &D,
        linear: impl Fn(Part) -> Result<D::Linear>,
        [norm_q, norm_k]: [Vec<f32>; 2],
    ) -> Result<Self> {
        Ok(Block {
            modulation: linear(Part::Modulation)?,
            qkv: linear(Part::Qkv)?,
            norm_q: dev.upload(&norm_q, norm_q.len())?,
            norm_k: dev.upload(&norm_k, norm_k.len())?,
            out: linear(Part::Out)?,
            fc1: linear(Part::Fc1)?,
            fc2: linear(Part::Fc2)?,
        })
    }
}

/// A block's weights applied to some rows of the sequence at one step.
///
/// Modulation chunks: a stream of a double block has shift, scale, gate of attention and then of the
/// MLP (0..6); a single block has one shift, scale and gate for both (0..3).
struct Rows<'a, D: Device> {
    block: &'a Block<D>,
    table: &'a D::Tensor,
    step: usize,
    hidden: usize,
    rows: Range<usize>,
}

impl<D: Device> Rows<'_, D> {
    fn chunk(&self, index: usize) -> Chunk<'_, D> {
        Chunk { table: self.table, row: self.step, start: index * self.hidden }
    }

    fn modulate(&self, [shift, scale]: [usize; 2]) -> Norm<'_, D> {
        Norm::Modulate { scale: self.chunk(scale), shift: self.chunk(shift) }
    }

    fn qkv(&self, dev: &D, x: &D::Tensor, rope: &D::Tensor, qkv: &mut D::Tensor) -> Result<()> {
        let input = dev.prepare(x, self.rows.clone(), self.modulate([0, 1]), &self.block.qkv)?;
        let norm = QkNormRope { q: &self.block.norm_q, k: &self.block.norm_k, rope };
        dev.linear_qkv(&input, &self.block.qkv, norm, qkv, self.rows.start)
    }

    /// `x += gate · out(attention)`
    fn add_attention(&self, dev: &D, attention: &D::Tensor, x: &mut D::Tensor) -> Result<()> {
        let input = dev.prepare(attention, self.rows.clone(), Norm::None, &self.block.out)?;
        dev.linear_add(&input, &self.block.out, Some(self.chunk(2)), x, self.rows.start)
    }

    /// The MLP up to the input of its second linear.
    fn mlp(&self, dev: &D, x: &D::Tensor, modulation: [usize; 2]) -> Result<D::Input> {
        let input = dev.prepare(x, self.rows.clone(), self.modulate(modulation), &self.block.fc1)?;
        dev.linear_gelu(&input, &self.block.fc1, &self.block.fc2)
    }

    /// `x += gate · fc2(mlp)`
    fn add_mlp(&self, dev: &D, mlp: D::Input, x: &mut D::Tensor, gate: usize) -> Result<()> {
        dev.linear_add(&mlp, &self.block.fc2, Some(self.chunk(gate)), x, self.rows.start)
    }
}

#[cfg(test)]
mod tests;
