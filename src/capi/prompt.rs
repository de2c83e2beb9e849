//! Prompts that are encoded once.

use std::ffi::c_char;

use super::boundary::{Sized32, guard, handle, make_handle, read_struct, release, text};
use super::lora::loras;
use super::{svdq_lora_ref, svdq_model, svdq_result};
use crate::engine::Prompt;

/// A prompt that is encoded for one model, to be used for any number of pictures. It takes a few
/// megabytes of the host's memory, and saves each picture the time of the text encoders.
pub struct svdq_prompt(pub(super) Prompt);

/// What to encode.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct svdq_prompt_params {
    /// sizeof(svdq_prompt_params).
    pub struct_size: u32,
    /// Elements of loras, at most 64.
    pub lora_count: u32,
    /// The prompt, UTF-8. Not NULL; "" is a prompt.
    pub text: *const c_char,
    /// lora_count LoRAs, or NULL for none. Those that change text encoders take part in the encoding.
    pub loras: *const svdq_lora_ref,
}

// SAFETY: integers and pointers, no padding.
unsafe impl Sized32 for svdq_prompt_params {
    const NAME: &'static str = "svdq_prompt_params";
}

/// Encodes a prompt. Blocks until it is done. A picture of it is the same, byte for byte, as one of the
/// text with the same LoRAs.
///
/// model: may be released before the prompt is.
/// params: what to encode. Nothing of it is needed after the call.
/// out: receives the prompt, or NULL on failure. Release it with svdq_prompt_release.
///
/// Errors: SVDQ_ERR_OUT_OF_HOST_MEMORY, SVDQ_ERR_OUT_OF_DEVICE_MEMORY, SVDQ_ERR_MEMORY_BUDGET,
/// SVDQ_ERR_DEVICE_LOST, SVDQ_ERR_SHUTTING_DOWN, SVDQ_ERR_CANCELLED by svdq_context_shutdown,
/// SVDQ_ERR_VERSION_MISMATCH, SVDQ_ERR_INVALID_ARGUMENT.
/// Threads: any; takes turns with the pictures of its model.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_prompt_encode(
    model: *mut svdq_model,
    params: *const svdq_prompt_params,
    out: *mut *mut svdq_prompt,
) -> svdq_result {
    let encode = || {
        // SAFETY: `model`, `params` and what it points to are as the header demands.
        let (model, text, loras) = unsafe {
            let (model, params) = (handle(model, "model")?, read_struct(params)?);
            (model, text(params.text, "text")?, loras(params.loras, params.lora_count)?)
        };
        Ok(svdq_prompt(Prompt::encode(&model.0, text, &loras)?))
    };
    // SAFETY: `out` is as the header demands.
    guard(|| unsafe { make_handle(out, encode) })
}

/// Releases a prompt. Jobs that use it go on. NULL is allowed.
///
/// Threads: any, once no other call uses this handle.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_prompt_release(prompt: *mut svdq_prompt) {
    // SAFETY: `prompt` is as the header demands.
    unsafe { release(prompt) }
}
