//! The kernels: images that the build embedded, and their functions on one GPU.

#![allow(unsafe_code, reason = "calls the driver")]

use std::ffi::{CStr, c_void};
use std::ptr::null_mut;
use std::sync::Arc;

use super::api::{CUfunction, CUmodule, Code, FunctionAttribute};
use super::driver::Context;
use super::profile::Task;
use crate::ops::Work;
use crate::{Error, Result};

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// # Errors
/// [`Error::DeviceUnsupported`] when this build has no kernels at all.
pub(super) fn check_build() -> Result<()> {
    match IMAGES.is_empty() {
        false => Ok(()),
        true => Err(Error::DeviceUnsupported(
            "this build of libsvdq has no GPU kernels: it was made without nvcc".into(),
        )),
    }
}

/// A loaded image.
pub(super) struct Module {
    context: Arc<Context>,
    module: CUmodule,
}

// SAFETY: modules are the driver's objects, which may be used from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Loads the image of `kernels/{name}.cu`.
    ///
    /// # Errors
    /// [`Error::DeviceUnsupported`] when this build has no such image, or none for this GPU.
    pub(super) fn load(context: &Arc<Context>, name: &str) -> Result<Self> {
        let Some((_, image)) = IMAGES.iter().find(|(unit, _)| *unit == name) else {
            return Err(Error::DeviceUnsupported(format!("this build of libsvdq has no {name} kernels")));
        };
        let _current = context.enter()?;
        let mut module = null_mut();
        // SAFETY: the image is a fatbin, whose header says how long it is.
        match unsafe { context.api.cuModuleLoadData(&mut module, image.as_ptr().cast()) } {
            Err(Code::NO_BINARY_FOR_GPU) => Err(Error::DeviceUnsupported(format!(
                "libsvdq has no {name} kernels for {} (compute capability {}.{})",
                context.info.name,
                context.info.compute_capability / 10,
                context.info.compute_capability % 10
            ))),
            result => {
                context.check("cuModuleLoadData", result)?;
                Ok(Module { context: context.clone(), module })
            }
        }
    }

    /// The kernel `name`, which may use `shared_bytes` of dynamic shared memory.
    pub(super) fn kernel(&self, name: &'static CStr, shared_bytes: u32) -> Result<Kernel> {
        let context = &self.context;
        let _current = context.enter()?;
        let mut function = null_mut();
        // SAFETY: the module is loaded and `name` a string.
        let code = unsafe { context.api.cuModuleGetFunction(&mut function, self.module, name.as_ptr()) };
        context.check(&format!("cuModuleGetFunction {name:?}"), code)?;
        let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is there.
        let code = unsafe { context.api.cuFuncSetAttribute(function, attribute, shared_bytes.cast_signed()) };
        context.check(&format!("cuFuncSetAttribute {name:?}"), code)?;
        Ok(Kernel { function, task: Task { name, sizes: [0; 3], work: Work::Small } })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _current = self.context.enter();
        // SAFETY: loaded by us; its kernels are not launched any more.
        let _ = unsafe { self.context.api.cuModuleUnload(self.module) };
    }
}

/// A function on the GPU. Valid as long as its module.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    function: CUfunction,
    /// For profiles.
    task: Task,
}

// SAFETY: a handle of the driver's.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// How many threads run a kernel, and what they share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub(super) blocks: [u32; 3],
    pub(super) threads: u32,
    /// Dynamic shared memory of a block.
    pub(super) shared_bytes: u32,
}

/// Any value as an argument of a kernel.
pub(super) fn argument<T>(value: &T) -> *const c_void {
    std::ptr::from_ref(value).cast()
}

impl Kernel {
    /// The kernel, about to do `work` on something of these sizes: profiles tell launches apart by them.
    pub(super) fn doing(self, sizes: [usize; 3], work: Work) -> Self {
        Kernel { task: Task { sizes, work, ..self.task }, ..self }
    }

    /// Launches the kernel on `context`'s stream.
    ///
    /// # Safety
    /// `arguments` point to what the kernel takes, in its order and types, and the GPU memory that they name is
    /// there.
    pub(super) unsafe fn launch(
        self,
        context: &Context,
        grid: Grid,
        arguments: &mut [*const c_void],
    ) -> Result<()> {
        let Grid { blocks: [x, y, z], threads, shared_bytes } = grid;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        let _current = context.enter()?;
        let (arguments, stream) = (arguments.as_mut_ptr().cast(), context.stream());
        // SAFETY: the caller's; the driver copies the arguments before it returns.
        let code = unsafe {
            context.api.cuLaunchKernel(
                self.function,
                x,
                y,
                z,
                threads,
                1,
                1,
                shared_bytes,
                stream,
                arguments,
                null_mut(),
            )
        };
        context.check("cuLaunchKernel", code)?;
        context.mark(Some(self.task))
    }
}
