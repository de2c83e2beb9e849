//! NVIDIA GPUs, by the driver that is opened at run time.
//!
//! Activations are bf16, sums f32; what is uploaded stays f32. Work is asked for in the order of the calls and
//! runs on one stream.
//!
//! 4-bit linears come in families, a file each, that have the same functions: `linear8` on 8-bit tensor cores, `linear4`
//! on 4-bit ones, `w4a16` in bf16, which runs everywhere. `choice` says which one a GPU takes.

mod api;
mod choice;
mod dense;
mod driver;
mod gemm4;
mod generic;
mod gpu;
mod graph;
mod hopper;
mod kernels;
mod linear;
mod linear4;
mod linear8;
mod low_rank;
mod memory;
mod pace;
mod profile;
mod project_down;
mod quantize;
mod staging;
mod stored;
mod tensor;
mod w4a16;

use std::ops::{Deref, Range as Rows};
use std::sync::Arc;

pub use driver::{DeviceInfo, device, devices};
use generic::{ConvParams, GroupNormParams, LinearParams, MaskedAttentionParams, NormParams, Output};
use gpu::Opened;
pub use gpu::{Gpu, GpuMemory, Priority, profiles};
use graph::Graphs;
use linear::{Bf16, Target};
pub use linear::{Input, Linear};
pub use low_rank::LowRank;
use memory::{Pool, Range};
use pace::Pace;
use stored::Residency;
use tensor::Elements;
pub use tensor::Tensor;

use crate::memory::{Buf, HostMemory};
use crate::ops::{
    Activation, Attention, Chunk, ConvSource, Cost, Device, KernelTime, Layer, LinearSource, LowRankSource,
    Mask, Norm, Profile, QkNormRope, Usage,
};
use crate::{Error, Result};

/// Weights come from the driver in chunks of this many bytes, temporaries likewise.
const WEIGHT_CHUNK: usize = 64 << 20;
const TEMPORARY_CHUNK: usize = 32 << 20;

/// A GPU with weights on it.
pub struct Cuda {
    gpu: Arc<Opened>,
    weights: Arc<Pool>,
    temporaries: Arc<Pool>,
    /// Of weights that stay on the host, and of what is given to the caller.
    memory: HostMemory,
    graphs: Graphs,
    pace: Pace,
    profile: Profile,
    residency: Residency,
}

/// The weights of a 2-D convolution.
pub struct Conv {
    /// `[n, kernel · kernel, c]` bf16
    weight: Range,
    /// `[n]` f32
    bias: Range,
    n: usize,
    c: usize,
    kernel: usize,
    stride: usize,
    upsample: bool,
}

impl Cuda {
    /// A device on `gpu` that quantises activations as `profile` says. Loading 4-bit weights fails where
    /// [`Gpu::check`] does.
    pub fn new(gpu: Gpu, profile: Profile) -> Self {
        let pool = |chunk_bytes, purpose| Pool::new(gpu.0.context.clone(), chunk_bytes, purpose);
        let (weights, temporaries) = (pool(WEIGHT_CHUNK, "weights"), pool(TEMPORARY_CHUNK, "temporaries"));
        gpu.0.context.register(&weights, &temporaries);
        Self::with(gpu.0, weights, temporaries, profile, Residency::Ready)
    }

    /// A device that computes nothing and counts the memory that this one would need if it kept weights so.
    fn idle(&self, residency: Residency) -> Result<Self> {
        let gpu = Arc::new(Opened::new(self.gpu.context.idle())?);
        let [weights, temporaries] = [(); 2].map(|()| Pool::idle(gpu.context.clone()));
        Ok(Self::with(gpu, weights, temporaries, self.profile, residency))
    }

    fn with(
        gpu: Arc<Opened>,
        weights: Arc<Pool>,
        temporaries: Arc<Pool>,
        profile: Profile,
        residency: Residency,
    ) -> Self {
        let graphs = Graphs::new(&gpu.context, &temporaries, &weights);
        Cuda {
            gpu,
            weights,
            temporaries,
            memory: HostMemory::default(),
            graphs,
            pace: Pace::default(),
            profile,
            residency,
        }
    }

    /// This device with all that it is going to hold on the host in `memory`.
    pub fn with_memory(self, memory: HostMemory) -> Self {
        Cuda { memory, ..self }
    }

    /// Bytes of weights and of temporaries on the GPU.
    pub fn bytes(&self) -> [u64; 2] {
        [&self.weights, &self.temporaries].map(|pool| pool.bytes() as u64)
    }

    /// Where weights are kept, for the log.
    pub fn kept(&self) -> &'static str {
        self.residency.describe()
    }

    /// `data` among the weights.
    fn constant<T: Copy>(&self, data: &[T]) -> Result<Range> {
        let range = self.weights.take(size_of_val(data))?;
        range.write(data)?;
        Ok(range)
    }

    /// The `count` elements that `make` gives, among the weights. An idle device does not ask for them.
    fn constant_of<T: Copy, V: Deref<Target = [T]>>(
        &self,
        count: usize,
        make: impl FnOnce() -> Result<V>,
    ) -> Result<Range> {
        let range = self.weights.take(count * size_of::<T>())?;
        if !self.gpu.context.is_idle() {
            range.write(&make()?)?;
        }
        Ok(range)
    }

    fn temporary(&self, bytes: usize) -> Result<Range> {
        self.temporaries.take(bytes)
    }

    /// `data` among the temporaries.
    fn staged<T: Copy>(&self, data: &[T]) -> Result<Range> {
        let range = self.temporary(size_of_val(data))?;
        range.write(data)?;
        Ok(range)
    }

    /// A bf16 tensor of anything.
    fn tensor(&self, rows: usize, cols: usize) -> Result<Tensor> {
        Ok(Tensor::new(self.temporary(rows * cols * 2)?, false, rows, cols))
    }

    /// Rows of `x` as bf16.
    fn bf16<'a>(&self, x: &'a Tensor, rows: Rows<usize>) -> Result<Bf16<'a>> {
        if !x.f32 {
            return Ok(Bf16::Same(x));
        }
        let count = rows.len() * x.cols;
        let copy = self.temporary(count * 2)?;
        let to = Elements::bf16(copy.at());
        self.gpu.generic.convert(x.at(rows.start, 0), to, count, Activation::None)?;
        Ok(Bf16::Copy(copy))
    }

    /// `norm(x[rows])` at `out`.
    fn normalize(&self, x: &Tensor, rows: Rows<usize>, norm: &Norm<'_, Self>, out: Elements) -> Result<()> {
        let (generic, from) = (&self.gpu.generic, x.at(rows.start, 0));
        let run = |weight, bias, eps| {
            let params = NormParams { x: from, out, weight, bias, cols: x.cols as i32, eps };
            if rows.is_empty() { Ok(()) } else { generic.norm(&params, rows.len()) }
        };
        match norm {
            Norm::None => generic.convert(from, out, rows.len() * x.cols, Activation::None),
            Norm::Silu => generic.convert(from, out, rows.len() * x.cols, Activation::Silu),
            Norm::Layer { weight, bias, eps } => run(weight.at(0, 0), bias.at(0, 0), *eps),
            Norm::Rms { weight, eps } => run(weight.at(0, 0), Elements::NONE, *eps),
            Norm::Modulate { scale, shift } => run(slice(scale), slice(shift), 1e-6),
        }
    }
}

/// `[n, taps, c]` bf16 of `[n, c, taps]`.
fn taps_first(memory: &HostMemory, weight: &[f32], c: usize, taps: usize) -> Result<Buf<u16>> {
    let mut turned = Buf::zeroed(memory, weight.len(), "a convolution's weights")?;
    for (to, filter) in turned.chunks_exact_mut(c * taps).zip(weight.chunks_exact(c * taps)) {
        for (channel, from) in filter.chunks_exact(taps).enumerate() {
            for (tap, &value) in from.iter().enumerate() {
                to[tap * c + channel] = half::bf16::from_f32(value).to_bits();
            }
        }
    }
    Ok(turned)
}

/// The part of its table that a chunk is.
fn slice(chunk: &Chunk<'_, Cuda>) -> Elements {
    chunk.table.at(chunk.row, chunk.start)
}

impl Device for Cuda {
    type Tensor = Tensor;
    type Linear = Linear;
    type LowRank = LowRank;
    type Input = Input;
    type Conv = Conv;

    fn fit<T>(
        &mut self,
        load: impl Fn(&Self) -> Result<T>,
        run: impl Fn(&Self, &T) -> Result<()>,
    ) -> Result<()> {
        let context = &self.gpu.context;
        let [free, _] = context.memory()?;
        // Others use the GPU as well, and the driver rounds up.
        let room = (free - free / 32).min(context.taken.left().unwrap_or(u64::MAX));
        let mut need = 0;
        for residency in Residency::ALL {
            let idle = self.idle(residency)?;
            let loaded = load(&idle)?;
            let (weights, temporaries) = (idle.weights.used(), idle.temporaries.used());
            run(&idle, &loaded)?;
            need = (weights + idle.temporaries.used()) as u64;
            if need <= room {
                self.residency = residency;
                self.weights.reserve(weights)?;
                return self.temporaries.reserve(temporaries);
            }
        }
        Err(context.full("the model, with as much of it as can be in the host's memory", need))
    }

    fn reserve(&self, work: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        if self.gpu.context.taken.is_too_much() {
            self.gpu.context.trim();
        }
        let idle = self.idle(self.residency)?;
        work(&idle)?;
        self.weights.reserve(idle.weights.used())?;
        self.temporaries.reserve(idle.temporaries.used())
    }

    fn is_reserved(&self) -> bool {
        self.temporaries.bytes() > 0 && !self.gpu.context.taken.is_too_much()
    }

    fn load_linear(&self, source: &LinearSource<'_>) -> Result<Linear> {
        self.load_linear_for(Usage::Step, source)
    }

    fn load_linear_for(&self, usage: Usage, source: &LinearSource<'_>) -> Result<Linear> {
        self.load(usage, source)
    }

    fn load_low_ranks(&self, sources: &[LowRankSource<'_>]) -> Result<Vec<LowRank>> {
        low_rank::load(self, sources)
    }

    fn load_conv(&self, source: &ConvSource) -> Result<Conv> {
        let &ConvSource { n, c, kernel, stride, upsample, .. } = source;
        let taps = kernel * kernel;
        if kernel == 1 && (stride != 1 || upsample) {
            return Err(Error::Unsupported("a 1x1 convolution that changes the image's size".into()));
        }
        Ok(Conv {
            weight: self.constant_of(n * taps * c, || taps_first(&self.memory, &source.weight, c, taps))?,
            bias: self.constant(&source.bias)?,
            n,
            c,
            kernel,
            stride,
            upsample,
        })
    }

    fn load_tensor(&self, data: &[f32], cols: usize) -> Result<Tensor> {
        Ok(Tensor::new(self.constant(data)?, true, data.len() / cols, cols))
    }

    fn upload(&self, data: &[f32], cols: usize) -> Result<Tensor> {
        let range = self.temporary(size_of_val(data))?;
        range.write(data)?;
        Ok(Tensor::new(range, true, data.len() / cols, cols))
    }

    fn zeros(&self, rows: usize, cols: usize) -> Result<Tensor> {
        let tensor = self.tensor(rows, cols)?;
        tensor.data.clear()?;
        Ok(tensor)
    }

    fn empty(&self, rows: usize, cols: usize) -> Result<Tensor> {
        self.tensor(rows, cols)
    }

    fn upload_rope(&self, data: &[f32], head_dim: usize) -> Result<Tensor> {
        let mut rope = self.upload(data, head_dim)?;
        let pairs = self.temporary(data.len() * 2)?;
        self.gpu.generic.rope_pairs(rope.data.at(), pairs.at(), data.len())?;
        rope.pairs = Some(pairs);
        Ok(rope)
    }

    fn download(&self, x: &Tensor) -> Result<Buf<f32>> {
        let count = x.rows * x.cols;
        let mut values = Buf::zeroed(&self.memory, count, "what is read from the GPU")?;
        if x.f32 {
            x.data.read(&mut values)?;
        } else {
            let mut bits: Buf<u16> = Buf::zeroed(&self.memory, count, "what is read from the GPU")?;
            x.data.read(&mut bits)?;
            values.iter_mut().zip(&*bits).for_each(|(v, &bits)| *v = half::bf16::from_bits(bits).to_f32());
        }
        Ok(values)
    }

    fn prepare(
        &self,
        x: &Tensor,
        rows: Rows<usize>,
        norm: Norm<'_, Self>,
        w: Layer<'_, Self>,
    ) -> Result<Input> {
        assert_eq!(x.cols, w.weights.k, "rows of another length than the linear's input");
        if w.weights.is_quantized() {
            match &norm {
                Norm::None => {
                    let x = self.bf16(x, rows.clone())?;
                    return self.quantize(x.at(rows.start), rows.len(), None, w);
                }
                Norm::Modulate { scale, shift } if !x.f32 && !scale.table.f32 && !shift.table.f32 => {
                    let norm = [slice(scale).data, slice(shift).data];
                    return self.quantize(x.at(rows.start, 0).data, rows.len(), Some(norm), w);
                }
                _ => {}
            }
        }
        let h = self.temporary(rows.len() * x.cols * 2)?;
        self.normalize(x, rows.clone(), &norm, Elements::bf16(h.at()))?;
        self.ready(h, rows.len(), w)
    }

    fn linear(&self, x: &Input, w: Layer<'_, Self>, act: Activation) -> Result<Tensor> {
        let y = self.tensor(x.rows, w.weights.n)?;
        self.apply(x, w, act, Target::Store(y.at(0, 0)))?;
        Ok(y)
    }

    fn linear_into(&self, x: &Input, w: Layer<'_, Self>, into: &mut Tensor, column: usize) -> Result<()> {
        let fits = x.rows == into.rows && column + w.weights.n <= into.cols;
        assert!(fits, "a result that does not fit into its columns");
        self.apply(x, w, Activation::None, Target::Columns(into.at(0, column), into.cols))
    }

    fn linear_mul(&self, x: &Input, w: Layer<'_, Self>, act: Activation, by: &Tensor) -> Result<Tensor> {
        let y = self.tensor(x.rows, w.weights.n)?;
        let by = self.bf16(by, 0..x.rows)?;
        self.apply(x, w, act, Target::Mul(y.at(0, 0), by.at(0)))?;
        Ok(y)
    }

    fn linear_add(
        &self,
        x: &Input,
        w: Layer<'_, Self>,
        gate: Option<Chunk<'_, Self>>,
        into: &mut Tensor,
        row: usize,
    ) -> Result<()> {
        assert_eq!(into.cols, w.weights.n, "rows of another length than the linear's output");
        assert!(row + x.rows <= into.rows, "more rows than there are to add to");
        let gate = gate.map(|gate| {
            assert!(!gate.table.f32, "modulation tables are results of linears");
            slice(&gate).data
        });
        self.apply(x, w, Activation::None, Target::Add(into.at(row, 0), gate.unwrap_or(0)))
    }

    fn linear_qkv(
        &self,
        x: &Input,
        w: Layer<'_, Self>,
        norm: QkNormRope<'_, Self>,
        into: &mut Tensor,
        row: usize,
    ) -> Result<()> {
        assert_eq!(into.cols, w.weights.n, "rows of another length than the linear's output");
        assert!(row + x.rows <= into.rows && !into.f32, "q, k and v have no place");
        assert!(norm.q.f32 && norm.k.f32 && norm.rope.f32, "norms and rotary tables are uploaded");
        let (dim, out) = (norm.rope.cols, into.at(row, 0));
        let rope = norm.rope.at(row, 0).data;
        if w.weights.is_quantized() && dim == 128 {
            let norms = self.temporary(2 * dim * 2)?;
            self.gpu.generic.qk_norms(norm.q.data.at(), norm.k.data.at(), norms.at(), dim)?;
            let Some(pairs) = &norm.rope.pairs else { panic!("a rotary table of another operation") };
            return self.apply_qkv(x, w, out.data, norms.at(), pairs.at() + (row * dim * 2) as u64);
        }
        self.apply(x, w, Activation::None, Target::Store(out))?;
        if x.rows == 0 {
            return Ok(());
        }
        self.gpu.generic.qk_norm_rope(&generic::QkNormRopeParams {
            qkv: out.data,
            q: norm.q.at(0, 0),
            k: norm.k.at(0, 0),
            rope,
            rows: x.rows as i32,
            heads: (w.weights.n / 3 / dim) as i32,
            dim: dim as i32,
        })
    }

    fn linear_gelu(&self, x: &Input, w: Layer<'_, Self>, next: Layer<'_, Self>) -> Result<Input> {
        if w.weights.fuses_gelu(next.weights) {
            return self.apply_gelu(x, w, next);
        }
        let g = self.linear(x, w, Activation::GeluTanh)?;
        self.ready(g.data, x.rows, next)
    }

    fn norm(&self, x: &Tensor, norm: Norm<'_, Self>) -> Result<Tensor> {
        let y = self.tensor(x.rows, x.cols)?;
        self.normalize(x, 0..x.rows, &norm, y.at(0, 0))?;
        Ok(y)
    }

    fn attention(&self, qkv: &Tensor, spec: Attention<'_, Self>) -> Result<Tensor> {
        let (tokens, dim) = (qkv.rows, qkv.cols / (3 * spec.heads));
        let out = self.tensor(tokens, spec.heads * dim)?;
        let qkv = self.bf16(qkv, 0..tokens)?;
        if let (Some(hopper), 128, Mask::None) = (&self.gpu.hopper, dim, &spec.mask) {
            hopper.attention(qkv.at(0), out.data.at(), tokens, spec.heads, spec.scale)?;
            return Ok(out);
        }
        if dim % 16 != 0 || dim > 512 {
            return Err(Error::Unsupported(format!(
                "attention heads of {dim} channels: the GPU's kernels take multiples of 16 up to 512"
            )));
        }
        let bias = match spec.mask {
            Mask::Bias(bias) => {
                assert!(bias.f32, "attention biases are uploaded");
                bias.data.at()
            }
            Mask::None | Mask::Causal => 0,
        };
        self.gpu.generic.attention(&MaskedAttentionParams {
            qkv: qkv.at(0),
            out: out.data.at(),
            bias,
            tokens: tokens as i32,
            heads: spec.heads as i32,
            dim: dim as i32,
            causal: matches!(spec.mask, Mask::Causal).into(),
            scale: spec.scale,
        })?;
        Ok(out)
    }

    fn group_norm(
        &self,
        x: &Tensor,
        groups: usize,
        weight: &Tensor,
        bias: &Tensor,
        silu: bool,
    ) -> Result<Tensor> {
        let y = self.tensor(x.rows, x.cols)?;
        let x16 = self.bf16(x, 0..x.rows)?;
        let sums = self.temporary(generic::Kernels::group_norm_scratch(x.rows, groups) * 4)?;
        let affine = self.temporary(2 * x.cols * 4)?;
        self.gpu.generic.group_norm(&GroupNormParams {
            x: x16.at(0),
            out: y.data.at(),
            weight: weight.at(0, 0),
            bias: bias.at(0, 0),
            sums: sums.at(),
            affine: affine.at(),
            pixels: x.rows as i32,
            channels: x.cols as i32,
            groups: groups as i32,
            silu: silu.into(),
        })?;
        Ok(y)
    }

    fn conv(&self, x: &Tensor, size: [usize; 2], w: &Conv, add: Option<&Tensor>) -> Result<Tensor> {
        assert!(x.rows == size[0] * size[1] && x.cols == w.c, "an image of another size");
        let side = |side: usize| (side << usize::from(w.upsample)) / w.stride;
        let pixels = side(size[0]) * side(size[1]);
        let y = self.tensor(pixels, w.n)?;
        let x = self.bf16(x, 0..x.rows)?;
        let add = add.map_or(Elements::NONE, |add| add.at(0, 0));
        let output = Output { add, ..Output::store(y.at(0, 0), w.n, w.bias.at(), Activation::None) };
        let (x, weight, n, c) = (x.at(0), w.weight.at(), w.n as i32, w.c as i32);
        if w.kernel == 1 {
            self.gpu.generic.linear(&LinearParams { x, w: weight, m: pixels as i32, n, k: c, output })?;
            return Ok(y);
        }
        let params = ConvParams {
            x,
            w: weight,
            height: size[0] as i32,
            width: size[1] as i32,
            c,
            n,
            stride: w.stride as i32,
            upsample: w.upsample.into(),
            output,
        };
        self.gpu.generic.conv(&params, pixels)?;
        Ok(y)
    }

    fn copy_rows(&self, from: &Tensor, rows: Rows<usize>, into: &mut Tensor, row: usize) -> Result<()> {
        assert_eq!(from.cols, into.cols, "rows of another length than those that they replace");
        assert!(rows.end <= from.rows && row + rows.len() <= into.rows, "rows that are not there");
        let (to, count) = (into.at(row, 0), rows.len() * from.cols);
        self.gpu.generic.convert(from.at(rows.start, 0), to, count, Activation::None)
    }

    fn repeat(&self, key: &[u64], step: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.graphs.repeat(key, step)
    }

    fn profile(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Vec<KernelTime>> {
        self.gpu.context.profile(work)
    }

    fn place(&self, x: &Tensor) -> u64 {
        x.data.at()
    }

    fn keep_pace(&self) -> Result<()> {
        self.pace.keep(&self.gpu.context)
    }

    fn euler_step(&self, latents: &mut Tensor, velocity: &Tensor, dt: f32) -> Result<()> {
        let count = latents.rows * latents.cols;
        self.gpu.generic.euler_step(latents.at(0, 0), velocity.at(0, 0), count, dt)
    }

    fn to_rgb8(&self, x: &Tensor) -> Result<Buf<u8>> {
        let count = x.rows * x.cols;
        let bytes = self.temporary(count)?;
        self.gpu.generic.to_rgb8(x.at(0, 0), bytes.at(), count)?;
        let mut pixels = Buf::zeroed(&self.memory, count, "the picture's pixels")?;
        bytes.read(&mut pixels)?;
        Ok(pixels)
    }

    fn memory(&self) -> &HostMemory {
        &self.memory
    }

    fn measure(&self, work: impl FnOnce(&Self) -> Result<()>) -> Result<Cost> {
        let idle = self.idle(self.residency)?;
        work(&idle)?;
        let device_bytes = (idle.weights.used() + idle.temporaries.used()) as u64;
        Ok(Cost { device_bytes, host_bytes: idle.memory.peak() })
    }
}
