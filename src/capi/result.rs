//! What a call came to.

use std::ffi::{CStr, c_char};

use super::boundary::{catch, last_error, write_text};
use crate::Error;

/// What a call came to: 0 is success, negative is an error. Numbers never change meaning.
pub type svdq_result = i32;

/// The call did what it says.
pub const SVDQ_OK: svdq_result = 0;
/// Not there yet: a job still runs. Not an error.
pub const SVDQ_PENDING: svdq_result = 1;
/// A pointer is NULL, a number is out of range, a string is not UTF-8.
pub const SVDQ_ERR_INVALID_ARGUMENT: svdq_result = -1;
/// The caller's buffer is too small; the error text says what is needed.
pub const SVDQ_ERR_BUFFER_TOO_SMALL: svdq_result = -2;
/// The call or the job was cancelled.
pub const SVDQ_ERR_CANCELLED: svdq_result = -3;
/// The job has not come to its end: wait for it first.
pub const SVDQ_ERR_BUSY: svdq_result = -4;
/// The context was shut down.
pub const SVDQ_ERR_SHUTTING_DOWN: svdq_result = -5;
/// The input is sound, but asks for something that this library does not do.
pub const SVDQ_ERR_UNSUPPORTED: svdq_result = -6;
/// The program was compiled with a header that this library does not know.
pub const SVDQ_ERR_VERSION_MISMATCH: svdq_result = -7;
/// The system refused to read a file.
pub const SVDQ_ERR_IO: svdq_result = -20;
/// A file or folder does not exist.
pub const SVDQ_ERR_NOT_FOUND: svdq_result = -21;
/// A file is damaged, or is not what its format requires.
pub const SVDQ_ERR_BAD_FORMAT: svdq_result = -22;
/// A file is sound, but belongs to another model.
pub const SVDQ_ERR_WRONG_MODEL: svdq_result = -23;
/// Memory for an image or a model of this size is not to be had.
pub const SVDQ_ERR_OUT_OF_HOST_MEMORY: svdq_result = -40;
/// GPU memory is not to be had; the handles stay usable.
pub const SVDQ_ERR_OUT_OF_DEVICE_MEMORY: svdq_result = -41;
/// The context's memory budget is too small; the handles stay usable.
pub const SVDQ_ERR_MEMORY_BUDGET: svdq_result = -42;
/// There is no NVIDIA driver that could be used.
pub const SVDQ_ERR_NO_DRIVER: svdq_result = -60;
/// The NVIDIA driver is too old; the error text says which one is needed.
pub const SVDQ_ERR_DRIVER_TOO_OLD: svdq_result = -61;
/// There is no such GPU.
pub const SVDQ_ERR_NO_DEVICE: svdq_result = -62;
/// The GPU lacks something that is needed.
pub const SVDQ_ERR_DEVICE_UNSUPPORTED: svdq_result = -63;
/// The GPU failed for good: release the context and what was made from it.
pub const SVDQ_ERR_DEVICE_LOST: svdq_result = -64;
/// A bug in the library. The process is sound and the handles may be used and released.
pub const SVDQ_ERR_INTERNAL: svdq_result = -99;

/// The name of a result as it stands in this header, for logs. Never NULL: a number that is no
/// result has the name "SVDQ_ERR_UNKNOWN". The string is static.
///
/// Threads: any.
/// Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn svdq_result_name(result: svdq_result) -> *const c_char {
    name(result).as_ptr()
}

/// Writes what went wrong in the last call that failed in this thread, in one line of English that
/// names the file, tensor, shape or value at fault. Empty when no call has failed in this thread.
/// Calls that succeed leave it as it is, and so does this one.
///
/// buf, cap, needed: as for every string out, see the top of this file.
///
/// Errors: SVDQ_ERR_BUFFER_TOO_SMALL, SVDQ_ERR_INVALID_ARGUMENT.
/// Threads: any; every thread has a text of its own.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_last_error(buf: *mut c_char, cap: usize, needed: *mut usize) -> svdq_result {
    // SAFETY: `buf` and `needed` are as the header demands.
    match catch(|| unsafe { write_text(&last_error(), buf, cap, needed) }) {
        Ok(()) => SVDQ_OK,
        Err(error) => code(&error),
    }
}

/// The result that stands for `error`.
pub(super) fn code(error: &Error) -> svdq_result {
    match error {
        Error::InvalidArgument(_) => SVDQ_ERR_INVALID_ARGUMENT,
        Error::BufferTooSmall { .. } => SVDQ_ERR_BUFFER_TOO_SMALL,
        Error::Cancelled => SVDQ_ERR_CANCELLED,
        Error::Busy(_) => SVDQ_ERR_BUSY,
        Error::ShuttingDown => SVDQ_ERR_SHUTTING_DOWN,
        Error::Job(error) => code(error),
        Error::Unsupported(_) => SVDQ_ERR_UNSUPPORTED,
        Error::VersionMismatch(_) => SVDQ_ERR_VERSION_MISMATCH,
        Error::Io { .. } => SVDQ_ERR_IO,
        Error::NotFound { .. } => SVDQ_ERR_NOT_FOUND,
        Error::BadFormat { .. } => SVDQ_ERR_BAD_FORMAT,
        Error::WrongModel { .. } => SVDQ_ERR_WRONG_MODEL,
        Error::OutOfHostMemory { .. } => SVDQ_ERR_OUT_OF_HOST_MEMORY,
        Error::OutOfDeviceMemory { .. } => SVDQ_ERR_OUT_OF_DEVICE_MEMORY,
        Error::MemoryBudget { .. } => SVDQ_ERR_MEMORY_BUDGET,
        Error::NoDriver(_) => SVDQ_ERR_NO_DRIVER,
        Error::DriverTooOld { .. } => SVDQ_ERR_DRIVER_TOO_OLD,
        Error::NoDevice(_) => SVDQ_ERR_NO_DEVICE,
        Error::DeviceUnsupported(_) => SVDQ_ERR_DEVICE_UNSUPPORTED,
        Error::DeviceLost(_) => SVDQ_ERR_DEVICE_LOST,
        Error::Internal(_) => SVDQ_ERR_INTERNAL,
    }
}

pub(super) fn name(result: svdq_result) -> &'static CStr {
    match result {
        SVDQ_OK => c"SVDQ_OK",
        SVDQ_PENDING => c"SVDQ_PENDING",
        SVDQ_ERR_INVALID_ARGUMENT => c"SVDQ_ERR_INVALID_ARGUMENT",
        SVDQ_ERR_BUFFER_TOO_SMALL => c"SVDQ_ERR_BUFFER_TOO_SMALL",
        SVDQ_ERR_CANCELLED => c"SVDQ_ERR_CANCELLED",
        SVDQ_ERR_BUSY => c"SVDQ_ERR_BUSY",
        SVDQ_ERR_SHUTTING_DOWN => c"SVDQ_ERR_SHUTTING_DOWN",
        SVDQ_ERR_UNSUPPORTED => c"SVDQ_ERR_UNSUPPORTED",
        SVDQ_ERR_VERSION_MISMATCH => c"SVDQ_ERR_VERSION_MISMATCH",
        SVDQ_ERR_IO => c"SVDQ_ERR_IO",
        SVDQ_ERR_NOT_FOUND => c"SVDQ_ERR_NOT_FOUND",
        SVDQ_ERR_BAD_FORMAT => c"SVDQ_ERR_BAD_FORMAT",
        SVDQ_ERR_WRONG_MODEL => c"SVDQ_ERR_WRONG_MODEL",
        SVDQ_ERR_OUT_OF_HOST_MEMORY => c"SVDQ_ERR_OUT_OF_HOST_MEMORY",
        SVDQ_ERR_OUT_OF_DEVICE_MEMORY => c"SVDQ_ERR_OUT_OF_DEVICE_MEMORY",
        SVDQ_ERR_MEMORY_BUDGET => c"SVDQ_ERR_MEMORY_BUDGET",
        SVDQ_ERR_NO_DRIVER => c"SVDQ_ERR_NO_DRIVER",
        SVDQ_ERR_DRIVER_TOO_OLD => c"SVDQ_ERR_DRIVER_TOO_OLD",
        SVDQ_ERR_NO_DEVICE => c"SVDQ_ERR_NO_DEVICE",
        SVDQ_ERR_DEVICE_UNSUPPORTED => c"SVDQ_ERR_DEVICE_UNSUPPORTED",
        SVDQ_ERR_DEVICE_LOST => c"SVDQ_ERR_DEVICE_LOST",
        SVDQ_ERR_INTERNAL => c"SVDQ_ERR_INTERNAL",
        _ => c"SVDQ_ERR_UNKNOWN",
    }
}
