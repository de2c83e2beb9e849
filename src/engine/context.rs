//! The device on which models run, and what they share there.

use std::time::Duration;

use super::Log;
use super::scheduler::Scheduler;
use crate::device::cuda::{Gpu, GpuMemory, Priority};
use crate::memory::HostMemory;
use crate::ops::Profile;
use crate::{Error, Result};

/// More threads than this are refused: no machine has them, so the value is a mistake.
const MAX_THREADS: usize = 1024;

/// Where models run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceSelect {
    /// The first GPU that this library can use, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number among those of the NVIDIA driver.
    Cuda(u32),
    /// The GPU that has this UUID.
    Uuid([u8; 16]),
    /// The GPU that has this LUID, by which Direct3D and Vulkan know it on Windows.
    Luid([u8; 8]),
}

/// How to make a [`Context`].
#[derive(Clone, Debug, Default)]
pub struct ContextOptions {
    /// Where models run.
    pub device: DeviceSelect,
    /// CPU threads to compute with, the caller's own included; 0 means one for each core. Images do not
    /// depend on it.
    pub threads: usize,
    /// Bytes of GPU memory that weights and temporaries of this context may take; 0 means what is free. A model keeps as
    /// much of itself on the GPU as there is room for beside its default image: its 4-bit weights packed if need be, then
    /// its text encoders and then its modulation in the host's memory. What the driver needs for itself, some hundred
    /// megabytes, comes on top.
    pub memory_budget: u64,
    /// Who goes first on the GPU.
    pub priority: Priority,
    /// Where the context's log goes.
    pub log: Log,
    /// Where the host's memory comes from.
    pub memory: HostMemory,
}

/// What a context's memory is used for.
#[derive(Clone, Copy, Debug)]
pub struct MemoryInfo {
    /// On the GPU; `None` on the CPU.
    pub gpu: Option<GpuMemory>,
    /// Bytes of the host's memory that grow with files and pictures, from [`ContextOptions::memory`].
    pub host_used: u64,
    /// The most that they ever were.
    pub host_peak: u64,
}

/// The device on which models run.
#[derive(Clone)]
pub struct Context {
    pub(super) threads: usize,
    /// None: the CPU.
    pub(super) gpu: Option<Gpu>,
    log: Log,
    pub(super) memory: HostMemory,
    scheduler: Scheduler,
}

impl Context {
    /// Opens the device.
    ///
    /// # Errors
    /// [`Error::NoDriver`], [`Error::DriverTooOld`], [`Error::NoDevice`] or [`Error::DeviceUnsupported`] when a
    /// GPU is asked for that cannot be used; [`Error::OutOfDeviceMemory`] when it is full.
    pub fn new(options: ContextOptions) -> Result<Self> {
        let ContextOptions { device, threads, memory_budget, priority, log, memory } = options;
        if threads > MAX_THREADS {
            return Err(Error::InvalidArgument(format!(
                "threads is {threads}, at most {MAX_THREADS} are allowed"
            )));
        }
        let gpu = match device {
            DeviceSelect::Cpu => None,
            DeviceSelect::Cuda(index) => Some(Gpu::open(index, priority)?),
            DeviceSelect::Uuid(uuid) => Some(Gpu::open_uuid(uuid, priority)?),
            DeviceSelect::Luid(luid) => Some(Gpu::open_luid(luid, priority)?),
            DeviceSelect::Auto => open_any(priority, &log)?,
        };
        if let Some(gpu) = &gpu {
            gpu.set_memory_budget(memory_budget)?;
        }
        let context = Context { threads, gpu, log, memory, scheduler: Scheduler::new()? };
        context.log.info(format_args!("libsvdq {} on {}", env!("CARGO_PKG_VERSION"), context.describe()));
        Ok(context)
    }

    /// What its memory is used for.
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub fn memory(&self) -> Result<MemoryInfo> {
        let gpu = self.gpu.as_ref().map(Gpu::memory).transpose()?;
        Ok(MemoryInfo { gpu, host_used: self.memory.used(), host_peak: self.memory.peak() })
    }

    /// Changes [`ContextOptions::memory_budget`]; 0 is no limit, and so is any number on the CPU. What is on the GPU beyond
    /// it is given back if it can be made again, which the next picture does within the budget: at once, or when the
    /// picture is done that uses it. What a model keeps where was decided when it was loaded.
    ///
    /// # Errors
    /// [`Error::MemoryBudget`] if the weights on the GPU take more than that; the budget stays what it was.
    pub fn set_memory_budget(&self, bytes: u64) -> Result<()> {
        self.gpu.as_ref().map_or(Ok(()), |gpu| gpu.set_memory_budget(bytes))
    }

    /// A context on a GPU that is already open.
    ///
    /// # Errors
    /// [`Error::Internal`] when the system gives no threads.
    pub fn on(gpu: Gpu) -> Result<Self> {
        let (log, memory) = (Log::default(), HostMemory::default());
        Ok(Context { threads: 0, gpu: Some(gpu), log, memory, scheduler: Scheduler::new()? })
    }

    /// Ends everything that this context does: cancels all jobs and blocking calls, refuses new ones, and waits until none
    /// runs and the context's threads have ended, but no longer than `timeout` (`None`: as long as it takes). True when they
    /// have; else call it again. Models, jobs and LoRAs stay what they are, to be dropped at any time.
    pub fn shut_down(&self, timeout: Option<Duration>) -> bool {
        self.scheduler.shut_down(timeout)
    }

    /// Bytes of the GPU's memory that are there to be taken; `None` on the CPU.
    pub(super) fn gpu_room(&self) -> Result<Option<u64>> {
        let Some(gpu) = &self.gpu else { return Ok(None) };
        let memory = gpu.memory()?;
        let left = if memory.budget == 0 { u64::MAX } else { memory.budget.saturating_sub(memory.used) };
        Ok(Some(memory.free.min(left)))
    }

    pub(super) fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// How activations of 4-bit layers are quantised unless told otherwise, with NVFP4 weights or with INT4 ones.
    ///
    /// The CPU and GPUs of compute capability 9.0 take [`Profile::W4A8`], other GPUs [`Profile::W4A4`] where their tensor
    /// cores multiply the weights' numbers, and [`Profile::W4A16`] where not.
    pub fn default_profile(&self, nvfp4: bool) -> Profile {
        self.gpu.as_ref().map_or(Profile::W4A8, |gpu| gpu.default_profile(nvfp4))
    }

    /// The name of the GPU; "CPU" if there is none.
    pub fn device_name(&self) -> &str {
        self.gpu.as_ref().map_or("CPU", |gpu| &gpu.info().name)
    }

    /// What this context and its models have to say.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The device, for the log.
    fn describe(&self) -> String {
        let Some(gpu) = &self.gpu else { return "the CPU".into() };
        let (info, [int4, nvfp4]) = (gpu.info(), [false, true].map(|nvfp4| gpu.default_profile(nvfp4)));
        format!(
            "GPU {} ({}, compute capability {}.{}, {} bytes), driver for CUDA {}.{}: INT4 in {int4:?}, NVFP4 in {nvfp4:?}",
            info.index,
            info.name,
            info.compute_capability / 10,
            info.compute_capability % 10,
            info.total_memory,
            info.driver_version / 1000,
            info.driver_version % 1000 / 10,
        )
    }
}

/// The first GPU that can be used; `None`, and a line that says why, if there is none.
fn open_any(priority: Priority, log: &Log) -> Result<Option<Gpu>> {
    match Gpu::open_any(priority) {
        Ok(gpu) => Ok(Some(gpu)),
        Err(
            why @ (Error::NoDriver(_)
            | Error::DriverTooOld { .. }
            | Error::NoDevice(_)
            | Error::DeviceUnsupported(_)),
        ) => {
            log.warning(format_args!("no GPU is used: {why}"));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
