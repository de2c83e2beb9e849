//! Writes a safetensors file tensor by tensor; it appears under its name only when it is complete.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// Name, type and shape of a tensor of the file to be.
type Spec = (String, Dtype, Vec<usize>);

/// A file under way. Dropped before [`Writer::finish`], it leaves nothing behind.
pub(super) struct Writer {
    file: BufWriter<File>,
    partial: Partial,
    target: PathBuf,
    /// What is still to come, last first.
    remaining: Vec<Spec>,
    written: u64,
}

/// Removes the file when dropped, unless it was renamed.
struct Partial {
    path: PathBuf,
    renamed: bool,
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.renamed {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Writer {
    /// Begins a file with these tensors, which must then be written in this order.
    ///
    /// # Errors
    /// The folder of `target` does not exist or cannot be written to, or `target` is a folder.
    pub(super) fn create(target: &Path, metadata: &[(&str, String)], mut tensors: Vec<Spec>) -> Result<Self> {
        let (Some(name), false) = (target.file_name(), target.is_dir()) else {
            return Err(Error::InvalidArgument(format!("{}: not the name of a file", target.display())));
        };
        let mut header = Map::new();
        let strings = metadata.iter().map(|(key, value)| (key.to_string(), json!(value))).collect();
        header.insert("__metadata__".into(), Value::Object(strings));
        let mut end = 0u64;
        for spec in &tensors {
            let begin = end;
            end = size(spec)
                .and_then(|bytes| end.checked_add(bytes))
                .ok_or_else(|| Error::Unsupported(format!("tensor `{}` is too large", spec.0)))?;
            let (name, dtype, shape) = spec;
            let info = json!({ "dtype": dtype.to_string(), "shape": shape, "data_offsets": [begin, end] });
            header.insert(name.clone(), info);
        }
        tensors.reverse();
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');

        let mut partial_name = name.to_owned();
        partial_name.push(format!(".{}.partial", std::process::id()));
        let path = target.with_file_name(partial_name);
        let file =
            OpenOptions::new().write(true).create_new(true).open(&path).map_err(|e| Error::io(&path, e))?;
        let partial = Partial { path, renamed: false };
        let mut writer = Writer {
            file: BufWriter::new(file),
            partial,
            target: target.into(),
            remaining: tensors,
            written: 0,
        };
        writer.put(&(header.len() as u64).to_le_bytes())?;
        writer.put(&header)?;
        Ok(writer)
    }

    /// Name and shape of the tensor that has to be written next; none if all are.
    pub(super) fn due(&self) -> Option<(String, Vec<usize>)> {
        self.remaining.last().map(|(name, _, shape)| (name.clone(), shape.clone()))
    }

    /// Writes the tensor that is due.
    pub(super) fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        match self.remaining.pop() {
            Some(spec) if spec.0 == name && size(&spec) == Some(bytes.len() as u64) => self.put(bytes),
            due => Err(Error::Internal(format!(
                "{} bytes of `{name}` were made where {due:?} is due",
                bytes.len()
            ))),
        }
    }

    /// Completes the file and gives it its name, in place of a file that may have had it before. Returns its
    /// size.
    pub(super) fn finish(mut self) -> Result<u64> {
        if let Some((name, ..)) = self.remaining.last() {
            return Err(Error::Internal(format!("tensor `{name}` was not made")));
        }
        let failed = |e| Error::io(&self.partial.path, e);
        self.file.flush().map_err(failed)?;
        self.file.get_ref().sync_all().map_err(failed)?;
        std::fs::rename(&self.partial.path, &self.target).map_err(|e| Error::io(&self.target, e))?;
        self.partial.renamed = true;
        Ok(self.written)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|e| Error::io(&self.partial.path, e))
    }
}

/// Bytes that a tensor takes; `None` if more than can be counted.
fn size((_, dtype, shape): &Spec) -> Option<u64> {
    let elements = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64))?;
    elements.checked_mul(dtype.bitsize() as u64).map(|bits| bits / 8)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::weights::Checkpoint;
    use crate::weights::testing::TempDir;

    fn specs() -> Vec<Spec> {
        vec![("b".into(), Dtype::I8, vec![3, 2]), ("a".into(), Dtype::BF16, vec![5])]
    }

    fn files(dir: &TempDir) -> usize {
        std::fs::read_dir(dir.path()).unwrap().count()
    }

    #[test]
    fn the_file_reads_back() {
        let dir = TempDir::new();
        let path = dir.path().join("out.safetensors");
        let mut writer = Writer::create(&path, &[("key", "va\"lue".into())], specs()).unwrap();
        writer.write("b", &[1, 2, 3, 4, 5, 6]).unwrap();
        writer.write("a", &[7; 10]).unwrap();
        assert!(!path.exists());
        assert_eq!(writer.finish().unwrap(), std::fs::metadata(&path).unwrap().len());
        let file = Checkpoint::open(&path).unwrap();
        assert_eq!(file.metadata("key"), Some("va\"lue"));
        assert_eq!(file.bytes("b", Dtype::I8, &[3, 2]).unwrap(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(file.bytes("a", Dtype::BF16, &[5]).unwrap(), [7; 10]);
        assert_eq!(files(&dir), 1);
    }

    #[test]
    fn wrong_or_missing_tensors_are_refused_and_nothing_is_left() {
        let dir = TempDir::new();
        let path = dir.path().join("out.safetensors");
        let begin = || Writer::create(&path, &[], specs()).unwrap();
        assert!(begin().write("a", &[0; 10]).is_err());
        assert!(begin().write("b", &[0; 7]).is_err());
        assert!(begin().finish().is_err());
        assert_eq!(files(&dir), 0);
    }

    #[test]
    fn a_target_that_cannot_be_written_is_an_error_that_names_it() {
        let dir = TempDir::new();
        let missing = dir.path().join("no/out.safetensors");
        let error = Writer::create(&missing, &[], specs()).err().unwrap().to_string();
        assert!(error.contains("out.safetensors"), "{error}");
        assert!(Writer::create(dir.path(), &[], specs()).is_err());
        assert_eq!(files(&dir), 0);
    }
}
