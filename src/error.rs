//! What can go wrong, each kind with the stable code that the C API returns.

use std::any::Any;
use std::path::PathBuf;

/// The result of everything in this library that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call failed. The text names the file, tensor, shape or value at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument is out of range, null, or contradicts another.
    #[error("{0}")]
    InvalidArgument(String),
    /// The caller's buffer is smaller than what has to be written to it.
    #[error("{what} holds {got} bytes, {need} are needed")]
    BufferTooSmall {
        /// Which buffer.
        what: &'static str,
        /// Its size in bytes.
        got: u64,
        /// The size that would do.
        need: u64,
    },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// What is asked for is not there yet: work goes on in another thread.
    #[error("{0}")]
    Busy(String),
    /// The context was shut down and starts nothing new.
    #[error("the context was shut down")]
    ShuttingDown,
    /// What a job came to; several may ask for it.
    #[error(transparent)]
    Job(std::sync::Arc<Error>),
    /// The input is well-formed, but asks for something this build does not do.
    #[error("{0}")]
    Unsupported(String),
    /// The caller was built against an incompatible header.
    #[error("{0}")]
    VersionMismatch(String),
    /// The operating system refused to read or write a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file or folder that has to exist does not.
    #[error("{}: {what}", path.display())]
    NotFound {
        /// The file or folder.
        path: PathBuf,
        /// What was looked for.
        what: String,
    },
    /// A file is not what its format requires.
    #[error("{}: {what}", path.display())]
    BadFormat {
        /// The file.
        path: PathBuf,
        /// The tensor, key or offset at fault, and what was expected.
        what: String,
    },
    /// A file is sound, but belongs to a model of another kind or size.
    #[error("{}: {what}", path.display())]
    WrongModel {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// Memory for an image or a model of this size is not to be had.
    #[error("{bytes} bytes of memory are needed for {what}")]
    OutOfHostMemory {
        /// What the memory was for.
        what: String,
        /// How much was asked for.
        bytes: u64,
    },
    /// GPU memory is not to be had. The context stays usable.
    #[error("not enough GPU memory for {what}: {}", gpu_bytes(*need, *free, *budget))]
    OutOfDeviceMemory {
        /// What the memory was for.
        what: String,
        /// Bytes asked for; 0 where the driver does not say.
        need: u64,
        /// Bytes that were free.
        free: u64,
        /// Bytes of the memory budget that were not taken yet; `None` if there is no budget.
        budget: Option<u64>,
    },
    /// The context's memory budget is too small for what it is asked to hold; the GPU itself has room.
    #[error("the memory budget of {budget} bytes is too small for {what}: {need} bytes are needed")]
    MemoryBudget {
        /// What the memory was for.
        what: String,
        /// Bytes that the budget would have to be.
        need: u64,
        /// The budget.
        budget: u64,
    },
    /// There is no NVIDIA driver that could be used.
    #[error("no NVIDIA driver: {0}")]
    NoDriver(String),
    /// The NVIDIA driver is older than the kernels.
    #[error("the NVIDIA driver knows CUDA {found} and {need} is needed: install driver 580 or newer")]
    DriverTooOld {
        /// The newest CUDA version that the driver knows.
        found: String,
        /// The oldest one that will do.
        need: String,
    },
    /// The NVIDIA driver has no such GPU.
    #[error("{0}")]
    NoDevice(String),
    /// The GPU lacks something that is needed, or this build has no kernels for it.
    #[error("{0}")]
    DeviceUnsupported(String),
    /// The GPU's context failed for good. Everything on it is lost; other contexts are not affected.
    #[error("the GPU was lost: {0}")]
    DeviceLost(String),
    /// A promise inside the library was broken: please report it.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Error {
    /// An [`Error::Io`] for `path`, or [`Error::NotFound`] when the system says that nothing is there.
    pub(crate) fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            std::io::ErrorKind::NotFound => Error::NotFound { path, what: "no such file or folder".into() },
            _ => Error::Io { path, source },
        }
    }

    /// An [`Error::Internal`] for a panic that was caught.
    pub(crate) fn panic(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or(payload.downcast_ref::<String>().map(String::as_str));
        Error::Internal(text.unwrap_or("panic").to_owned())
    }

    /// An [`Error::BadFormat`] for `path`.
    pub(crate) fn format(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Error::BadFormat { path: path.into(), what: what.into() }
    }
}

fn gpu_bytes(need: u64, free: u64, budget: Option<u64>) -> String {
    match (need, budget) {
        (0, _) => "the driver has none left".into(),
        (need, None) => format!("{need} bytes are needed, {free} are free"),
        (need, Some(left)) => {
            format!("{need} bytes are needed, {free} are free and {left} are left of the memory budget")
        }
    }
}
