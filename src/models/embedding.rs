//! What the text encoders share: the token table and the fused projections of attention.

use crate::memory::{Buf, HostMemory};
use crate::ops::{DenseSource, Storage};
use crate::weights::float::{READABLE, decode, is_readable};
use crate::weights::{Checkpoint, Dtype, Numbers};
use crate::{Error, Result};

/// A table with a row a token id. It stays on the host, in the precision of its file: a prompt needs
/// some hundred rows of T5-XXL's 32128.
pub(super) struct Embedding {
    bytes: Buf<u8>,
    dtype: Dtype,
    /// Of FP8 values; else 1.
    scale: f32,
    rows: usize,
    cols: usize,
}

impl Embedding {
    /// Copies the tensor `name`, `[rows, cols]`, to `memory`.
    pub(super) fn load(
        memory: &HostMemory,
        weights: &Checkpoint,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Self> {
        let tensor = weights.tensor(name, &[rows, cols])?;
        if !is_readable(tensor.dtype) {
            return Err(weights.bad(name, format!("has dtype {}; {READABLE}", tensor.dtype)));
        }
        let scale = weights.scale(name)?.unwrap_or(1.0);
        let bytes = Buf::copy_of(memory, tensor.bytes()?, "a table of tokens")?;
        Ok(Embedding { bytes, dtype: tensor.dtype, scale, rows, cols })
    }

    /// Number of rows.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Width of a row.
    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    /// The rows of `ids`, `[ids.len(), cols]`, in `memory`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there are no ids, or one has no row; [`Error::OutOfHostMemory`].
    pub(super) fn gather(&self, memory: &HostMemory, ids: &[u32]) -> Result<Buf<f32>> {
        if ids.is_empty() {
            return Err(Error::InvalidArgument("a prompt needs at least one token".into()));
        }
        let mut gathered = Buf::zeroed(memory, ids.len() * self.cols, "a prompt's tokens")?;
        for (&id, to) in ids.iter().zip(gathered.chunks_exact_mut(self.cols)) {
            let row = id as usize;
            if row >= self.rows {
                return Err(Error::InvalidArgument(format!(
                    "token id {id}: the text encoder has a vocabulary of {}",
                    self.rows
                )));
            }
            let size = self.bytes.len() / self.rows;
            decode(self.dtype, &self.bytes[row * size..][..size], to);
            to.iter_mut().for_each(|value| *value *= self.scale);
        }
        Ok(gathered)
    }
}

/// One linear that gives the outputs of all `parts` side by side. They have the same inputs.
///
/// # Errors
/// [`Error::OutOfHostMemory`]
pub(super) fn fuse_rows<const N: usize>(parts: [DenseSource<'_>; N]) -> Result<DenseSource<'_>> {
    let weight = Numbers::default();
    let mut fused = DenseSource { n: 0, k: 0, weight, bias: Vec::new(), storage: Storage::Bf16 };
    for part in parts {
        fused.n += part.n;
        fused.k = part.k;
        fused.weight.append(part.weight)?;
        fused.bias.extend(part.bias);
        if part.storage == Storage::F32 {
            fused.storage = Storage::F32;
        }
    }
    Ok(fused)
}
