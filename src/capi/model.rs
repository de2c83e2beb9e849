//! Models and the files that they are read from.

use super::boundary::{Sized32, guard, handle, make_handle, read_struct, release, write_struct};
use super::lora::MAX_LORAS;
use super::source::source;
use super::{svdq_context, svdq_result, svdq_source};
use crate::engine::{Model, ModelInfo, ModelOptions};
use crate::ops::Profile;
use crate::{Error, Result};

/// Activations in 4 bits, which is what the checkpoints are made for.
pub const SVDQ_PROFILE_W4A4: u32 = 1;
/// Activations in 8 bits: closer to the 16-bit model.
pub const SVDQ_PROFILE_W4A8: u32 = 2;
/// Activations are not quantised.
pub const SVDQ_PROFILE_W4A16: u32 = 3;

/// FLUX.1-dev and models like it, which take a guidance scale.
pub const SVDQ_FAMILY_FLUX1_DEV: u32 = 1;
/// FLUX.1-schnell and models like it, which take none.
pub const SVDQ_FAMILY_FLUX1_SCHNELL: u32 = 2;

/// The transformer's weights are 4-bit integers with a low-rank branch.
pub const SVDQ_PRECISION_INT4: u32 = 1;
/// The transformer's weights are 4-bit floats (NVFP4) with a low-rank branch.
pub const SVDQ_PRECISION_NVFP4: u32 = 2;

/// More sources than the folder of a model has files are a mistake.
const MAX_SOURCES: u32 = 256;

/// Flag of a model: it is to take pictures to start from, so that its VAE's encoder is kept too.
pub const SVDQ_MODEL_IMAGE_INPUT: u32 = 1;

/// A loaded model.
pub struct svdq_model(pub(super) Model);

/// What to load, and how.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct svdq_model_params {
    /// sizeof(svdq_model_params).
    pub struct_size: u32,
    /// Elements of sources: 1 to 256.
    pub source_count: u32,
    /// The transformer, CLIP's and T5's text encoder and the VAE, in any order: .safetensors files,
    /// or folders with such. Each is recognised by its tensors. The folder of a diffusers pipeline
    /// (with a model_index.json) has them all, and an svdq-*.safetensors file in it goes before its
    /// own transformer; a part that is there besides replaces the folder's.
    pub sources: *const svdq_source,
    /// SVDQ_PROFILE_*. 0: what suits the device and the checkpoint. Not every GPU has every profile.
    pub profile: u32,
    /// SVDQ_MODEL_*, or 0.
    pub flags: u32,
}

// SAFETY: integers and a pointer, no padding.
unsafe impl Sized32 for svdq_model_params {
    const NAME: &'static str = "svdq_model_params";
}

/// What a model is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct svdq_model_info {
    /// sizeof(svdq_model_info), set by the caller.
    pub struct_size: u32,
    /// SVDQ_FAMILY_*.
    pub family: u32,
    /// SVDQ_PRECISION_* of the transformer. 0: not quantised.
    pub precision: u32,
    /// Rank of the low-rank branch; 0 if not quantised.
    pub rank: u32,
    /// Denoising steps of a generation that asks for none.
    pub default_steps: u32,
    /// Guidance scale of a generation that asks for none.
    pub default_guidance: f32,
    /// Width and height are multiples of this many pixels.
    pub size_multiple: u32,
    /// Pixels, when a generation asks for none.
    pub default_width: u32,
    /// Pixels, when a generation asks for none.
    pub default_height: u32,
    /// SVDQ_PROFILE_* that is in use; 0 from svdq_model_inspect.
    pub profile: u32,
    /// SVDQ_MODEL_* that it was loaded with.
    pub flags: u32,
    /// LoRAs that a picture can have at a time.
    pub max_loras: u32,
    /// Bytes of all tensors of its networks, as the files have them.
    pub stored_bytes: u64,
    /// Bytes of weights on the GPU, with those of LoRAs; 0 from svdq_model_inspect.
    pub device_bytes: u64,
    /// Bytes of weights in the host's memory; 0 from svdq_model_inspect.
    pub host_bytes: u64,
}

// SAFETY: integers and a float, no padding.
unsafe impl Sized32 for svdq_model_info {
    const NAME: &'static str = "svdq_model_info";
}

/// Loads a model. Blocks until it can generate.
///
/// context: may be released before the model is.
/// params: what to load. Nothing of it, and no file, is needed after the call.
/// out: receives the model, or NULL on failure. Release it with svdq_model_release.
///
/// Errors: SVDQ_ERR_NOT_FOUND, SVDQ_ERR_IO, SVDQ_ERR_BAD_FORMAT, SVDQ_ERR_WRONG_MODEL,
/// SVDQ_ERR_UNSUPPORTED, SVDQ_ERR_OUT_OF_HOST_MEMORY, SVDQ_ERR_OUT_OF_DEVICE_MEMORY,
/// SVDQ_ERR_MEMORY_BUDGET, SVDQ_ERR_DEVICE_LOST, SVDQ_ERR_VERSION_MISMATCH, SVDQ_ERR_INVALID_ARGUMENT. After
/// svdq_context_shutdown SVDQ_ERR_SHUTTING_DOWN, or SVDQ_ERR_CANCELLED if it ran already.
/// Threads: any.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_model_load(
    context: *mut svdq_context,
    params: *const svdq_model_params,
    out: *mut *mut svdq_model,
) -> svdq_result {
    let load = || {
        // SAFETY: `context` and `params` are as the header demands.
        let (context, options) = unsafe { (handle(context, "context")?, model_options(params)?) };
        Ok(svdq_model(Model::load(&context.0, &options)?))
    };
    // SAFETY: `out` is as the header demands.
    guard(|| unsafe { make_handle(out, load) })
}

/// Says what a model is, from the headers and configs of its files alone: no device is opened, and no weights
/// are read.
///
/// params: as for svdq_model_load. Its profile has no meaning here.
/// info: its struct_size must be set. Not written on failure.
///
/// Errors: those of svdq_model_load about files.
/// Threads: any.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_model_inspect(
    params: *const svdq_model_params,
    info: *mut svdq_model_info,
) -> svdq_result {
    guard(|| {
        // SAFETY: `params` is as the header demands.
        let options = unsafe { model_options(params)? };
        let found = described(&Model::inspect(&options)?, options.image_input);
        // SAFETY: `info` is as the header demands.
        unsafe { write_struct(info, &found) }
    })
}

/// Says what a loaded model is.
///
/// info: its struct_size must be set. Not written on failure.
///
/// Errors: SVDQ_ERR_INVALID_ARGUMENT.
/// Threads: any.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_model_get_info(
    model: *const svdq_model,
    info: *mut svdq_model_info,
) -> svdq_result {
    // SAFETY: `model` and `info` are as the header demands.
    guard(|| unsafe { write_struct(info, &loaded(&handle(model, "model")?.0)) })
}

/// Releases a model and the memory of its weights. NULL is allowed.
///
/// Threads: any, once no other call uses this handle.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_model_release(model: *mut svdq_model) {
    // SAFETY: `model` is as the header demands.
    unsafe { release(model) }
}

/// # Safety
/// As [`read_struct`], for `params` and the array that it points to.
pub(super) unsafe fn model_options(params: *const svdq_model_params) -> Result<ModelOptions> {
    // SAFETY: the caller's promise.
    let params = unsafe { read_struct(params)? };
    if params.flags & !SVDQ_MODEL_IMAGE_INPUT != 0 {
        return Err(Error::InvalidArgument(format!("flags {:#x} are none of SVDQ_MODEL_*", params.flags)));
    }
    let profile = match params.profile {
        0 => None,
        SVDQ_PROFILE_W4A4 => Some(Profile::W4A4),
        SVDQ_PROFILE_W4A8 => Some(Profile::W4A8),
        SVDQ_PROFILE_W4A16 => Some(Profile::W4A16),
        other => return Err(Error::InvalidArgument(format!("profile is {other}, which is none"))),
    };
    let source = |index| {
        // SAFETY: the caller's promise.
        unsafe { source(params.sources, index, "sources") }
    };
    if !(1..=MAX_SOURCES).contains(&params.source_count) {
        let what = format!("source_count is {}, not 1 to {MAX_SOURCES}", params.source_count);
        return Err(Error::InvalidArgument(what));
    }
    let sources = (0..params.source_count as usize).map(source).collect::<Result<_>>()?;
    Ok(ModelOptions { sources, profile, image_input: params.flags & SVDQ_MODEL_IMAGE_INPUT != 0 })
}

/// What is known without loading the model.
fn described(info: &ModelInfo, image_input: bool) -> svdq_model_info {
    svdq_model_info {
        struct_size: 0,
        family: if info.guidance { SVDQ_FAMILY_FLUX1_DEV } else { SVDQ_FAMILY_FLUX1_SCHNELL },
        precision: match info.rank {
            Some(_) if info.nvfp4 => SVDQ_PRECISION_NVFP4,
            Some(_) => SVDQ_PRECISION_INT4,
            None => 0,
        },
        rank: info.rank.map_or(0, |rank| rank as u32),
        default_steps: info.default_steps,
        default_guidance: info.default_guidance,
        size_multiple: info.size_multiple,
        default_width: info.default_width,
        default_height: info.default_height,
        profile: 0,
        flags: if image_input { SVDQ_MODEL_IMAGE_INPUT } else { 0 },
        max_loras: MAX_LORAS,
        stored_bytes: info.stored_bytes,
        device_bytes: 0,
        host_bytes: 0,
    }
}

fn loaded(model: &Model) -> svdq_model_info {
    svdq_model_info {
        profile: match model.profile() {
            Profile::W4A4 => SVDQ_PROFILE_W4A4,
            Profile::W4A8 => SVDQ_PROFILE_W4A8,
            Profile::W4A16 => SVDQ_PROFILE_W4A16,
        },
        device_bytes: model.gpu_bytes()[0],
        host_bytes: model.host_bytes(),
        ..described(model.info(), model.takes_images())
    }
}
