//! The CPU device: f32 throughout, on threads of its own, with the widest vectors that the processor has.
//!
//! The same inputs give the same bits whatever the number of threads: tasks divide outputs, never sums.

mod attention;
mod gemm;
mod image;
mod linear;
mod low_rank;
mod math;
mod norm;
mod pool;
mod quantize;
mod simd;
mod tensor;

use std::ops::Range;

use gemm::Target;
pub use image::Conv;
pub use linear::{Input, Linear};
pub use low_rank::LowRank;
use norm::{NormRows, RotateHeads, RowNorm, chunk};
use pool::Pool;
use simd::{Level, MAX_ROWS};
pub use tensor::Tensor;

use crate::ops::{
    Activation, Attention, Chunk, ConvSource, Device, Layer, LinearSource, LowRankSource, Mask, Norm,
    Profile, QkNormRope,
};
use crate::{Error, Result};

/// The processor.
pub struct Cpu {
    profile: Profile,
    level: Level,
    pool: Pool,
}

impl Cpu {
    /// A device of `threads` threads, the caller's included (0: as many as the machine runs at once), that
    /// quantises activations as `profile` says.
    ///
    /// # Errors
    /// [`Error::Internal`] when the system gives no more threads.
    pub fn new(threads: usize, profile: Profile) -> Result<Self> {
        Self::with_level(threads, profile, Level::all()[0])
    }

    fn with_level(threads: usize, profile: Profile, level: Level) -> Result<Self> {
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let pool = Pool::new(threads)
            .map_err(|error| Error::Internal(format!("cannot start {threads} threads: {error}")))?;
        Ok(Cpu { profile, level, pool })
    }

    fn on(&self) -> (Level, &Pool) {
        (self.level, &self.pool)
    }

    /// `linear(x)` as a tensor of its own.
    fn apply(&self, x: &Input, w: Layer<'_, Self>, act: Activation, target: Target<'_>) -> Result<Tensor> {
        let mut y = Tensor::zeros(x.rows, w.weights.n)?;
        w.weights.apply(self.on(), x, w.updates, act, target, &mut y.data);
        Ok(y)
    }
}

impl Device for Cpu {
    type Tensor = Tensor;
    type Linear = Linear;
    type LowRank = LowRank;
    type Input = Input;
    type Conv = Conv;

    fn load_linear(&self, source: &LinearSource<'_>) -> Result<Linear> {
        Ok(match source {
            LinearSource::Dense(source) => Linear::dense(self.on(), source),
            LinearSource::Awq(source) => Linear::awq(self.on(), source),
            LinearSource::Svdq(source) => Linear::svdq(self.on(), self.profile, source),
        })
    }

    fn load_low_ranks(&self, sources: &[LowRankSource<'_>]) -> Result<Vec<LowRank>> {
        Ok(sources.iter().map(|source| LowRank::new(self.on(), source)).collect())
    }

    fn load_conv(&self, source: &ConvSource) -> Result<Conv> {
        Ok(Conv::new(self.on(), source))
    }

    fn upload(&self, data: &[f32], cols: usize) -> Result<Tensor> {
        Ok(Tensor { data: data.to_vec(), cols })
    }

    fn zeros(&self, rows: usize, cols: usize) -> Result<Tensor> {
        Tensor::zeros(rows, cols)
    }

    fn empty(&self, rows: usize, cols: usize) -> Result<Tensor> {
        Tensor::zeros(rows, cols)
    }

    fn upload_rope(&self, data: &[f32], head_dim: usize) -> Result<Tensor> {
        self.upload(data, head_dim)
    }

    fn download(&self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(x.data.clone())
    }

    fn prepare(
        &self,
        x: &Tensor,
        rows: Range<usize>,
        norm: Norm<'_, Self>,
        w: Layer<'_, Self>,
    ) -> Result<Input> {
        let Layer { weights: w, updates } = w;
        assert_eq!(x.cols, w.k, "rows of another length than the linear's input");
        let x = &x.data[rows.start * x.cols..rows.end * x.cols];
        Ok(w.prepare(self.on(), x, RowNorm::new(&norm, w.k), updates))
    }

    fn linear(&self, x: &Input, w: Layer<'_, Self>, act: Activation) -> Result<Tensor> {
        self.apply(x, w, act, Target::Store)
    }

    fn linear_into(&self, x: &Input, w: Layer<'_, Self>, into: &mut Tensor, column: usize) -> Result<()> {
        let (n, cols) = (w.weights.n, into.cols);
        assert!(x.rows == into.rows() && column + n <= cols, "a result that does not fit into its columns");
        let y = self.apply(x, w, Activation::None, Target::Store)?;
        for (to, from) in into.data.chunks_exact_mut(cols).zip(y.data.chunks_exact(n)) {
            to[column..][..n].copy_from_slice(from);
        }
        Ok(())
    }

    fn linear_mul(&self, x: &Input, w: Layer<'_, Self>, act: Activation, by: &Tensor) -> Result<Tensor> {
        self.apply(x, w, act, Target::Mul(&by.data))
    }

    fn linear_add(
        &self,
        x: &Input,
        w: Layer<'_, Self>,
        gate: Option<Chunk<'_, Self>>,
        into: &mut Tensor,
        row: usize,
    ) -> Result<()> {
        let Layer { weights: w, updates } = w;
        assert_eq!(into.cols, w.n, "rows of another length than the linear's output");
        let out = &mut into.data[row * w.n..][..x.rows * w.n];
        let gate = gate.map(|gate| chunk(&gate, w.n));
        w.apply(self.on(), x, updates, Activation::None, Target::Add(gate), out);
        Ok(())
    }

    fn linear_qkv(
        &self,
        x: &Input,
        w: Layer<'_, Self>,
        norm: QkNormRope<'_, Self>,
        into: &mut Tensor,
        row: usize,
    ) -> Result<()> {
        let Layer { weights: w, updates } = w;
        assert_eq!(into.cols, w.n, "rows of another length than the linear's output");
        let out = &mut into.data[row * w.n..][..x.rows * w.n];
        w.apply(self.on(), x, updates, Activation::None, Target::Store, out);
        self.pool.chunks(out, MAX_ROWS * w.n, |i, rows| {
            for (m, row_values) in rows.chunks_exact_mut(w.n).enumerate() {
                let rope = norm.rope.row(row + i * MAX_ROWS + m);
                self.level.run(RotateHeads { row: row_values, q: norm.q.row(0), k: norm.k.row(0), rope });
            }
        });
        Ok(())
    }

    fn linear_gelu(&self, x: &Input, w: Layer<'_, Self>, next: Layer<'_, Self>) -> Result<Input> {
        let g = self.apply(x, w, Activation::GeluTanh, Target::Store)?;
        self.prepare(&g, 0..x.rows, Norm::None, next)
    }

    fn norm(&self, x: &Tensor, norm: Norm<'_, Self>) -> Result<Tensor> {
        let norm = RowNorm::new(&norm, x.cols);
        let mut y = Tensor::zeros(x.rows(), x.cols)?;
        let len = MAX_ROWS * x.cols;
        self.pool.chunks(&mut y.data, len, |i, to| {
            let from = &x.data[i * len..][..to.len()];
            self.level.run(NormRows { norm, cols: x.cols, from, to });
        });
        Ok(y)
    }

    fn attention(&self, qkv: &Tensor, spec: Attention<'_, Self>) -> Result<Tensor> {
        let spec = attention::Spec {
            heads: spec.heads,
            scale: spec.scale,
            causal: matches!(spec.mask, Mask::Causal),
            bias: if let Mask::Bias(bias) = spec.mask { Some(bias) } else { None },
        };
        attention::attention(self.on(), qkv, &spec)
    }

    fn group_norm(
        &self,
        x: &Tensor,
        groups: usize,
        weight: &Tensor,
        bias: &Tensor,
        silu: bool,
    ) -> Result<Tensor> {
        image::group_norm(self.on(), x, groups, [weight.row(0), bias.row(0)], silu)
    }

    fn conv(&self, x: &Tensor, size: [usize; 2], w: &Conv, add: Option<&Tensor>) -> Result<Tensor> {
        w.apply(self.on(), x, size, add)
    }

    fn copy_rows(&self, from: &Tensor, rows: Range<usize>, into: &mut Tensor, row: usize) -> Result<()> {
        let cols = from.cols;
        assert_eq!(cols, into.cols, "rows of another length than those that they replace");
        let from = &from.data[rows.start * cols..rows.end * cols];
        into.data[row * cols..][..from.len()].copy_from_slice(from);
        Ok(())
    }

    fn repeat(&self, _: &[u64], step: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        step()
    }

    fn place(&self, x: &Tensor) -> u64 {
        x.data.as_ptr() as u64
    }

    fn euler_step(&self, latents: &mut Tensor, velocity: &Tensor, dt: f32) -> Result<()> {
        latents.data.iter_mut().zip(&velocity.data).for_each(|(x, v)| *x += dt * v);
        Ok(())
    }

    fn to_rgb8(&self, x: &Tensor) -> Result<Vec<u8>> {
        let mut bytes = vec![0; x.data.len()];
        self.level.run(image::ToBytes { from: &x.data, to: &mut bytes });
        Ok(bytes)
    }
}

#[cfg(test)]
pub(crate) mod tests;
