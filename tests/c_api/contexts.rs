//! Contexts, and their logs. What they do with a GPU is tested in tests/cuda_host.

use std::ffi::{CStr, c_char, c_void};
use std::sync::{Arc, Mutex};
use std::{ptr, thread};

use svdq::capi::*;

use crate::support::{c, demo, load_into, lora, lora_file, model_params, ok, sized, source};

type Lines = Mutex<Vec<(i32, String)>>;

/// Writes down what it is told.
unsafe extern "C" fn write_down(user: *mut c_void, level: i32, message: *const c_char) {
    let (lines, message) = unsafe { (&*user.cast::<Lines>(), CStr::from_ptr(message)) };
    lines.lock().unwrap().push((level, message.to_str().unwrap().to_owned()));
}

fn create(change: impl FnOnce(&mut svdq_context_params)) -> *mut svdq_context {
    let mut params = svdq_context_params { device_select: SVDQ_DEVICE_CPU, threads: 1, ..sized() };
    change(&mut params);
    let mut context = ptr::null_mut();
    ok(unsafe { svdq_context_create(&params, &mut context) });
    context
}

/// The oldest line of the log; level 0 if there is none.
fn read(context: *mut svdq_context) -> (i32, String) {
    let (mut level, mut buf) = (77, [1 as c_char; 1000]);
    let cap = buf.len();
    ok(unsafe { svdq_context_read_log(context, &mut level, buf.as_mut_ptr(), cap, ptr::null_mut()) });
    (level, unsafe { CStr::from_ptr(buf.as_ptr()) }.to_str().unwrap().to_owned())
}

fn read_all(context: *mut svdq_context) -> Vec<(i32, String)> {
    std::iter::from_fn(|| Some(read(context)).filter(|(level, _)| *level != 0)).collect()
}

#[test]
fn a_log_says_what_was_opened_and_loaded() {
    let context = create(|_| ());
    let model = load_into(context, &demo());
    let lora = lora(model, &lora_file());
    let lines = read_all(context);
    let expected = [
        (SVDQ_LOG_INFO, "libsvdq 0.1.0 on the CPU"),
        (SVDQ_LOG_INFO, "FLUX.1-dev, INT4 of rank 32 in W4A8"),
        (
            SVDQ_LOG_WARNING,
            "the model has no place for 1 of the LoRA's tensors, such as `not_of_this_model.lora_A.weight`",
        ),
        (SVDQ_LOG_INFO, "rank 4"),
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for ((level, line), (expected_level, part)) in lines.iter().zip(expected) {
        assert!(*level == expected_level && line.contains(part), "{line:?} without {part:?}");
    }
    unsafe { (svdq_lora_release(lora), svdq_model_release(model), svdq_context_release(context)) };
}

#[test]
fn a_log_says_what_came_of_jobs() {
    let context = create(|_| ());
    let model = load_into(context, &demo());
    let nowhere = [source(c"/nowhere")];
    let picture = svdq_generate_params { width: 16, height: 16, steps: 1, prompt: c"a".as_ptr(), ..sized() };
    let (mut load, mut job) = (ptr::null_mut(), ptr::null_mut());
    unsafe {
        ok(svdq_job_submit_load(context, &model_params(&nowhere), &mut load));
        assert_eq!(svdq_job_wait(load, u32::MAX), SVDQ_ERR_NOT_FOUND);
        ok(svdq_job_submit(model, &picture, &mut job));
        ok(svdq_job_wait(job, u32::MAX));
    }
    let lines = read_all(context);
    let [_, _, failed, done] = &lines[..] else { panic!("{lines:#?}") };
    assert!(failed.0 == SVDQ_LOG_ERROR && failed.1.starts_with("loading a model: /nowhere"), "{failed:?}");
    assert!(done.0 == SVDQ_LOG_DEBUG && done.1.starts_with("a picture: done in "), "{done:?}");
    unsafe { (svdq_job_release(load), svdq_job_release(job)) };
    unsafe { (svdq_model_release(model), svdq_context_release(context)) };
}

#[test]
fn a_log_says_that_a_prompt_is_cut() {
    let context = create(|_| ());
    let model = load_into(context, &demo());
    read_all(context);
    // CLIP sees 77 tokens, of which the first is the begin and the last the end; T5 here 48, of which the last is the end.
    let prompts = ["key ".repeat(46), "key ".repeat(60), "key ".repeat(100)].map(c);
    let picture = |prompt: &CStr| svdq_generate_params {
        width: 16,
        height: 16,
        steps: 1,
        prompt: prompt.as_ptr(),
        ..sized()
    };
    for prompt in &prompts {
        // By the call that encodes it, and no other.
        for _ in 0..2 {
            let mut job = ptr::null_mut();
            unsafe {
                ok(svdq_job_submit(model, &picture(prompt), &mut job));
                ok(svdq_job_wait(job, u32::MAX));
                svdq_job_release(job);
            }
        }
    }
    let mut prompt = ptr::null_mut();
    let params = svdq_prompt_params { text: prompts[1].as_ptr(), ..sized() };
    unsafe {
        ok(svdq_prompt_encode(model, &params, &mut prompt));
        svdq_prompt_release(prompt);
    }
    let lines = read_all(context);
    let warnings: Vec<_> =
        lines.iter().filter(|(level, _)| *level == SVDQ_LOG_WARNING).map(|(_, line)| &line[..]).collect();
    let cut = |what| format!("the prompt is cut: {what}");
    let t5 = cut("T5 sees 48 of its 61 tokens");
    let both = cut("CLIP sees 77 of its 102 tokens, T5 sees 48 of its 101 tokens");
    assert_eq!(warnings, [&t5[..], &both, &t5]);
    unsafe { (svdq_model_release(model), svdq_context_release(context)) };
}

#[test]
fn lines_that_do_not_fit_stay() {
    let context = create(|_| ());
    let (mut level, mut needed, mut buf) = (0, 0, [0 as c_char; 8]);
    for cap in [0, 8] {
        let buf = if cap == 0 { ptr::null_mut() } else { buf.as_mut_ptr() };
        let result = unsafe { svdq_context_read_log(context, &mut level, buf, cap, &mut needed) };
        assert_eq!(result, if cap == 0 { SVDQ_OK } else { SVDQ_ERR_BUFFER_TOO_SMALL });
        assert_eq!((level, needed), (SVDQ_LOG_INFO, "libsvdq 0.1.0 on the CPU".len() + 1));
    }
    assert_eq!(unsafe { CStr::from_ptr(buf.as_ptr()) }, c"libsvdq");
    assert_eq!(read(context), (SVDQ_LOG_INFO, "libsvdq 0.1.0 on the CPU".into()));
    assert_eq!(read(context), (0, String::new()));
    unsafe { svdq_context_release(context) };
}

#[test]
fn two_contexts_have_two_logs() {
    let loras: Vec<_> = (0..2).map(|i| (i, c(format!("/nowhere/{i}.safetensors")))).collect();
    let logs = [(); 2].map(|()| Arc::new(Lines::default()));
    thread::scope(|scope| {
        for (i, path) in &loras {
            let log = logs[*i].clone();
            scope.spawn(move || {
                // One is called, the other asked.
                let user = Arc::as_ptr(&log).cast_mut().cast::<c_void>();
                let context = create(|params| {
                    if *i == 0 {
                        params.log = Some(write_down);
                        params.log_user = user;
                    }
                });
                let model = load_into(context, &demo());
                for _ in 0..50 {
                    let mut out = ptr::null_mut();
                    let result = unsafe { svdq_lora_load(model, &source(path), &mut out) };
                    assert_eq!(result, SVDQ_ERR_NOT_FOUND);
                }
                let lora = lora(model, &lora_file());
                let kept = read_all(context);
                assert_eq!(kept.is_empty(), *i == 0);
                log.lock().unwrap().extend(kept);
                unsafe {
                    (svdq_lora_release(lora), svdq_model_release(model), svdq_context_release(context))
                };
            });
        }
    });
    for log in &logs {
        let lines = log.lock().unwrap();
        let count = |part: &str| lines.iter().filter(|(_, line)| line.contains(part)).count();
        // What fails where it is called is told there, and not a second time.
        assert_eq!([count("libsvdq"), count("FLUX.1-dev"), count("rank 4")], [1; 3], "{lines:#?}");
        assert_eq!(lines.len(), 4, "{lines:#?}");
    }
}

#[test]
fn a_log_may_call_the_library() {
    struct Own {
        context: Mutex<Option<usize>>,
        called: Mutex<u32>,
    }
    unsafe extern "C" fn ask(user: *mut c_void, _: i32, _: *const c_char) {
        let own = unsafe { &*user.cast::<Own>() };
        // No context yet while it is being made.
        let Some(context) = *own.context.lock().unwrap() else { return };
        let context = context as *mut svdq_context;
        *own.called.lock().unwrap() += 1;
        let mut info = sized();
        ok(unsafe { svdq_context_get_memory(context, &mut info) });
        ok(unsafe { svdq_context_set_memory_budget(context, 1 << 30) });
        assert_eq!(read(context), (0, String::new()));
    }
    let own = Own { context: Mutex::default(), called: Mutex::default() };
    let context = create(|params| {
        params.log = Some(ask);
        params.log_user = ptr::from_ref(&own).cast_mut().cast();
    });
    *own.context.lock().unwrap() = Some(context as usize);
    let model = load_into(context, &demo());
    let lora = lora(model, &lora_file());
    assert_eq!(*own.called.lock().unwrap(), 3);
    unsafe { (svdq_lora_release(lora), svdq_model_release(model), svdq_context_release(context)) };
}

#[test]
fn the_cpu_has_no_budget() {
    let context = create(|params| params.memory_budget = 1);
    let memory = || {
        let mut info = svdq_memory_info { reserved: 77, device_free: 77, ..sized() };
        ok(unsafe { svdq_context_get_memory(context, &mut info) });
        assert_eq!(info.reserved, 0);
        [info.device_used, info.device_peak, info.device_budget, info.device_free]
    };
    assert_eq!(memory(), [0; 4]);
    for bytes in [1, 0, u64::MAX] {
        ok(unsafe { svdq_context_set_memory_budget(context, bytes) });
    }
    let model = load_into(context, &demo());
    assert_eq!(memory(), [0; 4]);
    unsafe { (svdq_model_release(model), svdq_context_release(context)) };
}

#[test]
fn there_is_always_a_number_of_gpus() {
    let mut count = 77;
    let result = unsafe { svdq_device_count(&mut count) };
    assert!(matches!(result, SVDQ_OK | SVDQ_ERR_NO_DRIVER | SVDQ_ERR_DRIVER_TOO_OLD), "{result}");
    assert!(result == SVDQ_OK || count == 0, "{result} and {count} GPUs");
    let mut info = svdq_device_info { memory_total: 77, ..sized() };
    let none = unsafe { svdq_device_get_info(count, &mut info) };
    assert!(none == if result == SVDQ_OK { SVDQ_ERR_NO_DEVICE } else { result }, "{none}");
    assert_eq!(info.memory_total, 77, "an output of a failed call");
}
