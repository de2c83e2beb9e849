//! A GPU as a program opens it.

use std::sync::Arc;

use super::driver::{Context, DeviceInfo, devices};
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
        let Some(mut info) = found.get(index as usize).cloned() else {
            let what = format!("there is no GPU {index}: the NVIDIA driver offers {}", found.len());
            return Err(Error::NoDevice(what));
        };
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

    /// Bytes of the GPU's memory that are free; other programs take their share of it.
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub fn free_memory(&self) -> Result<u64> {
        self.0.context.memory().map(|[free, _]| free)
    }

    /// Limits the bytes of the GPU's memory that weights and temporaries of this context take; 0 is no limit. What is
    /// taken already stays.
    pub fn set_memory_budget(&self, bytes: u64) {
        self.0.context.taken.set_budget(bytes);
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

    /// Bytes of the GPU's memory that weights and temporaries of this context take now, and the most that they ever
    /// took. What the driver needs for itself comes on top.
    pub fn taken_memory(&self) -> [u64; 2] {
        self.0.context.taken.bytes()
    }
}

/// The bytes in the order in which they lie in memory.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
