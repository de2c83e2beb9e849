//! What the codes of an SVDQuant linear mean.

use super::codes::unpack_codes_to;
use super::fp4::unpack_fp4_scales_to;
use super::vector::unpack_wscales_to;
use super::{E2M1, unpack_lora_down, unpack_lora_up, unpack_vector};
use crate::Result;
use crate::memory::{Buf, HostMemory};
use crate::ops::{Codes, DenseSource, Storage, SvdqSource};

/// The quantised part of a linear: weight `[row, col]` is `levels[code] · scales[col/group][row]`, where `code` is the low
/// four bits of `codes[row][col]`.
pub struct Unpacked {
    /// `[n, k]`, -8..=7.
    pub codes: Buf<i8>,
    /// `[k/group, n]`, whole: scales of the tensor and of channels are in them.
    pub scales: Buf<f32>,
    /// The value of every code.
    pub levels: [f32; 16],
    /// Input channels that share a scale.
    pub group: usize,
    n: usize,
    k: usize,
}

const INT4: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0];

impl Unpacked {
    /// Unpacks codes and scales into `memory`.
    ///
    /// # Errors
    /// [`crate::Error::OutOfHostMemory`]
    pub fn of(memory: &HostMemory, source: &SvdqSource<'_>) -> Result<Self> {
        let (n, k, group) = (source.n, source.k, source.codes.group());
        let mut scales = Buf::zeroed(memory, n * (k / group), "unpacked scales")?;
        let levels = match &source.codes {
            Codes::Int4 => {
                unpack_wscales_to(&source.wscales, n, k, &mut scales);
                INT4
            }
            Codes::Fp4 { channel_scales } => {
                unpack_fp4_scales_to(&source.wscales, n, k, &mut scales);
                for group in scales.chunks_exact_mut(n) {
                    group.iter_mut().zip(channel_scales).for_each(|(scale, channel)| *scale *= channel);
                }
                E2M1
            }
        };
        let mut codes = Buf::zeroed(memory, n * k, "unpacked weights")?;
        unpack_codes_to(&source.qweight, n, k, &mut codes);
        Ok(Unpacked { codes, scales, levels, group, n, k })
    }

    /// Writes the weights of output channel `row`: those of the smoothed input, without the low-rank branch.
    pub fn row(&self, row: usize, weights: &mut [f32]) {
        let codes = self.codes[row * self.k..][..self.k].chunks(self.group);
        for (g, (weights, codes)) in weights.chunks_mut(self.group).zip(codes).enumerate() {
            let scale = self.scales[g * self.n + row];
            for (w, &code) in weights.iter_mut().zip(codes) {
                *w = self.levels[usize::from(code as u8 & 15)] * scale;
            }
        }
    }
}

/// The linear as a dense one, in `memory`: `Q(W') / smooth + B A`, and its bias. Not for unsigned inputs, whose shift is in
/// the bias.
///
/// # Errors
/// [`crate::Error::OutOfHostMemory`]
pub fn unpack_svdq(memory: &HostMemory, source: &SvdqSource<'_>) -> Result<DenseSource<'static>> {
    assert!(!source.unsigned, "the bias of an unsigned linear is not that of a dense one");
    let (n, k, rank) = (source.n, source.k, source.rank);
    let unpacked = Unpacked::of(memory, source)?;
    let smooth = unpack_vector(&source.smooth);
    let down = unpack_lora_down(memory, &source.lora_down, k, rank)?;
    let up = unpack_lora_up(memory, &source.lora_up, n, rank)?;
    let mut weight = Buf::zeroed(memory, n * k, "unpacked weights")?;
    for (row, weights) in weight.chunks_exact_mut(k).enumerate() {
        unpacked.row(row, weights);
        weights.iter_mut().zip(&smooth).for_each(|(w, s)| *w /= s);
        for (r, &b) in up[row * rank..][..rank].iter().enumerate() {
            weights.iter_mut().zip(&down[r * k..][..k]).for_each(|(w, a)| *w += b * a);
        }
    }
    let bias = unpack_vector(&source.bias);
    Ok(DenseSource { n, k, weight: weight.into(), bias, storage: Storage::F32 })
}
