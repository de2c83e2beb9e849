//! 4-bit linears on the 8-bit tensor cores of compute capability 9.0. In profile W4A8 weights are folded into int8 and
//! activations quantised to 8 bits; in W4A4, exact to the checkpoint, both keep their 4-bit codes and group scales.

use super::Cuda;
use super::hopper::{self, Kernels, Quantized};
use super::linear::{Epilogue, Target};
use super::low_rank::{self, Part, Update};
use super::memory::Range;
use super::quantize::{QuantizeParams, Rows};
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
    /// Its low-rank branch, and the memory of that.
    own: Part,
    _own: [Range; 2],
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
        let reciprocal = || Ok(Vec::from_iter(pack::unpack_vector(&source.smooth).iter().map(|v| 1.0 / v)));
        let (down, up) = (low_rank::own_down(cuda, source)?, low_rank::own_up(cuda, source)?);
        let [down_at, up_at] = [&down, &up].map(Range::at);
        Ok(Weights {
            profile,
            n,
            k,
            held,
            bias: cuda.constant_of(2 * n, || Ok(pack::f32_to_bf16(&pack::unpack_vector(&source.bias))))?,
            reciprocal: cuda.constant_of(k, reciprocal)?,
            own: Part { rank, strength: 1.0, rows: [0, n], down: down_at, up: up_at },
            _own: [down, up],
            unsigned,
        })
    }

    /// [`Cuda::quantize`]
    pub(super) fn quantize(
        &self,
        cuda: &Cuda,
        x: u64,
        rows: usize,
        norm: Option<[u64; 2]>,
        updates: &[Update<'_>],
    ) -> Result<Rows> {
        assert!(!self.unsigned, "the input of fc2 is made by linear_gelu");
        let [scale, shift] = norm.unwrap_or_default();
        let parts = low_rank::parts(self.own, updates)?;
        let rank = low_rank::rank(&parts);
        let groups = if self.profile == Profile::W4A4 { self.k / 64 } else { 1 };
        let (codes, scales) = (cuda.temporary(rows * self.k)?, cuda.temporary(groups * rows * 4)?);
        let lora = cuda.temporary(rows * rank * 2)?;
        // What is projected down, if that is not x itself.
        let normed = match norm.is_some() && rank > 0 {
            true => Some(cuda.temporary(rows * self.k * 2)?),
            false => None,
        };
        let h = normed.as_ref().map(Range::at);
        kernels(cuda).quantizer(self.profile).quantize(&QuantizeParams {
            x,
            scale,
            shift,
            reciprocal: self.reciprocal.at(),
            xq: codes.at(),
            xs: scales.at(),
            lora: 0,
            h: h.unwrap_or_default(),
            m: rows as i32,
            k: self.k as i32,
            rank: 0,
            parts: low_rank::down_parts(&[], |_| 0),
        })?;
        kernels(cuda).project_down.run(h.unwrap_or(x), [rows, self.k], &parts, lora.at())?;
        Ok(Rows { count: rows, codes, scales, lora, rank })
    }

    /// `linear(x)` and `target`.
    pub(super) fn apply(&self, cuda: &Cuda, x: &Rows, updates: &[Update<'_>], target: Target) -> Result<()> {
        self.product(cuda, x, updates, &target.epilogue())
    }

    /// [`Cuda::apply_gelu`]
    pub(super) fn gelu(
        &self,
        cuda: &Cuda,
        x: &Rows,
        updates: &[Update<'_>],
        (next, next_updates): (&Weights, &[Update<'_>]),
    ) -> Result<Rows> {
        assert!(next.unsigned, "the kernel shifts what it codes");
        let parts = low_rank::parts(next.own, next_updates)?;
        let (rows, rank, blocks) = (x.count, low_rank::rank(&parts), self.n.div_ceil(256));
        let groups = if self.profile == Profile::W4A4 { self.n / 64 } else { blocks };
        let (codes, scales) = (cuda.temporary(rows * self.n)?, cuda.temporary(groups * rows * 4)?);
        let lora = cuda.temporary(rows * rank * 2)?;
        let grid = kernels(cuda).gelu_grid(rows, self.n);
        let partials = cuda.temporary(grid.sums(rows, rank) * 4)?;
        let epilogue = Epilogue::Gelu {
            codes: codes.at(),
            scales: scales.at(),
            reciprocal: next.reciprocal.at(),
            parts: &parts,
            partials: partials.at(),
        };
        self.product(cuda, x, updates, &epilogue)?;
        kernels(cuda).project_down.sum(partials.at(), lora.at(), grid.slots, rows, &parts)?;
        Ok(Rows { count: rows, codes, scales, lora, rank })
    }

    /// The product with the updates, and what `epilogue` makes of it.
    pub(super) fn product(
        &self,
        cuda: &Cuda,
        x: &Rows,
        updates: &[Update<'_>],
        epilogue: &Epilogue<'_>,
    ) -> Result<()> {
        let Weights { profile, n, k, unsigned, .. } = *self;
        let parts = low_rank::parts(self.own, updates)?;
        assert_eq!(x.rank, low_rank::rank(&parts), "the input was made ready for other updates");
        let bias = low_rank::bias_bf16(cuda, &self.bias, n, updates)?;
        let bias = bias.as_ref().unwrap_or(&self.bias);
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
        let weights = hopper::Weights { profile, n, k, codes, scales, bias, parts: &parts };
        let Rows { count, ref codes, ref scales, ref lora, .. } = *x;
        let x = Quantized { rows: count, codes, scales, lora, unsigned };
        kernels(cuda).linear(&x, &weights, epilogue)
    }
}
