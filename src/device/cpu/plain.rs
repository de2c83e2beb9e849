//! Every operation as its formula says, one loop after the other.

use std::ops::Range;

use half::bf16;

use crate::Result;
use crate::ops::{
    Activation, Attention, Chunk, ConvSource, Device, LinearSource, Mask, Norm, Profile, QkNormRope,
};
use crate::weights::pack;

/// Added to the input of fc2, so that a GELU's output is never negative.
const SHIFT: f32 = 0.171875;

/// A row-major matrix in memory.
pub struct Tensor {
    data: Vec<f32>,
    cols: usize,
}

impl Tensor {
    fn zeros(rows: usize, cols: usize) -> Self {
        Tensor { data: vec![0.0; rows * cols], cols }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.data.len() / self.cols
    }

    fn row(&self, m: usize) -> &[f32] {
        &self.data[m * self.cols..][..self.cols]
    }

    fn row_mut(&mut self, m: usize) -> &mut [f32] {
        &mut self.data[m * self.cols..][..self.cols]
    }
}

enum Body {
    /// `[k][n]`
    Dense(Vec<f32>),
    /// Codes `[k][n]` and scales `[k / block][n]`.
    Int { codes: Vec<i8>, scales: Vec<f32>, block: usize },
}

struct Svdq {
    smooth: Vec<f32>,
    unsigned: bool,
    rank: usize,
    /// `[k][rank]`
    down: Vec<f32>,
    /// `[rank][n]`
    up: Vec<f32>,
}

/// The weights of a linear.
pub struct Linear {
    n: usize,
    k: usize,
    bias: Vec<f32>,
    body: Body,
    svdq: Option<Svdq>,
}

/// Rows that are ready for a linear.
pub struct Input {
    rows: usize,
    body: InputBody,
    lora: Option<Tensor>,
}

enum InputBody {
    Dense(Tensor),
    /// Codes `[m][k]`, scales `[m][k / block]`.
    Int {
        codes: Vec<i16>,
        scales: Vec<f32>,
        block: usize,
    },
}

/// The weights of a convolution.
pub struct Conv {
    source: ConvSource,
}

/// The processor.
pub struct Cpu {
    profile: Profile,
}

impl Cpu {
    /// A device of `threads` threads (0: one for each core) that quantises activations as `profile` says.
    pub fn new(threads: usize, profile: Profile) -> Result<Self> {
        let _ = threads;
        Ok(Cpu { profile })
    }
}

fn transpose(x: &[f32], cols: usize) -> Vec<f32> {
    let rows = x.len() / cols;
    let mut y = vec![0.0; x.len()];
    for r in 0..rows {
        for c in 0..cols {
            y[c * rows + r] = x[r * cols + c];
        }
    }
    y
}

/// `y[m,n] += Σ_k x[m,k] w[k,n]`
fn matmul(x: &Tensor, w: &[f32], y: &mut Tensor) {
    let n = y.cols;
    for m in 0..x.rows() {
        let out = y.row_mut(m);
        for (&v, w) in x.row(m).iter().zip(w.chunks_exact(n)) {
            for (o, w) in out.iter_mut().zip(w) {
                *o += v * w;
            }
        }
    }
}

fn mean_var(x: &[f32]) -> (f32, f32) {
    let mean = x.iter().sum::<f32>() / x.len() as f32;
    let var = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / x.len() as f32;
    (mean, var)
}

fn chunk<'a>(c: &Chunk<'a, Cpu>, len: usize) -> &'a [f32] {
    &c.table.row(c.row)[c.start..c.start + len]
}

fn silu(v: f32) -> f32 {
    v / (1.0 + (-v).exp())
}

fn activate(v: f32, act: Activation) -> f32 {
    match act {
        Activation::None => v,
        Activation::Silu => silu(v),
        Activation::GeluTanh => 0.5 * v * (1.0 + (0.797_884_6 * (v + 0.044715 * v * v * v)).tanh()),
        Activation::QuickGelu => v / (1.0 + (-1.702 * v).exp()),
    }
}

fn normalize(x: &mut [f32], norm: &Norm<'_, Cpu>) {
    match norm {
        Norm::None => {}
        Norm::Silu => x.iter_mut().for_each(|v| *v = silu(*v)),
        Norm::Layer { weight, bias, eps } => {
            let (mean, var) = mean_var(x);
            let r = 1.0 / (var + eps).sqrt();
            for ((v, w), b) in x.iter_mut().zip(&weight.data).zip(&bias.data) {
                *v = (*v - mean) * r * w + b;
            }
        }
        Norm::Rms { weight, eps } => {
            let r = 1.0 / (x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32 + eps).sqrt();
            x.iter_mut().zip(&weight.data).for_each(|(v, w)| *v *= r * w);
        }
        Norm::Modulate { scale, shift } => {
            let (mean, var) = mean_var(x);
            let r = 1.0 / (var + 1e-6).sqrt();
            let (scale, shift) = (chunk(scale, x.len()), chunk(shift, x.len()));
            for ((v, w), b) in x.iter_mut().zip(scale).zip(shift) {
                *v = (*v - mean) * r * w + b;
            }
        }
    }
}

impl Cpu {
    /// `h` made ready for `w`; `shift` is added before the quantiser.
    fn quantize(&self, h: Tensor, w: &Linear, shift: f32) -> Input {
        let rows = h.rows();
        let Some(s) = &w.svdq else { return Input { rows, body: InputBody::Dense(h), lora: None } };
        let lora = (s.rank > 0).then(|| {
            let mut y = Tensor::zeros(rows, s.rank);
            matmul(&h, &s.down, &mut y);
            y
        });
        let mut v = h;
        for m in 0..rows {
            v.row_mut(m).iter_mut().zip(&s.smooth).for_each(|(v, s)| *v = (*v + shift) / s);
        }
        let (block, top, low) = match self.profile {
            Profile::W4A16 => return Input { rows, body: InputBody::Dense(v), lora },
            Profile::W4A4 if s.unsigned => (64, 15.0, 0.0),
            Profile::W4A4 => (64, 7.0, -8.0),
            Profile::W4A8 if s.unsigned => (256, 255.0, 0.0),
            Profile::W4A8 => (w.k, 127.0, -127.0),
        };
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        for m in 0..rows {
            for group in v.row_mut(m).chunks_mut(block) {
                let four = self.profile == Profile::W4A4;
                if four {
                    group.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32());
                }
                let amax = group.iter().fold(0.0f32, |a, v| a.max(v.abs()));
                let (scale, inverse) = if four {
                    let scale = amax * (1.0 / top);
                    (bf16::from_f32(scale).to_f32(), 1.0 / scale)
                } else {
                    (amax / top, top / amax)
                };
                scales.push(scale);
                codes.extend(group.iter().map(|v| {
                    if amax > 0.0 {
                        (v * inverse)
                            .round_ties_even()
                            .clamp(low, if four && !s.unsigned { 7.0 } else { top })
                            as i16
                    } else {
                        0
                    }
                }));
            }
        }
        Input { rows, body: InputBody::Int { codes, scales, block }, lora }
    }

    fn gemm(&self, x: &Input, w: &Linear) -> Tensor {
        let mut y = Tensor::zeros(x.rows, w.n);
        match (&x.body, &w.body) {
            (InputBody::Dense(h), Body::Dense(weight)) => matmul(h, weight, &mut y),
            (InputBody::Int { codes, scales, block }, Body::Int { codes: wq, scales: ws, block: wb }) => {
                assert_eq!(block, wb, "the input was made for another linear");
                let blocks = w.k.div_ceil(*block);
                let mut sum = vec![0i32; w.n];
                for m in 0..x.rows {
                    for b in 0..blocks {
                        sum.fill(0);
                        for k in b * block..((b + 1) * block).min(w.k) {
                            let c = i32::from(codes[m * w.k + k]);
                            for (s, w) in sum.iter_mut().zip(&wq[k * w.n..][..w.n]) {
                                *s += c * i32::from(*w);
                            }
                        }
                        let (xs, ws) = (scales[m * blocks + b], &ws[b * w.n..][..w.n]);
                        for ((o, s), ws) in y.row_mut(m).iter_mut().zip(&sum).zip(ws) {
                            *o += *s as f32 * (xs * ws);
                        }
                    }
                }
            }
            _ => unreachable!("the input was made for another linear"),
        }
        if let (Some(lora), Some(s)) = (&x.lora, &w.svdq) {
            matmul(lora, &s.up, &mut y);
        }
        if !w.bias.is_empty() {
            for m in 0..x.rows {
                y.row_mut(m).iter_mut().zip(&w.bias).for_each(|(y, b)| *y += b);
            }
        }
        y
    }
}

impl Device for Cpu {
    type Tensor = Tensor;
    type Linear = Linear;
    type Input = Input;
    type Conv = Conv;

    fn round(&self, value: f32) -> f32 {
        value
    }

    fn load_linear(&self, source: &LinearSource<'_>) -> Result<Linear> {
        let [n, k] = source.shape();
        Ok(match source {
            LinearSource::Dense(d) => {
                Linear { n, k, bias: d.bias.clone(), body: Body::Dense(transpose(&d.weight, k)), svdq: None }
            }
            LinearSource::Awq(a) => {
                let d = pack::unpack_awq(a);
                Linear { n, k, bias: d.bias, body: Body::Dense(transpose(&d.weight, k)), svdq: None }
            }
            LinearSource::Svdq(s) => {
                let codes = pack::unpack_codes(s.qweight, n, k);
                let ws = pack::unpack_wscales(s.wscales, n, k);
                let at = |n_: usize, k_: usize| f32::from(codes[n_ * k + k_]) * ws[k_ / 64 * n + n_];
                let mut t = vec![0i8; n * k];
                let body = match self.profile {
                    Profile::W4A16 => Body::Dense(
                        (0..k).flat_map(|k| (0..n).map(move |n| (n, k))).map(|(n, k)| at(n, k)).collect(),
                    ),
                    Profile::W4A4 => {
                        for k_ in 0..k {
                            for n_ in 0..n {
                                t[k_ * n + n_] = codes[n_ * k + k_];
                            }
                        }
                        Body::Int { codes: t, scales: ws, block: 64 }
                    }
                    Profile::W4A8 => {
                        let block = if s.unsigned { 256 } else { k };
                        let mut scales = vec![0.0; n];
                        for (n_, scale) in scales.iter_mut().enumerate() {
                            *scale = (0..k).fold(0.0f32, |a, k| a.max(at(n_, k).abs())) / 127.0;
                            for k_ in 0..k {
                                let v = at(n_, k_) / *scale;
                                t[k_ * n + n_] = if *scale > 0.0 { v.round_ties_even() as i8 } else { 0 };
                            }
                        }
                        Body::Int { codes: t, scales: scales.repeat(k.div_ceil(block)), block }
                    }
                };
                let down = pack::unpack_lora_down(s.lora_down, k, s.rank);
                let up = pack::unpack_lora_up(s.lora_up, n, s.rank);
                Linear {
                    n,
                    k,
                    bias: pack::unpack_vector(s.bias),
                    body,
                    svdq: Some(Svdq {
                        smooth: pack::unpack_vector(s.smooth),
                        unsigned: s.unsigned,
                        rank: s.rank,
                        down: transpose(&down, k),
                        up: if s.rank > 0 { transpose(&up, s.rank) } else { up },
                    }),
                }
            }
        })
    }

    fn load_conv(&self, s: &ConvSource) -> Result<Conv> {
        let source = ConvSource {
            n: s.n,
            c: s.c,
            kernel: s.kernel,
            stride: s.stride,
            upsample: s.upsample,
            weight: s.weight.clone(),
            bias: s.bias.clone(),
        };
        Ok(Conv { source })
    }

    fn upload(&self, data: &[f32], cols: usize) -> Result<Tensor> {
        Ok(Tensor { data: data.to_vec(), cols })
    }

    fn zeros(&self, rows: usize, cols: usize) -> Result<Tensor> {
        Ok(Tensor::zeros(rows, cols))
    }

    fn download(&self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(x.data.clone())
    }

    fn prepare(&self, x: &Tensor, rows: Range<usize>, norm: Norm<'_, Self>, w: &Linear) -> Result<Input> {
        assert_eq!(x.cols, w.k, "the input's width is not the linear's");
        let mut h = Tensor { data: x.data[rows.start * x.cols..rows.end * x.cols].to_vec(), cols: x.cols };
        for m in 0..rows.len() {
            normalize(h.row_mut(m), &norm);
        }
        let shift = if w.svdq.as_ref().is_some_and(|s| s.unsigned) { SHIFT } else { 0.0 };
        Ok(self.quantize(h, w, shift))
    }

    fn linear(&self, x: &Input, w: &Linear, act: Activation) -> Result<Tensor> {
        let mut y = self.gemm(x, w);
        y.data.iter_mut().for_each(|v| *v = activate(*v, act));
        Ok(y)
    }

    fn linear_mul(&self, x: &Input, w: &Linear, act: Activation, by: &Tensor) -> Result<Tensor> {
        let mut y = self.linear(x, w, act)?;
        y.data.iter_mut().zip(&by.data).for_each(|(v, b)| *v *= b);
        Ok(y)
    }

    fn linear_add(
        &self,
        x: &Input,
        w: &Linear,
        gate: Option<Chunk<'_, Self>>,
        into: &mut Tensor,
        row: usize,
    ) -> Result<()> {
        let mut y = self.gemm(x, w);
        for m in 0..x.rows {
            if let Some(gate) = &gate {
                y.row_mut(m).iter_mut().zip(chunk(gate, w.n)).for_each(|(y, g)| *y *= g);
            }
            into.row_mut(row + m).iter_mut().zip(y.row(m)).for_each(|(o, y)| *o += y);
        }
        Ok(())
    }

    fn linear_qkv(
        &self,
        x: &Input,
        w: &Linear,
        norm: QkNormRope<'_, Self>,
        into: &mut Tensor,
        row: usize,
    ) -> Result<()> {
        let y = self.gemm(x, w);
        let (d, width) = (norm.q.cols, w.n / 3);
        for m in 0..x.rows {
            let out = into.row_mut(row + m);
            out.copy_from_slice(y.row(m));
            let rope = norm.rope.row(row + m);
            for (i, head) in out[..2 * width].chunks_mut(d).enumerate() {
                let weight = if i < width / d { norm.q } else { norm.k };
                normalize(head, &Norm::Rms { weight, eps: 1e-6 });
                for (u, r) in head.chunks_mut(2).zip(rope.chunks(2)) {
                    (u[0], u[1]) = (u[0] * r[0] - u[1] * r[1], u[0] * r[1] + u[1] * r[0]);
                }
            }
        }
        Ok(())
    }

    fn linear_gelu(&self, x: &Input, w: &Linear, next: &Linear) -> Result<Input> {
        let g = self.linear(x, w, Activation::GeluTanh)?;
        Ok(self.quantize(g, next, SHIFT))
    }

    fn norm(&self, x: &Tensor, norm: Norm<'_, Self>) -> Result<Tensor> {
        let mut h = Tensor { data: x.data.clone(), cols: x.cols };
        for m in 0..h.rows() {
            normalize(h.row_mut(m), &norm);
        }
        Ok(h)
    }

    fn attention(&self, qkv: &Tensor, spec: Attention<'_, Self>) -> Result<Tensor> {
        let (rows, width) = (qkv.rows(), qkv.cols / 3);
        let d = width / spec.heads;
        let mut out = Tensor::zeros(rows, width);
        for h in 0..spec.heads {
            for m in 0..rows {
                let q = &qkv.row(m)[h * d..][..d];
                let keys = if matches!(spec.mask, Mask::Causal) { m + 1 } else { rows };
                let mut p: Vec<f32> = (0..keys)
                    .map(|j| {
                        let k = &qkv.row(j)[width + h * d..][..d];
                        let s = q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>() * spec.scale;
                        if let Mask::Bias(b) = spec.mask { s + b.row(h * rows + m)[j] } else { s }
                    })
                    .collect();
                let max = p.iter().fold(f32::NEG_INFINITY, |a, &v| a.max(v));
                p.iter_mut().for_each(|v| *v = (*v - max).exp());
                let sum = p.iter().sum::<f32>();
                for (j, p) in p.iter().enumerate() {
                    let v = &qkv.row(j)[2 * width + h * d..][..d];
                    out.row_mut(m)[h * d..][..d].iter_mut().zip(v).for_each(|(o, v)| *o += p / sum * v);
                }
            }
        }
        Ok(out)
    }

    fn group_norm(
        &self,
        x: &Tensor,
        groups: usize,
        weight: &Tensor,
        bias: &Tensor,
        silu_: bool,
    ) -> Result<Tensor> {
        let mut y = Tensor { data: x.data.clone(), cols: x.cols };
        let width = x.cols / groups;
        for g in 0..groups {
            let columns = g * width..(g + 1) * width;
            let values: Vec<f32> = (0..x.rows()).flat_map(|m| x.row(m)[columns.clone()].to_vec()).collect();
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
            let var =
                values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / values.len() as f64;
            let (mean, r) = (mean as f32, 1.0 / (var as f32 + 1e-6).sqrt());
            for m in 0..x.rows() {
                for c in columns.clone() {
                    let v = (x.row(m)[c] - mean) * r * weight.data[c] + bias.data[c];
                    y.row_mut(m)[c] = if silu_ { silu(v) } else { v };
                }
            }
        }
        Ok(y)
    }

    fn conv(&self, x: &Tensor, size: [usize; 2], w: &Conv, add: Option<&Tensor>) -> Result<Tensor> {
        let s = &w.source;
        let up = if s.upsample { 2 } else { 1 };
        let [height, width] = [size[0] * up, size[1] * up];
        let [out_h, out_w] = [height / s.stride, width / s.stride];
        let pad = if s.stride == 2 { 0 } else { s.kernel / 2 };
        let taps = s.kernel * s.kernel;
        let mut y = Tensor::zeros(out_h * out_w, s.n);
        for p in 0..out_h * out_w {
            let out = y.row_mut(p);
            out.copy_from_slice(&s.bias);
            for tap in 0..taps {
                let iy = (p / out_w * s.stride + tap / s.kernel).wrapping_sub(pad);
                let ix = (p % out_w * s.stride + tap % s.kernel).wrapping_sub(pad);
                if iy >= height || ix >= width {
                    continue;
                }
                let pixel = x.row(iy / up * size[1] + ix / up);
                for (n, o) in out.iter_mut().enumerate() {
                    for (c, v) in pixel.iter().enumerate() {
                        *o += v * s.weight[(n * s.c + c) * taps + tap];
                    }
                }
            }
            if let Some(add) = add {
                out.iter_mut().zip(add.row(p)).for_each(|(o, a)| *o += a);
            }
        }
        Ok(y)
    }

    fn euler_step(&self, latents: &mut Tensor, velocity: &Tensor, dt: f32) -> Result<()> {
        latents.data.iter_mut().zip(&velocity.data).for_each(|(l, v)| *l += dt * v);
        Ok(())
    }

    fn to_rgb8(&self, x: &Tensor) -> Result<Vec<u8>> {
        Ok(x.data.iter().map(|v| (255.0 * (v / 2.0 + 0.5).clamp(0.0, 1.0)).round_ties_even() as u8).collect())
    }
}
