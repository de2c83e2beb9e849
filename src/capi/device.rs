//! The GPUs of this machine.

use std::ffi::c_char;

use super::boundary::{Sized32, guard, pointer, write_struct};
use super::{SVDQ_PROFILE_W4A4, SVDQ_PROFILE_W4A8, SVDQ_PROFILE_W4A16, svdq_result};
use crate::Result;
use crate::engine::{DeviceInfo, device, devices, profiles};
use crate::ops::Profile;

/// A GPU that the NVIDIA driver offers.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct svdq_device_info {
    /// sizeof(svdq_device_info), set by the caller.
    pub struct_size: u32,
    /// 89 for compute capability 8.9.
    pub compute_capability: u32,
    /// The product's name, UTF-8, with a NUL at its end.
    pub name: [c_char; 128],
    /// The same on every start, for svdq_context_params.device_id. Vulkan: deviceUUID.
    pub uuid: [u8; 16],
    /// For svdq_context_params.device_id. Direct3D: AdapterLuid. Vulkan: deviceLUID.
    pub luid: [u8; 8],
    /// 1 when there is a LUID: on Windows.
    pub luid_valid: u32,
    /// The newest CUDA that the driver knows: 13000 for 13.0.
    pub driver_version: u32,
    /// In what INT4 checkpoints can run: bit 1 << SVDQ_PROFILE_* for each profile. 0: this library has
    /// no kernels for this GPU.
    pub int4_profiles: u32,
    /// In what NVFP4 checkpoints can run, likewise.
    pub nvfp4_profiles: u32,
    /// Bytes.
    pub memory_total: u64,
    /// Bytes that nobody uses now. 0: there is not even room to ask.
    pub memory_free: u64,
}

// SAFETY: integers, no padding.
unsafe impl Sized32 for svdq_device_info {
    const NAME: &'static str = "svdq_device_info";
}

/// Says how many GPUs the NVIDIA driver offers to this process. Computing on the CPU needs none.
///
/// count: receives the number; 0 on failure.
///
/// Errors: SVDQ_ERR_NO_DRIVER, SVDQ_ERR_DRIVER_TOO_OLD, SVDQ_ERR_INVALID_ARGUMENT.
/// Threads: any.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_device_count(count: *mut u32) -> svdq_result {
    guard(|| {
        let count = pointer(count, "count")?;
        // SAFETY: `count` is as the header demands.
        unsafe { count.write(0) };
        let found = devices()?.len();
        // SAFETY: as above.
        unsafe { count.write(found as u32) };
        Ok(())
    })
}

/// Describes a GPU. Blocks: the driver has to be asked for the free memory in a CUDA context, which
/// takes some hundred milliseconds where this process has none on this GPU. None stays.
///
/// index: below svdq_device_count's number, in the driver's order.
/// info: its struct_size must be set. Not written on failure.
///
/// Errors: SVDQ_ERR_NO_DEVICE, SVDQ_ERR_NO_DRIVER, SVDQ_ERR_DRIVER_TOO_OLD,
/// SVDQ_ERR_INVALID_ARGUMENT.
/// Threads: any.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_device_get_info(index: u32, info: *mut svdq_device_info) -> svdq_result {
    guard(|| {
        pointer(info, svdq_device_info::NAME)?;
        // SAFETY: `info` is as the header demands.
        unsafe { write_struct(info, &device_info(index)?) }
    })
}

fn device_info(index: u32) -> Result<svdq_device_info> {
    let (info, free) = device(index)?;
    let mut name = [0; 128];
    // The driver's names end before the last character.
    for (to, &from) in name[..127].iter_mut().zip(info.name.as_bytes()) {
        *to = from as c_char;
    }
    Ok(svdq_device_info {
        struct_size: 0,
        compute_capability: info.compute_capability,
        name,
        uuid: info.uuid,
        luid: info.luid.unwrap_or_default(),
        luid_valid: info.luid.is_some().into(),
        driver_version: info.driver_version,
        int4_profiles: profile_bits(&info, false),
        nvfp4_profiles: profile_bits(&info, true),
        memory_total: info.total_memory,
        memory_free: free.unwrap_or(0),
    })
}

fn profile_bits(info: &DeviceInfo, nvfp4: bool) -> u32 {
    let bit = |profile| match profile {
        Profile::W4A4 => 1 << SVDQ_PROFILE_W4A4,
        Profile::W4A8 => 1 << SVDQ_PROFILE_W4A8,
        Profile::W4A16 => 1 << SVDQ_PROFILE_W4A16,
    };
    profiles(info, nvfp4).into_iter().map(bit).sum()
}
