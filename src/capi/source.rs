//! Where models and LoRAs are read from.

use std::ffi::{c_char, c_void};
use std::io;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::Arc;

use super::boundary::{Sized32, pointer, read_element, text};
use super::result::name;
use super::{SVDQ_OK, svdq_result};
use crate::engine::{ReadAt, Source};
use crate::{Error, Result};

/// A source is a file or a folder.
pub const SVDQ_SOURCE_PATH: u32 = 1;
/// A source is a file in memory.
pub const SVDQ_SOURCE_MEMORY: u32 = 2;
/// A source is a file that the library reads through a function of the program's, from a pak for instance.
pub const SVDQ_SOURCE_CALLBACKS: u32 = 3;

/// Reads a part of a file for the library: copies size bytes from offset on to dst. They lie inside of the
/// file, and size is at most 16 MiB but for JSON files. All of them have to be there when it returns SVDQ_OK;
/// any other result ends the call or the job that reads with SVDQ_ERR_IO.
///
/// It is called in the thread that loads, one call at a time, and under no lock of the library's: it may
/// call the library. It must not unwind.
pub type svdq_read_at_fn = Option<
    unsafe extern "C" fn(user: *mut c_void, offset: u64, dst: *mut c_void, size: usize) -> svdq_result,
>;

/// Where a model, a part of it, or a LoRA is read from.
///
/// Files in memory and behind callbacks that have a name make up one folder together, which is read as a
/// folder of the file system would be: the folder of a diffusers pipeline for instance, by the names
/// "model_index.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors" and so on. Without a
/// name they are .safetensors files on their own. Error texts call them by their names, or by their place
/// in the array: "source 2" is element 2 of sources.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct svdq_source {
    /// sizeof(svdq_source), the same in all elements of an array.
    pub struct_size: u32,
    /// SVDQ_SOURCE_*. It says which fields below are read.
    pub kind: u32,
    /// PATH: a file or folder, UTF-8 on every platform. MEMORY, CALLBACKS: the name of the file, with '/'
    /// between its parts, or NULL.
    pub path: *const c_char,
    /// MEMORY: the file, which must not change until the call returns, or the job that loads has ended.
    pub data: *const c_void,
    /// MEMORY, CALLBACKS: bytes of the file.
    pub size: u64,
    /// CALLBACKS: reads the file until the call returns, or the job that loads has ended.
    pub read_at: svdq_read_at_fn,
    /// CALLBACKS: first argument of read_at.
    pub user: *mut c_void,
}

// SAFETY: integers, pointers and a function's, which may be NULL; no padding.
unsafe impl Sized32 for svdq_source {
    const NAME: &'static str = "svdq_source";
}

/// Element `index` of an array called `what`.
///
/// # Safety
/// As [`read_element`]; memory and callbacks of the source are as the header demands for as long as the
/// [`Source`] is read.
pub(super) unsafe fn source(sources: *const svdq_source, index: usize, what: &str) -> Result<Source> {
    // SAFETY: the caller's promise.
    let source = unsafe { read_element(sources, index, what)? };
    let invalid = |what: String| Err(Error::InvalidArgument(format!("source {index}: {what}")));
    // SAFETY: the caller's promise.
    let path = || unsafe { text(source.path, "path") };
    let name = || if source.path.is_null() { Ok(None) } else { path().map(|name| Some(name.to_owned())) };
    match source.kind {
        SVDQ_SOURCE_PATH => Ok(Source::Path(PathBuf::from(path()?))),
        SVDQ_SOURCE_MEMORY => {
            let start = pointer(source.data.cast::<u8>(), "data");
            let Ok(start) = start else { return invalid("data is NULL".into()) };
            match usize::try_from(source.size) {
                Ok(size) if isize::try_from(size).is_ok() => {
                    Ok(Source::Memory { name: name()?, bytes: Arc::new(CallersMemory { start, size }) })
                }
                _ => invalid(format!("size is {}, which no memory has", source.size)),
            }
        }
        SVDQ_SOURCE_CALLBACKS => {
            let Some(read_at) = source.read_at else { return invalid("read_at is NULL".into()) };
            let file = CallersFile { size: source.size, read_at, user: source.user };
            Ok(Source::Callbacks { name: name()?, file: Arc::new(file) })
        }
        other => invalid(format!("the kind is {other}, which is none")),
    }
}

/// Memory that a program has promised not to touch while a load reads it. It is gone afterwards, so that only
/// what takes part in the load may hold this.
struct CallersMemory {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: only read, by the contract of `source` while nobody writes.
unsafe impl Send for CallersMemory {}
// SAFETY: as above.
unsafe impl Sync for CallersMemory {}

impl AsRef<[u8]> for CallersMemory {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: so many bytes, at most `isize::MAX`, are readable and do not change, by the contract of `source`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.size) }
    }
}

/// A file that a program reads.
struct CallersFile {
    size: u64,
    read_at: unsafe extern "C" fn(*mut c_void, u64, *mut c_void, usize) -> svdq_result,
    user: *mut c_void,
}

// SAFETY: by the header, the thread that loads may call `read_at`, whichever it is, and no two do at a time.
unsafe impl Send for CallersFile {}
// SAFETY: as above.
unsafe impl Sync for CallersFile {}

impl ReadAt for CallersFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        // SAFETY: by the header the function takes these, and writes no more than `to` has.
        match unsafe { (self.read_at)(self.user, offset, to.as_mut_ptr().cast(), to.len()) } {
            SVDQ_OK => Ok(()),
            other => {
                let name = name(other).to_string_lossy();
                Err(io::Error::other(format!("read_at returned {other} ({name})")))
            }
        }
    }
}
