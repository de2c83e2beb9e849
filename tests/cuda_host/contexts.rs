//! What the C API's contexts do with GPUs and drivers. As in `inside`, each test runs another one in a process of its own.

use std::env;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::zeroed;
use std::ops::ControlFlow;
use std::ptr;

use svdq::Error;
use svdq::capi::*;
use svdq::engine::{
    Context, ContextOptions, DeviceSelect, GenerateParams, GpuMemory, ImageMut, PixelFormat, Priority,
    Progress, Prompt,
};

use crate::inside::{image, load_into, run};

/// All zero but for `struct_size`.
fn sized<T>() -> T {
    unsafe {
        let mut value: T = zeroed();
        ptr::from_mut(&mut value).cast::<u32>().write(size_of::<T>() as u32);
        value
    }
}

fn last_error() -> String {
    let mut buf = [0 as c_char; 1000];
    unsafe {
        svdq_last_error(buf.as_mut_ptr(), buf.len(), ptr::null_mut());
        CStr::from_ptr(buf.as_ptr()).to_str().unwrap().to_owned()
    }
}

fn count() -> (svdq_result, u32) {
    let mut count = 77;
    (unsafe { svdq_device_count(&mut count) }, count)
}

#[test]
fn gpus_are_listed() {
    let counts = run("contexts::list", &[("FAKE_DEVICES", "2"), ("FAKE_MEMORY", "8000000")]);
    assert_eq!([counts["allocations"], counts["streams"], counts["modules"]], [0; 3], "{counts:?}");
}

#[test]
#[ignore = "run by gpus_are_listed"]
fn list() {
    assert_eq!(count(), (SVDQ_OK, 2));
    for index in 0..2 {
        let mut info: svdq_device_info = sized();
        assert_eq!(unsafe { svdq_device_get_info(index, &mut info) }, SVDQ_OK, "{}", last_error());
        let name = unsafe { CStr::from_ptr(info.name.as_ptr()) };
        assert_eq!(name.to_str().unwrap(), format!("Fake GPU {index}"));
        assert_eq!((info.uuid, info.luid, info.luid_valid), ([40 + index as u8; 16], [0; 8], 0));
        assert_eq!((info.compute_capability, info.driver_version), (90, 13000));
        assert_eq!((info.memory_total, info.memory_free), (8_000_000, 8_000_000));
        let [w4a4, w4a8, w4a16] = [SVDQ_PROFILE_W4A4, SVDQ_PROFILE_W4A8, SVDQ_PROFILE_W4A16].map(|p| 1 << p);
        let profiles = if cfg!(svdq_kernels) { [w4a4 | w4a8 | w4a16, w4a8 | w4a16] } else { [0; 2] };
        assert_eq!([info.int4_profiles, info.nvfp4_profiles], profiles);
    }
    let mut info: svdq_device_info = sized();
    assert_eq!(unsafe { svdq_device_get_info(2, &mut info) }, SVDQ_ERR_NO_DEVICE);
    assert_eq!(last_error(), "there is no GPU 2: the NVIDIA driver offers 2");
}

#[test]
fn drivers_say_why_there_is_no_gpu() {
    for (settings, expected) in [
        (("FAKE_VERSION", "12040"), "-61 0"),
        (("FAKE_INIT", "803"), "-60 0"),
        (("FAKE_INIT", "100"), "0 0"),
        (("FAKE_DEVICES", "0"), "0 0"),
    ] {
        run("contexts::why", &[settings, ("EXPECTED", expected)]);
    }
}

#[test]
#[ignore = "run by drivers_say_why_there_is_no_gpu"]
fn why() {
    let (result, count) = count();
    assert_eq!(format!("{result} {count}"), env::var("EXPECTED").unwrap());
}

#[test]
fn gpus_are_chosen_by_what_they_are() {
    run("contexts::choose", &[("FAKE_DEVICES", "3")]);
}

#[test]
#[ignore = "run by gpus_are_chosen_by_what_they_are"]
fn choose() {
    let open = |device_select, device_id| {
        let params = svdq_context_params { device_select, device_id, ..sized() };
        let mut context = ptr::null_mut();
        let result = unsafe { svdq_context_create(&params, &mut context) };
        let (mut level, mut line) = (0, [0 as c_char; 300]);
        if result == SVDQ_OK {
            let needed = ptr::null_mut();
            unsafe { svdq_context_read_log(context, &mut level, line.as_mut_ptr(), line.len(), needed) };
        }
        unsafe { svdq_context_release(context) };
        (result, unsafe { CStr::from_ptr(line.as_ptr()) }.to_str().unwrap().to_owned())
    };
    let (result, line) = open(SVDQ_DEVICE_UUID, [42; 16]);
    if cfg!(svdq_kernels) {
        assert!(result == SVDQ_OK && line.contains("GPU 2 (Fake GPU 2, compute capability 9.0"), "{line}");
        assert!(line.contains("driver for CUDA 13.0: INT4 in W4A8, NVFP4 in W4A8"), "{line}");
    } else {
        assert_eq!(result, SVDQ_ERR_DEVICE_UNSUPPORTED);
        let (result, line) = open(SVDQ_DEVICE_BEST, [0; 16]);
        assert!(result == SVDQ_OK && line.contains("no GPU is used: this build of libsvdq"), "{line}");
    }
    assert_eq!(open(SVDQ_DEVICE_UUID, [7; 16]).0, SVDQ_ERR_NO_DEVICE);
    assert_eq!(last_error(), "no GPU has the UUID 07070707070707070707070707070707");
    let mut luid = [0; 16];
    luid[0] = 0x1f;
    assert_eq!(open(SVDQ_DEVICE_LUID, luid).0, SVDQ_ERR_NO_DEVICE);
    assert_eq!(last_error(), "no GPU has the LUID 1f00000000000000");
}

#[test]
#[cfg_attr(not(svdq_kernels), ignore = "this build has no GPU kernels")]
fn kernels_have_the_priority_that_was_asked_for() {
    for (asked, priority) in [("Low", "0"), ("Balanced", "-2"), ("High", "-5")] {
        let counts = run("contexts::priority", &[("ASKED", asked)]);
        let launches = counts[&format!("launches of priority {priority}")];
        assert!(launches > 100 && launches == counts["launches"], "{asked}: {counts:?}");
        assert!(counts["replays"] > 0, "{counts:?}");
    }
}

#[test]
#[ignore = "run by kernels_have_the_priority_that_was_asked_for"]
fn priority() {
    let asked = env::var("ASKED").unwrap();
    let all = [Priority::Low, Priority::Balanced, Priority::High];
    let priority = all.into_iter().find(|priority| format!("{priority:?}") == asked).unwrap();
    let options = ContextOptions { device: DeviceSelect::Cuda(0), priority, ..Default::default() };
    let model = load_into(&Context::new(options).unwrap()).unwrap();
    for _ in 0..3 {
        image(&model, 32).unwrap();
    }
}

#[test]
#[cfg_attr(not(svdq_kernels), ignore = "this build has no GPU kernels")]
fn budgets_change() {
    run("contexts::budget", &[]);
}

#[test]
#[ignore = "run by budgets_change"]
fn budget() {
    const SIDE: u32 = 128;
    let device = DeviceSelect::Cuda(0);
    let context = Context::new(ContextOptions { device, threads: 1, ..Default::default() }).unwrap();
    let memory = || context.memory().unwrap().gpu.unwrap();
    let model = load_into(&context).unwrap();
    // From then on the prompt is known, and temporaries are those of an image alone.
    image(&model, SIDE).unwrap();
    context.set_memory_budget(model.gpu_bytes()[0]).unwrap();
    context.set_memory_budget(0).unwrap();
    let first = image(&model, SIDE).unwrap();
    let [weights, temporaries] = model.gpu_bytes();
    let all = weights + temporaries;
    assert!(memory().used == all && temporaries > 0 && memory().peak >= all && memory().budget == 0);

    // Less than the weights: it stays what it was.
    match context.set_memory_budget(weights - 1) {
        Err(Error::MemoryBudget { need, budget, .. }) => assert!(need == weights && budget == weights - 1),
        other => panic!("{other:?}"),
    }
    assert_eq!(memory().budget, 0);
    assert_eq!(image(&model, SIDE).unwrap(), first);
    assert_eq!(memory().used, all);

    // No more than the weights: the temporaries are gone, and no image can be made.
    let refused = |side| match image(&model, side) {
        Err(Error::MemoryBudget { need, budget, .. }) => {
            assert!(need > budget && budget == memory().budget, "{need} of {budget}");
            assert_eq!(memory().used, weights);
        }
        other => panic!("{other:?}"),
    };
    context.set_memory_budget(weights).unwrap();
    let GpuMemory { used, budget, .. } = memory();
    assert_eq!([used, budget], [weights; 2]);
    refused(SIDE);
    assert!(matches!(load_into(&context), Err(Error::MemoryBudget { .. })));

    // As much as before, then less, which is enough for a smaller image.
    context.set_memory_budget(all).unwrap();
    assert_eq!(image(&model, SIDE).unwrap(), first);
    context.set_memory_budget(all - 1).unwrap();
    refused(SIDE);
    image(&model, 32).unwrap();
    assert!(memory().used < all);
    context.set_memory_budget(0).unwrap();
    assert_eq!(image(&model, SIDE).unwrap(), first);

    // What a prompt took since then is not taken for an image's.
    context.set_memory_budget(all - 1).unwrap();
    Prompt::encode(&model, "blue potion", &[]).unwrap();
    refused(SIDE);
    context.set_memory_budget(0).unwrap();
    assert_eq!(image(&model, SIDE).unwrap(), first);

    // An image that is being made is made; the next one keeps to the budget.
    let mut pixels = vec![0; (SIDE * SIDE * 3) as usize];
    let mut picture = ImageMut::new(&mut pixels, PixelFormat::Rgb8, SIDE, SIDE, 0, false).unwrap();
    let prompt = "red potion";
    let params = GenerateParams { prompt, width: SIDE, height: SIDE, steps: 2, ..Default::default() };
    let change = &mut |at| {
        if matches!(at, Progress::Denoise { .. }) {
            context.set_memory_budget(weights).unwrap();
        }
        ControlFlow::Continue(())
    };
    model.generate(&params, &mut picture, change).unwrap();
    assert_eq!(memory().used, all);
    refused(SIDE);
    assert!(memory().peak <= all + weights);
}

/// The driver's functions that a program would call itself.
fn driver<T: Copy>(name: &CStr) -> T {
    unsafe extern "C" {
        fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
        fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    }
    unsafe {
        let function = dlsym(dlopen(c"libcuda.so.1".as_ptr(), 2), name.as_ptr());
        assert!(!function.is_null(), "{name:?}");
        std::mem::transmute_copy(&function)
    }
}

#[test]
fn the_programs_cuda_context_stays_current() {
    run("contexts::current", &[("FAKE_DEVICES", "2")]);
}

#[test]
#[ignore = "run by the_programs_cuda_context_stays_current"]
fn current() {
    let push: unsafe extern "C" fn(*mut c_void) -> i32 = driver(c"cuCtxPushCurrent_v2");
    let pop: unsafe extern "C" fn(*mut *mut c_void) -> i32 = driver(c"cuCtxPopCurrent_v2");
    let get: unsafe extern "C" fn(*mut *mut c_void) -> i32 = driver(c"cuCtxGetCurrent");
    let own = ptr::without_provenance_mut::<c_void>(41);
    let now = || {
        let mut now = ptr::null_mut();
        assert_eq!(unsafe { get(&mut now) }, 0);
        now
    };
    let path = |path: &str| CString::new(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let (demo, green) = (path("assets/demo"), path("assets/demo/lora/pocket-green.safetensors"));
    let source = |path: &CStr| svdq_source { kind: SVDQ_SOURCE_PATH, path: path.as_ptr(), ..sized() };
    let (source, lora_source) = (source(&demo), source(&green));
    let (mut context, mut model, mut second) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
    let (mut lora, mut prompt, mut job) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
    let mut pixels = vec![0u8; 32 * 32 * 4];
    // Without a context of the program's, with one, and without one again.
    for own in [ptr::null_mut(), own, ptr::null_mut()] {
        if !own.is_null() {
            assert_eq!(unsafe { push(own) }, 0);
        }
        macro_rules! call {
            ($call:expr) => {
                let _ = unsafe { $call };
                assert_eq!(now(), own, stringify!($call));
            };
        }
        call!(svdq_device_count(&mut 0));
        call!(svdq_device_get_info(0, &mut sized()));
        call!(svdq_device_get_info(1, &mut sized()));
        let params = svdq_context_params { device_select: SVDQ_DEVICE_INDEX, ..sized() };
        call!(svdq_context_create(&params, &mut context));
        if cfg!(svdq_kernels) {
            assert!(!context.is_null(), "{}", last_error());
            let params = svdq_model_params { source_count: 1, sources: &source, ..sized() };
            call!(svdq_model_load(context, &params, &mut model));
            call!(svdq_lora_load(model, &lora_source, &mut lora));
            let generate = svdq_generate_params {
                width: 32,
                height: 32,
                steps: 4,
                prompt: c"red potion".as_ptr(),
                ..sized()
            };
            let image = svdq_image {
                format: SVDQ_FORMAT_RGBA8,
                width: 32,
                height: 32,
                pixels: pixels.as_mut_ptr().cast(),
                capacity: pixels.len() as u64,
                ..sized()
            };
            call!(svdq_generate_check(model, &generate, &mut sized()));
            call!(svdq_generate(model, &generate, &image));
            assert!(!lora.is_null(), "{}", last_error());
            let prompt_params = svdq_prompt_params { text: c"red potion".as_ptr(), ..sized() };
            call!(svdq_prompt_encode(model, &prompt_params, &mut prompt));
            assert!(!prompt.is_null(), "{}", last_error());
            call!(svdq_prompt_release(prompt));
            for cancelled in [false, true] {
                call!(svdq_job_submit(model, &generate, &mut job));
                call!(svdq_job_poll(job, &mut sized()));
                if cancelled {
                    call!(svdq_job_cancel(job));
                }
                call!(svdq_job_wait(job, u32::MAX));
                let read = unsafe { svdq_job_read_image(job, SVDQ_JOB_IMAGE, &image) };
                assert!(cancelled || read == SVDQ_OK, "{}", last_error());
                call!(svdq_job_read_image(job, SVDQ_JOB_IMAGE, &image));
                call!(svdq_job_release(job));
            }
            call!(svdq_job_submit_load(context, &params, &mut job));
            call!(svdq_job_wait(job, u32::MAX));
            call!(svdq_job_take_model(job, &mut second));
            assert!(!second.is_null(), "{}", last_error());
            call!(svdq_job_release(job));
            call!(svdq_model_release(second));
            call!(svdq_context_read_log(context, &mut 0, ptr::null_mut(), 0, ptr::null_mut()));
            call!(svdq_context_get_memory(context, &mut sized()));
            call!(svdq_context_set_memory_budget(context, 1));
            call!(svdq_context_set_memory_budget(context, 1 << 30));
            call!(svdq_lora_release(lora));
            call!(svdq_model_release(model));
            call!(svdq_context_shutdown(context, u32::MAX));
        }
        call!(svdq_context_release(context));
        if !own.is_null() {
            assert_eq!(unsafe { pop(&mut ptr::null_mut()) }, 0);
        }
    }
}
