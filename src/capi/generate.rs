//! From a prompt to pixels.

use std::ffi::c_char;
use std::ops::ControlFlow;
use std::ptr;

use super::boundary::{Sized32, guard, handle, read_struct, text, write_struct};
use super::image::{image_mut, image_ref};
use super::lora::loras;
use super::{svdq_image, svdq_lora_ref, svdq_model, svdq_prompt, svdq_result};
use crate::engine::{GenerateParams, ImageRef, Lora, Prompt};
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
    /// What the picture shows, UTF-8; "" is a prompt. NULL with encoded.
    pub prompt: *const c_char,
    /// What the picture shows, encoded by the same model. NULL with prompt.
    pub encoded: *const svdq_prompt,
    /// lora_count LoRAs to use, or NULL for none. Their order has no meaning. Those that change text
    /// encoders change the encoding of prompt; encoded stays what it is.
    pub loras: *const svdq_lora_ref,
    /// An image to start from, of the picture's size, for a model loaded with SVDQ_MODEL_IMAGE_INPUT.
    /// NULL: the picture starts from noise alone.
    pub init: *const svdq_image,
    /// How much of init is replaced, up to 1, which is all of it: the strength of diffusers'
    /// FluxImg2ImgPipeline, which runs this part of the steps. 0: the default, 0.6.
    pub init_strength: f32,
    /// Steps from one preview to the next. 0: no previews. Only jobs have them; they do not change the
    /// picture.
    pub preview_every: u32,
}

// SAFETY: integers, a float and pointers, no padding.
unsafe impl Sized32 for svdq_generate_params {
    const NAME: &'static str = "svdq_generate_params";
}

/// What a picture takes beside the model.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct svdq_generate_cost {
    /// sizeof(svdq_generate_cost), set by the caller.
    pub struct_size: u32,
    /// 1 when the GPU's free memory and the memory budget suffice now; 0 when not. 1 on the CPU.
    pub fits: u32,
    /// Bytes of temporaries on the GPU at the peak, exactly; 0 on the CPU. Temporaries of the last
    /// picture are used again.
    pub device_bytes: u64,
    /// Bytes of temporaries in the host's memory at the peak, exactly: what the allocator hook is asked
    /// for.
    pub host_bytes: u64,
    /// Bytes of the picture as SVDQ_FORMAT_RGBA8 without gaps.
    pub image_bytes: u64,
}

// SAFETY: integers, no padding.
unsafe impl Sized32 for svdq_generate_cost {
    const NAME: &'static str = "svdq_generate_cost";
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

/// Says what a picture would take, without making it. Takes no memory that counts, and a few
/// milliseconds: not for every frame.
///
/// params: as for svdq_generate. Whether the model has the prompt's encoding already (it keeps that of
/// its last picture) makes a difference.
/// cost: its struct_size must be set. Not written on failure.
///
/// Errors: SVDQ_ERR_DEVICE_LOST, SVDQ_ERR_VERSION_MISMATCH, SVDQ_ERR_INVALID_ARGUMENT. A picture that does
/// not fit is none.
/// Threads: any; does not wait for pictures.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_generate_check(
    model: *const svdq_model,
    params: *const svdq_generate_params,
    cost: *mut svdq_generate_cost,
) -> svdq_result {
    guard(|| {
        // SAFETY: `model` and `params` are as the header demands.
        let (model, request) = unsafe { (&handle(model, "model")?.0, Request::read(params)?) };
        let params = model.resolve(&request.params())?;
        let found = model.check(&params)?;
        let found = svdq_generate_cost {
            struct_size: 0,
            fits: found.fits.into(),
            device_bytes: found.device_bytes,
            host_bytes: found.host_bytes,
            image_bytes: u64::from(params.width) * u64::from(params.height) * 4,
        };
        // SAFETY: `cost` is as the header demands.
        unsafe { write_struct(cost, &found) }
    })
}

/// What a `svdq_generate_params` asks for.
pub(super) struct Request<'a> {
    params: svdq_generate_params,
    prompt: &'a str,
    encoded: Option<&'a Prompt>,
    loras: Vec<(Lora, f32)>,
    init: Option<ImageRef<'a>>,
}

impl Request<'_> {
    /// # Safety
    /// `params` is as the header demands, and what it points to does not change while the request lasts.
    pub(super) unsafe fn read(params: *const svdq_generate_params) -> Result<Self> {
        // SAFETY: the caller's promise.
        unsafe {
            let params = read_struct(params)?;
            let (prompt, encoded) = match (params.prompt.is_null(), params.encoded.is_null()) {
                (false, false) => {
                    return Err(Error::InvalidArgument("both prompt and encoded are given".into()));
                }
                (true, false) => ("", Some(&handle(params.encoded, "encoded")?.0)),
                (_, true) => (text(params.prompt, "prompt")?, None),
            };
            let init = match params.init.is_null() {
                true => None,
                false => Some(image_ref(&read_struct(params.init)?)?),
            };
            Ok(Request { params, prompt, encoded, loras: loras(params.loras, params.lora_count)?, init })
        }
    }

    pub(super) fn params(&self) -> GenerateParams<'_> {
        let params = &self.params;
        GenerateParams {
            prompt: self.prompt,
            encoded: self.encoded,
            width: params.width,
            height: params.height,
            steps: params.steps,
            guidance: params.guidance,
            seed: params.seed,
            loras: &self.loras,
            init: self.init,
            init_strength: params.init_strength,
            preview_every: params.preview_every,
        }
    }
}
