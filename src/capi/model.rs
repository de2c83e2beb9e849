//! Models and the files that they are read from.

use std::ffi::c_char;
use std::path::PathBuf;

use super::boundary::{
    Sized32, guard, handle, make_handle, read_element, read_struct, release, text, write_struct,
};
use super::{svdq_context, svdq_result};
use crate::engine::{Model, ModelOptions};
use crate::ops::Profile;
use crate::{Error, Result};

/// A source is a path.
pub const SVDQ_SOURCE_PATH: u32 = 1;

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

/// More sources than a model has parts are a mistake.
const MAX_SOURCES: u32 = 16;

/// A loaded model.
pub struct svdq_model(pub(super) Model);

/// Where a model, or a part of it, is read from.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct svdq_source {
    /// sizeof(svdq_source), the same in all elements of an array.
    pub struct_size: u32,
    /// SVDQ_SOURCE_PATH.
    pub kind: u32,
    /// A file or folder, UTF-8 on every platform.
    pub path: *const c_char,
}

// SAFETY: integers and a pointer, no padding.
unsafe impl Sized32 for svdq_source {
    const NAME: &'static str = "svdq_source";
}

/// What to load, and how.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct svdq_model_params {
    /// sizeof(svdq_model_params).
    pub struct_size: u32,
    /// Elements of sources: 1 to 16.
    pub source_count: u32,
    /// The transformer, CLIP's and T5's text encoder and the VAE, in any order: .safetensors files,
    /// or folders with such. Each is recognised by its tensors. The folder of a diffusers pipeline
    /// (with a model_index.json) has them all, and an svdq-*.safetensors file in it goes before its
    /// own transformer; a part that is there besides replaces the folder's.
    pub sources: *const svdq_source,
    /// SVDQ_PROFILE_*. 0: what suits the device and the checkpoint. Not every GPU has every profile.
    pub profile: u32,
    /// 0.
    pub reserved: u32,
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
    /// SVDQ_PROFILE_* that is in use.
    pub profile: u32,
}

// SAFETY: integers and a float.
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
/// SVDQ_ERR_DEVICE_LOST, SVDQ_ERR_VERSION_MISMATCH, SVDQ_ERR_INVALID_ARGUMENT.
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

/// Says what a model is.
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
    guard(|| unsafe { write_struct(info, &model_info(&handle(model, "model")?.0)) })
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
unsafe fn model_options(params: *const svdq_model_params) -> Result<ModelOptions> {
    // SAFETY: the caller's promise.
    let params = unsafe { read_struct(params)? };
    if params.reserved != 0 {
        return Err(Error::InvalidArgument(format!("reserved is {}, not 0", params.reserved)));
    }
    let profile = match params.profile {
        0 => None,
        SVDQ_PROFILE_W4A4 => Some(Profile::W4A4),
        SVDQ_PROFILE_W4A8 => Some(Profile::W4A8),
        SVDQ_PROFILE_W4A16 => Some(Profile::W4A16),
        other => return Err(Error::InvalidArgument(format!("profile is {other}, which is none"))),
    };
    let path = |index| {
        // SAFETY: the caller's promise.
        unsafe { source(params.sources, index, "sources") }
    };
    if !(1..=MAX_SOURCES).contains(&params.source_count) {
        let what = format!("source_count is {}, not 1 to {MAX_SOURCES}", params.source_count);
        return Err(Error::InvalidArgument(what));
    }
    let sources = (0..params.source_count as usize).map(path).collect::<Result<_>>()?;
    Ok(ModelOptions { sources, profile })
}

/// The path of element `index` of an array called `what`.
///
/// # Safety
/// As [`read_element`].
pub(super) unsafe fn source(sources: *const svdq_source, index: usize, what: &str) -> Result<PathBuf> {
    // SAFETY: the caller's promise.
    let source = unsafe { read_element(sources, index, what)? };
    if source.kind != SVDQ_SOURCE_PATH {
        return Err(Error::InvalidArgument(format!("the kind of source {index} is {}", source.kind)));
    }
    // SAFETY: the caller's promise.
    Ok(PathBuf::from(unsafe { text(source.path, "path")? }))
}

fn model_info(model: &Model) -> svdq_model_info {
    let info = model.info();
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
        profile: match info.profile {
            Profile::W4A4 => SVDQ_PROFILE_W4A4,
            Profile::W4A8 => SVDQ_PROFILE_W4A8,
            Profile::W4A16 => SVDQ_PROFILE_W4A16,
        },
    }
}
