//! Every function with arguments that no program should pass: each call fails with the result that
//! the header promises, says why, and writes nothing.

use std::collections::BTreeSet;
use std::ffi::{CStr, c_char, c_void};
use std::ptr;

use svdq::capi::*;

use crate::support::{
    c, create, declared_functions, demo, header, last_error, load as load_model, lora, lora_file, model,
    model_params, ok, repository, sized, source,
};

/// A function, what is wrong with the call, the result that it has to have, a part of the error
/// text (unless it succeeds), and the call.
type Case<'a> = (&'static str, &'static str, svdq_result, &'static str, Box<dyn Fn() -> svdq_result + 'a>);

macro_rules! case {
    ($name:ident, $wrong:literal, $result:ident, $text:literal, $call:expr) => {
        (stringify!($name), $wrong, $result, $text, Box::new(|| unsafe { $call }))
    };
    ($name:ident, $wrong:literal, $text:literal, $call:expr) => {
        case!($name, $wrong, SVDQ_ERR_INVALID_ARGUMENT, $text, $call)
    };
}

/// A pointer that is not aligned.
fn crooked<T>(pointer: *const T) -> *mut T {
    pointer.cast_mut().wrapping_byte_add(1)
}

fn with<T: Copy>(mut value: T, change: impl FnOnce(&mut T)) -> T {
    change(&mut value);
    value
}

unsafe extern "C" fn no_memory(_: *mut c_void, _: usize, _: usize) -> *mut c_void {
    ptr::null_mut()
}

unsafe extern "C" fn forget(_: *mut c_void, _: *mut c_void, _: usize, _: usize) {}

#[test]
fn every_function_checks_its_arguments() {
    let context = create();
    let demo = demo();
    let null = ptr::null_mut::<u8>();
    let readme = c(repository("README.md").to_str().unwrap());
    let small = c(repository("tests/golden/lora/all.bare.safetensors").to_str().unwrap());
    let lora_file = lora_file();
    let (readme, small, style) = (source(&readme), source(&small), source(&lora_file));
    let source = source(&demo);
    let one = [source];
    let load = model_params(&one);
    let load_from = |change: fn(&mut svdq_source)| {
        let sources = [with(source, change)];
        let mut out = ptr::dangling_mut();
        let result = unsafe { svdq_model_load(context, &model_params(&sources), &mut out) };
        assert!(out.is_null(), "a handle of a failed call");
        result
    };
    let load_with = |change: fn(&mut svdq_model_params)| {
        let mut out = ptr::dangling_mut();
        let result = unsafe { svdq_model_load(context, &with(load, change), &mut out) };
        assert!(out.is_null(), "a handle of a failed call");
        result
    };
    let create_with = |change: fn(&mut svdq_context_params)| {
        let mut out = ptr::dangling_mut();
        let result = unsafe { svdq_context_create(&with(sized(), change), &mut out) };
        assert!(out.is_null(), "a handle of a failed call");
        result
    };
    let pixels = vec![0xa5u8; 128 * 128 * 4];
    let image = svdq_image {
        format: SVDQ_FORMAT_RGBA8,
        width: 128,
        height: 128,
        pixels: pixels.as_ptr().cast_mut().cast(),
        capacity: pixels.len() as u64,
        ..sized()
    };
    let picture = svdq_generate_params { steps: 1, prompt: c"a".as_ptr(), ..sized() };
    let generate_with = |change: fn(&mut svdq_generate_params)| unsafe {
        svdq_generate(model(), &with(picture, change), &image)
    };
    let generate_to =
        |change: fn(&mut svdq_image)| unsafe { svdq_generate(model(), &picture, &with(image, change)) };
    let bytes_of = |change: fn(&mut svdq_image)| {
        let mut bytes = 77;
        let result = unsafe { svdq_image_bytes(&with(image, change), &mut bytes) };
        assert_eq!(bytes, 77, "an output of a failed call");
        result
    };
    let info_of_size = |size| {
        let mut info = svdq_model_info { struct_size: size, rank: 77, ..sized() };
        let result = unsafe { svdq_model_get_info(model(), &mut info) };
        assert_eq!(info.rank, 77, "an output of a failed call");
        result
    };
    let lora = lora(model(), &lora_file);
    let lora_from = |change: fn(&mut svdq_source)| {
        let mut out = ptr::dangling_mut();
        let result = unsafe { svdq_lora_load(model(), &with(style, change), &mut out) };
        assert!(out.is_null(), "a handle of a failed call");
        result
    };
    let lora_info_of_size = |size| {
        let mut info = svdq_lora_info { struct_size: size, rank: 77, ..sized() };
        let result = unsafe { svdq_lora_get_info(lora, &mut info) };
        assert_eq!(info.rank, 77, "an output of a failed call");
        result
    };
    let reference = svdq_lora_ref { strength: 1.0, lora, ..sized() };
    let generate_lora = |change: fn(&mut svdq_lora_ref)| {
        let loras = [with(reference, change)];
        let params = svdq_generate_params { loras: loras.as_ptr(), lora_count: 1, ..picture };
        unsafe { svdq_generate(model(), &params, &image) }
    };
    let lora_twice = [reference, reference];
    let other_model = load_model(&demo);
    let words = svdq_prompt_params { text: c"a key".as_ptr(), ..sized() };
    let mut prompt = ptr::null_mut();
    ok(unsafe { svdq_prompt_encode(model(), &words, &mut prompt) });
    let encode_with = |change: fn(&mut svdq_prompt_params)| {
        let mut out = ptr::dangling_mut();
        let result = unsafe { svdq_prompt_encode(model(), &with(words, change), &mut out) };
        assert!(out.is_null(), "a handle of a failed call");
        result
    };
    let generate_from = |change: fn(&mut svdq_image)| {
        let params = svdq_generate_params { init: &with(image, change), ..picture };
        unsafe { svdq_generate(model(), &params, &image) }
    };
    let cost = &mut sized::<svdq_generate_cost>() as *mut svdq_generate_cost;
    let out_prompt = &mut ptr::null_mut() as *mut *mut svdq_prompt;
    let submit_with = |change: fn(&mut svdq_generate_params)| {
        let mut out = ptr::dangling_mut();
        let result = unsafe { svdq_job_submit(model(), &with(picture, change), &mut out) };
        assert!(out.is_null(), "a handle of a failed call");
        result
    };
    let (mut picture_job, mut failed_job) = (ptr::null_mut(), ptr::null_mut());
    let nowhere = [self::source(c"/nowhere")];
    unsafe {
        ok(svdq_job_submit(model(), &picture, &mut picture_job));
        ok(svdq_job_wait(picture_job, u32::MAX));
        ok(svdq_job_submit_load(context, &model_params(&nowhere), &mut failed_job));
        assert_eq!(svdq_job_wait(failed_job, u32::MAX), SVDQ_ERR_NOT_FOUND);
    }
    let status_of_size = |size| {
        let mut status = svdq_job_status { struct_size: size, steps: 77, ..sized() };
        let result = unsafe { svdq_job_poll(picture_job, &mut status) };
        assert_eq!(status.steps, 77, "an output of a failed call");
        result
    };
    let bytes = &mut 0u64 as *mut u64;
    let size = &mut 0usize as *mut usize;
    let level = &mut 0i32 as *mut i32;
    let memory = &mut sized::<svdq_memory_info>() as *mut svdq_memory_info;
    let device = &mut sized::<svdq_device_info>() as *mut svdq_device_info;
    let text = &mut [0 as c_char; 4] as *mut c_char;
    let info = &mut sized::<svdq_model_info>() as *mut svdq_model_info;
    let context_params = &mut sized::<svdq_context_params>() as *mut svdq_context_params;
    let generate_params = &mut sized::<svdq_generate_params>() as *mut svdq_generate_params;
    let out_context = &mut ptr::null_mut() as *mut *mut svdq_context;
    let lora_info = &mut sized::<svdq_lora_info>() as *mut svdq_lora_info;
    let out_lora = &mut ptr::null_mut() as *mut *mut svdq_lora;
    let out_model = &mut ptr::null_mut() as *mut *mut svdq_model;
    let out_job = &mut ptr::null_mut() as *mut *mut svdq_job;
    let job_status = &mut sized::<svdq_job_status>() as *mut svdq_job_status;

    #[rustfmt::skip]
    #[allow(unused_unsafe, reason = "some calls are closures that are safe")]
    let cases: Vec<Case<'_>> = vec![
        case!(svdq_version_number, "nothing", SVDQ_OK, "", { assert_eq!(svdq_version_number(), SVDQ_VERSION_NUMBER); SVDQ_OK }),
        case!(svdq_version_string, "nothing", SVDQ_OK, "", { assert_eq!(CStr::from_ptr(svdq_version_string()), c"0.1.0"); SVDQ_OK }),
        case!(svdq_result_name, "no result", SVDQ_OK, "", { assert_eq!(CStr::from_ptr(svdq_result_name(12345)), c"SVDQ_ERR_UNKNOWN"); SVDQ_OK }),

        case!(svdq_build_info, "all NULL", "buf is NULL", svdq_build_info(null.cast(), 0, null.cast())),
        case!(svdq_build_info, "no buffer", "buf is NULL", svdq_build_info(null.cast(), 4, size)),
        case!(svdq_build_info, "crooked needed", "needed", svdq_build_info(text, 4, crooked(size))),
        case!(svdq_build_info, "small buffer", SVDQ_ERR_BUFFER_TOO_SMALL, "buf holds 4 bytes", svdq_build_info(text, 4, size)),
        case!(svdq_build_info, "empty buffer", SVDQ_ERR_BUFFER_TOO_SMALL, "buf holds 0 bytes", svdq_build_info(text, 0, null.cast())),
        case!(svdq_build_info, "size alone", SVDQ_OK, "", svdq_build_info(null.cast(), 0, size)),

        case!(svdq_last_error, "size alone", SVDQ_OK, "", svdq_last_error(null.cast(), 0, size)),

        case!(svdq_device_count, "no count", "count is NULL", svdq_device_count(null.cast())),
        case!(svdq_device_count, "crooked count", "count", svdq_device_count(crooked(level.cast()))),
        case!(svdq_device_get_info, "no info", "svdq_device_info is NULL", svdq_device_get_info(0, null.cast())),
        case!(svdq_device_get_info, "crooked info", "svdq_device_info", svdq_device_get_info(0, crooked(device))),

        case!(svdq_context_params_init, "NULL", "svdq_context_params is NULL", svdq_context_params_init(null.cast())),
        case!(svdq_context_params_init, "crooked", "aligned", svdq_context_params_init(crooked(context_params))),
        case!(svdq_context_params_init, "no size", "sizeof(svdq_context_params)", svdq_context_params_init(&mut with(*context_params, |p| p.struct_size = 0))),
        case!(svdq_context_params_init, "wild size", "struct_size is 4294967295", svdq_context_params_init(&mut with(*context_params, |p| p.struct_size = u32::MAX))),

        case!(svdq_context_create, "no out", "out is NULL", svdq_context_create(ptr::null(), null.cast())),
        case!(svdq_context_create, "crooked out", "out", svdq_context_create(ptr::null(), crooked(out_context))),
        case!(svdq_context_create, "crooked params", "svdq_context_params", svdq_context_create(crooked(context_params), out_context)),
        case!(svdq_context_create, "no size", "struct_size is 0", create_with(|p| p.struct_size = 0)),
        case!(svdq_context_create, "cut size", "struct_size is 7", create_with(|p| p.struct_size = 7)),
        case!(svdq_context_create, "newer header", SVDQ_ERR_VERSION_MISMATCH, "svdq.h 0.1.1", create_with(|p| p.header_version = SVDQ_VERSION_NUMBER + 1)),
        case!(svdq_context_create, "header of another major version", SVDQ_ERR_VERSION_MISMATCH, "svdq.h 3.2.1", create_with(|p| p.header_version = 30201)),
        case!(svdq_context_create, "wild number of threads", "threads is 4294967295", create_with(|p| p.threads = u32::MAX)),
        case!(svdq_context_create, "unknown device", "device_select is 9", create_with(|p| p.device_select = 9)),
        case!(svdq_context_create, "unknown priority", "gpu_priority is 3", create_with(|p| p.gpu_priority = 3)),
        case!(svdq_context_create, "a LUID of 16 bytes", "device_id", create_with(|p| { p.device_select = SVDQ_DEVICE_LUID; p.device_id[8] = 1 })),
        case!(svdq_context_create, "alloc alone", "alloc and free", create_with(|p| p.alloc = Some(no_memory))),
        case!(svdq_context_create, "free alone", "alloc and free", create_with(|p| p.free = Some(forget))),
        case!(svdq_context_shutdown, "no context", "context is NULL", svdq_context_shutdown(null.cast(), 0)),
        case!(svdq_context_shutdown, "crooked context", "context", svdq_context_shutdown(crooked(context), 0)),
        case!(svdq_context_set_memory_budget, "no context", "context is NULL", svdq_context_set_memory_budget(null.cast(), 1)),
        case!(svdq_context_set_memory_budget, "crooked context", "context", svdq_context_set_memory_budget(crooked(context), 1)),
        case!(svdq_context_get_memory, "no context", "context is NULL", svdq_context_get_memory(ptr::null(), memory)),
        case!(svdq_context_get_memory, "crooked context", "context", svdq_context_get_memory(crooked(context), memory)),
        case!(svdq_context_get_memory, "no info", "svdq_memory_info is NULL", svdq_context_get_memory(context, null.cast())),
        case!(svdq_context_get_memory, "crooked info", "svdq_memory_info", svdq_context_get_memory(context, crooked(memory))),
        case!(svdq_context_get_memory, "no size", "sizeof(svdq_memory_info)", svdq_context_get_memory(context, &mut with(*memory, |m| m.struct_size = 0))),
        case!(svdq_context_get_memory, "cut size", "struct_size is 12", svdq_context_get_memory(context, &mut with(*memory, |m| m.struct_size = 12))),
        case!(svdq_context_read_log, "no context", "context is NULL", svdq_context_read_log(null.cast(), level, text, 4, size)),
        case!(svdq_context_read_log, "crooked context", "context", svdq_context_read_log(crooked(context), level, text, 4, size)),
        case!(svdq_context_read_log, "no level", "level is NULL", svdq_context_read_log(context, null.cast(), text, 4, size)),
        case!(svdq_context_read_log, "crooked level", "level", svdq_context_read_log(context, crooked(level), text, 4, size)),
        case!(svdq_context_read_log, "no buffer", "buf is NULL", svdq_context_read_log(context, level, null.cast(), 4, size)),
        case!(svdq_context_read_log, "crooked needed", "needed", svdq_context_read_log(context, level, text, 4, crooked(size))),
        case!(svdq_context_read_log, "small buffer", SVDQ_ERR_BUFFER_TOO_SMALL, "buf holds 4 bytes", svdq_context_read_log(context, level, text, 4, size)),
        case!(svdq_context_read_log, "size alone", SVDQ_OK, "", svdq_context_read_log(context, level, null.cast(), 0, size)),
        case!(svdq_context_release, "NULL", SVDQ_OK, "", { svdq_context_release(null.cast()); SVDQ_OK }),

        case!(svdq_model_load, "no out", "out is NULL", svdq_model_load(context, &load, null.cast())),
        case!(svdq_model_load, "no context", "context is NULL", svdq_model_load(null.cast(), &load, out_model)),
        case!(svdq_model_load, "crooked context", "context", svdq_model_load(crooked(context), &load, out_model)),
        case!(svdq_model_load, "no params", "svdq_model_params is NULL", svdq_model_load(context, ptr::null(), out_model)),
        case!(svdq_model_load, "crooked params", "svdq_model_params", svdq_model_load(context, crooked(&load), out_model)),
        case!(svdq_model_load, "no size", "struct_size is 0", load_with(|p| p.struct_size = 0)),
        case!(svdq_model_load, "cut size", "struct_size is 20", load_with(|p| p.struct_size = 20)),
        case!(svdq_model_load, "size alone", "source_count is 0", load_with(|p| { p.struct_size = 8; p.source_count = 0 })),
        case!(svdq_model_load, "sources past the struct's end", "sources is NULL", load_with(|p| p.struct_size = 8)),
        case!(svdq_model_load, "no sources", "sources is NULL", load_with(|p| p.sources = ptr::null())),
        case!(svdq_model_load, "crooked sources", "sources", load_with(|p| p.sources = crooked(p.sources))),
        case!(svdq_model_load, "too many sources", "source_count is 257", load_with(|p| p.source_count = 257)),
        case!(svdq_model_load, "wild number of sources", "source_count is 4294967295", load_with(|p| p.source_count = u32::MAX)),
        case!(svdq_model_load, "unknown profile", "profile is 4", load_with(|p| p.profile = 4)),
        case!(svdq_model_load, "unknown flag", "flags 0x2", load_with(|p| p.flags = 2)),
        case!(svdq_model_load, "no source size", "sizeof(svdq_source)", load_from(|s| s.struct_size = 0)),
        case!(svdq_model_load, "no source kind", "kind", load_from(|s| s.kind = 0)),
        case!(svdq_model_load, "unknown source kind", "source 0: the kind is 9", load_from(|s| s.kind = 9)),
        case!(svdq_model_load, "no path", "path is NULL", load_from(|s| s.path = ptr::null())),
        case!(svdq_model_load, "path not UTF-8", "path is not UTF-8", load_from(|s| s.path = c"caf\xe9".as_ptr())),
        case!(svdq_model_load, "no such folder", SVDQ_ERR_NOT_FOUND, "/nowhere", load_from(|s| s.path = c"/nowhere".as_ptr())),
        case!(svdq_model_load, "no memory", "source 0: data is NULL", load_from(|s| s.kind = SVDQ_SOURCE_MEMORY)),
        case!(svdq_model_load, "no memory of some size", "source 0: data is NULL", load_from(|s| (s.kind, s.size) = (SVDQ_SOURCE_MEMORY, 8))),
        case!(svdq_model_load, "more memory than there can be", "source 0: size is 18446744073709551615", load_from(|s| (s.kind, s.data, s.size) = (SVDQ_SOURCE_MEMORY, c"a".as_ptr().cast(), u64::MAX))),
        case!(svdq_model_load, "memory with a name not UTF-8", "path is not UTF-8", load_from(|s| (s.kind, s.data, s.path) = (SVDQ_SOURCE_MEMORY, c"a".as_ptr().cast(), c"caf\xe9".as_ptr()))),
        case!(svdq_model_load, "no callback", "source 0: read_at is NULL", load_from(|s| (s.kind, s.size) = (SVDQ_SOURCE_CALLBACKS, 8))),
        case!(svdq_model_load, "empty path", SVDQ_ERR_NOT_FOUND, "", load_from(|s| s.path = c"".as_ptr())),
        case!(svdq_model_inspect, "no params", "svdq_model_params is NULL", svdq_model_inspect(ptr::null(), info)),
        case!(svdq_model_inspect, "crooked params", "svdq_model_params", svdq_model_inspect(crooked(&load), info)),
        case!(svdq_model_inspect, "no size", "struct_size is 0", svdq_model_inspect(&with(load, |p| p.struct_size = 0), info)),
        case!(svdq_model_inspect, "no sources", "sources is NULL", svdq_model_inspect(&with(load, |p| p.sources = ptr::null()), info)),
        case!(svdq_model_inspect, "unknown flag", "flags 0x80000000", svdq_model_inspect(&with(load, |p| p.flags = 1 << 31), info)),
        case!(svdq_model_inspect, "no info", "svdq_model_info is NULL", svdq_model_inspect(&load, null.cast())),
        case!(svdq_model_inspect, "crooked info", "svdq_model_info", svdq_model_inspect(&load, crooked(info))),
        case!(svdq_model_inspect, "info without size", "struct_size is 0", svdq_model_inspect(&load, &mut with(sized::<svdq_model_info>(), |i| i.struct_size = 0))),
        case!(svdq_model_release, "NULL", SVDQ_OK, "", { svdq_model_release(null.cast()); SVDQ_OK }),

        case!(svdq_model_get_info, "no model", "model is NULL", svdq_model_get_info(ptr::null(), info)),
        case!(svdq_model_get_info, "crooked model", "model", svdq_model_get_info(crooked(model()), info)),
        case!(svdq_model_get_info, "no info", "svdq_model_info is NULL", svdq_model_get_info(model(), null.cast())),
        case!(svdq_model_get_info, "crooked info", "svdq_model_info", svdq_model_get_info(model(), crooked(info))),
        case!(svdq_model_get_info, "no size", "struct_size is 0", info_of_size(0)),
        case!(svdq_model_get_info, "cut size", "struct_size is 15", info_of_size(15)),
        case!(svdq_model_get_info, "wild size", "struct_size is 4100", info_of_size(4100)),

        case!(svdq_generate_params_init, "no model", "model is NULL", svdq_generate_params_init(ptr::null(), generate_params)),
        case!(svdq_generate_params_init, "crooked model", "model", svdq_generate_params_init(crooked(model()), generate_params)),
        case!(svdq_generate_params_init, "no params", "svdq_generate_params is NULL", svdq_generate_params_init(model(), null.cast())),
        case!(svdq_generate_params_init, "no size", "struct_size is 0", svdq_generate_params_init(model(), &mut with(*generate_params, |p| p.struct_size = 0))),

        case!(svdq_lora_load, "no out", "out is NULL", svdq_lora_load(model(), &style, null.cast())),
        case!(svdq_lora_load, "crooked out", "out", svdq_lora_load(model(), &style, crooked(out_lora))),
        case!(svdq_lora_load, "no model", "model is NULL", svdq_lora_load(null.cast(), &style, out_lora)),
        case!(svdq_lora_load, "crooked model", "model", svdq_lora_load(crooked(model()), &style, out_lora)),
        case!(svdq_lora_load, "no source", "source is NULL", svdq_lora_load(model(), ptr::null(), out_lora)),
        case!(svdq_lora_load, "crooked source", "source", svdq_lora_load(model(), crooked(&style), out_lora)),
        case!(svdq_lora_load, "no size", "sizeof(svdq_source)", lora_from(|s| s.struct_size = 0)),
        case!(svdq_lora_load, "unknown source kind", "source 0: the kind is 9", lora_from(|s| s.kind = 9)),
        case!(svdq_lora_load, "no path", "path is NULL", lora_from(|s| s.path = ptr::null())),
        case!(svdq_lora_load, "path not UTF-8", "path is not UTF-8", lora_from(|s| s.path = c"caf\xe9".as_ptr())),
        case!(svdq_lora_load, "no such file", SVDQ_ERR_NOT_FOUND, "/nowhere", lora_from(|s| s.path = c"/nowhere".as_ptr())),
        case!(svdq_lora_load, "no safetensors", SVDQ_ERR_BAD_FORMAT, "README.md", svdq_lora_load(model(), &readme, out_lora)),
        case!(svdq_lora_load, "a LoRA of a smaller model", SVDQ_ERR_WRONG_MODEL, "context_embedder.lora_A.weight", svdq_lora_load(model(), &small, out_lora)),
        case!(svdq_lora_release, "NULL", SVDQ_OK, "", { svdq_lora_release(null.cast()); SVDQ_OK }),

        case!(svdq_lora_get_info, "no LoRA", "lora is NULL", svdq_lora_get_info(ptr::null(), lora_info)),
        case!(svdq_lora_get_info, "crooked LoRA", "lora", svdq_lora_get_info(crooked(lora), lora_info)),
        case!(svdq_lora_get_info, "no info", "svdq_lora_info is NULL", svdq_lora_get_info(lora, null.cast())),
        case!(svdq_lora_get_info, "crooked info", "svdq_lora_info", svdq_lora_get_info(lora, crooked(lora_info))),
        case!(svdq_lora_get_info, "no size", "struct_size is 0", lora_info_of_size(0)),
        case!(svdq_lora_get_info, "cut size", "struct_size is 7", lora_info_of_size(7)),

        case!(svdq_image_bytes, "no image", "svdq_image is NULL", svdq_image_bytes(ptr::null(), bytes)),
        case!(svdq_image_bytes, "crooked image", "svdq_image", svdq_image_bytes(crooked(&image), bytes)),
        case!(svdq_image_bytes, "no bytes", "bytes is NULL", svdq_image_bytes(&image, null.cast())),
        case!(svdq_image_bytes, "crooked bytes", "bytes", svdq_image_bytes(&image, crooked(bytes))),
        case!(svdq_image_bytes, "no size", "struct_size is 0", bytes_of(|i| i.struct_size = 0)),
        case!(svdq_image_bytes, "no format", "format is 0", bytes_of(|i| i.format = 0)),
        case!(svdq_image_bytes, "unknown format", "format is 4", bytes_of(|i| i.format = 4)),
        case!(svdq_image_bytes, "no width", "0x128", bytes_of(|i| i.width = 0)),
        case!(svdq_image_bytes, "no height", "128x0", bytes_of(|i| i.height = 0)),
        case!(svdq_image_bytes, "rows that overlap", "511", bytes_of(|i| i.row_stride = 511)),
        case!(svdq_image_bytes, "an image larger than memory", "18446744073709551615", bytes_of(|i| i.row_stride = u64::MAX)),
        case!(svdq_image_bytes, "huge sides", "4294967295 rows", bytes_of(|i| (i.width, i.height) = (u32::MAX, u32::MAX))),
        case!(svdq_image_bytes, "unknown flag", "flags 0x2", bytes_of(|i| i.flags = 2)),
        case!(svdq_image_bytes, "reserved", "reserved 1", bytes_of(|i| i.reserved = 1)),

        case!(svdq_generate, "no model", "model is NULL", svdq_generate(null.cast(), &picture, &image)),
        case!(svdq_generate, "crooked model", "model", svdq_generate(crooked(model()), &picture, &image)),
        case!(svdq_generate, "no params", "svdq_generate_params is NULL", svdq_generate(model(), ptr::null(), &image)),
        case!(svdq_generate, "crooked params", "svdq_generate_params", svdq_generate(model(), crooked(&picture), &image)),
        case!(svdq_generate, "no image", "svdq_image is NULL", svdq_generate(model(), &picture, ptr::null())),
        case!(svdq_generate, "crooked image", "svdq_image", svdq_generate(model(), &picture, crooked(&image))),
        case!(svdq_generate, "no size", "struct_size is 0", generate_with(|p| p.struct_size = 0)),
        case!(svdq_generate, "prompt and encoded", "both prompt and encoded", svdq_generate(model(), &svdq_generate_params { encoded: prompt, ..picture }, &image)),
        case!(svdq_generate, "crooked encoded", "encoded", svdq_generate(model(), &svdq_generate_params { prompt: ptr::null(), encoded: crooked(prompt), ..picture }, &image)),
        case!(svdq_generate, "a prompt of another model", "encoded by another model", svdq_generate(other_model, &svdq_generate_params { prompt: ptr::null(), encoded: prompt, ..picture }, &image)),
        case!(svdq_generate, "init without pixels", "pixels is NULL", generate_from(|i| i.pixels = ptr::null_mut())),
        case!(svdq_generate, "init without size", "struct_size is 0", generate_from(|i| i.struct_size = 0)),
        case!(svdq_generate, "init in a small buffer", SVDQ_ERR_BUFFER_TOO_SMALL, "65536 are needed", generate_from(|i| i.capacity -= 1)),
        case!(svdq_generate, "init for a model without encoder", "without image input", generate_from(|_| ())),
        case!(svdq_generate, "no LoRAs", "loras is NULL", generate_with(|p| p.lora_count = 1)),
        case!(svdq_generate, "crooked LoRAs", "loras", generate_with(|p| (p.loras, p.lora_count) = (ptr::dangling::<u8>().cast(), 1))),
        case!(svdq_generate, "wild number of LoRAs", "lora_count is 4294967295", generate_with(|p| p.lora_count = u32::MAX)),
        case!(svdq_generate, "no size of a LoRA", "sizeof(svdq_lora_ref)", generate_lora(|l| l.struct_size = 0)),
        case!(svdq_generate, "no LoRA", "lora is NULL", generate_lora(|l| l.lora = ptr::null())),
        case!(svdq_generate, "crooked LoRA", "lora", generate_lora(|l| l.lora = crooked(l.lora))),
        case!(svdq_generate, "strength that is no number", "strength of LoRA 0 is NaN", generate_lora(|l| l.strength = f32::NAN)),
        case!(svdq_generate, "infinite strength", "strength of LoRA 0 is inf", generate_lora(|l| l.strength = f32::INFINITY)),
        case!(svdq_generate, "the same LoRA twice", "LoRA 1 is the same as LoRA 0", svdq_generate(model(), &svdq_generate_params { loras: lora_twice.as_ptr(), lora_count: 2, ..picture }, &image)),
        case!(svdq_generate, "a LoRA of another model", "LoRA 0 is loaded for another model", svdq_generate(other_model, &svdq_generate_params { loras: &reference, lora_count: 1, ..picture }, &image)),
        case!(svdq_generate, "no prompt", "prompt is NULL", generate_with(|p| p.prompt = ptr::null())),
        case!(svdq_generate, "prompt past the struct's end", "prompt is NULL", generate_with(|p| p.struct_size = 32)),
        case!(svdq_generate, "prompt not UTF-8", "prompt is not UTF-8", generate_with(|p| p.prompt = c"caf\xe9".as_ptr())),
        case!(svdq_generate, "width no multiple", "127", generate_with(|p| p.width = 127)),
        case!(svdq_generate, "height no multiple", "8", generate_with(|p| p.height = 8)),
        case!(svdq_generate, "another size than the image's", "64", generate_with(|p| p.width = 64)),
        case!(svdq_generate, "huge width", "4294967280", generate_with(|p| p.width = u32::MAX - 15)),
        case!(svdq_generate, "guidance that is no number", "guidance", generate_with(|p| p.guidance = f32::NAN)),
        case!(svdq_generate, "negative guidance", "guidance", generate_with(|p| p.guidance = -1.0)),
        case!(svdq_generate, "infinite guidance", "guidance", generate_with(|p| p.guidance = f32::INFINITY)),
        case!(svdq_generate, "wild number of steps", "steps", generate_with(|p| p.steps = u32::MAX)),
        case!(svdq_generate, "image without size", "struct_size is 0", generate_to(|i| i.struct_size = 0)),
        case!(svdq_generate, "no format", "format is 0", generate_to(|i| i.format = 0)),
        case!(svdq_generate, "unknown flag", "flags 0x80000000", generate_to(|i| i.flags = 1 << 31)),
        case!(svdq_generate, "no pixels", "pixels is NULL", generate_to(|i| i.pixels = ptr::null_mut())),
        case!(svdq_generate, "pixels past the struct's end", "pixels is NULL", generate_to(|i| i.struct_size = 32)),
        case!(svdq_generate, "rows that overlap", "100", generate_to(|i| i.row_stride = 100)),
        case!(svdq_generate, "image of another size", "64", generate_to(|i| (i.width, i.height) = (64, 64))),
        case!(svdq_generate, "small buffer", SVDQ_ERR_BUFFER_TOO_SMALL, "65536 are needed", generate_to(|i| i.capacity -= 1)),
        case!(svdq_generate, "empty buffer", SVDQ_ERR_BUFFER_TOO_SMALL, "pixels holds 0 bytes", generate_to(|i| i.capacity = 0)),

        case!(svdq_generate_check, "no model", "model is NULL", svdq_generate_check(ptr::null(), &picture, cost)),
        case!(svdq_generate_check, "crooked model", "model", svdq_generate_check(crooked(model()), &picture, cost)),
        case!(svdq_generate_check, "no params", "svdq_generate_params is NULL", svdq_generate_check(model(), ptr::null(), cost)),
        case!(svdq_generate_check, "no cost", "svdq_generate_cost is NULL", svdq_generate_check(model(), &picture, null.cast())),
        case!(svdq_generate_check, "crooked cost", "svdq_generate_cost", svdq_generate_check(model(), &picture, crooked(cost))),
        case!(svdq_generate_check, "no size", "sizeof(svdq_generate_cost)", svdq_generate_check(model(), &picture, &mut with(*cost, |c| c.struct_size = 0))),
        case!(svdq_generate_check, "width no multiple", "127", svdq_generate_check(model(), &with(picture, |p| p.width = 127), cost)),

        case!(svdq_prompt_encode, "no out", "out is NULL", svdq_prompt_encode(model(), &words, null.cast())),
        case!(svdq_prompt_encode, "crooked out", "out", svdq_prompt_encode(model(), &words, crooked(out_prompt))),
        case!(svdq_prompt_encode, "no model", "model is NULL", svdq_prompt_encode(null.cast(), &words, out_prompt)),
        case!(svdq_prompt_encode, "crooked model", "model", svdq_prompt_encode(crooked(model()), &words, out_prompt)),
        case!(svdq_prompt_encode, "no params", "svdq_prompt_params is NULL", svdq_prompt_encode(model(), ptr::null(), out_prompt)),
        case!(svdq_prompt_encode, "no size", "struct_size is 0", encode_with(|p| p.struct_size = 0)),
        case!(svdq_prompt_encode, "no text", "text is NULL", encode_with(|p| p.text = ptr::null())),
        case!(svdq_prompt_encode, "text not UTF-8", "text is not UTF-8", encode_with(|p| p.text = c"caf\xe9".as_ptr())),
        case!(svdq_prompt_encode, "no LoRAs", "loras is NULL", encode_with(|p| p.lora_count = 1)),
        case!(svdq_prompt_encode, "wild number of LoRAs", "lora_count is 65", encode_with(|p| p.lora_count = 65)),
        case!(svdq_prompt_encode, "a LoRA of another model", "LoRA 0 is loaded for another model", svdq_prompt_encode(other_model, &svdq_prompt_params { loras: &reference, lora_count: 1, ..words }, out_prompt)),
        case!(svdq_prompt_release, "NULL", SVDQ_OK, "", { svdq_prompt_release(null.cast()); SVDQ_OK }),

        case!(svdq_job_submit, "no out", "out is NULL", svdq_job_submit(model(), &picture, null.cast())),
        case!(svdq_job_submit, "crooked out", "out", svdq_job_submit(model(), &picture, crooked(out_job))),
        case!(svdq_job_submit, "no model", "model is NULL", svdq_job_submit(null.cast(), &picture, out_job)),
        case!(svdq_job_submit, "crooked model", "model", svdq_job_submit(crooked(model()), &picture, out_job)),
        case!(svdq_job_submit, "no params", "svdq_generate_params is NULL", svdq_job_submit(model(), ptr::null(), out_job)),
        case!(svdq_job_submit, "crooked params", "svdq_generate_params", svdq_job_submit(model(), crooked(&picture), out_job)),
        case!(svdq_job_submit, "no size", "struct_size is 0", submit_with(|p| p.struct_size = 0)),
        case!(svdq_job_submit, "no prompt", "prompt is NULL", submit_with(|p| p.prompt = ptr::null())),
        case!(svdq_job_submit, "width no multiple", "127", submit_with(|p| p.width = 127)),
        case!(svdq_job_submit, "a LoRA of another model", "LoRA 0 is loaded for another model", svdq_job_submit(other_model, &svdq_generate_params { loras: &reference, lora_count: 1, ..picture }, out_job)),

        case!(svdq_job_submit_load, "no out", "out is NULL", svdq_job_submit_load(context, &load, null.cast())),
        case!(svdq_job_submit_load, "no context", "context is NULL", svdq_job_submit_load(null.cast(), &load, out_job)),
        case!(svdq_job_submit_load, "crooked context", "context", svdq_job_submit_load(crooked(context), &load, out_job)),
        case!(svdq_job_submit_load, "no params", "svdq_model_params is NULL", svdq_job_submit_load(context, ptr::null(), out_job)),
        case!(svdq_job_submit_load, "no sources", "source_count is 0", svdq_job_submit_load(context, &with(load, |p| p.source_count = 0), out_job)),
        case!(svdq_job_submit_load, "unknown profile", "profile is 4", svdq_job_submit_load(context, &with(load, |p| p.profile = 4), out_job)),

        case!(svdq_job_poll, "no job", "job is NULL", svdq_job_poll(ptr::null(), job_status)),
        case!(svdq_job_poll, "crooked job", "job", svdq_job_poll(crooked(picture_job), job_status)),
        case!(svdq_job_poll, "no status", "svdq_job_status is NULL", svdq_job_poll(picture_job, null.cast())),
        case!(svdq_job_poll, "crooked status", "svdq_job_status", svdq_job_poll(picture_job, crooked(job_status))),
        case!(svdq_job_poll, "no size", "struct_size is 0", status_of_size(0)),
        case!(svdq_job_poll, "cut size", "struct_size is 28", status_of_size(28)),
        case!(svdq_job_poll, "wild size", "struct_size is 4104", status_of_size(4104)),

        case!(svdq_job_wait, "no job", "job is NULL", svdq_job_wait(ptr::null(), u32::MAX)),
        case!(svdq_job_wait, "crooked job", "job", svdq_job_wait(crooked(picture_job), u32::MAX)),
        case!(svdq_job_wait, "a load that failed", SVDQ_ERR_NOT_FOUND, "/nowhere", svdq_job_wait(failed_job, u32::MAX)),

        case!(svdq_job_cancel, "no job", "job is NULL", svdq_job_cancel(null.cast())),
        case!(svdq_job_cancel, "crooked job", "job", svdq_job_cancel(crooked(picture_job))),
        case!(svdq_job_cancel, "a job that is done", SVDQ_OK, "", svdq_job_cancel(picture_job)),

        case!(svdq_job_error, "no job", "job is NULL", svdq_job_error(ptr::null(), text, 4, size)),
        case!(svdq_job_error, "crooked job", "job", svdq_job_error(crooked(picture_job), text, 4, size)),
        case!(svdq_job_error, "no buffer", "buf is NULL", svdq_job_error(picture_job, null.cast(), 4, size)),
        case!(svdq_job_error, "crooked needed", "needed", svdq_job_error(picture_job, text, 4, crooked(size))),
        case!(svdq_job_error, "small buffer", SVDQ_ERR_BUFFER_TOO_SMALL, "buf holds 4 bytes", svdq_job_error(failed_job, text, 4, size)),
        case!(svdq_job_error, "a job that is done", SVDQ_OK, "", svdq_job_error(picture_job, text, 4, size)),

        case!(svdq_job_read_image, "no job", "job is NULL", svdq_job_read_image(ptr::null(), SVDQ_JOB_IMAGE, &image)),
        case!(svdq_job_read_image, "crooked job", "job", svdq_job_read_image(crooked(picture_job), SVDQ_JOB_IMAGE, &image)),
        case!(svdq_job_read_image, "no image", "svdq_image is NULL", svdq_job_read_image(picture_job, SVDQ_JOB_IMAGE, ptr::null())),
        case!(svdq_job_read_image, "crooked image", "svdq_image", svdq_job_read_image(picture_job, SVDQ_JOB_IMAGE, crooked(&image))),
        case!(svdq_job_read_image, "no previews", "no previews", svdq_job_read_image(picture_job, SVDQ_JOB_PREVIEW, &image)),
        case!(svdq_job_read_image, "no such image", "which is 9", svdq_job_read_image(picture_job, 9, &image)),
        case!(svdq_job_read_image, "image of another size", "64x64", svdq_job_read_image(picture_job, SVDQ_JOB_IMAGE, &with(image, |i| (i.width, i.height) = (64, 64)))),
        case!(svdq_job_read_image, "small buffer", SVDQ_ERR_BUFFER_TOO_SMALL, "65536 are needed", svdq_job_read_image(picture_job, SVDQ_JOB_IMAGE, &with(image, |i| i.capacity -= 1))),
        case!(svdq_job_read_image, "a load that failed", SVDQ_ERR_NOT_FOUND, "/nowhere", svdq_job_read_image(failed_job, SVDQ_JOB_IMAGE, &image)),

        case!(svdq_job_take_model, "no job", "job is NULL", svdq_job_take_model(null.cast(), out_model)),
        case!(svdq_job_take_model, "crooked job", "job", svdq_job_take_model(crooked(picture_job), out_model)),
        case!(svdq_job_take_model, "no out", "out is NULL", svdq_job_take_model(picture_job, null.cast())),
        case!(svdq_job_take_model, "of a picture", "makes a picture", svdq_job_take_model(picture_job, out_model)),
        case!(svdq_job_take_model, "a load that failed", SVDQ_ERR_NOT_FOUND, "/nowhere", svdq_job_take_model(failed_job, out_model)),
        case!(svdq_job_release, "NULL", SVDQ_OK, "", { svdq_job_release(null.cast()); SVDQ_OK }),
    ];

    for (function, wrong, expected, text, call) in &cases {
        let before = last_error();
        let result = call();
        assert_eq!(result, *expected, "{function}, {wrong}: {}", last_error());
        let error = last_error();
        if result == SVDQ_OK {
            assert_eq!(error, before, "{function}, {wrong}: success changed the error text");
        } else {
            assert!(
                error.contains(text) && !error.is_empty(),
                "{function}, {wrong}: {error:?} without {text:?}"
            );
        }
    }
    assert!(pixels.iter().all(|&byte| byte == 0xa5), "a failed call wrote pixels");
    let tested: BTreeSet<_> = cases.iter().map(|case| case.0.to_owned()).collect();
    assert_eq!(
        tested,
        BTreeSet::from_iter(declared_functions()),
        "functions in this table and in the header"
    );
    unsafe {
        svdq_job_release(picture_job);
        svdq_job_release(failed_job);
        svdq_prompt_release(prompt);
        svdq_lora_release(lora);
        svdq_model_release(other_model);
        svdq_context_release(context);
    }
}

/// Two sources, of which the second is the transformer, in an array of a newer header's elements.
#[test]
fn sources_are_as_large_as_they_say() {
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Newer {
        source: svdq_source,
        added: u64,
    }
    let demo = demo();
    let newer = |path: &CStr, added| {
        let source = svdq_source { struct_size: size_of::<Newer>() as u32, ..source(path) };
        Newer { source, added }
    };
    let load = |sources: &[Newer; 2]| {
        let params = svdq_model_params { source_count: 2, sources: &sources[0].source, ..sized() };
        let (context, mut model) = (create(), ptr::null_mut());
        let result = unsafe { svdq_model_load(context, &params, &mut model) };
        unsafe { (svdq_model_release(model), svdq_context_release(context)) };
        result
    };
    assert_eq!(load(&[newer(&demo, 0), newer(c"/nowhere", 0)]), SVDQ_ERR_NOT_FOUND);
    assert!(last_error().contains("/nowhere"), "{}", last_error());
    assert_eq!(load(&[newer(&demo, 0), newer(c"/nowhere", 1)]), SVDQ_ERR_VERSION_MISMATCH);
    assert!(last_error().contains("svdq_source asks at byte 48"), "{}", last_error());
    assert_eq!(load(&[newer(&demo, 1), newer(c"/nowhere", 0)]), SVDQ_ERR_VERSION_MISMATCH);
    let mut sources = [newer(&demo, 0), newer(c"/nowhere", 0)];
    sources[1].source.struct_size = size_of::<svdq_source>() as u32;
    assert_eq!(load(&sources), SVDQ_ERR_INVALID_ARGUMENT);
    assert_eq!(last_error(), "sources: element 1 has struct_size 48, the first one 56");
}

/// Structs of older headers are shorter, those of newer ones longer.
#[test]
fn structs_may_be_older_or_newer() {
    #[repr(C)]
    struct Newer<T> {
        known: T,
        added: [u32; 4],
    }
    let resize = |size: usize| svdq_image { struct_size: size as u32, ..sized() };
    for size in 0..=5000 {
        // The whole page is the caller's; the image is 16x16 pixels with all later fields absent or zero.
        let mut page = [0u64; 1024];
        let image = svdq_image { format: SVDQ_FORMAT_RGB8, width: 16, height: 16, ..resize(size) };
        unsafe { page.as_mut_ptr().cast::<svdq_image>().write(image) };
        let mut bytes = 0;
        let result = unsafe { svdq_image_bytes(page.as_ptr().cast(), &mut bytes) };
        if size % 8 != 0 || !(16..=4096).contains(&size) {
            assert_eq!(result, SVDQ_ERR_INVALID_ARGUMENT, "{size}");
        } else {
            assert_eq!((result, bytes), (SVDQ_OK, 16 * 16 * 3), "{size}");
        }
    }

    let mut newer = Newer { known: sized::<svdq_context_params>(), added: [0; 4] };
    newer.known.struct_size = size_of_val(&newer) as u32;
    let mut context = ptr::null_mut();
    ok(unsafe { svdq_context_create(&newer.known, &mut context) });
    unsafe { svdq_context_release(context) };
    newer.added[2] = 1;
    assert_eq!(unsafe { svdq_context_create(&newer.known, &mut context) }, SVDQ_ERR_VERSION_MISMATCH);
    assert!(last_error().contains("svdq_context_params asks at byte 96"), "{}", last_error());

    let mut info = Newer { known: sized::<svdq_model_info>(), added: [9; 4] };
    info.known.struct_size = size_of_val(&info) as u32;
    ok(unsafe { svdq_model_get_info(model(), &mut info.known) });
    assert_eq!((info.added, info.known.struct_size), ([0; 4], size_of_val(&info) as u32));
    let mut older = svdq_model_info { struct_size: 16, default_steps: 77, ..sized() };
    ok(unsafe { svdq_model_get_info(model(), &mut older) });
    assert_eq!((older.rank, older.default_steps), (info.known.rank, 77));
}

#[test]
fn strings_out_are_cut_between_characters() {
    let broken = c("/nowhere/ü");
    let (context, mut model) = (create(), ptr::null_mut());
    let result = unsafe { svdq_model_load(context, &model_params(&[source(&broken)]), &mut model) };
    assert_eq!(result, SVDQ_ERR_NOT_FOUND);
    unsafe { svdq_context_release(context) };
    let text = last_error();
    for cap in 1..=text.len() + 1 {
        let (mut buf, mut needed) = (vec![b'#'; text.len() + 2], 0);
        let result = unsafe { svdq_last_error(buf.as_mut_ptr().cast(), cap, &mut needed) };
        let fits = cap == text.len() + 1;
        assert_eq!(result, if fits { SVDQ_OK } else { SVDQ_ERR_BUFFER_TOO_SMALL });
        assert_eq!(needed, text.len() + 1);
        let written = CStr::from_bytes_until_nul(&buf).unwrap().to_str().unwrap();
        assert!(text.starts_with(written) && written.len() + 2 >= cap);
        assert!(buf[cap..].iter().all(|&byte| byte == b'#'));
    }
    assert_eq!(last_error(), text, "svdq_last_error changed the text");
}

#[test]
fn every_thread_has_its_own_error() {
    assert_eq!(unsafe { svdq_context_create(ptr::null(), ptr::null_mut()) }, SVDQ_ERR_INVALID_ARGUMENT);
    assert_eq!(std::thread::spawn(last_error).join().unwrap(), "");
    assert_eq!(last_error(), "out is NULL");
}

#[test]
fn results_have_the_names_of_the_header() {
    let header = header();
    let results = header.lines().filter_map(|line| line.strip_prefix("#define SVDQ_"));
    let results = results.filter(|line| line.starts_with("ERR_") || line.starts_with("OK "));
    let mut count = 0;
    for (name, value) in results.map(|line| line.split_once(' ').unwrap()) {
        let named = unsafe { CStr::from_ptr(svdq_result_name(value.parse().unwrap())) };
        assert_eq!(named.to_str().unwrap(), format!("SVDQ_{name}"));
        count += 1;
    }
    assert_eq!(count, 21);
}
