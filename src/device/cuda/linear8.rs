//! 4-bit linears on the 8-bit tensor cores of compute capability 9.0. In profile W4A8 weights are folded into int8 and
//! activations quantised to 8 bits; in W4A4, exact to the checkpoint, both keep their 4-bit codes and group scales.

use super::Cuda;
use super::hopper::{self, Kernels, Quantized};
use super::linear::{Epilogue, Target};
use super::memory::Range;
use super::quantize::QuantizeParams;
use super::stored::Residency;
use crate::Result;
use crate::ops::{Codes, Profile, SvdqSource};
use crate::weights::pack;

/// The weights of a linear.
pub(super) struct Weights {
    profile: Profile,
    n: usize,
    k: usize,
    held: Held,
    /// `[n]` bf16
    bias: Range,
    /// `[k]` f32: 1 / smooth
    reciprocal: Range,
    rank: usize,
    /// `[rank, k]` bf16
    down: Range,
    /// `[n, rank]` bf16
    up: Range,
    /// The input comes from a GELU, whose results are shifted.
    pub(super) unsigned: bool,
}

/// The codes of all weights, and their scales.
enum Held {
    /// As [`hopper::Weights`] has them.
    Ready([Range; 2]),
    /// As the checkpoint has them: they are unpacked for each product.
    Packed(Packed),
}

struct Packed {
    codes: Range,
    scales: Range,
    /// NVFP4: `[n]` f32
    channels: Option<Range>,
    /// W4A8: `[n]` f32, of the int8 codes
    row_scales: Option<Range>,
}

impl Packed {
    /// Unpacks to `codes`, and in W4A4 to `scales`; those of W4A8 are there already.
    fn unpack(
        &self,
        cuda: &Cuda,
        profile: Profile,
        [codes, scales]: [&Range; 2],
        shape: [usize; 2],
    ) -> Result<()> {
        let (from, to) = ([self.codes.at(), self.scales.at()], [codes.at(), scales.at()]);
        match profile {
            Profile::W4A4 => kernels(cuda).unpack_exact(from, to, shape),
            _ => kernels(cuda).unpack(from, self.channels.as_ref().map(Range::at), to, shape),
        }
    }
}

/// Rows made ready for a linear.
pub(super) struct Rows {
    count: usize,
    /// As [`Quantized`] has them
    codes: Range,
    scales: Range,
    /// `[count, rank]` bf16
    lora: Range,
}

/// The kernels that this family's weights were loaded for.
fn kernels(cuda: &Cuda) -> &Kernels {
    let Some(kernels) = &cuda.gpu.hopper else { panic!("weights for Hopper on another GPU") };
    kernels
}

impl Weights {
    pub(super) fn load(cuda: &Cuda, source: &SvdqSource<'_>) -> Result<Self> {
        let SvdqSource { n, k, rank, unsigned, .. } = *source;
        let profile = cuda.profile;
        if !unsigned {
            kernels(cuda).quantizer(profile).check(k)?;
        }
        // Packed weights are temporaries if they are unpacked for good.
        let for_good = cuda.residency == Residency::Ready;
        let place = |bytes: &[u8]| if for_good { cuda.staged(bytes) } else { cuda.constant(bytes) };
        let mut packed = Packed {
            codes: place(&source.qweight)?,
            scales: place(&source.wscales)?,
            channels: match &source.codes {
                Codes::Int4 => None,
                Codes::Fp4 { channel_scales } if for_good => Some(cuda.staged(channel_scales)?),
                Codes::Fp4 { channel_scales } => Some(cuda.constant(channel_scales)?),
            },
            row_scales: None,
        };
        if profile != Profile::W4A4 {
            let (from, scales) = ([packed.codes.at(), packed.scales.at()], cuda.weights.take(n * 4)?);
            let channels = packed.channels.as_ref().map(Range::at);
            kernels(cuda).unpack_scales(from, channels, scales.at(), [n, k])?;
            packed.row_scales = Some(scales);
        }
        let held = if for_good {
            let codes = cuda.weights.take(n * k)?;
            let scales = match packed.row_scales.take() {
                Some(scales) => scales,
                None => cuda.weights.take(n * k / 64 * 4)?,
            };
            packed.unpack(cuda, profile, [&codes, &scales], [n, k])?;
            Held::Ready([codes, scales])
        } else {
            Held::Packed(packed)
        };
        let reciprocal = || pack::unpack_vector(&source.smooth).iter().map(|v| 1.0 / v).collect::<Vec<f32>>();
        Ok(Weights {
            profile,
            n,
            k,
            held,
            bias: cuda.constant_of(2 * n, || pack::f32_to_bf16(&pack::unpack_vector(&source.bias)))?,
            reciprocal: cuda.constant_of(k, reciprocal)?,
            rank,
            down: cuda.constant_of(rank * k, || pack::unpack_lora_down_bf16(&source.lora_down, k, rank))?,
            up: cuda.constant_of(n * rank, || pack::unpack_lora_up_bf16(&source.lora_up, n, rank))?,
            unsigned,
        })
    }

    /// [`Cuda::quantize`]
    pub(super) fn quantize(&self, cuda: &Cuda, x: u64, rows: usize, norm: Option<[u64; 2]>) -> Result<Rows> {
        assert!(!self.unsigned, "the input of fc2 is made by linear_gelu");
        let [scale, shift] = norm.unwrap_or_default();
        let groups = if self.profile == Profile::W4A4 { self.k / 64 } else { 1 };
        let (codes, scales) = (cuda.temporary(rows * self.k)?, cuda.temporary(groups * rows * 4)?);
        let lora = cuda.temporary(rows * self.rank * 2)?;
        kernels(cuda).quantizer(self.profile).quantize(&QuantizeParams {
            x,
            scale,
            shift,
            reciprocal: self.reciprocal.at(),
            down: self.down.at(),
            xq: codes.at(),
            xs: scales.at(),
            lora: lora.at(),
            m: rows as i32,
            k: self.k as i32,
            rank: self.rank as i32,
        })?;
        Ok(Rows { count: rows, codes, scales, lora })
    }

    /// `linear(x)` and `target`.
    pub(super) fn apply(&self, cuda: &Cuda, x: &Rows, target: Target) -> Result<()> {
        self.product(cuda, x, &target.epilogue())
    }

    /// [`Cuda::apply_qkv`]
    pub(super) fn qkv(&self, cuda: &Cuda, x: &Rows, out: u64, norms: u64, rope: u64) -> Result<()> {
        self.product(cuda, x, &Epilogue::Qkv { out, norms, rope })
    }

    /// [`Cuda::apply_gelu`]
    pub(super) fn gelu(&self, cuda: &Cuda, x: &Rows, next: &Weights) -> Result<Rows> {
        assert!(next.unsigned, "the kernel shifts what it codes");
        let (rows, rank, blocks) = (x.count, next.rank, self.n.div_ceil(256));
        let groups = if self.profile == Profile::W4A4 { self.n / 64 } else { blocks };
        let (codes, scales) = (cuda.temporary(rows * self.n)?, cuda.temporary(groups * rows * 4)?);
        let lora = cuda.temporary(rows * rank * 2)?;
        let partials = cuda.temporary(blocks * rows * rank * 4)?;
        let epilogue = Epilogue::Gelu {
            codes: codes.at(),
            scales: scales.at(),
            reciprocal: next.reciprocal.at(),
            down: next.down.at(),
            rank,
            partials: partials.at(),
        };
        self.product(cuda, x, &epilogue)?;
        kernels(cuda).quantizer(self.profile).sum_low_rank(partials.at(), lora.at(), blocks, rows * rank)?;
        Ok(Rows { count: rows, codes, scales, lora })
    }

    fn product(&self, cuda: &Cuda, x: &Rows, epilogue: &Epilogue) -> Result<()> {
        let Weights { profile, n, k, rank, ref bias, ref up, unsigned, .. } = *self;
        let (unpacked, group_scales);
        let [codes, scales] = match &self.held {
            Held::Ready(ready) => ready.each_ref(),
            Held::Packed(packed) => {
                unpacked = cuda.temporary(n * k)?;
                let scales = match &packed.row_scales {
                    Some(scales) => scales,
                    None => {
                        group_scales = cuda.temporary(n * k / 64 * 4)?;
                        &group_scales
                    }
                };
                packed.unpack(cuda, profile, [&unpacked, scales], [n, k])?;
                [&unpacked, scales]
            }
        };
        let weights = hopper::Weights { profile, n, k, rank, codes, scales, bias, up };
        let Rows { count, ref codes, ref scales, ref lora } = *x;
        let x = Quantized { rows: count, codes, scales, lora, unsigned };
        kernels(cuda).linear(&x, &weights, epilogue)
    }
}
