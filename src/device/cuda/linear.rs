//! Linears: their weights, the rows that are ready for them, and their products.

use super::generic::{LinearParams, Output, W4A16Params};
use super::hopper::{self, Epilogue, MAX_QUANTIZED, QuantizeParams, Quantized};
use super::memory::Range;
use super::tensor::Elements;
use super::{Cuda, Tensor};
use crate::ops::{Activation, AwqSource, Codes, DenseSource, LinearSource, SvdqSource};
use crate::weights::pack;
use crate::{Error, Result};

/// The weights of a linear.
pub struct Linear {
    pub(super) n: usize,
    pub(super) k: usize,
    weights: Weights,
}

enum Weights {
    Dense {
        /// `[n, k]` bf16
        weight: Range,
        /// `[n]` f32
        bias: Option<Range>,
    },
    Awq {
        codes: Range,
        /// `[k/64, n]` bf16
        scales: Range,
        /// `[k/64, n]` bf16
        zeros: Range,
        /// `[n]` f32, in the order of the result
        bias: Range,
        chunks: usize,
    },
    W4A8(W4A8),
}

/// A 4-bit linear with its weights folded into int8.
struct W4A8 {
    /// `[n, k]` int8
    codes: Range,
    /// `[n]` f32
    scales: Range,
    /// `[n]` bf16
    bias: Range,
    /// `[k]` f32: 1 / smooth
    reciprocal: Range,
    rank: usize,
    /// `[rank, k]` bf16
    down: Range,
    /// `[n, rank]` bf16
    up: Range,
    unsigned: bool,
}

/// Rows made ready for one linear.
pub struct Input {
    pub(super) rows: usize,
    data: Rows,
}

enum Rows {
    /// `[rows, k]` bf16
    Dense(Range),
    W4A8 {
        codes: Range,
        scales: Range,
        /// `[rows, rank]` bf16
        lora: Range,
    },
}

/// What is done with `linear(x)`, beside an activation.
pub(super) enum Target {
    Store(Elements),
    /// Stored after multiplication with a bf16 tensor.
    Mul(Elements, u64),
    /// Added after multiplication with a bf16 vector, if any.
    Add(Elements, u64),
}

impl Cuda {
    pub(super) fn load(&self, source: &LinearSource<'_>) -> Result<Linear> {
        let [n, k] = source.shape();
        let weights = match source {
            LinearSource::Dense(source) => self.load_dense(source)?,
            LinearSource::Awq(source) => self.load_awq(source)?,
            LinearSource::Svdq(source) => Weights::W4A8(self.load_svdq(source)?),
        };
        Ok(Linear { n, k, weights })
    }

    fn load_dense(&self, source: &DenseSource) -> Result<Weights> {
        let bias = match source.bias.as_slice() {
            [] => None,
            bias => Some(self.constant(bias)?),
        };
        Ok(Weights::Dense { weight: self.constant(&pack::f32_to_bf16(&source.weight))?, bias })
    }

    fn load_awq(&self, source: &AwqSource<'_>) -> Result<Weights> {
        let AwqSource { n, chunks, .. } = *source;
        let mut bias = vec![0.0; n];
        for (row, value) in pack::bf16_to_f32(&source.bias).enumerate() {
            bias[row % chunks * (n / chunks) + row / chunks] = value;
        }
        Ok(Weights::Awq {
            codes: self.constant(source.qweight)?,
            scales: self.constant(source.wscales)?,
            zeros: self.constant(source.wzeros)?,
            bias: self.constant(&bias)?,
            chunks,
        })
    }

    fn load_svdq(&self, source: &SvdqSource<'_>) -> Result<W4A8> {
        let SvdqSource { n, k, rank, unsigned, .. } = *source;
        if source.codes != Codes::Int4 {
            return Err(Error::Unsupported(
                "NVFP4 weights on the GPU: this version runs them on the CPU only".into(),
            ));
        }
        if !unsigned && k > MAX_QUANTIZED {
            return Err(Error::Unsupported(format!(
                "a 4-bit linear with {k} input channels: the GPU's kernels take up to {MAX_QUANTIZED}"
            )));
        }
        let (qweight, wscales) = (self.temporary(n * k / 2)?, self.temporary(n * k / 64 * 2)?);
        qweight.write(&source.qweight)?;
        wscales.write(&source.wscales)?;
        let (codes, scales) = (self.weights.take(n * k)?, self.weights.take(n * 4)?);
        let unpacked = [codes.at(), scales.at()];
        self.gpu.hopper.unpack([qweight.at(), wscales.at()], unpacked, [n, k])?;
        let reciprocal: Vec<f32> = pack::unpack_vector(&source.smooth).iter().map(|v| 1.0 / v).collect();
        let matrix = |values: Vec<f32>| self.constant(&pack::f32_to_bf16(&values));
        Ok(W4A8 {
            codes,
            scales,
            bias: matrix(pack::unpack_vector(&source.bias))?,
            reciprocal: self.constant(&reciprocal)?,
            rank,
            down: matrix(pack::unpack_lora_down(&source.lora_down, k, rank))?,
            up: matrix(pack::unpack_lora_up(&source.lora_up, n, rank))?,
            unsigned,
        })
    }

    /// Makes `rows` rows of `x`, `[rows, w.k]` bf16, ready, after `(x - mean) / deviation · scale + shift` if a
    /// scale and a shift are given (bf16 vectors).
    pub(super) fn quantize(&self, x: u64, rows: usize, norm: Option<[u64; 2]>, w: &Linear) -> Result<Input> {
        let Weights::W4A8(svdq) = &w.weights else {
            panic!("only the input of a 4-bit linear is quantised");
        };
        assert!(!svdq.unsigned, "the input of fc2 is made by linear_gelu");
        let [scale, shift] = norm.unwrap_or_default();
        let (codes, scales) = (self.temporary(rows * w.k)?, self.temporary(rows * 4)?);
        let lora = self.temporary(rows * svdq.rank * 2)?;
        self.gpu.hopper.quantize(&QuantizeParams {
            x,
            scale,
            shift,
            reciprocal: svdq.reciprocal.at(),
            down: svdq.down.at(),
            xq: codes.at(),
            xs: scales.at(),
            lora: lora.at(),
            m: rows as i32,
            k: w.k as i32,
            rank: svdq.rank as i32,
        })?;
        Ok(Input { rows, data: Rows::W4A8 { codes, scales, lora } })
    }

    /// `[rows, k]` bf16, ready for a linear whose activations are not quantised.
    pub(super) fn dense_input(rows: usize, h: Range) -> Input {
        Input { rows, data: Rows::Dense(h) }
    }

    /// `linear(x)`, then `act` and `target`.
    pub(super) fn apply(&self, x: &Input, w: &Linear, act: Activation, target: Target) -> Result<()> {
        if x.rows == 0 {
            return Ok(());
        }
        let output = |bias: u64| {
            let store = |out| Output::store(out, w.n, bias, act);
            match target {
                Target::Store(out) => store(out),
                Target::Mul(out, by) => Output { by, ..store(out) },
                Target::Add(out, gate) => Output { add: out, gate, ..store(out) },
            }
        };
        let (m, n, k) = (x.rows as i32, w.n as i32, w.k as i32);
        match (&x.data, &w.weights) {
            (Rows::Dense(x), Weights::Dense { weight, bias }) => {
                let output = output(bias.as_ref().map_or(0, Range::at));
                self.gpu.generic.linear(&LinearParams { x: x.at(), w: weight.at(), m, n, k, output })
            }
            (Rows::Dense(x), Weights::Awq { codes, scales, zeros, bias, chunks }) => {
                self.gpu.generic.linear_w4a16(&W4A16Params {
                    x: x.at(),
                    codes: codes.at(),
                    scales: scales.at(),
                    zeros: zeros.at(),
                    m,
                    n,
                    k,
                    group: 64,
                    chunks: *chunks as i32,
                    output: output(bias.at()),
                })
            }
            (Rows::W4A8 { .. }, Weights::W4A8(_)) => match (target, act) {
                (Target::Store(out), Activation::None) => {
                    self.apply_w4a8(x, w, &Epilogue::Store { out: out.data })
                }
                (Target::Add(out, gate), Activation::None) => {
                    assert!(out.f32 == 0 && gate != 0, "the kernel adds to bf16, through a gate");
                    self.apply_w4a8(x, w, &Epilogue::Add { out: out.data, gate })
                }
                _ => panic!("no model has an activation after a 4-bit linear, but for fc1's GELU"),
            },
            _ => panic!("the input was made ready for a linear of another kind"),
        }
    }

    fn apply_w4a8(&self, x: &Input, w: &Linear, epilogue: &Epilogue) -> Result<()> {
        let (Rows::W4A8 { codes, scales, lora }, Weights::W4A8(svdq)) = (&x.data, &w.weights) else {
            panic!("the input was made ready for a linear of another kind");
        };
        let x = Quantized { rows: x.rows, codes, scales, lora, blocked: svdq.unsigned };
        self.gpu.hopper.linear(&x, &svdq.weights(w.n, w.k), epilogue)
    }

    /// The 4-bit `linear_qkv` with heads of 128 channels; `norms` are bf16, `rope` pairs of fp16.
    pub(super) fn apply_qkv(&self, x: &Input, w: &Linear, out: u64, norms: u64, rope: u64) -> Result<()> {
        self.apply_w4a8(x, w, &Epilogue::Qkv { out, norms, rope })
    }

    /// The 4-bit `linear_gelu`.
    pub(super) fn apply_gelu(&self, x: &Input, w: &Linear, next: &Linear) -> Result<Input> {
        let Weights::W4A8(svdq) = &next.weights else { panic!("the next linear is not a 4-bit one") };
        assert!(svdq.unsigned, "only fc2 follows a GELU");
        let (rows, blocks) = (x.rows, w.n.div_ceil(256));
        let (codes, scales) = (self.temporary(rows * w.n)?, self.temporary(blocks * rows * 4)?);
        let lora = self.temporary(rows * svdq.rank * 2)?;
        let partials = self.temporary(blocks * rows * svdq.rank * 4)?;
        let epilogue = Epilogue::Gelu {
            codes: codes.at(),
            scales: scales.at(),
            reciprocal: svdq.reciprocal.at(),
            down: svdq.down.at(),
            rank: svdq.rank,
            partials: partials.at(),
        };
        self.apply_w4a8(x, w, &epilogue)?;
        self.gpu.hopper.sum_low_rank(partials.at(), lora.at(), blocks, rows * svdq.rank)?;
        Ok(Input { rows, data: Rows::W4A8 { codes, scales, lora } })
    }
}

impl Linear {
    /// Whether its input is quantised.
    pub(super) fn is_quantized(&self) -> bool {
        matches!(self.weights, Weights::W4A8(_))
    }
}

impl W4A8 {
    fn weights(&self, n: usize, k: usize) -> hopper::Weights<'_> {
        hopper::Weights {
            n,
            k,
            rank: self.rank,
            codes: &self.codes,
            scales: &self.scales,
            bias: &self.bias,
            up: &self.up,
        }
    }
}

/// A tensor's rows as bf16: itself, or a copy.
pub(super) enum Bf16<'a> {
    Same(&'a Tensor),
    Copy(Range),
}

impl Bf16<'_> {
    /// Where row `row` begins.
    pub(super) fn at(&self, row: usize) -> u64 {
        match self {
            Bf16::Same(tensor) => tensor.at(row, 0).data,
            Bf16::Copy(range) => range.at(),
        }
    }
}
