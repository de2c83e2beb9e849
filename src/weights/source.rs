//! Where a caller has a model, or a part of it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ReadAt;
use super::location::{Given, Location};
use crate::Result;

/// A file or folder, or a file that the caller holds.
///
/// Files in memory and behind callbacks have a name if they are some of the files of a pipeline folder, such as
/// `text_encoder/config.json`: all that have one make up one folder. Without a name it is a safetensors file on its own,
/// which errors call by its place among the sources: `source 2`.
#[derive(Clone)]
pub enum Source {
    /// A file or folder of the file system.
    Path(PathBuf),
    /// A file in memory.
    Memory {
        /// Its name in a pipeline folder.
        name: Option<String>,
        /// What is in it: the same bytes each time.
        bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
    },
    /// A file that is read through calls.
    Callbacks {
        /// Its name in a pipeline folder.
        name: Option<String>,
        /// What reads it.
        file: Arc<dyn ReadAt>,
    },
}

impl Source {
    /// Where it is, on its own.
    pub(crate) fn location(&self) -> Location {
        match self {
            Source::Path(path) => Location::from(path),
            Source::Memory { name, bytes } => lone(name, Given::Memory(bytes.clone())),
            Source::Callbacks { name, file } => lone(name, Given::Callbacks(file.clone())),
        }
    }

    /// Where the sources are: those with a path, those without a name, and the one folder of all that have one.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] for a name that is none, or there twice.
    pub(super) fn locations(sources: &[Source]) -> Result<Vec<Location>> {
        let (mut locations, mut named) = (Vec::new(), Vec::new());
        for (number, source) in sources.iter().enumerate() {
            let (name, file) = match source {
                Source::Path(path) => {
                    locations.push(Location::from(path));
                    continue;
                }
                Source::Memory { name, bytes } => (name, Given::Memory(bytes.clone())),
                Source::Callbacks { name, file } => (name, Given::Callbacks(file.clone())),
            };
            match name {
                Some(name) => named.push((name.clone(), file)),
                None => locations.push(Location::file(&format!("source {number}"), file)),
            }
        }
        if !named.is_empty() {
            locations.push(Location::folder(named)?);
        }
        Ok(locations)
    }
}

fn lone(name: &Option<String>, file: Given) -> Location {
    Location::file(name.as_deref().unwrap_or("the source"), file)
}

impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Self {
        Source::Path(path)
    }
}

impl<P: AsRef<Path> + ?Sized> From<&P> for Source {
    fn from(path: &P) -> Self {
        Source::Path(path.as_ref().into())
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Path(path) => f.debug_tuple("Path").field(path).finish(),
            Source::Memory { name, .. } => f.debug_tuple("Memory").field(name).finish(),
            Source::Callbacks { name, .. } => f.debug_tuple("Callbacks").field(name).finish(),
        }
    }
}
