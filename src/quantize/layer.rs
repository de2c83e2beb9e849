//! One linear of the transformer, from its dense weights to the tensors of the file.

use crate::Result;
use crate::ops::DenseSource;
use crate::weights::flux::Part;
use crate::weights::pack::{
    f32_to_bf16, pack_awq_codes, pack_codes, pack_lora_down, pack_lora_up, pack_vector, pack_wscales,
};

use super::inputs::Inputs;
use super::matrix::Matrix;
use super::round::GROUP;
use super::{QuantizeOptions, awq, svdq};

/// A quantised linear.
pub(super) struct Layer {
    /// Suffix and bytes of each tensor, in the order of [`crate::weights::inventory`].
    pub(super) tensors: Vec<(&'static str, Vec<u8>)>,
    /// How well it matches the dense one, in dB.
    pub(super) sqnr_db: f64,
}

/// Quantises a linear; a modulation has `chunks` chunks.
///
/// # Errors
/// [`crate::Error::OutOfHostMemory`]
pub(super) fn quantize(
    dense: DenseSource<'_>,
    part: Part,
    chunks: usize,
    inputs: &Inputs,
    options: &QuantizeOptions,
) -> Result<Layer> {
    match part {
        Part::Modulation => modulation(dense, chunks, inputs, options.threads()),
        _ => low_rank(dense, part, inputs, options),
    }
}

fn modulation(dense: DenseSource<'_>, chunks: usize, inputs: &Inputs, threads: usize) -> Result<Layer> {
    let DenseSource { n, k, weight, bias, .. } = dense;
    let awq =
        awq::quantize(&Matrix::new(n, k, weight.into_values()?.to_vec()), &bias, chunks, inputs, threads);
    let tensors = vec![
        ("qweight", pack_awq_codes(&awq.codes, n, k)),
        ("wscales", f32_to_bf16(&awq.scales)),
        ("wzeros", f32_to_bf16(&awq.zeros)),
        ("bias", f32_to_bf16(&awq.bias)),
    ];
    Ok(Layer { tensors, sqnr_db: awq.sqnr_db })
}

fn low_rank(dense: DenseSource<'_>, part: Part, inputs: &Inputs, options: &QuantizeOptions) -> Result<Layer> {
    let DenseSource { n, k, weight, mut bias, .. } = dense;
    bias.resize(n, 0.0); // the out projection of a single block has none of its own
    let dense = svdq::Dense {
        weight: Matrix::new(n, k, weight.into_values()?.to_vec()),
        bias: &bias,
        input_rms: &inputs.rms(part, k),
        shifted: part == Part::Fc2,
    };
    let svdq = svdq::quantize(dense, options.rank, options.rounds, options.threads());
    let groups = k / GROUP;
    let scales: Vec<f32> =
        (0..groups).flat_map(|g| svdq.scales.chunks_exact(groups).map(move |row| row[g])).collect();
    let smooth = pack_vector(&svdq.smooth);
    let tensors = vec![
        ("qweight", pack_codes(&svdq.codes, n, k)),
        ("wscales", pack_wscales(&scales, n, k)),
        ("bias", pack_vector(&svdq.bias)),
        ("smooth", smooth.clone()),
        ("smooth_orig", smooth),
        ("lora_down", pack_lora_down(&svdq.down.data, k, options.rank)),
        ("lora_up", pack_lora_up(&svdq.up.data, n, options.rank)),
    ];
    Ok(Layer { tensors, sqnr_db: svdq.sqnr_db })
}
