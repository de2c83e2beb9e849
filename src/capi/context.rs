//! What models are loaded into.

use std::ffi::{CString, c_char, c_void};
use std::ptr;

use super::boundary::{
    Sized32, guard, guard_code, handle, make_handle, pointer, read_struct, release, write_struct, write_text,
};
use super::job::timeout;
use super::{SVDQ_OK, SVDQ_PENDING, SVDQ_VERSION_MAJOR, SVDQ_VERSION_NUMBER, svdq_result};
use crate::engine::{Context, ContextOptions, DeviceSelect, Log, MemoryInfo, Priority};
use crate::memory::{Hook, HostMemory};
use crate::{Error, Result};

/// What models are loaded into: a device and its threads. Independent of every other context.
pub struct svdq_context(pub(super) Context);

/// The first GPU that this library can use, or the CPU if there is none; the log says why.
pub const SVDQ_DEVICE_BEST: u32 = 0;
/// The GPU of number device_index, as svdq_device_get_info counts them.
pub const SVDQ_DEVICE_INDEX: u32 = 1;
/// The GPU whose UUID device_id is.
pub const SVDQ_DEVICE_UUID: u32 = 2;
/// The GPU whose LUID the first 8 bytes of device_id are: the one that Direct3D renders with.
pub const SVDQ_DEVICE_LUID: u32 = 3;
/// The CPU.
pub const SVDQ_DEVICE_CPU: u32 = 4;

/// Graphics and the program's other work on the GPU go first.
pub const SVDQ_PRIORITY_LOW: u32 = 0;
/// Half-way between the lowest and the highest priority that the GPU has.
pub const SVDQ_PRIORITY_BALANCED: u32 = 1;
/// Pictures go first.
pub const SVDQ_PRIORITY_HIGH: u32 = 2;

/// Something failed in a thread of the library.
pub const SVDQ_LOG_ERROR: i32 = 1;
/// Something is not as it was asked for: the CPU is used, a LoRA has tensors without a place.
pub const SVDQ_LOG_WARNING: i32 = 2;
/// What was opened and loaded.
pub const SVDQ_LOG_INFO: i32 = 3;
/// What was made.
pub const SVDQ_LOG_DEBUG: i32 = 4;

/// Receives a line of a context's log, in UTF-8 and without a line break; message is gone after the
/// call. Called in any thread that is inside the library, by several at a time, and while no lock is
/// held: it may call the library, but must not release handles. It must not throw.
pub type svdq_log_fn = Option<unsafe extern "C" fn(user: *mut c_void, level: i32, message: *const c_char)>;
/// Gives size bytes at a multiple of alignment, a power of two, or NULL if there are none. Called in
/// any thread, by several at a time. It must not call the library.
pub type svdq_alloc_fn =
    Option<unsafe extern "C" fn(user: *mut c_void, size: usize, alignment: usize) -> *mut c_void>;
/// Takes back what svdq_alloc_fn gave, with the same size and alignment. Called as that is.
pub type svdq_free_fn =
    Option<unsafe extern "C" fn(user: *mut c_void, memory: *mut c_void, size: usize, alignment: usize)>;

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
    /// SVDQ_PRIORITY_*: who goes first on the GPU. 0: SVDQ_PRIORITY_LOW.
    pub gpu_priority: u32,
    /// The UUID of the GPU, with SVDQ_DEVICE_UUID; its LUID and 8 zeros, with SVDQ_DEVICE_LUID.
    pub device_id: [u8; 16],
    /// Bytes of GPU memory that the models of this context may take; 0: what is free. A model keeps as
    /// much of itself on the GPU as there is room for, and the rest in the host's memory. What the
    /// driver needs for itself, some hundred megabytes, comes on top.
    pub memory_budget: u64,
    /// Receives the log, until the context and all that was made from it are released. NULL: the log
    /// is kept for svdq_context_read_log.
    pub log: svdq_log_fn,
    /// log's first argument.
    pub log_user: *mut c_void,
    /// With free, gives the host's memory for all that grows with files and pictures: weights,
    /// activations, pixels. NULL, both: the system's.
    pub alloc: svdq_alloc_fn,
    /// With alloc.
    pub free: svdq_free_fn,
    /// alloc's and free's first argument.
    pub alloc_user: *mut c_void,
}

// SAFETY: integers, pointers and functions that may be NULL, no padding.
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
        gpu_priority: SVDQ_PRIORITY_LOW,
        device_id: [0; 16],
        memory_budget: 0,
        log: None,
        log_user: ptr::null_mut(),
        alloc: None,
        free: None,
        alloc_user: ptr::null_mut(),
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
        // SAFETY: `params` is as the header demands.
        let options = if params.is_null() { ContextOptions::default() } else { unsafe { options(params)? } };
        Ok(svdq_context(Context::new(options)?))
    };
    // SAFETY: `out` is as the header demands.
    guard(|| unsafe { make_handle(out, create) })
}

/// Changes how much GPU memory the models of a context may take. Later loads and pictures keep to
/// it. What is there beyond it is given back if it can be made again, which the next picture does: at
/// once, or when the picture is done that uses it. Does nothing on the CPU.
///
/// bytes: as svdq_context_params.memory_budget.
///
/// Errors: SVDQ_ERR_MEMORY_BUDGET when the weights on the GPU take more, which the error text says in
/// bytes: the budget stays what it was. SVDQ_ERR_INVALID_ARGUMENT.
/// Threads: any.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_context_set_memory_budget(
    context: *mut svdq_context,
    bytes: u64,
) -> svdq_result {
    // SAFETY: `context` is as the header demands.
    guard(|| unsafe { handle(context, "context")?.0.set_memory_budget(bytes) })
}

/// What the memory of a context is used for, in bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct svdq_memory_info {
    /// sizeof(svdq_memory_info), set by the caller.
    pub struct_size: u32,
    /// 0.
    pub reserved: u32,
    /// What weights and temporaries take on the GPU. What the driver needs for itself comes on top.
    /// This and the next three are 0 on the CPU.
    pub device_used: u64,
    /// The most that they ever took at a time.
    pub device_peak: u64,
    /// What they may take; 0: no limit.
    pub device_budget: u64,
    /// What is free on the GPU; other programs take their share of it.
    pub device_free: u64,
    /// What weights, activations and pixels take of the host's memory, as svdq_alloc_fn gives it.
    pub host_used: u64,
    /// The most that they ever took at a time.
    pub host_peak: u64,
}

// SAFETY: integers, no padding.
unsafe impl Sized32 for svdq_memory_info {
    const NAME: &'static str = "svdq_memory_info";
}

/// Says what the memory of a context is used for.
///
/// info: its struct_size must be set. Not written on failure.
///
/// Errors: SVDQ_ERR_DEVICE_LOST, SVDQ_ERR_INVALID_ARGUMENT.
/// Threads: any.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_context_get_memory(
    context: *const svdq_context,
    info: *mut svdq_memory_info,
) -> svdq_result {
    guard(|| {
        // SAFETY: `context` is as the header demands.
        let MemoryInfo { gpu, host_used, host_peak } = unsafe { handle(context, "context")?.0.memory()? };
        let gpu = gpu.unwrap_or_default();
        let found = svdq_memory_info {
            struct_size: 0,
            reserved: 0,
            device_used: gpu.used,
            device_peak: gpu.peak,
            device_budget: gpu.budget,
            device_free: gpu.free,
            host_used,
            host_peak,
        };
        // SAFETY: `info` is as the header demands.
        unsafe { write_struct(info, &found) }
    })
}

/// Takes the oldest line of the log, for programs that would rather ask than be called. The last 256
/// lines are kept; a line says how many made room for them.
///
/// level: receives its SVDQ_LOG_*; 0, and an empty text, when there is none, as where
/// svdq_context_params.log receives the lines.
/// buf, cap, needed: as for every string out, see the top of this file. A line that does not fit
/// stays, and so does one of which only the size is asked for.
///
/// Errors: SVDQ_ERR_BUFFER_TOO_SMALL, SVDQ_ERR_INVALID_ARGUMENT.
/// Threads: any.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_context_read_log(
    context: *mut svdq_context,
    level: *mut i32,
    buf: *mut c_char,
    cap: usize,
    needed: *mut usize,
) -> svdq_result {
    guard(|| {
        // SAFETY: `context` is as the header demands.
        let log = unsafe { handle(context, "context")?.0.log() };
        let level = pointer(level, "level")?;
        log.read(|line| {
            // SAFETY: `level`, `buf` and `needed` are as the header demands.
            unsafe {
                level.write(line.map_or(0, |(level, _)| level as i32));
                write_text(line.map_or("", |(_, text)| text), buf, cap, needed)?;
            }
            Ok(!buf.is_null())
        })
    })
}

/// Ends everything that a context does: cancels all jobs and all blocking calls, refuses new ones with
/// SVDQ_ERR_SHUTTING_DOWN, and waits until none runs. After success no thread and no callback of this
/// context runs any more, so that the program may unload the library or end. Handles are to be released
/// as ever, before or after. A second call finds nothing to do.
///
/// timeout_ms: milliseconds to wait at most. 0: not at all. UINT32_MAX: without end.
///
/// Returns SVDQ_PENDING if something still runs after timeout_ms: call it again.
///
/// Errors: SVDQ_ERR_INVALID_ARGUMENT.
/// Threads: any, and several at a time; not from a callback of this context.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_context_shutdown(context: *mut svdq_context, timeout_ms: u32) -> svdq_result {
    guard_code(|| {
        // SAFETY: `context` is as the header demands.
        let context = unsafe { &handle(context, "context")?.0 };
        Ok(if context.shut_down(timeout(timeout_ms)) { SVDQ_OK } else { SVDQ_PENDING })
    })
}

/// Releases a context. Its models stay usable, and its jobs go on. NULL is allowed.
///
/// Threads: any, once no other call uses this handle.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_context_release(context: *mut svdq_context) {
    // SAFETY: `context` is as the header demands.
    unsafe { release(context) }
}

/// # Safety
/// As [`read_struct`]; the functions and what belongs to them are as the header demands.
unsafe fn options(params: *const svdq_context_params) -> Result<ContextOptions> {
    // SAFETY: the caller's promise.
    let params = unsafe { read_struct(params)? };
    check_header(params.header_version)?;
    Ok(ContextOptions {
        device: device(&params)?,
        threads: params.threads as usize,
        memory_budget: params.memory_budget,
        priority: match params.gpu_priority {
            SVDQ_PRIORITY_LOW => Priority::Low,
            SVDQ_PRIORITY_BALANCED => Priority::Balanced,
            SVDQ_PRIORITY_HIGH => Priority::High,
            other => return Err(Error::InvalidArgument(format!("gpu_priority is {other}, which is none"))),
        },
        log: log(&params),
        // SAFETY: the caller's promise.
        memory: unsafe { memory(&params)? },
    })
}

fn device(params: &svdq_context_params) -> Result<DeviceSelect> {
    match params.device_select {
        SVDQ_DEVICE_BEST => Ok(DeviceSelect::Auto),
        SVDQ_DEVICE_INDEX => Ok(DeviceSelect::Cuda(params.device_index)),
        SVDQ_DEVICE_UUID => Ok(DeviceSelect::Uuid(params.device_id)),
        SVDQ_DEVICE_LUID => match params.device_id.as_chunks().0 {
            [luid, [0, 0, 0, 0, 0, 0, 0, 0]] => Ok(DeviceSelect::Luid(*luid)),
            _ => Err(Error::InvalidArgument("device_id has more than the 8 bytes of a LUID".into())),
        },
        SVDQ_DEVICE_CPU => Ok(DeviceSelect::Cpu),
        other => Err(Error::InvalidArgument(format!("device_select is {other}, which is none"))),
    }
}

fn log(params: &svdq_context_params) -> Log {
    /// The program's, which promised that any thread may use it.
    struct User(*mut c_void);
    // SAFETY: the program's promise.
    unsafe impl Send for User {}
    // SAFETY: as above.
    unsafe impl Sync for User {}

    let Some(function) = params.log else { return Log::default() };
    let user = User(params.log_user);
    Log::to(move |level, line| {
        let user: &User = &user;
        // Lines have no control characters.
        if let Ok(line) = CString::new(line) {
            // SAFETY: the function is as the header demands, and the string ends in a NUL.
            unsafe { function(user.0, level as i32, line.as_ptr()) }
        }
    })
}

/// # Safety
/// Of alloc and free, as [`HostMemory::from_hook`].
unsafe fn memory(params: &svdq_context_params) -> Result<HostMemory> {
    match (params.alloc, params.free) {
        (None, None) => Ok(HostMemory::default()),
        (Some(alloc), Some(free)) => {
            let hook = Hook { alloc, free, user: params.alloc_user };
            // SAFETY: the caller's.
            Ok(unsafe { HostMemory::from_hook(hook) })
        }
        _ => Err(Error::InvalidArgument("of alloc and free one is NULL: both are needed, or none".into())),
    }
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
