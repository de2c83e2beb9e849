//! The tensors of one safetensors file, or of a folder's shards.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use half::f16;
use memmap2::Mmap;
use safetensors::Dtype;

use super::header::Header;
use super::json::open_regular;
use super::locate::locate;
use super::pack::bf16_to_f32;
use crate::ops::{ConvSource, DenseSource, Storage};
use crate::{Error, Result};

/// Named tensors, mapped into memory: opening reads headers only.
pub struct Checkpoint {
    path: PathBuf,
    shards: Vec<Shard>,
    metadata: HashMap<String, String>,
    tensors: BTreeMap<String, Entry>,
}

/// One tensor as it lies in its file.
#[derive(Clone, Copy)]
pub struct Tensor<'a> {
    /// Name in the file.
    pub name: &'a str,
    /// Type of an element.
    pub dtype: Dtype,
    /// Size of every dimension, outermost first.
    pub shape: &'a [usize],
    /// Little-endian, row-major, exactly as many as `dtype` and `shape` say.
    pub bytes: &'a [u8],
}

struct Shard {
    path: PathBuf,
    bytes: Bytes,
}

struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(vec) => vec,
        }
    }
}

impl Checkpoint {
    /// Opens a file, or a folder: its shards by `*.safetensors.index.json`, or its only `.safetensors` file, where
    /// `diffusion_pytorch_model.safetensors` and `model.safetensors` go before any other.
    ///
    /// # Errors
    /// Nothing is there, or a header does not describe its file exactly: truncated, too long, overlapping tensors,
    /// gaps, names twice, shapes that do not fit their bytes, tensors that the index puts into another file.
    pub fn open(path: &Path) -> Result<Self> {
        let files = locate(path)?;
        let mut checkpoint = Checkpoint::empty(path);
        for shard in files.shards {
            let bytes = map(&shard)?;
            checkpoint.add(shard, bytes)?;
        }
        if let Some((index, weight_map)) = files.index {
            for (name, file) in weight_map {
                let entry = checkpoint.tensors.get(&name);
                if entry.is_none_or(|e| checkpoint.shards[e.shard].path != path.join(&file)) {
                    return Err(Error::format(index, format!("tensor `{name}` is not in {file:?}")));
                }
            }
        }
        Ok(checkpoint)
    }

    /// A checkpoint in memory; `path` is what errors call it.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self> {
        let mut checkpoint = Checkpoint::empty(path);
        checkpoint.add(path.to_owned(), Bytes::Owned(bytes))?;
        Ok(checkpoint)
    }

    /// A checkpoint whose tensors are ranges, which may overlap, of blocks of memory.
    pub(super) fn from_blocks(
        path: &Path,
        config: &str,
        blocks: impl IntoIterator<Item = Vec<u8>>,
        tensors: Vec<(String, Dtype, Vec<usize>, usize, Range<usize>)>,
    ) -> Self {
        let mut checkpoint = Checkpoint::empty(path);
        checkpoint.metadata.insert("config".into(), config.into());
        let shard = |block| Shard { path: path.into(), bytes: Bytes::Owned(block) };
        checkpoint.shards.extend(blocks.into_iter().map(shard));
        let entry = |(name, dtype, shape, shard, range)| (name, Entry { shard, dtype, shape, range });
        checkpoint.tensors.extend(tensors.into_iter().map(entry));
        checkpoint
    }

    fn empty(path: &Path) -> Self {
        Checkpoint { path: path.into(), shards: vec![], metadata: HashMap::new(), tensors: BTreeMap::new() }
    }

    fn add(&mut self, path: PathBuf, bytes: Bytes) -> Result<()> {
        let Header { metadata, tensors } = Header::parse(&path, &bytes)?;
        self.metadata.extend(metadata);
        for (name, info) in tensors {
            let range = info.data_offsets.0..info.data_offsets.1;
            let entry = Entry { shard: self.shards.len(), dtype: info.dtype, shape: info.shape, range };
            if let Some(first) = self.tensors.get(&name) {
                let other = self.shards[first.shard].path.display();
                return Err(Error::format(path, format!("tensor `{name}` is also in {other}")));
            }
            self.tensors.insert(name, entry);
        }
        self.shards.push(Shard { path, bytes });
        Ok(())
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A string of the `__metadata__` of the headers.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor<'_>> {
        self.tensors.iter().map(|(name, entry)| self.view(name, entry))
    }

    /// A tensor, if there is one of this name.
    pub fn get(&self, name: &str) -> Option<Tensor<'_>> {
        self.tensors.get_key_value(name).map(|(name, entry)| self.view(name, entry))
    }

    fn view<'a>(&'a self, name: &'a str, entry: &'a Entry) -> Tensor<'a> {
        let bytes = &self.shards[entry.shard].bytes[entry.range.clone()];
        Tensor { name, dtype: entry.dtype, shape: &entry.shape, bytes }
    }

    /// A tensor of exactly this shape.
    ///
    /// # Errors
    /// [`Error::BadFormat`] if it is missing or shaped otherwise.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>> {
        let tensor = self.get(name).ok_or_else(|| self.missing(name))?;
        if tensor.shape != shape {
            return Err(self.bad(name, format!("has shape {:?}, {shape:?} is expected", tensor.shape)));
        }
        Ok(tensor)
    }

    /// The bytes of a tensor of exactly this type and shape.
    ///
    /// # Errors
    /// [`Error::BadFormat`] if it is missing or otherwise.
    pub fn bytes(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<&[u8]> {
        let tensor = self.tensor(name, shape)?;
        if tensor.dtype != dtype {
            return Err(self.bad(name, format!("has dtype {}, {dtype} is expected", tensor.dtype)));
        }
        Ok(tensor.bytes)
    }

    /// The values of a BF16, F16 or F32 tensor of exactly this shape.
    ///
    /// # Errors
    /// [`Error::BadFormat`] if it is missing, shaped otherwise, or of another type.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let Tensor { dtype, bytes, .. } = self.tensor(name, shape)?;
        match dtype {
            Dtype::BF16 => Ok(bf16_to_f32(bytes).collect()),
            Dtype::F16 => Ok(bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect()),
            Dtype::F32 => Ok(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()),
            other => Err(self.bad(name, format!("has dtype {other}; BF16, F16 and F32 can be read"))),
        }
    }

    /// A linear: `name.weight` `[n, k]` and, if `bias`, `name.bias` `[n]`.
    ///
    /// # Errors
    /// As [`Checkpoint::f32`].
    pub fn dense(&self, name: &str, n: usize, k: usize, bias: bool) -> Result<DenseSource> {
        let weight_name = format!("{name}.weight");
        let weight = self.f32(&weight_name, &[n, k])?;
        let bias = if bias { self.f32(&format!("{name}.bias"), &[n])? } else { vec![] };
        Ok(DenseSource { n, k, weight, bias, storage: self.storage(&weight_name) })
    }

    /// A convolution: `name.weight` `[n, c, kernel, kernel]` and `name.bias` `[n]`.
    ///
    /// # Errors
    /// As [`Checkpoint::f32`].
    pub fn conv(
        &self,
        name: &str,
        n: usize,
        c: usize,
        kernel: usize,
        stride: usize,
        upsample: bool,
    ) -> Result<ConvSource> {
        let weight = self.f32(&format!("{name}.weight"), &[n, c, kernel, kernel])?;
        let bias = self.f32(&format!("{name}.bias"), &[n])?;
        Ok(ConvSource { n, c, kernel, stride, upsample, weight, bias })
    }

    fn storage(&self, name: &str) -> Storage {
        match self.tensors.get(name) {
            Some(entry) if entry.dtype == Dtype::BF16 => Storage::Bf16,
            _ => Storage::F32,
        }
    }

    pub(crate) fn missing(&self, name: &str) -> Error {
        Error::format(&self.path, format!("tensor `{name}` is missing"))
    }

    /// An error about a tensor, in the file that holds it.
    pub(crate) fn bad(&self, name: &str, what: impl std::fmt::Display) -> Error {
        let path = self.tensors.get(name).map_or(&self.path, |entry| &self.shards[entry.shard].path);
        Error::format(path, format!("tensor `{name}` {what}"))
    }
}

#[allow(unsafe_code, reason = "memory maps")]
fn map(path: &Path) -> Result<Bytes> {
    let file = open_regular(path)?;
    if file.metadata().map_err(|e| Error::io(path, e))?.len() == 0 {
        return Ok(Bytes::Owned(vec![]));
    }
    // SAFETY: the map is private to this checkpoint and only read. What cannot be ruled out is that another process
    // truncates or rewrites the file meanwhile: bytes may then change, which nothing relies on not happening (the
    // header is copied before it is checked, every bit pattern is a legal element), or reading may fault. Weights are copied to the device during load, so the
    // window is the load.
    unsafe { Mmap::map(&file) }.map(Bytes::Mapped).map_err(|e| Error::io(path, e))
}

#[cfg(test)]
mod tests;
