//! The numbers of a LoRA file, in any of the types that they are stored in.

use std::ops::Range;

use crate::Result;
use crate::weights::float::READABLE;
use crate::weights::{Checkpoint, Dtype, Numbers, Tensor};

/// A tensor that has been read: several threads may look at its values, but files are read by one.
#[derive(Clone, Copy)]
pub(super) struct Loaded<'a> {
    pub(super) name: &'a str,
    pub(super) dtype: Dtype,
    pub(super) shape: &'a [usize],
    pub(super) bytes: &'a [u8],
}

impl<'a> Loaded<'a> {
    /// # Errors
    /// As [`Tensor::bytes`].
    pub(super) fn of(tensor: &Tensor<'a>) -> Result<Self> {
        let Tensor { name, dtype, shape, .. } = *tensor;
        Ok(Loaded { name, dtype, shape, bytes: tensor.bytes()? })
    }
}

/// Some elements of `tensor`.
///
/// # Errors
/// [`crate::Error::BadFormat`] for a type of element that LoRAs are not stored in, and for values that are not finite.
pub(super) fn values<'a>(
    file: &Checkpoint,
    tensor: &Loaded<'a>,
    elements: Range<usize>,
) -> Result<Numbers<'a>> {
    let size = tensor.dtype.bitsize() / 8;
    let bytes = &tensor.bytes[elements.start * size..elements.end * size];
    let Some(values) = Numbers::stored(file.memory(), tensor.dtype, bytes, 1.0) else {
        return Err(file.bad(tensor.name, format!("has dtype {}; {READABLE}", tensor.dtype)));
    };
    match values.first_not_finite()? {
        Some(at) => {
            let what = format!("holds {} at element {}", values.values()?[at], elements.start + at);
            Err(file.bad(tensor.name, what))
        }
        None => Ok(values),
    }
}

/// The one number of `tensor`.
///
/// # Errors
/// As [`values`]; [`crate::Error::BadFormat`] if there are more or fewer than one.
pub(super) fn number(file: &Checkpoint, tensor: &Loaded<'_>) -> Result<f32> {
    if tensor.shape.iter().any(|&d| d != 1) {
        return Err(file.bad(tensor.name, format!("has shape {:?}, one number is expected", tensor.shape)));
    }
    let number = match tensor.dtype {
        Dtype::I64 => tensor.bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b) as f32).sum(),
        Dtype::F64 => tensor.bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32).sum(),
        _ => values(file, tensor, 0..1)?.values()?[0],
    };
    match f32::is_finite(number) {
        true => Ok(number),
        false => Err(file.bad(tensor.name, format!("is {number}"))),
    }
}
