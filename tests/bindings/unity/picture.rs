//! The picture that the cases make, as C makes it.
#![allow(unsafe_code, reason = "the C API")]
#![allow(clippy::undocumented_unsafe_blocks, reason = "tests")]

use std::ffi::{CString, c_char};
use std::path::Path;
use std::{mem, ptr};

use svdq::capi::*;

/// A struct whose fields are all zero but for its `struct_size`.
fn sized<T>() -> T {
    // All structs of the API hold integers, floats and pointers, and begin with their size.
    unsafe {
        let mut value: T = mem::zeroed();
        ptr::from_mut(&mut value).cast::<u32>().write(size_of::<T>() as u32);
        value
    }
}

#[track_caller]
fn ok(result: svdq_result) {
    let mut text = [0 as c_char; 500];
    unsafe { svdq_last_error(text.as_mut_ptr(), text.len(), ptr::null_mut()) };
    assert_eq!(result, SVDQ_OK, "{:?}", text.map(|byte| byte as u8 as char));
}

/// Four steps of a blue potion, seed 42, as RGBA8 from the top down, with a LoRA or without.
pub(super) fn potion(model: &Path, lora: Option<&Path>) -> Vec<u8> {
    let c = |path: &Path| CString::new(path.to_str().unwrap()).unwrap();
    let (path, prompt) = (c(model), c"pixel art blue potion");
    let source = |path: &CString| svdq_source { kind: SVDQ_SOURCE_PATH, path: path.as_ptr(), ..sized() };
    let (mut context, mut model, mut handle) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
    let mut pixels = vec![0_u8; 128 * 128 * 4];
    unsafe {
        let cpu = svdq_context_params { device_select: SVDQ_DEVICE_CPU, ..sized() };
        ok(svdq_context_create(&cpu, &mut context));
        let folder = source(&path);
        let load = svdq_model_params { source_count: 1, sources: &folder, ..sized() };
        ok(svdq_model_load(context, &load, &mut model));
        let mut what = svdq_generate_params { prompt: prompt.as_ptr(), seed: 42, steps: 4, ..sized() };
        let mut with = svdq_lora_ref { strength: 1.0, ..sized() };
        if let Some(lora) = lora {
            let lora = c(lora);
            ok(svdq_lora_load(model, &source(&lora), &mut handle));
            with.lora = handle;
            (what.loras, what.lora_count) = (&with, 1);
        }
        let image = svdq_image {
            format: SVDQ_FORMAT_RGBA8,
            width: 128,
            height: 128,
            pixels: pixels.as_mut_ptr().cast(),
            capacity: pixels.len() as u64,
            ..sized()
        };
        ok(svdq_generate(model, &what, &image));
        svdq_lora_release(handle);
        svdq_model_release(model);
        svdq_context_release(context);
    }
    pixels
}
