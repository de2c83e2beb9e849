//! Linears: their weights, the rows that are ready for them, and their products. The kinds of weights are files of
//! their own.

use super::dense::{Awq, Dense};
use super::generic::Output;
use super::memory::Range;
use super::tensor::Elements;
use super::{Cuda, Tensor, w4a8};
use crate::Result;
use crate::ops::{Activation, LinearSource};

/// The weights of a linear.
pub struct Linear {
    pub(super) n: usize,
    pub(super) k: usize,
    weights: Weights,
}

enum Weights {
    Dense(Dense),
    Awq(Awq),
    W4A8(w4a8::Weights),
}

/// Rows made ready for one linear.
pub struct Input {
    pub(super) rows: usize,
    data: Rows,
}

enum Rows {
    /// `[rows, k]` bf16
    Dense(Range),
    W4A8(w4a8::Rows),
}

/// What is done with `linear(x)`, beside an activation.
#[derive(Clone, Copy)]
pub(super) enum Target {
    Store(Elements),
    /// Stored in rows of so many elements.
    Columns(Elements, usize),
    /// Stored after multiplication with a bf16 tensor.
    Mul(Elements, u64),
    /// Added after multiplication with a bf16 vector, if any.
    Add(Elements, u64),
}

impl Target {
    /// For the dense products: `act` of a sum of `n` columns and the bias, if any.
    pub(super) fn output(self, n: usize, act: Activation, bias: u64) -> Output {
        let store = |out| Output::store(out, n, bias, act);
        match self {
            Target::Store(out) => store(out),
            Target::Columns(out, cols) => Output { pitch: cols as i32, ..store(out) },
            Target::Mul(out, by) => Output { by, ..store(out) },
            Target::Add(out, gate) => Output { add: out, gate, ..store(out) },
        }
    }
}

impl Cuda {
    pub(super) fn load(&self, source: &LinearSource<'_>) -> Result<Linear> {
        let [n, k] = source.shape();
        let weights = match source {
            LinearSource::Dense(source) => Weights::Dense(Dense::load(self, source)?),
            LinearSource::Awq(source) => Weights::Awq(Awq::load(self, source)?),
            LinearSource::Svdq(source) => Weights::W4A8(w4a8::Weights::load(self, source)?),
        };
        Ok(Linear { n, k, weights })
    }

    /// Makes `rows` rows of `x`, `[rows, w.k]` bf16, ready, after `(x - mean) / deviation · scale + shift` if a
    /// scale and a shift are given (bf16 vectors).
    pub(super) fn quantize(&self, x: u64, rows: usize, norm: Option<[u64; 2]>, w: &Linear) -> Result<Input> {
        let data = match &w.weights {
            Weights::W4A8(w) => Rows::W4A8(w.quantize(self, x, rows, norm)?),
            Weights::Dense(_) | Weights::Awq(_) => panic!("only the input of a 4-bit linear is quantised"),
        };
        Ok(Input { rows, data })
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
        let output = |bias| target.output(w.n, act, bias);
        match (&x.data, &w.weights) {
            (Rows::Dense(data), Weights::Dense(w)) => w.apply(self, data.at(), x.rows, output),
            (Rows::Dense(data), Weights::Awq(w)) => w.apply(self, data.at(), x.rows, output),
            (Rows::W4A8(data), Weights::W4A8(w)) => {
                assert!(act == Activation::None, "no model has an activation here, but for fc1's GELU");
                w.apply(self, data, target)
            }
            _ => panic!("the input was made ready for a linear of another kind"),
        }
    }

    /// The 4-bit `linear_qkv` with heads of 128 channels; `norms` are bf16, `rope` pairs of fp16.
    pub(super) fn apply_qkv(&self, x: &Input, w: &Linear, out: u64, norms: u64, rope: u64) -> Result<()> {
        match (&x.data, &w.weights) {
            (Rows::W4A8(x), Weights::W4A8(w)) => w.qkv(self, x, out, norms, rope),
            _ => panic!("the input was made ready for a linear of another kind"),
        }
    }

    /// The 4-bit `linear_gelu`.
    pub(super) fn apply_gelu(&self, x: &Input, w: &Linear, next: &Linear) -> Result<Input> {
        let data = match (&x.data, &w.weights, &next.weights) {
            (Rows::W4A8(x), Weights::W4A8(w), Weights::W4A8(next)) => Rows::W4A8(w.gelu(self, x, next)?),
            _ => panic!("the input or the next linear is of another kind"),
        };
        Ok(Input { rows: x.rows, data })
    }
}

impl Linear {
    /// Whether its input is quantised.
    pub(super) fn is_quantized(&self) -> bool {
        matches!(self.weights, Weights::W4A8(_))
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
