//! GPUs, and the context in which one of them is used.

#![allow(unsafe_code, reason = "calls the driver")]

use std::ffi::CStr;
use std::fmt;
use std::marker::PhantomData;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::ThreadId;

use super::api::{Api, Attribute, CUcontext, CUdevice, CUstream, CUuuid, CaptureMode, Code, Status};
use super::gpu::Priority;
use super::graph::Recorded;
use super::memory::Pool;
use super::profile::Profiler;
use super::staging::Staging;
use crate::{Error, Result};

/// A GPU that the NVIDIA driver offers.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Its number among the GPUs that this process sees.
    pub index: u32,
    /// The product's name.
    pub name: String,
    /// The same on every start, whatever the number.
    pub uuid: [u8; 16],
    /// By which Direct3D and Vulkan know it on Windows.
    pub luid: Option<[u8; 8]>,
    /// 90 for compute capability 9.0.
    pub compute_capability: u32,
    /// The newest CUDA that the driver knows: 13000 for 13.0.
    pub driver_version: u32,
    /// Bytes.
    pub total_memory: u64,
}

/// All GPUs of this machine that the NVIDIA driver offers to this process. Takes no GPU memory.
///
/// # Errors
/// [`Error::NoDriver`], [`Error::DriverTooOld`].
pub fn devices() -> Result<Vec<DeviceInfo>> {
    let api = match Api::open() {
        Err(Error::NoDevice(_)) => return Ok(vec![]),
        api => api?,
    };
    let mut count = 0;
    // SAFETY: `count` lives.
    unsafe { api.cuDeviceGetCount(&mut count) }.map_err(|code| failed(&api, "cuDeviceGetCount", code))?;
    (0..count.cast_unsigned()).map(|index| DeviceInfo::read(&api, index).map(|(info, _)| info)).collect()
}

/// The GPU of this number, and the bytes of its memory that are free; `None` if they cannot be told, as where there is no
/// room for a context. The driver tells them to a context only: where this process has none, one is made for the purpose,
/// which takes some hundred megabytes and milliseconds. It is gone when this returns.
///
/// # Errors
/// [`Error::NoDriver`], [`Error::DriverTooOld`], [`Error::NoDevice`].
pub fn device(index: u32) -> Result<(DeviceInfo, Option<u64>)> {
    let api = Api::open()?;
    let (info, device) = DeviceInfo::read(&api, index)?;
    let (mut context, mut free, mut total) = (null_mut(), 0, 0);
    // SAFETY: everything pointed to lives; what is retained and pushed here is given back.
    let told = unsafe {
        if api.cuDevicePrimaryCtxRetain(&mut context, device).is_err() {
            return Ok((info, None));
        }
        let told = api.cuCtxPushCurrent_v2(context).and_then(|()| {
            let told = api.cuMemGetInfo_v2(&mut free, &mut total);
            api.cuCtxPopCurrent_v2(&mut context).and(told)
        });
        api.cuDevicePrimaryCtxRelease_v2(device).and(told)
    };
    Ok((info, told.is_ok().then_some(free as u64)))
}

impl DeviceInfo {
    fn read(api: &Api, index: u32) -> Result<(Self, CUdevice)> {
        let fail = |what| move |code| failed(api, what, code);
        let (mut device, mut count) = (0, 0);
        let (mut name, mut uuid) = ([0; 128], CUuuid { bytes: [0; 16] });
        let (mut luid, mut node_mask, mut total) = ([0; 8], 0, 0);
        // SAFETY: everything pointed to lives, and strings have the length that is given.
        let luid = unsafe {
            api.cuDeviceGetCount(&mut count).map_err(fail("cuDeviceGetCount"))?;
            if i64::from(index) >= i64::from(count) {
                return Err(no_device(index, count));
            }
            api.cuDeviceGet(&mut device, index.cast_signed()).map_err(fail("cuDeviceGet"))?;
            api.cuDeviceGetName(name.as_mut_ptr(), name.len() as i32 - 1, device)
                .map_err(fail("cuDeviceGetName"))?;
            api.cuDeviceGetUuid_v2(&mut uuid, device).map_err(fail("cuDeviceGetUuid"))?;
            api.cuDeviceTotalMem_v2(&mut total, device).map_err(fail("cuDeviceTotalMem"))?;
            let has_luid =
                cfg!(windows) && api.cuDeviceGetLuid(luid.as_mut_ptr(), &mut node_mask, device).is_ok();
            has_luid.then_some(luid)
        };
        let attribute = |attribute| {
            let mut value = 0;
            // SAFETY: `value` lives.
            unsafe { api.cuDeviceGetAttribute(&mut value, attribute, device) }
                .map_err(fail("cuDeviceGetAttribute"))?;
            Ok(value.cast_unsigned())
        };
        let compute_capability = 10 * attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
            + attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        // SAFETY: the last character was never written and is 0.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let info = DeviceInfo {
            index,
            name,
            uuid: uuid.bytes.map(|byte| byte as u8),
            luid: luid.map(|luid| luid.map(|byte| byte as u8)),
            compute_capability,
            driver_version: api.version,
            total_memory: total as u64,
        };
        Ok((info, device))
    }
}

/// There are only `count`.
pub(super) fn no_device(index: u32, count: impl fmt::Display) -> Error {
    Error::NoDevice(format!("there is no GPU {index}: the NVIDIA driver offers {count}"))
}

fn failed(api: &Api, what: &str, code: Code) -> Error {
    match code {
        code if code.is_sticky() => Error::DeviceLost(format!("{what}: {}", api.name(code))),
        code => Error::Internal(format!("{what}: {}", api.name(code))),
    }
}

/// CU_STREAM_NON_BLOCKING: does not wait for the program's default stream.
const NON_BLOCKING: u32 = 1;

/// A GPU's primary context, which the whole process shares, and a stream of our own in it.
pub(super) struct Context {
    pub(super) api: Api,
    pub(super) info: DeviceInfo,
    /// Streaming multiprocessors.
    pub(super) multiprocessors: u32,
    stream: CUstream,
    /// That of all streams: a recorded step runs with that of the stream to which it is sent.
    priority: i32,
    /// The thread that records, if any, and the stream from which it does.
    recording: Mutex<Option<(ThreadId, CUstream)>>,
    /// Held by who records.
    recorder: Mutex<()>,
    pub(super) profiler: Profiler,
    device: CUdevice,
    context: CUcontext,
    /// Why the context is of no use any more.
    lost: OnceLock<String>,
    /// What our allocations take.
    pub(super) taken: Taken,
    /// Weights and temporaries of every device on this context.
    pools: Mutex<Vec<[Weak<Pool>; 2]>>,
    pub(super) staging: Staging,
}

/// Bytes of GPU memory that a context's allocations take.
#[derive(Default)]
pub(super) struct Taken {
    now: AtomicU64,
    most: AtomicU64,
    /// They must not take more; 0 for any number.
    budget: AtomicU64,
}

impl Taken {
    /// Whether so many more could be taken.
    pub(super) fn add(&self, bytes: u64) -> bool {
        let before = self.now.fetch_add(bytes, Ordering::Relaxed);
        let fits = self.left_of(before).is_none_or(|left| bytes <= left);
        match fits {
            true => drop(self.most.fetch_max(before + bytes, Ordering::Relaxed)),
            false => self.subtract(bytes),
        }
        fits
    }

    pub(super) fn subtract(&self, bytes: u64) {
        self.now.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes that are taken now, and the most that ever were at a time.
    pub(super) fn bytes(&self) -> [u64; 2] {
        [&self.now, &self.most].map(|bytes| bytes.load(Ordering::Relaxed))
    }

    /// The budget; 0 if there is none.
    pub(super) fn budget(&self) -> u64 {
        self.budget.load(Ordering::Relaxed)
    }

    /// What is left of the budget, if there is one.
    pub(super) fn left(&self) -> Option<u64> {
        self.left_of(self.now.load(Ordering::Relaxed))
    }

    /// Whether more is taken than the budget allows: it became smaller while a picture was made.
    pub(super) fn is_too_much(&self) -> bool {
        (1..self.now.load(Ordering::Relaxed)).contains(&self.budget())
    }

    fn left_of(&self, now: u64) -> Option<u64> {
        match self.budget() {
            0 => None,
            budget => Some(budget.saturating_sub(now)),
        }
    }
}

// SAFETY: contexts and streams are the driver's objects, which may be used from any thread.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Opens GPU `index`.
    ///
    /// # Errors
    /// [`Error::NoDriver`], [`Error::DriverTooOld`], [`Error::NoDevice`], [`Error::OutOfDeviceMemory`].
    pub(super) fn open(index: u32, priority: Priority) -> Result<Self> {
        let api = Api::open()?;
        let (info, device) = DeviceInfo::read(&api, index)?;
        let mut context = Context {
            api,
            info,
            multiprocessors: 0,
            stream: null_mut(),
            priority: 0,
            recording: Mutex::default(),
            recorder: Mutex::default(),
            profiler: Profiler::default(),
            device,
            context: null_mut(),
            lost: OnceLock::new(),
            taken: Taken::default(),
            pools: Mutex::default(),
            staging: Staging::default(),
        };
        let (mut least, mut greatest, mut multiprocessors) = (0, 0, 0);
        let attribute = Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        // SAFETY: everything pointed to lives; what is retained and created here is given back by `drop`.
        unsafe {
            let code = api.cuDeviceGetAttribute(&mut multiprocessors, attribute, device);
            context.check("cuDeviceGetAttribute", code)?;
            let mut primary = null_mut();
            context.check("cuDevicePrimaryCtxRetain", api.cuDevicePrimaryCtxRetain(&mut primary, device))?;
            context.context = primary;
            let (mut stream, number);
            {
                let _current = context.enter()?;
                let code = api.cuCtxGetStreamPriorityRange(&mut least, &mut greatest);
                context.check("cuCtxGetStreamPriorityRange", code)?;
                // The lower the number, the higher the priority.
                number = match priority {
                    Priority::Low => least,
                    Priority::Balanced => (least + greatest) / 2,
                    Priority::High => greatest,
                };
                stream = null_mut();
                let code = api.cuStreamCreateWithPriority(&mut stream, NON_BLOCKING, number);
                context.check("cuStreamCreate", code)?;
            }
            (context.stream, context.priority) = (stream, number);
        }
        context.multiprocessors = multiprocessors.cast_unsigned();
        Ok(context)
    }

    /// The same GPU behind a driver that does nothing.
    pub(super) fn idle(&self) -> Self {
        Context {
            api: Api::idle(),
            info: self.info.clone(),
            multiprocessors: self.multiprocessors,
            stream: null_mut(),
            priority: 0,
            recording: Mutex::default(),
            recorder: Mutex::default(),
            profiler: Profiler::default(),
            device: self.device,
            context: null_mut(),
            lost: OnceLock::new(),
            taken: Taken::default(),
            pools: Mutex::default(),
            staging: Staging::default(),
        }
    }

    /// Whether nothing is behind it: the driver does nothing.
    pub(super) fn is_idle(&self) -> bool {
        self.context.is_null()
    }

    /// Makes this the thread's current context until the guard is dropped, then the one that was.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], from the first time on.
    pub(super) fn enter(&self) -> Result<Current<'_>> {
        if let Some(why) = self.lost.get() {
            return Err(Error::DeviceLost(why.clone()));
        }
        // SAFETY: the context is retained.
        self.check("cuCtxPushCurrent", unsafe { self.api.cuCtxPushCurrent_v2(self.context) })?;
        Ok(Current { context: self, thread: PhantomData })
    }

    /// Turns what the driver says of the call `what` into an error of ours.
    pub(super) fn check(&self, what: &str, status: Status) -> Result<()> {
        let Err(code) = status else { return Ok(()) };
        if code == Code::OUT_OF_MEMORY {
            return Err(Error::OutOfDeviceMemory { what: what.into(), need: 0, free: 0, budget: None });
        }
        let error = failed(&self.api, what, code);
        if let Error::DeviceLost(why) = &error {
            // The first reason is the one that says what happened.
            let _ = self.lost.set(why.clone());
        }
        Err(error)
    }

    /// Free and total bytes of the GPU's memory, of which other programs take their share.
    pub(super) fn memory(&self) -> Result<[u64; 2]> {
        let _current = self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both live.
        self.check("cuMemGetInfo", unsafe { self.api.cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok([free as u64, total as u64])
    }

    /// Why `need` more bytes cannot be had: the budget, if the GPU itself has them.
    pub(super) fn full(&self, what: &str, need: u64) -> Error {
        let free = match self.memory() {
            Ok([free, _]) => free,
            Err(error) => return error,
        };
        let ([now, _], what) = (self.taken.bytes(), what.into());
        match self.taken.left() {
            Some(left) if left < need && need <= free => {
                Error::MemoryBudget { what, need: now.saturating_add(need), budget: self.taken.budget() }
            }
            budget => Error::OutOfDeviceMemory { what, need, free, budget },
        }
    }

    /// Takes note of the memory of a device, for [`Self::trim`].
    pub(super) fn register(&self, weights: &Arc<Pool>, temporaries: &Arc<Pool>) {
        let mut pools = lock(&self.pools);
        pools.retain(|[weights, _]| weights.strong_count() > 0);
        pools.push([weights, temporaries].map(Arc::downgrade));
    }

    /// Gives back what no weights are in, and the temporaries of devices that have nothing to do. Returns the bytes that
    /// weights take.
    pub(super) fn trim(&self) -> u64 {
        let pools: Vec<_> =
            lock(&self.pools).iter().map(|pools| pools.each_ref().map(Weak::upgrade)).collect();
        let mut bytes = 0;
        for [weights, temporaries] in pools {
            if let Some(pool) = weights {
                pool.trim();
                bytes += pool.bytes() as u64;
            }
            if let Some(pool) = temporaries {
                pool.empty();
            }
        }
        bytes
    }

    /// Limits what is taken from now on; 0 is no limit.
    ///
    /// # Errors
    /// [`Error::MemoryBudget`] when weights take more; the budget stays what it was.
    pub(super) fn set_budget(&self, budget: u64) -> Result<()> {
        if budget > 0 && self.taken.bytes()[0] > budget {
            let need = self.trim();
            if need > budget {
                return Err(Error::MemoryBudget { what: "the weights that are loaded".into(), need, budget });
            }
        }
        self.taken.budget.store(budget, Ordering::Relaxed);
        Ok(())
    }

    /// The stream to which the calling thread's work goes.
    pub(super) fn stream(&self) -> CUstream {
        match *lock(&self.recording) {
            Some((thread, stream)) if thread == std::thread::current().id() => stream,
            _ => self.stream,
        }
    }

    /// Until the recording ends, what this thread asks of the GPU is written down instead of done. Other threads work on.
    pub(super) fn record(&self) -> Result<Recording<'_>> {
        let turn = lock(&self.recorder);
        let _current = self.enter()?;
        let mut stream = null_mut();
        // SAFETY: `stream` lives; `Recording` destroys the stream.
        unsafe {
            let code = self.api.cuStreamCreateWithPriority(&mut stream, NON_BLOCKING, self.priority);
            self.check("cuStreamCreate", code)?;
            let recording = Recording { context: self, stream, _turn: turn };
            let mode = CaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            self.check("cuStreamBeginCapture", self.api.cuStreamBeginCapture_v2(stream, mode))?;
            *lock(&self.recording) = Some((std::thread::current().id(), stream));
            Ok(recording)
        }
    }

    /// Waits until everything that was asked of the GPU is done.
    pub(super) fn synchronize(&self) -> Result<()> {
        let _current = self.enter()?;
        // SAFETY: the stream is ours.
        self.check("cuStreamSynchronize", unsafe { self.api.cuStreamSynchronize(self.stream()) })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.context.is_null() {
            return;
        }
        // SAFETY: all are ours; nobody uses them any more. Failures leave nothing to be done.
        unsafe {
            if !self.stream.is_null() && self.api.cuCtxPushCurrent_v2(self.context).is_ok() {
                let _ = self.api.cuStreamSynchronize(self.stream);
                std::mem::take(&mut self.staging).free(self);
                let _ = self.api.cuStreamDestroy_v2(self.stream);
                let _ = self.api.cuCtxPopCurrent_v2(&mut null_mut());
            }
            let _ = self.api.cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While it lives, the work of the thread that made it is recorded.
pub(super) struct Recording<'a> {
    context: &'a Context,
    stream: CUstream,
    _turn: MutexGuard<'a, ()>,
}

impl<'a> Recording<'a> {
    /// Ends it.
    pub(super) fn end(self) -> Result<Recorded<'a>> {
        let context = self.context;
        let _current = context.enter()?;
        let mut graph = null_mut();
        // SAFETY: the stream is ours, and this is the thread that began.
        let code = unsafe { context.api.cuStreamEndCapture(self.stream, &mut graph) };
        context.check("cuStreamEndCapture", code)?;
        Ok(Recorded { context, graph })
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        *lock(&self.context.recording) = None;
        let _current = self.context.enter();
        // SAFETY: the stream is ours; a capture that was not ended is over with it.
        let _ = unsafe { self.context.api.cuStreamDestroy_v2(self.stream) };
    }
}

/// While it lives, the thread's current context is ours.
pub(super) struct Current<'a> {
    context: &'a Context,
    /// Not for another thread.
    thread: PhantomData<*const ()>,
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        let mut ours: CUcontext = null_mut();
        // SAFETY: pops what `enter` pushed: guards are dropped in the opposite order.
        let _ = unsafe { self.context.api.cuCtxPopCurrent_v2(&mut ours) };
    }
}
