//! The operations that the models are made of, by formula: one trait, implemented by every device.
//!
//! The trait speaks in the fused steps of SVDQuant (ICLR 2025, arXiv 2411.05007) and not in tensor
//! algebra, because its speed lies in what is fused. The networks in [`crate::models`] are written
//! once against it and never ask which device they run on.
//!
//! Notation: a tensor is a row-major matrix `[rows, cols]`; a row is a token (text), a patch (image)
//! or a pixel (VAE). `x[m,k]` is an activation, `W[n,k]` a weight, `y = x Wᵀ + b`.

mod profile;
#[cfg(test)]
pub(crate) mod shapes;
mod source;

use std::ops::Range;

use crate::memory::{Buf, HostMemory};
use crate::{Cancel, Result};
pub use profile::{KernelTime, Work};
pub use source::{
    AwqSource, Codes, ConvSource, DenseSource, LinearSource, LowRankSource, Storage, SvdqSource,
};

/// How the input of a 4-bit linear is quantised at run time. Weights, low-rank branch and
/// checkpoint are the same in all three.
///
/// NVFP4 checkpoints: [`Profile::W4A4`] gives e2m1 codes in groups of 16 channels, scales `e4m3(min(absmax/6, 448))`;
/// fc2's input is neither shifted nor unsigned in any profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// 4-bit codes in groups of 64 channels, scales `bf16(absmax/7)`: what the checkpoint was made for.
    /// The shifted input of fc2 is unsigned: `bf16(absmax/15)`, codes 0..15.
    W4A4,
    /// 8-bit codes with one scale a token (`absmax/127`); fc2's shifted input unsigned (`absmax/255`)
    /// in blocks of 256 channels. The weight's group scales are folded into int8 codes with one
    /// scale a channel.
    W4A8,
    /// Activations are not quantised: they stay in the device's working precision.
    W4A16,
}

/// A non-linearity at the end of a linear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `v`
    None,
    /// `v · sigmoid(v)`
    Silu,
    /// `0.5 v (1 + tanh(√(2/π) (v + 0.044715 v³)))`
    GeluTanh,
    /// `v · sigmoid(1.702 v)`
    QuickGelu,
}

/// How often a linear is used. A device that is short of memory may keep elsewhere what it seldom needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// In every step.
    Step,
    /// Once an image, on its prompt.
    Encoder,
    /// Once an image, on all steps at once.
    Modulation,
}

/// A linear as one operation uses it: its weights, and the low-rank updates (LoRAs) attached to it.
pub struct Layer<'a, D: Device> {
    /// The weights.
    pub weights: &'a D::Linear,
    /// Updates of this linear and their strengths. Strengths may differ from call to call, but
    /// [`Device::prepare`] and the operation on its result are given the same ones.
    pub updates: &'a [(&'a D::LowRank, f32)],
}

impl<'a, D: Device> Layer<'a, D> {
    /// The weights alone.
    pub fn plain(weights: &'a D::Linear) -> Self {
        Layer { weights, updates: &[] }
    }
}

impl<D: Device> Clone for Layer<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for Layer<'_, D> {}

/// A slice of one row of a modulation table: `table[row, start .. start + channels]`.
pub struct Chunk<'a, D: Device> {
    /// `[steps, chunks · channels]`
    pub table: &'a D::Tensor,
    /// The denoising step.
    pub row: usize,
    /// The first column.
    pub start: usize,
}

/// What is done to a row before it enters a linear.
pub enum Norm<'a, D: Device> {
    /// `x`
    None,
    /// `x · sigmoid(x)`
    Silu,
    /// `(x - mean) / sqrt(var + eps) · weight + bias`, the variance biased (over `cols`).
    Layer {
        /// `[1, cols]`
        weight: &'a D::Tensor,
        /// `[1, cols]`
        bias: &'a D::Tensor,
        /// Added to the variance.
        eps: f32,
    },
    /// `x / sqrt(mean(x²) + eps) · weight`
    Rms {
        /// `[1, cols]`
        weight: &'a D::Tensor,
        /// Added to the mean square.
        eps: f32,
    },
    /// `(x - mean) / sqrt(var + 1e-6) · scale + shift` (adaLN; `scale` already holds its `1 +`).
    Modulate {
        /// `1 + scale`
        scale: Chunk<'a, D>,
        /// `shift`
        shift: Chunk<'a, D>,
    },
}

/// Which keys a query sees, and what is added to their scores.
pub enum Mask<'a, D: Device> {
    /// All keys.
    None,
    /// Keys up to and including the query's own position (CLIP).
    Causal,
    /// All keys, plus `bias[head, key - query + S - 1]` (T5's relative position bias, `[heads, 2 S - 1]`).
    Bias(&'a D::Tensor),
}

/// Shape and scale of one [`Device::attention`].
pub struct Attention<'a, D: Device> {
    /// Number of heads; `qkv` has `3 · heads · head_dim` columns.
    pub heads: usize,
    /// Multiplies `q·k`; usually `1/sqrt(head_dim)`, and 1 in T5.
    pub scale: f32,
    /// Masking.
    pub mask: Mask<'a, D>,
}

/// RMSNorm weights of the heads of q and k (`[1, head_dim]` each) and the rotary table of their rows.
pub struct QkNormRope<'a, D: Device> {
    /// Weight of q's norm.
    pub q: &'a D::Tensor,
    /// Weight of k's norm.
    pub k: &'a D::Tensor,
    /// `[tokens, head_dim]`, of [`Device::upload_rope`]: `cos, sin` of pair `p` of token `m` at columns `2p, 2p+1`.
    pub rope: &'a D::Tensor,
}

/// The most memory that work takes at a time, in bytes: its temporaries, and what it gives back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// On the GPU.
    pub device_bytes: u64,
    /// In the host's memory ([`Device::memory`]).
    pub host_bytes: u64,
}

/// A device: where tensors live, and the operations on them.
///
/// Every operation is deterministic: the same inputs give the same bits, whatever the number of
/// threads. Operations on shapes that do not fit are a bug of the caller inside this library and
/// may panic; shapes that come from files are checked where they are loaded.
pub trait Device: Send + Sync + Sized {
    /// An activation or a table of constants, `[rows, cols]`.
    type Tensor: Send + Sync;
    /// The weights of a linear, in whatever form the device wants them: dense, 4-bit with a
    /// low-rank branch, or 4-bit without activation quantisation (AWQ).
    type Linear: Send + Sync;
    /// A low-rank update of one particular [`Self::Linear`].
    type LowRank: Send + Sync;
    /// A row block made ready for one particular [`Layer`].
    type Input: Send;
    /// The weights of a 2-D convolution.
    type Conv: Send + Sync;

    /// Decides where weights are kept, so that there is memory for what `load` puts on the device and for what `run` does
    /// with it. As [`Self::reserve`], they may get other devices, and several times.
    ///
    /// # Errors
    /// As [`Self::reserve`].
    fn fit<T>(
        &mut self,
        load: impl Fn(&Self) -> Result<T>,
        run: impl Fn(&Self, &T) -> Result<()>,
    ) -> Result<()> {
        let _ = (load, run);
        Ok(())
    }

    /// Makes sure that there is memory for `work` before it is done. A device that has to know how much that is gives
    /// `work` a device like itself that computes nothing: results of its operations are zeros, and what is loaded on it
    /// takes no memory.
    ///
    /// # Errors
    /// [`crate::Error::OutOfDeviceMemory`] or [`crate::Error::MemoryBudget`] if there is not enough; errors of `work`.
    fn reserve(&self, work: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let _ = work;
        Ok(())
    }

    /// Whether what the last [`Self::reserve`] made sure of is still so.
    fn is_reserved(&self) -> bool {
        true
    }

    /// What `work` takes on this device, which is not done: it gets a device like this one that computes nothing, as
    /// [`Self::reserve`] has it, whatever memory there is. It loads nothing.
    ///
    /// # Errors
    /// Errors of `work`.
    fn measure(&self, work: impl FnOnce(&Self) -> Result<()>) -> Result<Cost>;

    /// Where all that grows with files and pictures is kept on the host, the results of [`Self::download`] among them.
    fn memory(&self) -> &HostMemory;

    /// The operations from now on may end with [`crate::Error::Cancelled`] once `cancel` is asked to; a default one
    /// ends this. Devices that are done with what they are asked for at once leave it to their callers.
    fn set_cancel(&self, cancel: Cancel) {
        let _ = cancel;
    }

    /// Puts the weights of a linear on the device.
    fn load_linear(&self, source: &LinearSource<'_>) -> Result<Self::Linear>;
    /// As [`Self::load_linear`], for a linear that is used as often as `usage` says.
    fn load_linear_for(&self, usage: Usage, source: &LinearSource<'_>) -> Result<Self::Linear> {
        let _ = usage;
        self.load_linear(source)
    }
    /// Puts low-rank updates of linears on the device.
    fn load_low_ranks(&self, sources: &[LowRankSource<'_>]) -> Result<Vec<Self::LowRank>>;
    /// Puts the weights of a convolution on the device.
    fn load_conv(&self, source: &ConvSource) -> Result<Self::Conv>;
    /// Puts constants of a network, `[data.len() / cols, cols]`, on the device without loss.
    fn load_tensor(&self, data: &[f32], cols: usize) -> Result<Self::Tensor> {
        self.upload(data, cols)
    }
    /// Puts `data`, `[data.len() / cols, cols]`, on the device without loss.
    fn upload(&self, data: &[f32], cols: usize) -> Result<Self::Tensor>;
    /// A tensor of zeros.
    fn zeros(&self, rows: usize, cols: usize) -> Result<Self::Tensor>;
    /// A tensor that is going to be written whole: its contents are anything.
    fn empty(&self, rows: usize, cols: usize) -> Result<Self::Tensor>;
    /// A rotary table for [`Device::linear_qkv`], `[data.len() / head_dim, head_dim]`.
    fn upload_rope(&self, data: &[f32], head_dim: usize) -> Result<Self::Tensor>;
    /// The contents of `x` in row-major order.
    fn download(&self, x: &Self::Tensor) -> Result<Buf<f32>>;

    /// Makes `rows` of `x` ready for `w`: `h = norm(x[rows])`, and for a 4-bit `w` also, in one pass,
    /// ```text
    /// lora[m,r] = Σ_k h[m,k] · A[r,k]
    /// xq, xs    = quantise(h[m,k] / smooth[k])        per the device's Profile
    /// ```
    /// Each update of `w` adds ranks of its own, `lora_i[m,r] = strength_i · Σ_k h[m,k] · A_i[r,k]`: it
    /// sees `h` itself, whatever the kind of `w`.
    fn prepare(
        &self,
        x: &Self::Tensor,
        rows: Range<usize>,
        norm: Norm<'_, Self>,
        w: Layer<'_, Self>,
    ) -> Result<Self::Input>;

    /// `y = act(linear(x))`, where `linear` is, dense or AWQ, `Σ_k h[m,k] W[n,k] + b[n]`, and 4-bit
    /// ```text
    /// linear[m,n] = Σ_b (Σ_{k in block b} xq[m,k] · wq[n,k]) · xs[m,b] · ws[n,b] + Σ_r lora[m,r] · B[n,r] + b[n]
    /// ```
    /// with exact integer sums inside a block. Each update adds, to the outputs `n` that it covers,
    /// `Σ_r lora_i[m,r] · B_i[n,r] + strength_i · b_i[n]`; the weights stay as they are.
    fn linear(&self, x: &Self::Input, w: Layer<'_, Self>, act: Activation) -> Result<Self::Tensor>;

    /// `into[m, column + n] = linear(x)[m,n]`; other columns stay as they are.
    fn linear_into(
        &self,
        x: &Self::Input,
        w: Layer<'_, Self>,
        into: &mut Self::Tensor,
        column: usize,
    ) -> Result<()>;

    /// `y = act(linear(x)) ⊙ by` (T5's gated GELU).
    fn linear_mul(
        &self,
        x: &Self::Input,
        w: Layer<'_, Self>,
        act: Activation,
        by: &Self::Tensor,
    ) -> Result<Self::Tensor>;

    /// `into[row + m, n] += gate[n] · linear(x)[m,n]`; no gate means 1.
    fn linear_add(
        &self,
        x: &Self::Input,
        w: Layer<'_, Self>,
        gate: Option<Chunk<'_, Self>>,
        into: &mut Self::Tensor,
        row: usize,
    ) -> Result<()>;

    /// Writes q, k and v into rows `row ..` of `into` (`[tokens, 3 · heads · head_dim]`). Each head `u` of
    /// q and of k is normalised and then rotated in adjacent pairs:
    /// ```text
    /// u' = u / sqrt(mean(u²) + 1e-6) · weight
    /// (u'0, u'1) -> (u'0 cos - u'1 sin, u'0 sin + u'1 cos)
    /// ```
    /// The rotary table is indexed by the row of `into`.
    fn linear_qkv(
        &self,
        x: &Self::Input,
        w: Layer<'_, Self>,
        norm: QkNormRope<'_, Self>,
        into: &mut Self::Tensor,
        row: usize,
    ) -> Result<()>;

    /// `prepare(gelu_tanh(linear(x)), next)`. For a 4-bit `next` the low-rank branch sees the GELU's
    /// output `g`, and the quantiser sees `(g + 0.171875) / smooth`, which is never negative, if `next` is unsigned.
    fn linear_gelu(&self, x: &Self::Input, w: Layer<'_, Self>, next: Layer<'_, Self>) -> Result<Self::Input>;

    /// `norm(x)` as a tensor.
    fn norm(&self, x: &Self::Tensor, norm: Norm<'_, Self>) -> Result<Self::Tensor>;

    /// Softmax attention over all rows of `qkv` (q, k, v side by side, each heads × head_dim):
    /// `out[m, head] = Σ_j softmax_j(scale · q[m]·k[j] + mask) · v[j]`.
    fn attention(&self, qkv: &Self::Tensor, spec: Attention<'_, Self>) -> Result<Self::Tensor>;

    /// GroupNorm over `[pixels, channels]`, then SiLU if `silu`:
    /// `(x - mean_g) / sqrt(var_g + 1e-6) · weight + bias`, statistics over a group's channels and all pixels.
    fn group_norm(
        &self,
        x: &Self::Tensor,
        groups: usize,
        weight: &Self::Tensor,
        bias: &Self::Tensor,
        silu: bool,
    ) -> Result<Self::Tensor>;

    /// 2-D convolution of `x`, an image of `size = [height, width]` with a pixel a row, plus `add` if given:
    /// `y[p,n] = Σ_{tap,c} x[pixel(p, tap), c] · W[n, c, tap] + b[n] + add[p,n]`.
    /// Geometry (stride, padding, nearest 2x upsampling before the taps) is part of the weights.
    fn conv(
        &self,
        x: &Self::Tensor,
        size: [usize; 2],
        w: &Self::Conv,
        add: Option<&Self::Tensor>,
    ) -> Result<Self::Tensor>;

    /// `into[row + m] = from[rows][m]`
    fn copy_rows(
        &self,
        from: &Self::Tensor,
        rows: Range<usize>,
        into: &mut Self::Tensor,
        row: usize,
    ) -> Result<()>;

    /// Runs `step`, or, if it ran before with the same `key`, does what it asked for then: the same operations on the
    /// same memory. A step keeps no tensor that it makes and asks for none of another shape or kind, and `key` holds all
    /// that its operations depend on beside the contents of tensors: the [`Device::place`] of those that outlive it,
    /// sizes, and what is attached.
    fn repeat(&self, key: &[u64], step: &mut dyn FnMut() -> Result<()>) -> Result<()>;
    /// Does `work` and waits for it; says what its kernels took, one after the other, where they can be told apart. What was
    /// asked of the device before is waited for, too, and recorded steps are asked for anew.
    fn profile(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Vec<KernelTime>> {
        work().map(|()| vec![])
    }

    /// Where `x` lies: no other tensor lies there at the same time.
    fn place(&self, x: &Self::Tensor) -> u64;

    /// Waits until what was asked for before the last call of this is done: with a call after every step, nobody is more
    /// than two steps ahead of the device, and the device never waits.
    fn keep_pace(&self) -> Result<()> {
        Ok(())
    }

    /// `latents += dt · velocity`
    fn euler_step(&self, latents: &mut Self::Tensor, velocity: &Self::Tensor, dt: f32) -> Result<()>;

    /// `round(255 · clamp(x/2 + 1/2, 0, 1))`, half to even, of a `[pixels, 3]` tensor: 8-bit RGB.
    fn to_rgb8(&self, x: &Self::Tensor) -> Result<Buf<u8>>;
}
