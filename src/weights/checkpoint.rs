//! The tensors of one safetensors file, or of a folder's shards.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::Dtype;

use super::float::{READABLE, decode, is_exact_in_bf16, is_fp8};
use super::header::Header;
use super::json::open_regular;
use super::locate::locate;
use super::numbers::Numbers;
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
    /// Name in the file, or diffusers' name for it, where the file has another's.
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

#[derive(Clone)]
struct Entry {
    /// Name in the file.
    stored: String,
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// Name, type and shape of a tensor, and where it lies: number of a block, range in it.
pub(super) type Placed = (String, Dtype, Vec<usize>, usize, Range<usize>);

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
        config: Option<String>,
        blocks: impl IntoIterator<Item = Vec<u8>>,
        tensors: Vec<Placed>,
    ) -> Self {
        let mut checkpoint = Checkpoint::empty(path);
        checkpoint.metadata.extend(config.map(|config| ("config".into(), config)));
        let shard = |block| Shard { path: path.into(), bytes: Bytes::Owned(block) };
        checkpoint.shards.extend(blocks.into_iter().map(shard));
        let entry = |(name, dtype, shape, shard, range): Placed| {
            (name.clone(), Entry { stored: name, shard, dtype, shape, range })
        };
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
            let (shard, stored) = (self.shards.len(), name.clone());
            let entry = Entry { stored, shard, dtype: info.dtype, shape: info.shape, range };
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

    /// The values of a tensor of exactly this shape: F32, F16, BF16, or FP8 (e4m3fn, e5m2) times the scale that may
    /// lie beside it, as ComfyUI writes them.
    ///
    /// # Errors
    /// [`Error::BadFormat`] if it is missing, shaped otherwise, or of another type, or if its scale is not one number.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.numbers(name, shape).map(Numbers::into_values)
    }

    /// As [`Checkpoint::f32`], decoded later.
    ///
    /// # Errors
    /// As [`Checkpoint::f32`].
    pub fn numbers(&self, name: &str, shape: &[usize]) -> Result<Numbers<'_>> {
        let tensor = self.tensor(name, shape)?;
        let numbers = Numbers::stored(tensor.dtype, tensor.bytes, self.scale(name)?.unwrap_or(1.0));
        numbers.ok_or_else(|| self.bad(name, format!("has dtype {}; {READABLE}", tensor.dtype)))
    }

    /// What the values of an FP8 tensor `layer.weight` are to be multiplied by, if the file says so:
    /// `layer.scale_weight` or `layer.weight_scale`, one number.
    ///
    /// # Errors
    /// [`Error::BadFormat`] if it is not one finite number.
    pub(crate) fn scale(&self, name: &str) -> Result<Option<f32>> {
        let (Some(tensor), Some(layer)) = (self.get(name), name.strip_suffix(".weight")) else {
            return Ok(None);
        };
        let scale = ["scale_weight", "weight_scale"].map(|suffix| format!("{layer}.{suffix}"));
        let Some(scale) = scale.iter().find_map(|name| self.get(name)).filter(|_| is_fp8(tensor.dtype))
        else {
            return Ok(None);
        };
        match decode(scale.dtype, scale.bytes).as_deref() {
            Some(&[value]) if value.is_finite() => Ok(Some(value)),
            _ => {
                let what = format!(
                    "is {} {:?}; a scale of FP8 weights is one finite number",
                    scale.dtype, scale.shape
                );
                Err(self.bad(scale.name, what))
            }
        }
    }

    /// A linear: `name.weight` `[n, k]` and, if `bias`, `name.bias` `[n]`.
    ///
    /// # Errors
    /// As [`Checkpoint::f32`].
    pub fn dense(&self, name: &str, n: usize, k: usize, bias: bool) -> Result<DenseSource<'_>> {
        let weight_name = format!("{name}.weight");
        let weight = self.numbers(&weight_name, &[n, k])?;
        let bias = if bias { self.f32(&format!("{name}.bias"), &[n])? } else { vec![] };
        Ok(DenseSource { n, k, weight, bias, storage: self.storage(&weight_name)? })
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

    fn storage(&self, name: &str) -> Result<Storage> {
        let exact = self.get(name).is_some_and(|tensor| is_exact_in_bf16(tensor.dtype));
        Ok(if exact && self.scale(name)?.is_none() { Storage::Bf16 } else { Storage::F32 })
    }

    /// Gives every tensor the name that `new` says; `None` keeps it.
    ///
    /// # Errors
    /// [`Error::BadFormat`] if two tensors get the same name.
    pub(super) fn rename(&mut self, new: impl Fn(&str) -> Option<String>) -> Result<()> {
        for (name, entry) in std::mem::take(&mut self.tensors) {
            self.insert(new(&name).unwrap_or(name), entry)?;
        }
        Ok(())
    }

    /// Adds `rows` of the first dimension of tensor `name` (`None`: all of it) as a tensor of its own.
    ///
    /// # Errors
    /// [`Error::BadFormat`] if it has no such rows, or `new` is there already.
    pub(super) fn add_rows(&mut self, name: &str, new: String, rows: Option<Range<usize>>) -> Result<()> {
        let mut part = self.tensors.get(name).ok_or_else(|| self.missing(name))?.clone();
        if let Some(rows) = rows {
            let count = part.shape.first().copied().unwrap_or(0);
            if rows.is_empty() || rows.end > count || !part.range.len().is_multiple_of(count) {
                return Err(self.bad(name, format!("has shape {:?}, rows {rows:?} are expected", part.shape)));
            }
            let (start, size) = (part.range.start, part.range.len() / count);
            part.range = start + rows.start * size..start + rows.end * size;
            part.shape[0] = rows.len();
        }
        self.insert(new, part)
    }

    /// Puts the second half of the rows of tensor `name` before the first.
    ///
    /// # Errors
    /// [`Error::BadFormat`] if there is no such tensor.
    pub(super) fn swap_halves(&mut self, name: &str) -> Result<()> {
        let mut bytes = self.get(name).ok_or_else(|| self.missing(name))?.bytes.to_vec();
        let half = bytes.len() / 2;
        bytes.rotate_left(half);
        if let Some(entry) = self.tensors.get_mut(name) {
            let path = self.shards[entry.shard].path.clone();
            (entry.shard, entry.range) = (self.shards.len(), 0..bytes.len());
            self.shards.push(Shard { path, bytes: Bytes::Owned(bytes) });
        }
        Ok(())
    }

    /// Keeps the tensors whose names `keep` wants.
    pub(super) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.tensors.retain(|name, _| keep(name));
    }

    fn insert(&mut self, name: String, entry: Entry) -> Result<()> {
        match self.tensors.get(&name) {
            None => {
                self.tensors.insert(name, entry);
                Ok(())
            }
            Some(other) => {
                let what = format!("tensors `{}` and `{}` are both `{name}`", other.stored, entry.stored);
                Err(Error::format(&self.path, what))
            }
        }
    }

    pub(crate) fn missing(&self, name: &str) -> Error {
        Error::format(&self.path, format!("tensor `{name}` is missing"))
    }

    /// An error about a tensor, in the file that holds it and by its name there.
    pub(crate) fn bad(&self, name: &str, what: impl std::fmt::Display) -> Error {
        let entry = self.tensors.get(name);
        let path = entry.map_or(&self.path, |entry| &self.shards[entry.shard].path);
        let name = entry.map_or(name, |entry| &entry.stored);
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
