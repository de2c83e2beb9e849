//! How large the inputs of the linears are, as far as the weights alone tell.
//!
//! The inputs of qkv and fc1 are `LayerNorm(x) · scale + shift`. Scale and shift depend on nothing but
//! timestep, guidance and pooled text through linears that are all at hand, so sampling these three shows
//! which channels are large.

use std::f32::consts::LN_10;

use super::feedback::Feedback;
use super::matrix::{Left, Matrix, product};
use super::random::Random;
use crate::ops::{DenseSource, LinearSource};
use crate::weights::flux::{FluxWeights, Part};
use crate::{Error, Result};

/// Samples of the conditioning.
const SAMPLES: usize = 256;
/// Channels of the sinusoids of timestep and guidance.
const SINUSOID: usize = 256;

/// Samples of the conditioning vector, and the sizes of the inputs that the current block's modulation
/// implies.
pub(super) struct Inputs {
    /// `silu(temb)`, `[hidden, SAMPLES]`
    conditioning: Matrix,
    feedback: Feedback,
    threads: usize,
    /// Root mean squares of the inputs of qkv and of fc1, `[hidden]` each.
    modulated: [Vec<f32>; 2],
}

impl Inputs {
    /// Samples timesteps from 0 to 1000, guidance scales from 1 to 7 and pooled texts of unit variance.
    pub(super) fn sample(weights: &FluxWeights, threads: usize) -> Result<Self> {
        let config = weights.config();
        let mut random = Random::new(0x7e4b);
        let mut uniform = |low: f32, high: f32| low + (high - low) * 0.5 * (random.symmetric() + 1.0);
        let times: Vec<f32> = (0..SAMPLES).map(|_| uniform(0.0, 1000.0)).collect();
        let guidances: Vec<f32> = (0..SAMPLES).map(|_| uniform(1000.0, 7000.0)).collect();
        let root3 = 3f32.sqrt();
        let pooled = (0..config.pooled_projection_dim * SAMPLES).map(|_| uniform(-root3, root3)).collect();

        let mut sum = embed(weights, "timestep", sinusoids(&times), threads)?;
        let mut add = |name, input| -> Result<()> {
            let embedded = embed(weights, name, input, threads)?;
            sum.data.iter_mut().zip(embedded.data).for_each(|(s, e)| *s += e);
            Ok(())
        };
        if config.guidance_embeds {
            add("guidance", sinusoids(&guidances))?;
        }
        add("text", Matrix::new(config.pooled_projection_dim, SAMPLES, pooled))?;
        sum.data.iter_mut().for_each(|v| *v = silu(*v));
        let unknown = vec![1.0; config.hidden()];
        let feedback = Feedback::new(&sum, threads);
        Ok(Inputs { conditioning: sum, feedback, threads, modulated: [unknown.clone(), unknown] })
    }

    /// `[hidden, samples]`: inputs of every modulation.
    pub(super) fn conditioning(&self) -> &Matrix {
        &self.conditioning
    }

    /// How to round a modulation for these inputs.
    pub(super) fn feedback(&self) -> &Feedback {
        &self.feedback
    }

    /// Takes note of a block's modulation: chunks of shift, scale and gate, once (single blocks) or for
    /// attention and MLP.
    ///
    /// # Errors
    /// [`Error::OutOfHostMemory`]
    pub(super) fn enter_block(&mut self, modulation: &DenseSource<'_>, chunks: usize) -> Result<()> {
        let hidden = modulation.n / chunks;
        let weight = Matrix::new(modulation.n, modulation.k, modulation.weight.values()?.to_vec());
        let table = product(Left::Plain(&weight), &self.conditioning, self.threads);
        let power = |row: usize| -> f32 {
            let bias = modulation.bias[row];
            table.row(row).iter().map(|v| (v + bias).powi(2)).sum::<f32>() / SAMPLES as f32
        };
        // the bias of a scale holds its 1 +
        let rms = |shift: usize| {
            (0..hidden)
                .map(|d| (power(shift * hidden + d) + power((shift + 1) * hidden + d)).sqrt())
                .collect()
        };
        self.modulated = [rms(0), rms(chunks - 3)];
        Ok(())
    }

    /// Root mean squares of the `k` inputs of a linear of the current block, up to a common factor; all the
    /// same where nothing is known.
    pub(super) fn rms(&self, part: Part, k: usize) -> Vec<f32> {
        match part {
            Part::Qkv => self.modulated[0].clone(),
            Part::Fc1 => self.modulated[1].clone(),
            _ => vec![1.0; k],
        }
    }
}

/// `linear_2(silu(linear_1(input)))` of an embedder; columns are samples.
fn embed(weights: &FluxWeights, name: &str, input: Matrix, threads: usize) -> Result<Matrix> {
    let hidden = weights.config().hidden();
    let mut x = input;
    for (index, layer) in ["linear_1", "linear_2"].into_iter().enumerate() {
        let name = format!("time_text_embed.{name}_embedder.{layer}");
        let LinearSource::Dense(linear) = weights.plain(&name, hidden, x.rows)? else {
            return Err(Error::Internal(format!("`{name}` is not dense")));
        };
        if index == 1 {
            x.data.iter_mut().for_each(|v| *v = silu(*v));
        }
        let weight = Matrix::new(linear.n, linear.k, linear.weight.values()?.to_vec());
        x = product(Left::Plain(&weight), &x, threads);
        for (row, bias) in x.data.chunks_exact_mut(SAMPLES).zip(linear.bias) {
            row.iter_mut().for_each(|v| *v += bias);
        }
    }
    Ok(x)
}

/// Cosines, then sines, of `value · 10000^(-i/128)`; columns are values.
fn sinusoids(values: &[f32]) -> Matrix {
    let half = SINUSOID / 2;
    let mut out = Matrix::zeros(SINUSOID, values.len());
    for i in 0..half {
        let frequency = (-4.0 * LN_10 * i as f32 / half as f32).exp();
        for (c, value) in values.iter().enumerate() {
            let (sin, cos) = (value * frequency).sin_cos();
            out.data[i * values.len() + c] = cos;
            out.data[(half + i) * values.len() + c] = sin;
        }
    }
    out
}

fn silu(v: f32) -> f32 {
    v / (1.0 + (-v).exp())
}
