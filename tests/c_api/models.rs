//! What models say about themselves, and what becomes of files that are none.

use std::ffi::CStr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::{fs, ptr};

use svdq::capi::*;

use crate::support::{
    c, create, demo, last_error, model, model_params, ok, repository, scratch, sized, source,
};

fn load(sources: &[&CStr], profile: u32) -> Result<*mut svdq_model, (svdq_result, String)> {
    let sources: Vec<_> = sources.iter().map(|path| source(path)).collect();
    let params = svdq_model_params { profile, ..model_params(&sources) };
    let (context, mut model) = (create(), ptr::null_mut());
    let result = unsafe { svdq_model_load(context, &params, &mut model) };
    unsafe { svdq_context_release(context) };
    if result == SVDQ_OK { Ok(model) } else { Err((result, last_error())) }
}

fn info(model: *const svdq_model) -> svdq_model_info {
    let mut info = sized();
    ok(unsafe { svdq_model_get_info(model, &mut info) });
    info
}

#[test]
fn the_demo_model_says_what_it_is() {
    let info = info(model());
    assert_eq!(info.family, SVDQ_FAMILY_FLUX1_DEV);
    assert_eq!((info.precision, info.rank), (SVDQ_PRECISION_INT4, 32));
    assert_eq!(info.profile, SVDQ_PROFILE_W4A8);
    assert_eq!((info.default_width, info.default_height, info.default_steps), (128, 128, 20));
    assert_eq!((info.default_guidance, info.size_multiple), (3.5, 16));
    let mut params = sized::<svdq_generate_params>();
    ok(unsafe { svdq_generate_params_init(model(), &mut params) });
    assert_eq!((params.width, params.height, params.steps, params.guidance), (128, 128, 20, 3.5));
    assert!(params.prompt.is_null());
}

#[test]
fn a_profile_can_be_asked_for() {
    for profile in [SVDQ_PROFILE_W4A4, SVDQ_PROFILE_W4A8, SVDQ_PROFILE_W4A16] {
        let model = load(&[&demo()], profile).unwrap();
        assert_eq!(info(model).profile, profile);
        unsafe { svdq_model_release(model) };
    }
}

#[test]
fn the_second_source_is_the_transformer() {
    let transformer = c(repository("assets/demo/transformer").to_str().unwrap());
    let model = load(&[&demo(), &transformer], 0).unwrap();
    assert_eq!((info(model).precision, info(model).rank), (0, 0));
    unsafe { svdq_model_release(model) };
}

/// The demo model with one file replaced.
fn broken(test: &str, file: &str, contents: &[u8]) -> (svdq_result, String) {
    let folder = scratch(test);
    for entry in fs::read_dir(repository("assets/demo")).unwrap().map(Result::unwrap) {
        let copy = folder.join(entry.file_name());
        if !Path::new(file).starts_with(entry.file_name()) {
            symlink(entry.path(), copy).unwrap();
        } else if entry.path().is_dir() {
            fs::create_dir(&copy).unwrap();
            for entry in fs::read_dir(entry.path()).unwrap().map(Result::unwrap) {
                symlink(entry.path(), copy.join(entry.file_name())).unwrap();
            }
        }
    }
    let _ = fs::remove_file(folder.join(file));
    fs::write(folder.join(file), contents).unwrap();
    let error = load(&[&c(folder.to_str().unwrap())], 0).unwrap_err();
    assert!(error.1.contains(folder.join(file).to_str().unwrap()), "{} without {file}", error.1);
    error
}

#[test]
fn damaged_files_are_named() {
    assert_eq!(broken("index", "model_index.json", b"{").0, SVDQ_ERR_BAD_FORMAT);
    let file = "vae/diffusion_pytorch_model.safetensors";
    let sound = fs::read(repository("assets/demo").join(file)).unwrap();
    assert_eq!(broken("truncated", file, &sound[..sound.len() - 1]).0, SVDQ_ERR_BAD_FORMAT);
    assert_eq!(broken("empty", file, b"").0, SVDQ_ERR_BAD_FORMAT);
}

#[test]
fn folders_that_are_no_model_are_named() {
    let folder = c(scratch("no_model").to_str().unwrap());
    let (result, text) = load(&[&folder], 0).unwrap_err();
    assert_eq!(result, SVDQ_ERR_NOT_FOUND, "{text}");
    assert!(text.contains("no_model"), "{text}");
    let (result, text) = load(&[&demo(), &folder], 0).unwrap_err();
    assert_eq!(result, SVDQ_ERR_NOT_FOUND, "{text}");
    assert!(text.contains("no_model"), "{text}");
}
