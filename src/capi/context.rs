//! What models are loaded into.

use super::boundary::{Sized32, guard, make_handle, read_struct, release, write_struct};
use super::{SVDQ_VERSION_MAJOR, SVDQ_VERSION_NUMBER, svdq_result};
use crate::engine::{Context, ContextOptions, DeviceSelect};
use crate::{Error, Result};

/// What models are loaded into: a device and its threads. Independent of every other context.
pub struct svdq_context(pub(super) Context);

/// The first GPU that this library can use, or the CPU if there is none.
pub const SVDQ_DEVICE_BEST: u32 = 0;
/// The GPU of number device_index among those of the NVIDIA driver.
pub const SVDQ_DEVICE_INDEX: u32 = 1;
/// The CPU.
pub const SVDQ_DEVICE_CPU: u32 = 4;

/// How a context is made. All zero but struct_size is a good choice.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct svdq_context_params {
    /// sizeof(svdq_context_params).
    pub struct_size: u32,
    /// SVDQ_VERSION_NUMBER as the program was compiled, for svdq_context_create to refuse a header
    /// that this library cannot serve. 0: unchecked.
    pub header_version: u32,
    /// CPU threads to compute with, the caller's own included; at most 1024. 0: one a core. Pictures do
    /// not depend on it.
    pub threads: u32,
    /// SVDQ_DEVICE_*: where models run. 0: SVDQ_DEVICE_BEST.
    pub device_select: u32,
    /// The number of the GPU, with SVDQ_DEVICE_INDEX.
    pub device_index: u32,
    /// Zero.
    pub reserved: u32,
    /// Bytes of GPU memory that the models of this context may take; 0: what is free. A model keeps as
    /// much of itself on the GPU as there is room for, and the rest in the host's memory. What the
    /// driver needs for itself, some hundred megabytes, comes on top.
    pub memory_budget: u64,
}

// SAFETY: integers.
unsafe impl Sized32 for svdq_context_params {
    const NAME: &'static str = "svdq_context_params";
}

/// Fills params with the defaults, which are zeros.
///
/// params: its struct_size must be set.
///
/// Errors: SVDQ_ERR_INVALID_ARGUMENT.
/// Threads: any.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_context_params_init(params: *mut svdq_context_params) -> svdq_result {
    let defaults = svdq_context_params {
        struct_size: 0,
        header_version: 0,
        threads: 0,
        device_select: SVDQ_DEVICE_BEST,
        device_index: 0,
        reserved: 0,
        memory_budget: 0,
    };
    // SAFETY: `params` is as the header demands.
    guard(|| unsafe { write_struct(params, &defaults) })
}

/// Makes a context.
///
/// params: how, or NULL for the defaults.
/// out: receives the context, or NULL on failure. Release it with svdq_context_release.
///
/// Errors: SVDQ_ERR_VERSION_MISMATCH, SVDQ_ERR_INVALID_ARGUMENT. For a GPU: SVDQ_ERR_NO_DRIVER,
/// SVDQ_ERR_DRIVER_TOO_OLD, SVDQ_ERR_NO_DEVICE, SVDQ_ERR_DEVICE_UNSUPPORTED,
/// SVDQ_ERR_OUT_OF_DEVICE_MEMORY.
/// Threads: any.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_context_create(
    params: *const svdq_context_params,
    out: *mut *mut svdq_context,
) -> svdq_result {
    let create = || {
        let mut options = ContextOptions::default();
        if !params.is_null() {
            // SAFETY: `params` is as the header demands.
            let params = unsafe { read_struct(params)? };
            check_header(params.header_version)?;
            if params.reserved != 0 {
                return Err(Error::InvalidArgument(format!("reserved is {}, not 0", params.reserved)));
            }
            options.threads = params.threads as usize;
            options.memory_budget = params.memory_budget;
            options.device = match params.device_select {
                SVDQ_DEVICE_BEST => DeviceSelect::Auto,
                SVDQ_DEVICE_INDEX => DeviceSelect::Cuda(params.device_index),
                SVDQ_DEVICE_CPU => DeviceSelect::Cpu,
                other => {
                    return Err(Error::InvalidArgument(format!("device_select is {other}, which is none")));
                }
            };
        }
        Ok(svdq_context(Context::new(options)?))
    };
    // SAFETY: `out` is as the header demands.
    guard(|| unsafe { make_handle(out, create) })
}

/// Releases a context. Its models stay usable. NULL is allowed.
///
/// Threads: any, once no other call uses this handle.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_context_release(context: *mut svdq_context) {
    // SAFETY: `context` is as the header demands.
    unsafe { release(context) }
}

/// A header of the same major version that is not newer than the library.
fn check_header(version: u32) -> Result<()> {
    if version == 0 || (version / 10000 == SVDQ_VERSION_MAJOR && version <= SVDQ_VERSION_NUMBER) {
        return Ok(());
    }
    let text = |v: u32| format!("{}.{}.{}", v / 10000, v / 100 % 100, v % 100);
    let (header, library) = (text(version), text(SVDQ_VERSION_NUMBER));
    Err(Error::VersionMismatch(format!(
        "the program was compiled with svdq.h {header}, the library is libsvdq {library}"
    )))
}
