//! A GPU as a program opens it.

use std::sync::Arc;

use super::driver::{Context, DeviceInfo, devices, no_device};
use super::memory::Pool;
use super::{WEIGHT_CHUNK, choice, gemm4, generic, hopper, kernels};
use crate::ops::Profile;
use crate::{Error, Result};

/// Whose work goes first where this library's and other work wait for the GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Priority {
    /// The other's: graphics above all.
    #[default]
    Low,
    /// Neither: half-way between the lowest and the highest priority.
    Balanced,
    /// This library's.
    High,
}

/// Bytes of a GPU's memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct GpuMemory {
    /// What weights and temporaries of this context take. What the driver needs for itself comes on top.
    pub used: u64,
    /// The most that they ever took.
    pub peak: u64,
    /// What they may take; 0 for any number.
    pub budget: u64,
    /// What is free; other programs take their share of it.
    pub free: u64,
}

/// A GPU, opened. A clone is another handle to the same one.
#[derive(Clone)]
pub struct Gpu(pub(super) Arc<Opened>);

/// What a GPU is used through: its context, and the kernels that it runs.
pub(super) struct Opened {
    pub(super) context: Arc<Context>,
    pub(super) generic: generic::Kernels,
    pub(super) hopper: Option<hopper::Kernels>,
    pub(super) gemm4: Option<gemm4::Kernels>,
}

impl Opened {
    pub(super) fn new(context: Context) -> Result<Self> {
        let (capability, context) = (context.info.compute_capability, Arc::new(context));
        Ok(Opened {
            generic: generic::Kernels::load(&context)?,
            hopper: match choice::is_hopper(capability) {
                true => Some(hopper::Kernels::load(&context)?),
                false => None,
            },
            gemm4: match choice::native(capability) {
                Some(format) => Some(gemm4::Kernels::load(&context, format)?),
                None => None,
            },
            context,
        })
    }
}

impl Gpu {
    /// Opens the GPU of this number among those of the NVIDIA driver.
    ///
    /// # Errors
    /// [`Error::NoDriver`], [`Error::DriverTooOld`], [`Error::NoDevice`], [`Error::DeviceUnsupported`],
    /// [`Error::OutOfDeviceMemory`].
    pub fn open(index: u32, priority: Priority) -> Result<Self> {
        Self::open_as(index, u32::MAX, priority)
    }

    /// [`Gpu::open`] as if the GPU had no more than this compute capability (80 for 8.0), so that kernels and profiles
    /// for older GPUs run on it: for tests and measurements. Instructions that it lacks are emulated, which is slow.
    ///
    /// # Errors
    /// As [`Gpu::open`].
    pub fn open_as(index: u32, capability: u32, priority: Priority) -> Result<Self> {
        let found = devices()?;
        let mut info = found.get(index as usize).cloned().ok_or_else(|| no_device(index, found.len()))?;
        info.compute_capability = info.compute_capability.min(capability);
        choice::check(&info)?;
        kernels::check_build()?;
        let mut context = Context::open(index, priority)?;
        context.info = info;
        Ok(Gpu(Arc::new(Opened::new(context)?)))
    }

    /// Opens the GPU that has this UUID.
    ///
    /// # Errors
    /// As [`Gpu::open`].
    pub fn open_uuid(uuid: [u8; 16], priority: Priority) -> Result<Self> {
        match devices()?.iter().find(|info| info.uuid == uuid) {
            Some(info) => Self::open(info.index, priority),
            None => Err(Error::NoDevice(format!("no GPU has the UUID {}", hex(&uuid)))),
        }
    }

    /// Opens the GPU that has this LUID.
    ///
    /// # Errors
    /// As [`Gpu::open`].
    pub fn open_luid(luid: [u8; 8], priority: Priority) -> Result<Self> {
        match devices()?.iter().find(|info| info.luid == Some(luid)) {
            Some(info) => Self::open(info.index, priority),
            None => Err(Error::NoDevice(format!("no GPU has the LUID {}", hex(&luid)))),
        }
    }

    /// Opens the first GPU that can be used.
    ///
    /// # Errors
    /// Of those that cannot, why the last one cannot; else as [`Gpu::open`].
    pub fn open_any(priority: Priority) -> Result<Self> {
        let mut last = Error::NoDevice("the NVIDIA driver finds no GPU".into());
        for info in devices()? {
            match Self::open(info.index, priority) {
                Err(why @ Error::DeviceUnsupported(_)) => last = why,
                result => return result,
            }
        }
        Err(last)
    }

    /// How 4-bit linears are computed unless told otherwise, with NVFP4 weights or with INT4 ones.
    pub fn default_profile(&self, nvfp4: bool) -> Profile {
        choice::profiles(self.info().compute_capability, nvfp4).next().unwrap_or(Profile::W4A16)
    }

    /// Whether 4-bit linears with NVFP4 weights, or with INT4 ones, can be computed in a profile.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if they cannot.
    pub fn check(&self, nvfp4: bool, profile: Profile) -> Result<()> {
        choice::choose(self.info(), nvfp4, profile).map(|_| ())
    }

    /// What it is.
    pub fn info(&self) -> &DeviceInfo {
        &self.0.context.info
    }

    /// What its memory is used for.
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub fn memory(&self) -> Result<GpuMemory> {
        let (context, [free, _]) = (&self.0.context, self.0.context.memory()?);
        let ([used, peak], budget) = (context.taken.bytes(), context.taken.budget());
        Ok(GpuMemory { used, peak, budget, free })
    }

    /// Limits the bytes of the GPU's memory that weights and temporaries of this context take; 0 is no limit. Of what is
    /// taken already beyond it, all that can be made again is given back: at once, or when the picture is done that uses it.
    ///
    /// # Errors
    /// [`Error::MemoryBudget`] if weights take more than that; the budget stays what it was.
    pub fn set_memory_budget(&self, bytes: u64) -> Result<()> {
        self.0.context.set_budget(bytes)
    }

    /// Copies `parts` to the GPU, one over the other, and waits until they are there.
    ///
    /// # Errors
    /// [`Error::OutOfDeviceMemory`], [`Error::DeviceLost`].
    pub fn copy<'a>(&self, parts: impl Iterator<Item = &'a [u8]>) -> Result<()> {
        let range = Pool::new(self.0.context.clone(), 0, "copies").take(WEIGHT_CHUNK)?;
        parts.flat_map(|part| part.chunks(WEIGHT_CHUNK)).try_for_each(|chunk| range.write(chunk))?;
        self.0.context.synchronize()
    }
}

/// The profiles that a GPU has for 4-bit linears with NVFP4 weights, or with INT4 ones, the best one first; none if this
/// build has no kernels for it.
pub fn profiles(info: &DeviceInfo, nvfp4: bool) -> Vec<Profile> {
    let usable = choice::check(info).and_then(|()| kernels::check_build()).is_ok();
    choice::profiles(info.compute_capability, nvfp4).filter(|_| usable).collect()
}

/// The bytes in the order in which they lie in memory.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
