//! The FLUX.1 transformer (Black Forest Labs, 2024; diffusers' `FluxTransformer2DModel`).
//!
//! Tokens of text and image live in one tensor, text first. A double block runs the two streams
//! through their own weights and joins them in attention; a single block runs all rows through one
//! set. Everything that depends only on timestep, guidance and pooled text is computed for all steps
//! before the first one ([`Flux::condition`]).

mod rope;

use std::ops::Range;

use crate::Result;
use crate::lora::{Linear, Run, Sites, Vector};
use crate::ops::{Activation, Attention, Chunk, Device, LinearSource, Mask, Norm, QkNormRope, Usage};
use crate::pipeline::sampler::sinusoidal;
use crate::weights::flux::{FluxConfig, FluxWeights, Part, Stream, double_names, single_names};

/// Width of the sinusoidal embedding of a timestep or guidance value.
const SINUSOID: usize = 256;

/// The transformer's weights on a device.
pub struct Flux<D: Device> {
    config: FluxConfig,
    sites: Sites,
    x_embedder: Linear<D>,
    context_embedder: Linear<D>,
    timestep: Embedder<D>,
    guidance: Option<Embedder<D>>,
    pooled: Embedder<D>,
    double: Vec<DoubleBlock<D>>,
    single: Vec<Block<D>>,
    norm_out: Linear<D>,
    proj_out: Linear<D>,
}

/// Two linears with a SiLU between.
struct Embedder<D: Device> {
    linear_1: Linear<D>,
    linear_2: Linear<D>,
}

/// One stream of a double block, or a single block.
struct Block<D: Device> {
    modulation: Linear<D>,
    qkv: Linear<D>,
    norm_q: Vector<D>,
    norm_k: Vector<D>,
    out: Linear<D>,
    fc1: Linear<D>,
    fc2: Linear<D>,
}

struct DoubleBlock<D: Device> {
    text: Block<D>,
    image: Block<D>,
}

/// The modulation of every block: text and image stream of the double blocks, then the single blocks, then the last
/// norm, side by side.
pub struct Conditioning<D: Device> {
    /// `[steps, columns]`
    steps: D::Tensor,
    /// `[1, columns]`: of the step that runs.
    step: D::Tensor,
}

/// What stays the same over all steps of one image.
pub struct Sequence<D: Device> {
    /// `[text_rows, hidden]`
    text: D::Tensor,
    text_rows: usize,
    image_rows: usize,
    rope: D::Tensor,
}

impl<D: Device> Flux<D> {
    /// Puts the weights on `dev`.
    pub fn load(dev: &D, weights: &FluxWeights) -> Result<Self> {
        let config = weights.config().clone();
        let hidden = config.hidden();
        let mut sites = Sites::default();
        let mut plain = |name: &str, n, k| {
            sites.linear(dev, Usage::Step, &weights.plain(name, n, k)?, [name.to_owned()].into_iter())
        };
        let mut embedder = |name: &str, k| -> Result<Embedder<D>> {
            Ok(Embedder {
                linear_1: plain(&format!("time_text_embed.{name}.linear_1"), hidden, k)?,
                linear_2: plain(&format!("time_text_embed.{name}.linear_2"), hidden, hidden)?,
            })
        };
        let timestep = embedder("timestep_embedder", SINUSOID)?;
        let guidance = config.guidance_embeds.then(|| embedder("guidance_embedder", SINUSOID)).transpose()?;
        let pooled = embedder("text_embedder", config.pooled_projection_dim)?;
        Ok(Flux {
            x_embedder: plain("x_embedder", hidden, config.in_channels)?,
            context_embedder: plain("context_embedder", hidden, config.joint_attention_dim)?,
            proj_out: plain("proj_out", config.out_channels, hidden)?,
            timestep,
            guidance,
            pooled,
            norm_out: sites.linear(
                dev,
                Usage::Modulation,
                &weights.norm_out()?,
                ["norm_out.linear".to_owned()].into_iter(),
            )?,
            double: (0..config.num_layers)
                .map(|index| {
                    Ok(DoubleBlock {
                        text: Block::load_stream(dev, &mut sites, weights, index, Stream::Text)?,
                        image: Block::load_stream(dev, &mut sites, weights, index, Stream::Image)?,
                    })
                })
                .collect::<Result<_>>()?,
            single: (0..config.num_single_layers)
                .map(|index| Block::load_single(dev, &mut sites, weights, index))
                .collect::<Result<_>>()?,
            sites,
            config,
        })
    }

    /// Where LoRAs attach, by diffusers' names.
    pub fn sites(&self) -> &Sites {
        &self.sites
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
        run: Run<'_, D>,
        timesteps: &[f32],
        guidance: f32,
        pooled: &[f32],
    ) -> Result<Conditioning<D>> {
        let steps = timesteps.len();
        let sinusoids: Vec<f32> = timesteps.iter().flat_map(|&t| sinusoidal(t, SINUSOID)).collect();
        let hidden = self.timestep.hidden(run, &sinusoids, SINUSOID)?;
        let mut temb = run.dev.linear(&hidden, run.layer(&self.timestep.linear_2), Activation::None)?;
        if let Some(embedder) = &self.guidance {
            let hidden =
                embedder.hidden(run, &sinusoidal(guidance * 1000.0, SINUSOID).repeat(steps), SINUSOID)?;
            run.dev.linear_add(&hidden, run.layer(&embedder.linear_2), None, &mut temb, 0)?;
        }
        let hidden = self.pooled.hidden(run, &pooled.repeat(steps), pooled.len())?;
        run.dev.linear_add(&hidden, run.layer(&self.pooled.linear_2), None, &mut temb, 0)?;

        let widths = self.modulations().map(|(_, chunks)| chunks * self.config.hidden());
        let columns = widths.sum();
        let mut table = run.dev.empty(steps, columns)?;
        let mut column = 0;
        for (modulation, chunks) in self.modulations() {
            let input = run.dev.prepare(&temb, 0..steps, Norm::Silu, run.layer(modulation))?;
            run.dev.linear_into(&input, run.layer(modulation), &mut table, column)?;
            column += chunks * self.config.hidden();
        }
        Ok(Conditioning { steps: table, step: run.dev.empty(1, columns)? })
    }

    /// The linears whose results are side by side in [`Conditioning`], and how many chunks of `hidden` columns each has.
    fn modulations(&self) -> impl Iterator<Item = (&Linear<D>, usize)> {
        let streams = self.double.iter().flat_map(|block| [&block.text, &block.image]);
        let double = streams.map(|block| (&block.modulation, STREAM_CHUNKS));
        let single = self.single.iter().map(|block| (&block.modulation, SINGLE_CHUNKS));
        double.chain(single).chain([(&self.norm_out, 2)])
    }

    /// Makes the text embedding (`[text_rows, joint_attention_dim]`) and the positions of an image of
    /// `grid = [rows, columns]` patches ready for [`Self::velocity`].
    pub fn sequence(
        &self,
        run: Run<'_, D>,
        text: &D::Tensor,
        text_rows: usize,
        grid: [usize; 2],
    ) -> Result<Sequence<D>> {
        let rope = rope::table(run.dev.memory(), &self.config.axes_dims_rope, text_rows, grid)?;
        let text = run.dev.prepare(text, 0..text_rows, Norm::None, run.layer(&self.context_embedder))?;
        Ok(Sequence {
            text: run.dev.linear(&text, run.layer(&self.context_embedder), Activation::None)?,
            text_rows,
            image_rows: grid[0] * grid[1],
            rope: run.dev.upload_rope(&rope, self.config.attention_head_dim)?,
        })
    }

    /// The velocity of `latents` (`[patches, in_channels]`) at `step`, in `velocity`: `[patches, out_channels]`.
    pub fn velocity(
        &self,
        run: Run<'_, D>,
        latents: &D::Tensor,
        sequence: &Sequence<D>,
        conditioning: &mut Conditioning<D>,
        step: usize,
        velocity: &mut D::Tensor,
    ) -> Result<()> {
        run.dev.copy_rows(&conditioning.steps, step..step + 1, &mut conditioning.step, 0)?;
        let modulation = &conditioning.step;
        let places = [latents, &*velocity, &sequence.text, &sequence.rope, modulation];
        let mut key: Vec<u64> = places.iter().map(|tensor| run.dev.place(tensor)).collect();
        key.extend([sequence.text_rows as u64, sequence.image_rows as u64]);
        key.extend(
            self.blocks()
                .flat_map(|block| [&block.norm_q, &block.norm_k])
                .map(|v| run.dev.place(run.vector(v))),
        );
        key.extend(run.layout());
        run.dev.repeat(&key, &mut || self.forward(run, latents, sequence, modulation, velocity))
    }

    fn blocks(&self) -> impl Iterator<Item = &Block<D>> {
        self.double.iter().flat_map(|block| [&block.text, &block.image]).chain(&self.single)
    }

    /// The network, with the row `modulation` of its table.
    fn forward(
        &self,
        run: Run<'_, D>,
        latents: &D::Tensor,
        sequence: &Sequence<D>,
        modulation: &D::Tensor,
        velocity: &mut D::Tensor,
    ) -> Result<()> {
        let hidden = self.config.hidden();
        let rows = sequence.text_rows + sequence.image_rows;
        let image = sequence.text_rows..rows;
        let mut x = run.dev.zeros(rows, hidden)?;
        run.dev.copy_rows(&sequence.text, 0..sequence.text_rows, &mut x, 0)?;
        let patches =
            run.dev.prepare(latents, 0..sequence.image_rows, Norm::None, run.layer(&self.x_embedder))?;
        run.dev.linear_add(&patches, run.layer(&self.x_embedder), None, &mut x, image.start)?;

        let mut start = 0;
        let mut next = |chunks: usize| {
            let modulation = Modulation { row: modulation, start, hidden };
            start += chunks * hidden;
            modulation
        };
        for block in &self.double {
            let streams = [
                Rows { block: &block.text, modulation: next(STREAM_CHUNKS), rows: 0..sequence.text_rows },
                Rows { block: &block.image, modulation: next(STREAM_CHUNKS), rows: image.clone() },
            ];
            let attention = self.attend(run, &x, &streams, sequence)?;
            for stream in &streams {
                stream.add_attention(run, &attention, &mut x)?;
                stream.add_mlp(run, stream.mlp(run, &x, [3, 4])?, &mut x, 5)?;
            }
        }
        for block in &self.single {
            let all = [Rows { block, modulation: next(SINGLE_CHUNKS), rows: 0..rows }];
            let mlp = all[0].mlp(run, &x, [0, 1])?;
            let attention = self.attend(run, &x, &all, sequence)?;
            all[0].add_attention(run, &attention, &mut x)?;
            all[0].add_mlp(run, mlp, &mut x, 2)?;
        }

        let modulation = next(2);
        let norm = Norm::Modulate { scale: modulation.chunk(0), shift: modulation.chunk(1) };
        let last = run.dev.prepare(&x, image, norm, run.layer(&self.proj_out))?;
        run.dev.linear_into(&last, run.layer(&self.proj_out), velocity, 0)
    }

    /// Joint attention of all streams: `[rows, hidden]`.
    fn attend(
        &self,
        run: Run<'_, D>,
        x: &D::Tensor,
        streams: &[Rows<'_, D>],
        sequence: &Sequence<D>,
    ) -> Result<D::Tensor> {
        let mut qkv = run.dev.empty(sequence.text_rows + sequence.image_rows, 3 * self.config.hidden())?;
        for stream in streams {
            stream.qkv(run, x, &sequence.rope, &mut qkv)?;
        }
        let scale = (self.config.attention_head_dim as f32).sqrt().recip();
        run.dev.attention(&qkv, Attention { heads: self.config.num_attention_heads, scale, mask: Mask::None })
    }
}

impl<D: Device> Embedder<D> {
    /// `silu(linear_1(data))`, ready for `linear_2`.
    fn hidden(&self, run: Run<'_, D>, data: &[f32], cols: usize) -> Result<D::Input> {
        let rows = data.len() / cols;
        let input =
            run.dev.prepare(&run.dev.upload(data, cols)?, 0..rows, Norm::None, run.layer(&self.linear_1))?;
        let hidden = run.dev.linear(&input, run.layer(&self.linear_1), Activation::Silu)?;
        run.dev.prepare(&hidden, 0..rows, Norm::None, run.layer(&self.linear_2))
    }
}

impl<D: Device> Block<D> {
    fn load_stream(
        dev: &D,
        sites: &mut Sites,
        weights: &FluxWeights,
        index: usize,
        stream: Stream,
    ) -> Result<Self> {
        let prefix = format!("transformer_blocks.{index}.");
        let norms = match stream {
            Stream::Image => ["attn.norm_q", "attn.norm_k"],
            Stream::Text => ["attn.norm_added_q", "attn.norm_added_k"],
        };
        let linear = |part| Ok((weights.double(index, stream, part)?, double_names(stream, part)));
        Self::load(dev, sites, &prefix, linear, norms, weights.double_norms(index, stream)?)
    }

    fn load_single(dev: &D, sites: &mut Sites, weights: &FluxWeights, index: usize) -> Result<Self> {
        let prefix = format!("single_transformer_blocks.{index}.");
        let linear = |part| Ok((weights.single(index, part)?, single_names(part)));
        let norms = ["attn.norm_q", "attn.norm_k"];
        Self::load(dev, sites, &prefix, linear, norms, weights.single_norms(index)?)
    }

    /// `source` gives a part and diffusers' names of what it holds.
    fn load<'a>(
        dev: &D,
        sites: &mut Sites,
        prefix: &str,
        source: impl Fn(Part) -> Result<(LinearSource<'a>, &'static [&'static str])>,
        [name_q, name_k]: [&str; 2],
        [norm_q, norm_k]: [Vec<f32>; 2],
    ) -> Result<Self> {
        let mut linear = |part| {
            let (source, names) = source(part)?;
            let usage = if part == Part::Modulation { Usage::Modulation } else { Usage::Step };
            sites.linear(dev, usage, &source, names.iter().map(|name| format!("{prefix}{name}")))
        };
        // proj_out of a single block has the inputs of `out` first, then those of `fc2`.
        let [modulation, qkv, out, fc1, fc2] = [
            linear(Part::Modulation)?,
            linear(Part::Qkv)?,
            linear(Part::Out)?,
            linear(Part::Fc1)?,
            linear(Part::Fc2)?,
        ];
        let norm_q = sites.vector(dev, &norm_q, format!("{prefix}{name_q}"))?;
        let norm_k = sites.vector(dev, &norm_k, format!("{prefix}{name_k}"))?;
        Ok(Block { modulation, qkv, norm_q, norm_k, out, fc1, fc2 })
    }
}

/// Modulation chunks of a stream of a double block: shift, scale, gate of attention and then of the MLP.
const STREAM_CHUNKS: usize = 6;
/// Modulation chunks of a single block: one shift, scale and gate for both.
const SINGLE_CHUNKS: usize = 3;

/// A block's part of a row of the modulation table.
struct Modulation<'a, D: Device> {
    row: &'a D::Tensor,
    start: usize,
    hidden: usize,
}

impl<'a, D: Device> Modulation<'a, D> {
    fn chunk(&self, index: usize) -> Chunk<'a, D> {
        Chunk { table: self.row, row: 0, start: self.start + index * self.hidden }
    }
}

/// A block's weights applied to some rows of the sequence at one step.
struct Rows<'a, D: Device> {
    block: &'a Block<D>,
    modulation: Modulation<'a, D>,
    rows: Range<usize>,
}

impl<D: Device> Rows<'_, D> {
    fn modulate(&self, [shift, scale]: [usize; 2]) -> Norm<'_, D> {
        Norm::Modulate { scale: self.modulation.chunk(scale), shift: self.modulation.chunk(shift) }
    }

    fn qkv(&self, run: Run<'_, D>, x: &D::Tensor, rope: &D::Tensor, qkv: &mut D::Tensor) -> Result<()> {
        let input =
            run.dev.prepare(x, self.rows.clone(), self.modulate([0, 1]), run.layer(&self.block.qkv))?;
        let norm = QkNormRope { q: run.vector(&self.block.norm_q), k: run.vector(&self.block.norm_k), rope };
        run.dev.linear_qkv(&input, run.layer(&self.block.qkv), norm, qkv, self.rows.start)
    }

    /// `x += gate · out(attention)`
    fn add_attention(&self, run: Run<'_, D>, attention: &D::Tensor, x: &mut D::Tensor) -> Result<()> {
        let input = run.dev.prepare(attention, self.rows.clone(), Norm::None, run.layer(&self.block.out))?;
        run.dev.linear_add(
            &input,
            run.layer(&self.block.out),
            Some(self.modulation.chunk(2)),
            x,
            self.rows.start,
        )
    }

    /// The MLP up to the input of its second linear.
    fn mlp(&self, run: Run<'_, D>, x: &D::Tensor, modulation: [usize; 2]) -> Result<D::Input> {
        let input =
            run.dev.prepare(x, self.rows.clone(), self.modulate(modulation), run.layer(&self.block.fc1))?;
        run.dev.linear_gelu(&input, run.layer(&self.block.fc1), run.layer(&self.block.fc2))
    }

    /// `x += gate · fc2(mlp)`
    fn add_mlp(&self, run: Run<'_, D>, mlp: D::Input, x: &mut D::Tensor, gate: usize) -> Result<()> {
        run.dev.linear_add(
            &mlp,
            run.layer(&self.block.fc2),
            Some(self.modulation.chunk(gate)),
            x,
            self.rows.start,
        )
    }
}

#[cfg(test)]
pub(crate) mod tests;
