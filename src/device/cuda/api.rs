//! The functions of the NVIDIA driver that this library calls, looked up when they are first needed: the
//! library itself starts on machines without the driver.

#![allow(unsafe_code, reason = "foreign functions")]

use std::ffi::{CStr, c_char, c_void};
use std::sync::LazyLock;

use cudarc::driver::sys;
pub(super) use sys::{
    CUcontext, CUdevice, CUdevice_attribute_enum as Attribute, CUdeviceptr, CUevent, CUfunction,
    CUfunction_attribute_enum as FunctionAttribute, CUgraph, CUgraphExec, CUmodule, CUstream,
    CUstreamCaptureMode_enum as CaptureMode, CUtensorMap, CUtensorMapDataType_enum as TensorMapType,
    CUtensorMapFloatOOBfill_enum as Fill, CUtensorMapInterleave_enum as Interleave,
    CUtensorMapL2promotion_enum as Promotion, CUtensorMapSwizzle_enum as Swizzle, CUuuid,
};

use crate::{Error, Result};

/// CUDA 13.0, as `cuDriverGetVersion` writes it: what kernels compiled with nvcc 13.0 need.
const NEEDED: i32 = 13000;

/// A `CUresult`. No Rust enum: a newer driver may know more values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Code(pub(super) u32);

impl Code {
    pub(super) const OUT_OF_MEMORY: Code = Code(2);
    pub(super) const NO_BINARY_FOR_GPU: Code = Code(209);
    const STUB_LIBRARY: Code = Code(34);
    const NO_DEVICE: Code = Code(100);

    /// Whether the context is of no use any more, for anyone in this process.
    pub(super) fn is_sticky(self) -> bool {
        // ECC, NVLINK; faults of a kernel; a device that fell off the bus.
        matches!(self.0, 46 | 214 | 220 | 226 | 700 | 702 | 709 | 710 | 714..=719 | 721 | 999)
    }
}

/// What a call of the driver's came to.
pub(super) type Status = std::result::Result<(), Code>;

macro_rules! functions {
    ($($name:ident($($arg:ident: $type:ty),*);)*) => {
        /// The driver's functions, all of them present. Calls return the driver's code.
        #[allow(non_snake_case)]
        #[derive(Clone, Copy)]
        pub(super) struct Api {
            /// What `cuDriverGetVersion` says.
            pub(super) version: u32,
            $($name: unsafe extern "C" fn($($type),*) -> u32,)*
        }

        #[allow(non_snake_case)]
        impl Api {
            /// # Errors
            /// The name of the first function that the driver lacks.
            fn load(version: i32) -> std::result::Result<Self, &'static str> {
                // SAFETY: the caller made sure that the library is there; types are cuda.h's.
                Ok(unsafe { Api { version: version.cast_unsigned(), $($name: *sys::culib().get(stringify!($name).as_bytes()).map_err(|_| stringify!($name))?,)* } })
            }

            /// A driver that does nothing and says that it did: what calls would have written stays as it is.
            pub(super) fn idle() -> Self {
                Api { version: 0, $($name: { extern "C" fn idle($(_: $type),*) -> u32 { 0 } idle },)* }
            }

            $(
                /// # Safety
                /// As cuda.h says.
                #[allow(clippy::too_many_arguments)]
                pub(super) unsafe fn $name(&self, $($arg: $type),*) -> Status {
                    // SAFETY: the caller's.
                    match unsafe { (self.$name)($($arg),*) } {
                        0 => Ok(()),
                        code => Err(Code(code)),
                    }
                }
            )*
        }
    };
}

functions! {
    cuInit(flags: u32);
    cuGetErrorName(code: u32, name: *mut *const c_char);
    cuDeviceGetCount(count: *mut i32);
    cuDeviceGet(device: *mut CUdevice, index: i32);
    cuDeviceGetName(name: *mut c_char, cap: i32, device: CUdevice);
    cuDeviceGetUuid_v2(uuid: *mut CUuuid, device: CUdevice);
    cuDeviceGetLuid(luid: *mut c_char, node_mask: *mut u32, device: CUdevice);
    cuDeviceGetAttribute(value: *mut i32, attribute: Attribute, device: CUdevice);
    cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice);
    cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
    cuDevicePrimaryCtxRelease_v2(device: CUdevice);
    cuCtxPushCurrent_v2(context: CUcontext);
    cuCtxPopCurrent_v2(context: *mut CUcontext);
    cuCtxGetStreamPriorityRange(least: *mut i32, greatest: *mut i32);
    cuStreamCreateWithPriority(stream: *mut CUstream, flags: u32, priority: i32);
    cuStreamDestroy_v2(stream: CUstream);
    cuStreamSynchronize(stream: CUstream);
    cuStreamBeginCapture_v2(stream: CUstream, mode: CaptureMode);
    cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph);
    cuGraphInstantiateWithFlags(executable: *mut CUgraphExec, graph: CUgraph, flags: u64);
    cuGraphLaunch(executable: CUgraphExec, stream: CUstream);
    cuGraphExecDestroy(executable: CUgraphExec);
    cuGraphDestroy(graph: CUgraph);
    cuEventCreate(event: *mut CUevent, flags: u32);
    cuEventRecord(event: CUevent, stream: CUstream);
    cuEventSynchronize(event: CUevent);
    cuEventElapsedTime(milliseconds: *mut f32, from: CUevent, to: CUevent);
    cuEventDestroy_v2(event: CUevent);
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    cuMemAlloc_v2(pointer: *mut CUdeviceptr, bytes: usize);
    cuMemFree_v2(pointer: CUdeviceptr);
    cuMemHostAlloc(pointer: *mut *mut c_void, bytes: usize, flags: u32);
    cuMemFreeHost(pointer: *mut c_void);
    cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream);
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuMemsetD8Async(at: CUdeviceptr, value: u8, bytes: usize, stream: CUstream);
    cuModuleLoadData(module: *mut CUmodule, image: *const c_void);
    cuModuleUnload(module: CUmodule);
    cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char);
    cuFuncSetAttribute(function: CUfunction, attribute: FunctionAttribute, value: i32);
    cuLaunchKernel(
        function: CUfunction, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32,
        shared_bytes: u32, stream: CUstream, params: *mut *mut c_void, extra: *mut *mut c_void
    );
    cuTensorMapEncodeTiled(
        map: *mut CUtensorMap, element: TensorMapType, rank: u32, base: *mut c_void, sizes: *const u64,
        strides: *const u64, tile: *const u32, steps: *const u32, interleave: Interleave, swizzle: Swizzle,
        promotion: Promotion, fill: Fill
    );
}

impl Api {
    /// Opens the driver and initialises it.
    ///
    /// # Errors
    /// [`Error::NoDriver`], [`Error::DriverTooOld`], [`Error::NoDevice`].
    pub(super) fn open() -> Result<Self> {
        let none = |why: String| Err(Error::NoDriver(why));
        // Looked for once: where it is missing, the system looks in every folder that it knows.
        // SAFETY: loads a library that is there to be loaded; nothing is called.
        static PRESENT: LazyLock<bool> = LazyLock::new(|| unsafe { sys::is_culib_present() });
        if !*PRESENT {
            return none("libcuda is not installed".into());
        }
        let version = driver_version()?;
        let api = match Self::load(version) {
            Ok(api) => api,
            Err(name) if version >= NEEDED => return none(format!("libcuda lacks {name}")),
            Err(_) => return Err(too_old(version)),
        };
        if version < NEEDED {
            return Err(too_old(version));
        }
        // SAFETY: may be called at any time.
        match unsafe { api.cuInit(0) } {
            Ok(()) => Ok(api),
            Err(Code::STUB_LIBRARY) => none("libcuda is the toolkit's stub, which does nothing".into()),
            Err(Code::NO_DEVICE) => Err(Error::NoDevice("the NVIDIA driver finds no GPU".into())),
            Err(code) => none(format!("libcuda cannot be initialised: {}", api.name(code))),
        }
    }

    /// The name of a code, as cuda.h has it.
    pub(super) fn name(&self, code: Code) -> String {
        let mut name = std::ptr::null();
        // SAFETY: `name` receives a static string, or stays null for codes that the driver does not know.
        match unsafe { self.cuGetErrorName(code.0, &mut name) } {
            // SAFETY: as above.
            Ok(()) if !name.is_null() => unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned(),
            _ => format!("CUDA error {}", code.0),
        }
    }
}

fn too_old(version: i32) -> Error {
    let text = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
    Error::DriverTooOld { found: text(version), need: text(NEEDED) }
}

/// The newest CUDA that the driver knows, 1000 times major plus 10 times minor; 0 if it does not say.
fn driver_version() -> Result<i32> {
    type GetVersion = unsafe extern "C" fn(*mut i32) -> u32;
    let mut version = 0;
    // SAFETY: the library is there; the function's type is cuda.h's, and it needs no cuInit before it.
    let code = unsafe {
        match sys::culib().get::<GetVersion>(b"cuDriverGetVersion") {
            Ok(get) => get(&mut version),
            Err(_) => return Ok(0),
        }
    };
    match Code(code) {
        Code(0) => Ok(version),
        Code::STUB_LIBRARY => {
            Err(Error::NoDriver("libcuda is the toolkit's stub, which does nothing".into()))
        }
        Code(code) => Err(Error::NoDriver(format!("libcuda does not tell its version: CUDA error {code}"))),
    }
}
