//! Linears: their weights, the rows that are ready for them, and their products. The kinds of weights are files of
//! their own.

use super::choice::{self, Family};
use super::dense::{Awq, Dense};
use super::generic::Output;
use super::low_rank::Part;
use super::memory::Range;
use super::tensor::Elements;
use super::{Cuda, Tensor, linear4, linear8, quantize, w4a16};
use crate::Result;
use crate::ops::{Activation, Codes, Layer, LinearSource, SvdqSource, Usage};

/// The weights of a linear.
pub struct Linear {
    pub(super) n: usize,
    pub(super) k: usize,
    weights: Weights,
}

enum Weights {
    Dense(Dense),
    Awq(Awq),
    Linear8(linear8::Weights),
    W4A16(w4a16::Weights),
    Linear4(linear4::Weights),
}

/// Rows made ready for one linear.
pub struct Input {
    pub(super) rows: usize,
    data: Rows,
}

enum Rows {
    /// `[rows, k]` bf16
    Dense(Range),
    Linear8(quantize::Rows),
    W4A16(w4a16::Rows),
    Linear4(quantize::Rows),
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

    /// For the products of quantised rows.
    pub(super) fn epilogue(self) -> Epilogue<'static> {
        match self {
            Target::Store(out) => Epilogue::Store { out: out.data },
            Target::Add(out, gate) => {
                assert!(out.f32 == 0 && gate != 0, "the kernels add to bf16, through a gate");
                Epilogue::Add { out: out.data, gate }
            }
            Target::Columns(..) | Target::Mul(..) => panic!("no model has this after a 4-bit linear"),
        }
    }
}

/// What the product of quantised rows does with its sums.
pub(super) enum Epilogue<'a> {
    /// Stored at `out`, `[rows, n]` bf16.
    Store { out: u64 },
    /// Added to `out` after multiplication with `gate`, `[n]` bf16.
    Add { out: u64, gate: u64 },
    /// Stored at `out`; heads of q and k normalised with `norms` (`[2, 128]` bf16) and rotated by `rope`
    /// (`[rows, 64]` pairs of f16).
    Qkv { out: u64, norms: u64, rope: u64 },
    /// GELU, quantised to `codes` and `scales` after division by the next layer's smoothing factors, and projected by
    /// its low-rank branch to `partials` (`[tiles of columns, rows, rank of all parts]` f32). The kernels say how these
    /// lie.
    Gelu { codes: u64, scales: u64, reciprocal: u64, parts: &'a [Part], partials: u64 },
}

impl Cuda {
    pub(super) fn load(&self, usage: Usage, source: &LinearSource<'_>) -> Result<Linear> {
        let [n, k] = source.shape();
        let weights = match source {
            LinearSource::Dense(source) => Weights::Dense(Dense::load(self, usage, source)?),
            LinearSource::Awq(source) => Weights::Awq(Awq::load(self, usage, source)?),
            LinearSource::Svdq(source) => self.load_svdq(source)?,
        };
        Ok(Linear { n, k, weights })
    }

    fn load_svdq(&self, source: &SvdqSource<'_>) -> Result<Weights> {
        let nvfp4 = source.codes != Codes::Int4;
        Ok(match choice::choose(&self.gpu.context.info, nvfp4, self.profile)? {
            Family::Linear8 => Weights::Linear8(linear8::Weights::load(self, source)?),
            Family::W4A16 => Weights::W4A16(w4a16::Weights::load(self, source)?),
            Family::Linear4 => Weights::Linear4(linear4::Weights::load(self, source)?),
        })
    }

    /// Makes `rows` rows of `x`, `[rows, w.k]` bf16, ready, after `(x - mean) / deviation · scale + shift` if a
    /// scale and a shift are given (bf16 vectors).
    pub(super) fn quantize(
        &self,
        x: u64,
        rows: usize,
        norm: Option<[u64; 2]>,
        w: Layer<'_, Self>,
    ) -> Result<Input> {
        let Layer { weights, updates } = w;
        let data = match &weights.weights {
            Weights::Linear8(w) => Rows::Linear8(w.quantize(self, x, rows, norm, updates)?),
            Weights::Linear4(w) => Rows::Linear4(w.quantize(self, x, rows, norm, updates)?),
            Weights::Dense(_) | Weights::Awq(_) | Weights::W4A16(_) => panic!("the linear takes bf16"),
        };
        Ok(Input { rows, data })
    }

    /// Makes `rows` rows `h`, `[rows, w.k]` bf16, ready as they are.
    pub(super) fn ready(&self, h: Range, rows: usize, w: Layer<'_, Self>) -> Result<Input> {
        let data = match &w.weights.weights {
            Weights::W4A16(w) => Rows::W4A16(w.ready(self, h, rows)?),
            Weights::Linear8(_) | Weights::Linear4(_) => return self.quantize(h.at(), rows, None, w),
            Weights::Dense(_) | Weights::Awq(_) => Rows::Dense(h),
        };
        Ok(Input { rows, data })
    }

    /// `linear(x)`, then `act` and `target`.
    pub(super) fn apply(&self, x: &Input, w: Layer<'_, Self>, act: Activation, target: Target) -> Result<()> {
        if x.rows == 0 {
            return Ok(());
        }
        let Layer { weights: &Linear { n, k, ref weights }, updates } = w;
        assert!(updates.iter().all(|(update, _)| update.shape == [n, k]), "an update of another linear");
        let output = |bias| target.output(n, act, bias);
        match (&x.data, weights) {
            (Rows::Dense(data), Weights::Dense(w)) => w.apply(self, data.at(), x.rows, updates, output),
            (Rows::Dense(data), Weights::Awq(w)) => w.apply(self, data.at(), x.rows, updates, output),
            (Rows::W4A16(data), Weights::W4A16(w)) => w.apply(self, data, updates, act, target),
            (Rows::Linear8(data), Weights::Linear8(w)) => {
                w.apply(self, data, updates, target)?;
                self.activate(act, target, x.rows * n)
            }
            (Rows::Linear4(data), Weights::Linear4(w)) => {
                w.apply(self, data, updates, target)?;
                self.activate(act, target, x.rows * n)
            }
            _ => panic!("the input was made ready for a linear of another kind"),
        }
    }

    /// `act` of the `count` elements that a product of quantised rows stored.
    fn activate(&self, act: Activation, target: Target, count: usize) -> Result<()> {
        match (act, target) {
            (Activation::None, _) => Ok(()),
            (_, Target::Store(out)) => self.gpu.generic.convert(out, out, count, act),
            _ => panic!("no model has an activation before it adds"),
        }
    }

    /// The 4-bit `linear_qkv` with heads of 128 channels; `norms` are bf16, `rope` pairs of fp16.
    pub(super) fn apply_qkv(
        &self,
        x: &Input,
        w: Layer<'_, Self>,
        out: u64,
        norms: u64,
        rope: u64,
    ) -> Result<()> {
        let (Layer { weights, updates }, epilogue) = (w, Epilogue::Qkv { out, norms, rope });
        match (&x.data, &weights.weights) {
            (Rows::Linear8(x), Weights::Linear8(w)) => w.product(self, x, updates, &epilogue),
            (Rows::Linear4(x), Weights::Linear4(w)) => w.product(self, x, updates, &epilogue),
            _ => panic!("the input was made ready for a linear of another kind"),
        }
    }

    /// The 4-bit `linear_gelu`.
    pub(super) fn apply_gelu(&self, x: &Input, w: Layer<'_, Self>, next: Layer<'_, Self>) -> Result<Input> {
        let data = match (&x.data, &w.weights.weights, &next.weights.weights) {
            (Rows::Linear8(x), Weights::Linear8(weights), Weights::Linear8(next_weights)) => {
                Rows::Linear8(weights.gelu(self, x, w.updates, (next_weights, next.updates))?)
            }
            (Rows::Linear4(x), Weights::Linear4(weights), Weights::Linear4(next_weights)) => {
                Rows::Linear4(weights.gelu(self, x, w.updates, (next_weights, next.updates))?)
            }
            _ => panic!("the input or the next linear is of another kind"),
        };
        Ok(Input { rows: x.rows, data })
    }
}

impl Linear {
    /// Whether its input is quantised.
    pub(super) fn is_quantized(&self) -> bool {
        matches!(self.weights, Weights::Linear8(_) | Weights::Linear4(_))
    }

    /// Whether `linear_gelu` is [`Cuda::apply_gelu`] when this linear is followed by `next`.
    pub(super) fn fuses_gelu(&self, next: &Linear) -> bool {
        match (&self.weights, &next.weights) {
            (Weights::Linear8(_), Weights::Linear8(next)) => next.unsigned,
            (Weights::Linear4(_), Weights::Linear4(_)) => true,
            _ => false,
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
