//! Contexts, models and LoRAs: what a program holds.
//!
//! A [`Context`] owns the device; a [`Model`] owns weights on it and keeps the context alive; a [`Lora`] belongs to a
//! model and keeps it alive. All are handles: cloning one is cheap, and they may be used and dropped on any thread in any order.

mod device;
mod image;
mod lora;
mod model;

pub use crate::ops::{KernelTime, Work};
pub use crate::pipeline::flux::{Progress, StepTimes, Timings};
pub use crate::weights::RandomSizes;
pub use image::{ImageMut, PixelFormat};
pub use lora::{Lora, LoraInfo};
pub use model::{GenerateParams, Model, ModelInfo, ModelOptions};

use crate::device::cuda::Gpu;
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
}

/// The device on which models run.
#[derive(Clone)]
pub struct Context {
    threads: usize,
    /// None: the CPU.
    gpu: Option<Gpu>,
}

impl Context {
    /// Opens the device.
    ///
    /// # Errors
    /// [`Error::NoDriver`], [`Error::DriverTooOld`], [`Error::NoDevice`] or [`Error::DeviceUnsupported`] when a
    /// GPU is asked for that cannot be used; [`Error::OutOfDeviceMemory`] when it is full.
    pub fn new(options: ContextOptions) -> Result<Self> {
        let ContextOptions { device, threads, memory_budget } = options;
        if threads > MAX_THREADS {
            return Err(Error::InvalidArgument(format!(
                "threads is {threads}, at most {MAX_THREADS} are allowed"
            )));
        }
        let gpu = match device {
            DeviceSelect::Cpu => None,
            DeviceSelect::Cuda(index) => Some(Gpu::open(index)?),
            DeviceSelect::Auto => Gpu::open_any()?,
        };
        if let Some(gpu) = &gpu {
            gpu.set_memory_budget(memory_budget);
        }
        Ok(Context { threads, gpu })
    }

    /// Bytes of the GPU's memory that models of this context take now, and the most that they ever took; `None` on the
    /// CPU.
    pub fn gpu_memory(&self) -> Option<[u64; 2]> {
        self.gpu.as_ref().map(Gpu::taken_memory)
    }

    /// A context on a GPU that is already open.
    pub fn on(gpu: Gpu) -> Self {
        Context { threads: 0, gpu: Some(gpu) }
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
}

#[cfg(test)]
mod tests;
