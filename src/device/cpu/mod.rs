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
mod on;
mod pool;
mod quantize;
mod simd;
mod tensor;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use gemm::Target;
pub use image::Conv;
pub use linear::{Input, Linear};
pub use low_rank::LowRank;
use norm::{NormRows, RotateHeads, RowNorm, chunk};
use on::On;
use pool::Pool;
use simd::{Level, MAX_ROWS};
pub use tensor::Tensor;

use crate::memory::{Buf, HostMemory};
use crate::ops::{
    Activation, Attention, Chunk, ConvSource, Cost, Device, Layer, LinearSource, LowRankSource, Mask, Norm,
    Profile, QkNormRope,
};
use crate::{Cancel, Error, Result};

/// The processor.
pub struct Cpu {
    profile: Profile,
    level: Level,
    pool: Arc<Pool>,
    /// Of what is given to the caller.
    memory: HostMemory,
    /// Of weights, tensors and temporaries: the same, or hollow on an idle device.
    own: HostMemory,
    is_idle: bool,
    cancel: Mutex<Cancel>,
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
        let (memory, cancel) = (HostMemory::default(), Mutex::default());
        let own = memory.clone();
        Ok(Cpu { profile, level, pool: Arc::new(pool), memory, own, is_idle: false, cancel })
    }

    /// This device with all that it is going to hold in `memory`.
    pub fn with_memory(self, memory: HostMemory) -> Self {
        Cpu { own: memory.clone(), memory, ..self }
    }

    /// A device that takes memory as this one does, but of which there is none, and computes nothing.
    fn idle(&self) -> Self {
        let memory = HostMemory::default();
        Cpu {
            profile: self.profile,
            level: self.level,
            pool: self.pool.clone(),
            own: memory.hollow(),
            memory,
            is_idle: true,
            cancel: Mutex::default(),
        }
    }

    /// For an operation of the work that is going on.
    fn on(&self) -> On<'_> {
        let cancel = self.cancel.lock().unwrap_or_else(PoisonError::into_inner).clone();
        On { level: self.level, pool: &self.pool, memory: &self.own, cancel, is_idle: self.is_idle }
    }

    /// For loading, which goes on whatever becomes of the work.
    fn on_load(&self) -> On<'_> {
        On { cancel: Cancel::default(), ..self.on() }
    }

    /// `linear(x)` as a tensor of its own.
    fn apply(&self, x: &Input, w: Layer<'_, Self>, act: Activation, target: Target<'_>) -> Result<Tensor> {
        let on = self.on();
        let mut y = Tensor::zeros(&on, x.rows, w.weights.n)?;
        w.weights.apply(&on, x, w.updates, act, target, &mut y.data)?;
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
        let on = &self.on_load();
        match source {
            LinearSource::Dense(source) => Linear::dense(on, source),
            LinearSource::Awq(source) => Linear::awq(on, source),
            LinearSource::Svdq(source) => Linear::svdq(on, self.profile, source),
        }
    }

    fn load_low_ranks(&self, sources: &[LowRankSource<'_>]) -> Result<Vec<LowRank>> {
        let on = &self.on_load();
        sources.iter().map(|source| LowRank::new(on, source)).collect()
    }

    fn load_conv(&self, source: &ConvSource) -> Result<Conv> {
        Conv::new(&self.on_load(), source)
    }

    fn upload(&self, data: &[f32], cols: usize) -> Result<Tensor> {
        let rows = data.len() / cols;
        let what = format_args!("{rows} x {cols} values");
        Ok(Tensor { data: Buf::copy_of(&self.own, data, what)?, rows, cols })
    }

    fn zeros(&self, rows: usize, cols: usize) -> Result<Tensor> {
        Tensor::zeros(&self.on(), rows, cols)
    }

    fn empty(&self, rows: usize, cols: usize) -> Result<Tensor> {
        Tensor::zeros(&self.on(), rows, cols)
    }

    fn upload_rope(&self, data: &[f32], head_dim: usize) -> Result<Tensor> {
        self.upload(data, head_dim)
    }

    fn download(&self, x: &Tensor) -> Result<Buf<f32>> {
        let what = format_args!("{} x {} values", x.rows, x.cols);
        match self.is_idle {
            true => Buf::zeroed(&self.memory, x.rows * x.cols, what),
            false => Buf::copy_of(&self.memory, &x.data, what),
        }
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
        assert!(rows.start <= rows.end && rows.end <= x.rows, "rows that are not there");
        w.prepare(&self.on(), x, rows, &norm, updates)
    }

    fn linear(&self, x: &Input, w: Layer<'_, Self>, act: Activation) -> Result<Tensor> {
        self.apply(x, w, act, Target::Store)
    }

    fn linear_into(&self, x: &Input, w: Layer<'_, Self>, into: &mut Tensor, column: usize) -> Result<()> {
        let (n, cols) = (w.weights.n, into.cols);
        assert!(x.rows == into.rows && column + n <= cols, "a result that does not fit into its columns");
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
        if self.is_idle {
            return Ok(());
        }
        let out = &mut into.data[row * w.n..][..x.rows * w.n];
        let gate = gate.map(|gate| chunk(&gate, w.n));
        w.apply(&self.on(), x, updates, Activation::None, Target::Add(gate), out)
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
        if self.is_idle {
            return Ok(());
        }
        let on = self.on();
        let out = &mut into.data[row * w.n..][..x.rows * w.n];
        w.apply(&on, x, updates, Activation::None, Target::Store, out)?;
        on.chunks(out, MAX_ROWS * w.n, |i, rows| {
            for (m, row_values) in rows.chunks_exact_mut(w.n).enumerate() {
                let rope = norm.rope.row(row + i * MAX_ROWS + m);
                self.level.run(RotateHeads { row: row_values, q: norm.q.row(0), k: norm.k.row(0), rope });
            }
        })
    }

    fn linear_gelu(&self, x: &Input, w: Layer<'_, Self>, next: Layer<'_, Self>) -> Result<Input> {
        let g = self.apply(x, w, Activation::GeluTanh, Target::Store)?;
        self.prepare(&g, 0..x.rows, Norm::None, next)
    }

    fn norm(&self, x: &Tensor, norm: Norm<'_, Self>) -> Result<Tensor> {
        let on = self.on();
        let mut y = Tensor::zeros(&on, x.rows, x.cols)?;
        if self.is_idle {
            return Ok(y);
        }
        let norm = RowNorm::new(&norm, x.cols);
        let len = MAX_ROWS * x.cols;
        on.chunks(&mut y.data, len, |i, to| {
            let from = &x.data[i * len..][..to.len()];
            self.level.run(NormRows { norm, cols: x.cols, from, to });
        })?;
        Ok(y)
    }

    fn attention(&self, qkv: &Tensor, spec: Attention<'_, Self>) -> Result<Tensor> {
        let spec = attention::Spec {
            heads: spec.heads,
            scale: spec.scale,
            causal: matches!(spec.mask, Mask::Causal),
            bias: if let Mask::Bias(bias) = spec.mask { Some(bias) } else { None },
        };
        attention::attention(&self.on(), qkv, &spec)
    }

    fn group_norm(
        &self,
        x: &Tensor,
        groups: usize,
        weight: &Tensor,
        bias: &Tensor,
        silu: bool,
    ) -> Result<Tensor> {
        image::group_norm(&self.on(), x, groups, [weight.row(0), bias.row(0)], silu)
    }

    fn conv(&self, x: &Tensor, size: [usize; 2], w: &Conv, add: Option<&Tensor>) -> Result<Tensor> {
        w.apply(&self.on(), x, size, add)
    }

    fn copy_rows(&self, from: &Tensor, rows: Range<usize>, into: &mut Tensor, row: usize) -> Result<()> {
        let cols = from.cols;
        assert_eq!(cols, into.cols, "rows of another length than those that they replace");
        if self.is_idle {
            return Ok(());
        }
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

    fn to_rgb8(&self, x: &Tensor) -> Result<Buf<u8>> {
        let mut bytes = Buf::zeroed(&self.memory, x.rows * x.cols, "the picture's pixels")?;
        if !self.is_idle {
            self.level.run(image::ToBytes { from: &x.data, to: &mut bytes });
        }
        Ok(bytes)
    }

    fn memory(&self) -> &HostMemory {
        &self.memory
    }

    fn measure(&self, work: impl FnOnce(&Self) -> Result<()>) -> Result<Cost> {
        let idle = self.idle();
        work(&idle)?;
        Ok(Cost { device_bytes: 0, host_bytes: idle.memory.peak() })
    }

    fn set_cancel(&self, cancel: Cancel) {
        *self.cancel.lock().unwrap_or_else(PoisonError::into_inner) = cancel;
    }
}

#[cfg(test)]
pub(crate) mod tests;
