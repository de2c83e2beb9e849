//! The tensors of one safetensors file, or of a folder's shards.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use safetensors::Dtype;

use super::float::{READABLE, decode_one, is_exact_in_bf16, is_fp8};
use super::header::Header;
use super::loading::Loading;
use super::locate::locate;
use super::location::{Content, Location};
use super::numbers::Numbers;
use crate::memory::{Buf, HostMemory};
use crate::ops::{ConvSource, DenseSource, Storage};
use crate::{Error, Result};

/// How much of a tensor is read at a time: before each piece a load can be cancelled.
const PIECE: usize = 16 << 20;

/// Named tensors. Opening reads headers only; tensors are mapped into memory or read when they are asked for.
pub struct Checkpoint {
    location: Location,
    shards: Vec<Shard>,
    metadata: HashMap<String, String>,
    tensors: BTreeMap<String, Entry>,
    loading: Loading,
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
    checkpoint: &'a Checkpoint,
    entry: &'a Entry,
}

impl<'a> Tensor<'a> {
    /// Little-endian, row-major, exactly as many as `dtype` and `shape` say. What has to be read is read the first time,
    /// and kept as long as the checkpoint.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::OutOfHostMemory`], and [`Error::Cancelled`].
    pub fn bytes(&self) -> Result<&'a [u8]> {
        self.checkpoint.fetch(self.entry)
    }

    /// How many bytes it has.
    #[expect(clippy::len_without_is_empty, reason = "a number of bytes")]
    pub fn len(&self) -> usize {
        self.entry.range.len()
    }
}

struct Shard {
    path: PathBuf,
    content: Content,
}

struct Entry {
    /// Name in the file.
    stored: String,
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
    /// The second half of the bytes comes first.
    swapped: bool,
    /// The bytes, where they are no part of the file's memory.
    read: OnceLock<Buf<u8>>,
    /// Whether the load has been told of it.
    counted: AtomicBool,
}

impl Entry {
    fn new(stored: String, shard: usize, dtype: Dtype, shape: Vec<usize>, range: Range<usize>) -> Self {
        let (read, counted) = (OnceLock::new(), AtomicBool::new(false));
        Entry { stored, shard, dtype, shape, range, swapped: false, read, counted }
    }
}

/// Name, type and shape of a tensor, and where it lies: number of a block, range in it.
pub(super) type Placed = (String, Dtype, Vec<usize>, usize, Range<usize>);

impl Checkpoint {
    /// Opens a file, or a folder: its shards by `*.safetensors.index.json`, or its only `.safetensors` file, where
    /// `diffusion_pytorch_model.safetensors` and `model.safetensors` go before any other.
    ///
    /// # Errors
    /// Nothing is there, or a header does not describe its file exactly: truncated, too long, overlapping tensors,
    /// gaps, names twice, shapes that do not fit their bytes, tensors that the index puts into another file.
    pub fn open(at: impl Into<Location>) -> Result<Self> {
        let mut checkpoint = Checkpoint::empty(at.into());
        let files = locate(&checkpoint.location)?;
        for shard in files.shards {
            checkpoint.add(shard.path().to_owned(), shard.open()?)?;
        }
        if let Some((index, weight_map)) = files.index {
            for (name, file) in weight_map {
                let (entry, shard) = (checkpoint.tensors.get(&name), checkpoint.location.join(&file));
                if entry.is_none_or(|e| checkpoint.shards[e.shard].path != shard.path()) {
                    return Err(Error::format(index.path(), format!("tensor `{name}` is not in {file:?}")));
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
        let mut checkpoint = Checkpoint::empty(Location::nowhere(path));
        checkpoint.add(path.to_owned(), Content::Owned(bytes))?;
        Ok(checkpoint)
    }

    /// A checkpoint whose tensors are ranges, which may overlap, of blocks of memory.
    pub(super) fn from_blocks(
        path: &Path,
        config: Option<String>,
        blocks: impl IntoIterator<Item = Vec<u8>>,
        tensors: Vec<Placed>,
    ) -> Self {
        let mut checkpoint = Checkpoint::empty(Location::nowhere(path));
        checkpoint.metadata.extend(config.map(|config| ("config".into(), config)));
        let shard = |block| Shard { path: path.into(), content: Content::Owned(block) };
        checkpoint.shards.extend(blocks.into_iter().map(shard));
        let entry = |(name, dtype, shape, shard, range): Placed| {
            (name.clone(), Entry::new(name, shard, dtype, shape, range))
        };
        checkpoint.tensors.extend(tensors.into_iter().map(entry));
        checkpoint
    }

    fn empty(location: Location) -> Self {
        let (metadata, tensors, loading) = (HashMap::new(), BTreeMap::new(), Loading::default());
        Checkpoint { location, shards: vec![], metadata, tensors, loading }
    }

    fn add(&mut self, path: PathBuf, content: Content) -> Result<()> {
        let Header { metadata, tensors } = Header::read(&path, &content)?;
        self.metadata.extend(metadata);
        for (name, info) in tensors {
            let range = info.data_offsets.0..info.data_offsets.1;
            let (shard, stored) = (self.shards.len(), name.clone());
            let entry = Entry::new(stored, shard, info.dtype, info.shape, range);
            if let Some(first) = self.tensors.get(&name) {
                let other = self.shards[first.shard].path.display();
                return Err(Error::format(path, format!("tensor `{name}` is also in {other}")));
            }
            self.tensors.insert(name, entry);
        }
        self.shards.push(Shard { path, content });
        Ok(())
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        self.location.path()
    }

    pub(crate) fn location(&self) -> &Location {
        &self.location
    }

    /// The same as a part of `loading`, which from now on can cancel it, and which all of its tensors count for.
    pub(crate) fn with(mut self, loading: &Loading) -> Self {
        let to_do = |entry: &Entry| entry.range.len() as u64 * if self.has_to_read(entry) { 2 } else { 1 };
        loading.expect(self.tensors.values().map(to_do).sum());
        self.loading = loading.clone();
        self
    }

    /// Where its tensors are decoded, and where they are copied to if they are no part of the file's memory.
    pub(crate) fn memory(&self) -> &HostMemory {
        self.loading.memory()
    }

    /// Bytes of all tensors.
    pub fn size(&self) -> u64 {
        self.tensors.values().map(|entry| entry.range.len() as u64).sum()
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
        Tensor { name, dtype: entry.dtype, shape: &entry.shape, checkpoint: self, entry }
    }

    /// Whether the bytes of a tensor come through calls.
    fn has_to_read(&self, entry: &Entry) -> bool {
        self.shards[entry.shard].content.slice().is_none()
    }

    fn fetch<'a>(&'a self, entry: &'a Entry) -> Result<&'a [u8]> {
        self.loading.check()?;
        let range = entry.range.clone();
        let bytes = match (entry.read.get(), self.shards[entry.shard].content.slice()) {
            (Some(read), _) => read,
            // The caller's memory may have another size each time, if it is a strange one.
            (None, Some(all)) if !entry.swapped => all.get(range).ok_or_else(|| self.changed(entry))?,
            (None, _) => {
                // The callbacks of a file may do what they like: no lock is held.
                let read = self.read(entry)?;
                entry.read.get_or_init(|| read)
            }
        };
        if self.loading.has_begun() && !entry.counted.swap(true, Ordering::Relaxed) {
            self.loading.advance(bytes.len() as u64);
        }
        Ok(bytes)
    }

    /// A copy of the bytes of a tensor.
    fn read(&self, entry: &Entry) -> Result<Buf<u8>> {
        let (Shard { path, content }, size) = (&self.shards[entry.shard], entry.range.len());
        let mut bytes = Buf::zeroed(self.memory(), size, path.display())?;
        for (piece, start) in bytes.chunks_mut(PIECE).zip(entry.range.clone().step_by(PIECE)) {
            self.loading.check()?;
            content.read_to(path, start as u64, piece)?;
            if self.has_to_read(entry) {
                self.loading.advance(piece.len() as u64);
            }
        }
        if entry.swapped {
            bytes.rotate_left(size / 2);
        }
        Ok(bytes)
    }

    fn changed(&self, entry: &Entry) -> Error {
        Error::format(&self.shards[entry.shard].path, "its size has changed since it was opened")
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
        tensor.bytes()
    }

    /// The values of a tensor of exactly this shape: F32, F16, BF16, or FP8 (e4m3fn, e5m2) times the scale that may
    /// lie beside it, as ComfyUI writes them.
    ///
    /// # Errors
    /// [`Error::BadFormat`] if it is missing, shaped otherwise, or of another type, or if its scale is not one number.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Buf<f32>> {
        self.numbers(name, shape)?.into_values()
    }

    /// As [`Checkpoint::f32`], decoded later.
    ///
    /// # Errors
    /// As [`Checkpoint::f32`].
    pub fn numbers(&self, name: &str, shape: &[usize]) -> Result<Numbers<'_>> {
        let tensor = self.tensor(name, shape)?;
        let (bytes, scale) = (tensor.bytes()?, self.scale(name)?.unwrap_or(1.0));
        let numbers = Numbers::stored(self.memory(), tensor.dtype, bytes, scale);
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
        match decode_one(scale.dtype, scale.bytes()?) {
            Some(value) if value.is_finite() => Ok(Some(value)),
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
        let bias = if bias { self.f32(&format!("{name}.bias"), &[n])?.to_vec() } else { vec![] };
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
        let bias = self.f32(&format!("{name}.bias"), &[n])?.to_vec();
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
        let whole = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        let (stored, shape, range) = (whole.stored.clone(), whole.shape.clone(), whole.range.clone());
        let mut part = Entry::new(stored, whole.shard, whole.dtype, shape, range);
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
        let Some(entry) = self.tensors.get_mut(name) else { return Err(self.missing(name)) };
        entry.swapped = !entry.swapped;
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
                Err(Error::format(self.path(), what))
            }
        }
    }

    pub(crate) fn missing(&self, name: &str) -> Error {
        Error::format(self.path(), format!("tensor `{name}` is missing"))
    }

    /// An error about a tensor, in the file that holds it and by its name there.
    pub(crate) fn bad(&self, name: &str, what: impl std::fmt::Display) -> Error {
        let entry = self.tensors.get(name);
        let path = entry.map_or(self.path(), |entry| &self.shards[entry.shard].path);
        let name = entry.map_or(name, |entry| &entry.stored);
        Error::format(path, format!("tensor `{name}` {what}"))
    }
}

#[cfg(test)]
mod tests;
