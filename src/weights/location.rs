//! Files and folders, wherever they are: those of the file system, and those that a caller gives under names.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use crate::{Error, Result};

/// A file that is read through calls: one in a pak, or wherever else a program keeps its files.
pub trait ReadAt: Send + Sync {
    /// Its bytes.
    fn size(&self) -> u64;

    /// Fills `to` with the bytes from `offset` on; they lie inside of [`Self::size`]. Called one at a time, in the thread
    /// that loads.
    ///
    /// # Errors
    /// Why they cannot be had.
    fn read_at(&self, offset: u64, to: &mut [u8]) -> std::io::Result<()>;
}

/// The bytes of a file that a caller gives.
#[derive(Clone)]
pub(super) enum Given {
    Memory(Arc<dyn AsRef<[u8]> + Send + Sync>),
    Callbacks(Arc<dyn ReadAt>),
}

/// Files by name: a folder with folders, whose parts are separated by `/`.
type GivenFiles = BTreeMap<PathBuf, Given>;

/// A file or a folder, which need not be there.
#[derive(Clone)]
pub struct Location {
    path: PathBuf,
    /// The files among which it is; `None`: those of the file system.
    given: Option<Arc<GivenFiles>>,
}

/// The bytes of a file.
pub(super) enum Content {
    Mapped(Mmap),
    Owned(Vec<u8>),
    Given(Given),
}

impl<P: AsRef<Path> + ?Sized> From<&P> for Location {
    fn from(path: &P) -> Self {
        Location { path: path.as_ref().into(), given: None }
    }
}

impl From<&Location> for Location {
    fn from(location: &Location) -> Self {
        location.clone()
    }
}

/// What errors call the folder of all named files.
const NAMED_SOURCES: &str = "the named sources";

impl Location {
    /// A file that errors call `label`. Nothing lies beside it.
    pub(super) fn file(label: &str, file: Given) -> Self {
        let path = PathBuf::from(label);
        Location { given: Some(Arc::new(BTreeMap::from([(path.clone(), file)]))), path }
    }

    /// A file that is not there, nor anything beside it: what errors about bytes without a file name.
    pub(super) fn nowhere(label: &Path) -> Self {
        Location { path: label.into(), given: Some(Arc::default()) }
    }

    /// The folder of files that are given under `names`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a name that is none, or there twice, or that of a file and a folder.
    pub(super) fn folder(names: Vec<(String, Given)>) -> Result<Self> {
        let mut files = GivenFiles::new();
        for (name, file) in names {
            check_name(&name)?;
            if files.insert(PathBuf::from(&name), file).is_some() {
                return Err(Error::InvalidArgument(format!("two sources have the name {name:?}")));
            }
        }
        for name in files.keys() {
            if let Some(folder) = name.ancestors().skip(1).find(|folder| files.contains_key(*folder)) {
                return Err(Error::InvalidArgument(format!(
                    "{folder:?} is the name of a source, and a folder in {name:?}"
                )));
            }
        }
        Ok(Location { path: PathBuf::new(), given: Some(Arc::new(files)) })
    }

    /// Whether it is the folder of all that is given under names.
    pub(super) fn is_named_sources(&self) -> bool {
        self.path.as_os_str().is_empty() && self.given.is_some()
    }

    /// What errors call it.
    pub fn path(&self) -> &Path {
        if self.is_named_sources() { Path::new(NAMED_SOURCES) } else { &self.path }
    }

    /// Something in this folder.
    pub fn join(&self, name: &str) -> Location {
        Location { path: self.path.join(name), given: self.given.clone() }
    }

    /// Something in the folder that this is in.
    pub fn beside(&self, name: &str) -> Location {
        Location { path: self.path.with_file_name(name), given: self.given.clone() }
    }

    /// Whether it is a folder.
    pub fn is_dir(&self) -> bool {
        match &self.given {
            None => self.path.is_dir(),
            Some(files) => files.keys().any(|name| name.starts_with(&self.path) && *name != self.path),
        }
    }

    /// Whether it is a file.
    pub fn is_file(&self) -> bool {
        match &self.given {
            None => self.path.is_file(),
            Some(files) => files.contains_key(&self.path),
        }
    }

    /// Whether there is anything.
    pub fn exists(&self) -> bool {
        self.is_file() || self.is_dir() || self.given.is_none() && self.path.exists()
    }

    /// Names in this folder, less those that are not Unicode: no model has such.
    pub(super) fn names(&self) -> Result<BTreeSet<String>> {
        let Some(files) = &self.given else { return disk_names(&self.path) };
        let inside = |name: &PathBuf| {
            let first = name.strip_prefix(&self.path).ok()?.components().next()?;
            first.as_os_str().to_str().map(str::to_owned)
        };
        Ok(files.keys().filter_map(inside).collect())
    }

    /// Opens the file.
    ///
    /// # Errors
    /// It is not there, or is none.
    pub(super) fn open(&self) -> Result<Content> {
        let Some(files) = &self.given else { return map(&self.path) };
        match files.get(&self.path) {
            Some(file) => Ok(Content::Given(file.clone())),
            None => {
                let what = "no source has this name".into();
                Err(Error::NotFound { path: self.path().into(), what })
            }
        }
    }

    /// All bytes of the file, which are copied.
    ///
    /// # Errors
    /// As [`Self::open`]; it is larger than `limit`, or cannot be read.
    pub(super) fn read(&self, limit: u64) -> Result<Vec<u8>> {
        let path = self.path();
        let too_large = || Error::format(path, format!("larger than {limit} bytes, which no such file is"));
        if self.given.is_none() {
            let mut bytes = Vec::new();
            let file = open_regular(path)?.take(limit + 1);
            { file }.read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
            return if bytes.len() as u64 > limit { Err(too_large()) } else { Ok(bytes) };
        }
        let content = self.open()?;
        match content.len() {
            size if size > limit => Err(too_large()),
            size => content.read(path, 0, size as usize),
        }
    }
}

impl Content {
    /// How many bytes the file has.
    pub(super) fn len(&self) -> u64 {
        match self {
            Content::Given(Given::Callbacks(file)) => file.size(),
            _ => self.slice().map_or(0, |bytes| bytes.len() as u64),
        }
    }

    /// All bytes, unless they have to be read.
    pub(super) fn slice(&self) -> Option<&[u8]> {
        match self {
            Content::Mapped(map) => Some(map),
            Content::Owned(bytes) => Some(bytes),
            Content::Given(Given::Memory(bytes)) => Some((**bytes).as_ref()),
            Content::Given(Given::Callbacks(_)) => None,
        }
    }

    /// A copy of `size` bytes from `offset` on; `path` is for errors.
    ///
    /// # Errors
    /// [`Error::Io`] if they cannot be read, and [`Error::OutOfHostMemory`].
    pub(super) fn read(&self, path: &Path, offset: u64, size: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let full = |_| Error::OutOfHostMemory { what: path.display().to_string(), bytes: size as u64 };
        bytes.try_reserve_exact(size).map_err(full)?;
        bytes.resize(size, 0);
        self.read_to(path, offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `to` with the bytes from `offset` on; `path` is for errors.
    ///
    /// # Errors
    /// [`Error::Io`] if they cannot be read.
    pub(super) fn read_to(&self, path: &Path, offset: u64, to: &mut [u8]) -> Result<()> {
        let size = to.len();
        let failed = |source: std::io::Error| {
            let what = format!("reading {size} bytes at {offset}: {source}");
            Error::Io { path: path.into(), source: std::io::Error::new(source.kind(), what) }
        };
        let part = |all: &[u8]| {
            let from = usize::try_from(offset).ok()?;
            all.get(from..from.checked_add(size)?).map(|part| to.copy_from_slice(part))
        };
        match self {
            Content::Given(Given::Callbacks(file)) => file.read_at(offset, to).map_err(failed),
            _ => self.slice().and_then(part).ok_or_else(|| failed(std::io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

/// A name that stays among the named files on every system: parts with `/` between them, none of which is empty or `..`.
fn check_name(name: &str) -> Result<()> {
    let is_plain = |part: &str| is_plain_name(part) && part != ".";
    match name.split('/').all(is_plain) {
        true => Ok(()),
        false => {
            let what = format!("{name:?} is not the name of a file in a folder, such as \"vae/config.json\"");
            Err(Error::InvalidArgument(what))
        }
    }
}

/// A name that stays in its folder on every system: no separators, drives, streams, or `..`.
pub(super) fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
        && !name.contains(['/', '\\', ':', '\0'])
}

fn disk_names(folder: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let entry = entry.map_err(|e| Error::io(folder, e))?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

/// Opens a file, and nothing else: opening a pipe or a device could block for ever.
fn open_regular(path: &Path) -> Result<std::fs::File> {
    let kind = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !kind.is_file() {
        let what = if kind.is_dir() { "a folder, where a file is expected" } else { "not a regular file" };
        return Err(Error::format(path, what));
    }
    std::fs::File::open(path).map_err(|e| Error::io(path, e))
}

#[allow(unsafe_code, reason = "memory maps")]
fn map(path: &Path) -> Result<Content> {
    let file = open_regular(path)?;
    if file.metadata().map_err(|e| Error::io(path, e))?.len() == 0 {
        return Ok(Content::Owned(vec![]));
    }
    // SAFETY: the map is private to this checkpoint and only read. What cannot be ruled out is that another process
    // truncates or rewrites the file meanwhile: bytes may then change, which nothing relies on not happening (the
    // header is copied before it is checked, every bit pattern is a legal element), or reading may fault. Weights are copied to the device during load, so the
    // window is the load.
    unsafe { Mmap::map(&file) }.map(Content::Mapped).map_err(|e| Error::io(path, e))
}
