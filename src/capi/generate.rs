//! From a prompt to pixels.

use std::ffi::c_char;
use std::ops::ControlFlow;
use std::ptr;

use super::boundary::{Sized32, guard, handle, read_element, read_struct, text, write_struct};
use super::image::image_mut;
use super::{svdq_image, svdq_lora_ref, svdq_model, svdq_prompt, svdq_result};
use crate::engine::{GenerateParams, Lora};
use crate::{Error, Result};

/// What to generate.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct svdq_generate_params {
    /// sizeof(svdq_generate_params).
    pub struct_size: u32,
    /// Pixels, a multiple of the model's size_multiple. 0: the model's default.
    pub width: u32,
    /// Pixels, a multiple of the model's size_multiple. 0: the model's default.
    pub height: u32,
    /// Denoising steps, at most 1000. 0: the model's default.
    pub steps: u32,
    /// Guidance scale, for models that take one. 0: the model's default.
    pub guidance: f32,
    /// Elements of loras, at most 64.
    pub lora_count: u32,
    /// The same seed gives the same picture. It is the seed of torch.Generator("cpu") in diffusers.
    pub seed: u64,
    /// What the picture shows, UTF-8. Not NULL; "" is a prompt.
    pub prompt: *const c_char,
    /// NULL: encoded prompts are not supported yet.
    pub encoded: *const svdq_prompt,
    /// lora_count LoRAs to use, or NULL for none. Their order has no meaning.
    pub loras: *const svdq_lora_ref,
    /// NULL: images to start from are not supported yet.
    pub init: *const svdq_image,
    /// 0.
    pub init_strength: f32,
    /// 0: previews are not supported yet.
    pub preview_every: u32,
}

// SAFETY: integers, a float and pointers, no padding.
unsafe impl Sized32 for svdq_generate_params {
    const NAME: &'static str = "svdq_generate_params";
}

/// Fills params with the model's defaults, seed 0, no prompt and no LoRAs.
///
/// params: its struct_size must be set. Not written on failure.
///
/// Errors: SVDQ_ERR_INVALID_ARGUMENT.
/// Threads: any.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_generate_params_init(
    model: *const svdq_model,
    params: *mut svdq_generate_params,
) -> svdq_result {
    guard(|| {
        // SAFETY: `model` is as the header demands.
        let info = unsafe { handle(model, "model")?.0.info() };
        let defaults = svdq_generate_params {
            struct_size: 0,
            width: info.default_width,
            height: info.default_height,
            steps: info.default_steps,
            guidance: info.default_guidance,
            lora_count: 0,
            seed: 0,
            prompt: ptr::null(),
            encoded: ptr::null(),
            loras: ptr::null(),
            init: ptr::null(),
            init_strength: 0.0,
            preview_every: 0,
        };
        // SAFETY: `params` is as the header demands.
        unsafe { write_struct(params, &defaults) }
    })
}

/// Makes a picture. Blocks until it is done. The same parameters on the same kind of processor give
/// the same bytes, whatever the number of threads.
///
/// params: what to generate. Nothing of it is needed after the call.
/// out: where to. Its width and height have to be those of the picture. Its pixels are not written on
/// failure.
///
/// Errors: SVDQ_ERR_BUFFER_TOO_SMALL, SVDQ_ERR_OUT_OF_HOST_MEMORY, SVDQ_ERR_OUT_OF_DEVICE_MEMORY (before
/// anything ran), SVDQ_ERR_DEVICE_LOST, SVDQ_ERR_VERSION_MISMATCH, SVDQ_ERR_INVALID_ARGUMENT. After
/// svdq_context_shutdown SVDQ_ERR_SHUTTING_DOWN, or SVDQ_ERR_CANCELLED if it ran already.
/// Threads: any; calls and jobs of the same model take turns, in the order in which they came.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_generate(
    model: *mut svdq_model,
    params: *const svdq_generate_params,
    out: *const svdq_image,
) -> svdq_result {
    guard(|| {
        // SAFETY: all three are as the header demands.
        let (model, request, out) =
            unsafe { (handle(model, "model")?, Request::read(params)?, read_struct(out)?) };
        // SAFETY: the pixels are as the header demands.
        let mut image = unsafe { image_mut(&out)? };
        model.0.generate(&request.params(), &mut image, &mut |_| ControlFlow::Continue(()))?;
        Ok(())
    })
}

/// What a `svdq_generate_params` asks for.
pub(super) struct Request<'a> {
    params: svdq_generate_params,
    prompt: &'a str,
    loras: Vec<(Lora, f32)>,
}

impl Request<'_> {
    /// # Safety
    /// `params` is as the header demands, and its prompt does not change while the request lasts.
    pub(super) unsafe fn read(params: *const svdq_generate_params) -> Result<Self> {
        // SAFETY: the caller's promise.
        let params = unsafe { read_struct(params)? };
        for (name, given) in [
            ("encoded", !params.encoded.is_null()),
            ("init", !params.init.is_null()),
            ("init_strength", params.init_strength != 0.0),
            ("preview_every", params.preview_every != 0),
        ] {
            if given {
                return Err(Error::Unsupported(format!("{name} is not supported yet")));
            }
        }
        // SAFETY: the caller's promise.
        let (loras, prompt) = unsafe { (loras(&params)?, text(params.prompt, "prompt")?) };
        Ok(Request { params, prompt, loras })
    }

    pub(super) fn params(&self) -> GenerateParams<'_> {
        let svdq_generate_params { width, height, steps, guidance, seed, .. } = self.params;
        GenerateParams { prompt: self.prompt, width, height, steps, guidance, seed, loras: &self.loras }
    }
}

/// More at a time are a mistake.
pub(super) const MAX_LORAS: u32 = 64;

/// The LoRAs of `params` and their strengths.
///
/// # Safety
/// `params` is as the header demands.
unsafe fn loras(params: &svdq_generate_params) -> Result<Vec<(Lora, f32)>> {
    if params.lora_count > MAX_LORAS {
        let count = params.lora_count;
        return Err(Error::InvalidArgument(format!(
            "lora_count is {count}, at most {MAX_LORAS} are allowed"
        )));
    }
    let element = |index| {
        // SAFETY: the caller's promise; elements are read in order.
        let (lora, strength) = unsafe {
            let element: svdq_lora_ref = read_element(params.loras, index, "loras")?;
            (handle(element.lora, "lora")?, element.strength)
        };
        Ok((lora.0.clone(), strength))
    };
    (0..params.lora_count as usize).map(element).collect()
}
