//! LoRAs.

use super::boundary::{Sized32, guard, handle, make_handle, read_element, release, write_struct};
use super::source::source;
use super::{svdq_model, svdq_result, svdq_source};
use crate::engine::Lora;
use crate::{Error, Result};

/// A LoRA that is loaded for one model.
pub struct svdq_lora(pub(super) Lora);

/// What a LoRA brings to its model.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct svdq_lora_info {
    /// sizeof(svdq_lora_info), set by the caller.
    pub struct_size: u32,
    /// The largest rank.
    pub rank: u32,
    /// Modules of the file that change the model.
    pub modules: u32,
    /// Tensors of the file for which the model has no place; they have no effect. A LoRA that was
    /// trained for this kind of model has none.
    pub unused_tensors: u32,
    /// Channels of a control image, as LoRAs for FLUX.1's tools (Canny, Depth) add them. No such image
    /// can be given yet: zeros stand for it. 0 for other LoRAs.
    pub control_channels: u32,
}

// SAFETY: five integers.
unsafe impl Sized32 for svdq_lora_info {
    const NAME: &'static str = "svdq_lora_info";
}

/// A LoRA that a picture is to be made with.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct svdq_lora_ref {
    /// sizeof(svdq_lora_ref), the same in all elements of an array.
    pub struct_size: u32,
    /// 1 is what the LoRA was trained for; 0 leaves it out. Negative and large values are allowed.
    pub strength: f32,
    /// Of the model that makes the picture. Not NULL, and not twice in an array.
    pub lora: *const svdq_lora,
}

// SAFETY: an integer, a float and a pointer, no padding.
unsafe impl Sized32 for svdq_lora_ref {
    const NAME: &'static str = "svdq_lora_ref";
}

/// Loads a LoRA for a model. Nothing changes until a svdq_generate_params names it. Blocks; the model
/// may be in use meanwhile.
///
/// model: may be released before the LoRA is.
/// source: a .safetensors file, its name of no importance, in the naming of diffusers, PEFT, kohya's scripts, ComfyUI, Black
/// Forest Labs or XLabs, for the transformer and the text encoders. Nothing of it is needed after the
/// call.
/// out: receives the LoRA, or NULL on failure. Release it with svdq_lora_release.
///
/// Errors: SVDQ_ERR_WRONG_MODEL for a LoRA of another model, SVDQ_ERR_UNSUPPORTED for LoKr, LoHa and
/// DoRA, SVDQ_ERR_NOT_FOUND, SVDQ_ERR_IO, SVDQ_ERR_BAD_FORMAT, SVDQ_ERR_OUT_OF_HOST_MEMORY,
/// SVDQ_ERR_OUT_OF_DEVICE_MEMORY, SVDQ_ERR_MEMORY_BUDGET, SVDQ_ERR_DEVICE_LOST, SVDQ_ERR_VERSION_MISMATCH,
/// SVDQ_ERR_INVALID_ARGUMENT. After svdq_context_shutdown SVDQ_ERR_SHUTTING_DOWN, or SVDQ_ERR_CANCELLED if
/// it ran already.
/// Threads: any.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_lora_load(
    model: *mut svdq_model,
    source: *const svdq_source,
    out: *mut *mut svdq_lora,
) -> svdq_result {
    let load = || {
        // SAFETY: `model` and `source` are as the header demands.
        let (model, source) = unsafe { (handle(model, "model")?, self::source(source, 0, "source")?) };
        Ok(svdq_lora(Lora::load(&model.0, source)?))
    };
    // SAFETY: `out` is as the header demands.
    guard(|| unsafe { make_handle(out, load) })
}

/// Says what a LoRA brings to its model.
///
/// info: its struct_size must be set. Not written on failure.
///
/// Errors: SVDQ_ERR_INVALID_ARGUMENT.
/// Threads: any.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_lora_get_info(
    lora: *const svdq_lora,
    info: *mut svdq_lora_info,
) -> svdq_result {
    guard(|| {
        // SAFETY: `lora` is as the header demands.
        let found = unsafe { handle(lora, "lora")?.0.info() };
        let found = svdq_lora_info {
            struct_size: 0,
            rank: found.ranks.last().map_or(0, |&rank| rank as u32),
            modules: found.modules as u32,
            unused_tensors: found.unused.len() as u32,
            control_channels: found.control_channels as u32,
        };
        // SAFETY: `info` is as the header demands.
        unsafe { write_struct(info, &found) }
    })
}

/// Releases a LoRA and the memory of its weights. NULL is allowed.
///
/// Threads: any, once no other call uses this handle.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_lora_release(lora: *mut svdq_lora) {
    // SAFETY: `lora` is as the header demands.
    unsafe { release(lora) }
}

/// More at a time are a mistake.
pub(super) const MAX_LORAS: u32 = 64;

/// The LoRAs of an array of so many elements, and their strengths.
///
/// # Safety
/// As [`read_element`], and the handles are not released meanwhile.
pub(super) unsafe fn loras(array: *const svdq_lora_ref, count: u32) -> Result<Vec<(Lora, f32)>> {
    if count > MAX_LORAS {
        let what = format!("lora_count is {count}, at most {MAX_LORAS} are allowed");
        return Err(Error::InvalidArgument(what));
    }
    let element = |index| {
        // SAFETY: the caller's promise; elements are read in order.
        let (lora, strength) = unsafe {
            let element = read_element(array, index, "loras")?;
            (handle(element.lora, "lora")?, element.strength)
        };
        Ok((lora.0.clone(), strength))
    };
    (0..count as usize).map(element).collect()
}
