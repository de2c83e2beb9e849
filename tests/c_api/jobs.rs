//! Jobs: results, errors, handles that are released in any order from any thread, and how long calls take.

use std::ffi::{CStr, c_char};
use std::time::{Duration, Instant};
use std::{ptr, thread};

use svdq::capi::*;

use crate::support::{create, demo, last_error, load, model, model_params, ok, sized, source};

const SIDE: u32 = 32;

fn params(seed: u64, steps: u32) -> svdq_generate_params {
    let prompt = c"a key".as_ptr();
    svdq_generate_params { width: SIDE, height: SIDE, steps, seed, prompt, ..sized() }
}

/// What `write` puts into an image of `side` pixels.
fn pixels(side: u32, write: impl FnOnce(&svdq_image) -> svdq_result) -> (svdq_result, Vec<u8>) {
    let mut pixels = vec![0u8; (side * side * 4) as usize];
    let image = svdq_image {
        format: SVDQ_FORMAT_BGRA8,
        flags: SVDQ_IMAGE_BOTTOM_UP,
        width: side,
        height: side,
        pixels: pixels.as_mut_ptr().cast(),
        capacity: pixels.len() as u64,
        ..sized()
    };
    (write(&image), pixels)
}

fn submit(model: *mut svdq_model, params: &svdq_generate_params) -> *mut svdq_job {
    let mut job = ptr::null_mut();
    ok(unsafe { svdq_job_submit(model, params, &mut job) });
    job
}

fn poll(job: *const svdq_job) -> svdq_job_status {
    let mut status = sized();
    ok(unsafe { svdq_job_poll(job, &mut status) });
    status
}

fn error(job: *const svdq_job) -> String {
    let mut buf = [0 as c_char; 1000];
    ok(unsafe { svdq_job_error(job, buf.as_mut_ptr(), buf.len(), ptr::null_mut()) });
    unsafe { CStr::from_ptr(buf.as_ptr()) }.to_str().unwrap().to_owned()
}

#[test]
fn a_job_has_the_picture_of_generate_and_previews() {
    let picture = svdq_generate_params { preview_every: 2, ..params(4, 4) };
    let job = submit(model(), &picture);
    ok(unsafe { svdq_job_wait(job, u32::MAX) });
    let status = poll(job);
    assert_eq!((status.state, status.result, status.fraction), (SVDQ_JOB_DONE, SVDQ_OK, 1.0));
    assert_eq!((status.step, status.steps, status.seed, error(job)), (4, 4, 4, String::new()));
    assert!(
        status.queue_ms >= 0.0 && status.encode_ms > 0.0 && status.denoise_ms > 0.0 && status.decode_ms > 0.0
    );
    assert_eq!((status.preview_serial, status.preview_width, status.preview_height), (2, SIDE / 8, SIDE / 8));
    let (result, preview) =
        pixels(SIDE / 8, |image| unsafe { svdq_job_read_image(job, SVDQ_JOB_PREVIEW, image) });
    ok(result);
    assert!(preview.chunks(4).all(|pixel| pixel[3] == 255) && preview[..4] != preview[4..8]);
    let (result, of_job) = pixels(SIDE, |image| unsafe { svdq_job_read_image(job, SVDQ_JOB_IMAGE, image) });
    ok(result);
    let (result, of_generate) = pixels(SIDE, |image| unsafe { svdq_generate(model(), &params(4, 4), image) });
    ok(result);
    assert!(of_job == of_generate);
    unsafe { svdq_job_release(job) };
}

#[test]
fn errors_are_the_jobs_and_those_of_who_asks() {
    let context = create();
    let nowhere = [source(c"/nowhere")];
    let (mut job, before) = (ptr::null_mut(), last_error());
    ok(unsafe { svdq_job_submit_load(context, &model_params(&nowhere), &mut job) });
    while poll(job).result == SVDQ_PENDING {
        thread::yield_now();
    }
    assert_eq!((poll(job).state, poll(job).result), (SVDQ_JOB_FAILED, SVDQ_ERR_NOT_FOUND));
    assert!(error(job).contains("/nowhere"), "{}", error(job));
    assert_eq!(last_error(), before, "another thread's error");
    assert_eq!(unsafe { svdq_job_wait(job, 0) }, SVDQ_ERR_NOT_FOUND);
    assert_eq!(last_error(), error(job));
    unsafe { (svdq_job_release(job), svdq_context_release(context)) };
}

#[test]
fn a_job_is_busy_until_it_has_ended() {
    let job = submit(model(), &svdq_generate_params { preview_every: 1000, ..params(1, 1000) });
    assert_eq!(unsafe { svdq_job_wait(job, 0) }, SVDQ_PENDING);
    for which in [SVDQ_JOB_IMAGE, SVDQ_JOB_PREVIEW] {
        let (result, pixels) = pixels(SIDE, |image| unsafe { svdq_job_read_image(job, which, image) });
        assert_eq!(result, SVDQ_ERR_BUSY);
        assert!(pixels.iter().all(|&byte| byte == 0));
    }
    let mut out = ptr::dangling_mut();
    assert_eq!(unsafe { svdq_job_take_model(job, &mut out) }, SVDQ_ERR_BUSY);
    assert!(out.is_null());
    ok(unsafe { svdq_job_cancel(job) });
    assert_eq!(unsafe { svdq_job_wait(job, u32::MAX) }, SVDQ_ERR_CANCELLED);
    assert_eq!((poll(job).state, error(job).as_str()), (SVDQ_JOB_CANCELLED, "cancelled"));
    ok(unsafe { svdq_job_cancel(job) });
    unsafe { svdq_job_release(job) };
}

#[test]
fn a_loaded_model_is_taken_once_and_outlives_its_job() {
    let (context, demo) = (create(), demo());
    let sources = [source(&demo)];
    let mut job = ptr::null_mut();
    ok(unsafe { svdq_job_submit_load(context, &model_params(&sources), &mut job) });
    ok(unsafe { svdq_job_wait(job, u32::MAX) });
    assert!(poll(job).load_ms > 0.0 && poll(job).fraction == 1.0);
    let (mut taken, mut again) = (ptr::null_mut(), ptr::dangling_mut());
    ok(unsafe { svdq_job_take_model(job, &mut taken) });
    assert_eq!(unsafe { svdq_job_take_model(job, &mut again) }, SVDQ_ERR_INVALID_ARGUMENT);
    assert!(again.is_null());
    unsafe { (svdq_job_release(job), svdq_context_release(context)) };
    let (result, picture) = pixels(SIDE, |image| unsafe { svdq_generate(taken, &params(2, 2), image) });
    ok(result);
    assert!(picture == pixels(SIDE, |image| unsafe { svdq_generate(model(), &params(2, 2), image) }).1);
    unsafe { svdq_model_release(taken) };
}

/// Every order of releasing a context, its model and a job that waits and one that runs, each in a thread of its own.
#[test]
fn handles_are_released_in_any_order_from_any_thread() {
    let demo = demo();
    for order in 0..24 {
        let (context, mut model) = (create(), ptr::null_mut());
        ok(unsafe { svdq_model_load(context, &model_params(&[source(&demo)]), &mut model) });
        let (runs, waits) = (submit(model, &params(1, 1000)), submit(model, &params(2, 2)));
        let mut left = vec![0, 1, 2, 3];
        for digit in [order / 6, order / 2 % 3, order % 2, 0] {
            let handle = left.remove(digit);
            let addresses = [context as usize, model as usize, runs as usize, waits as usize];
            thread::spawn(move || unsafe {
                match handle {
                    0 => svdq_context_release(addresses[0] as *mut svdq_context),
                    1 => svdq_model_release(addresses[1] as *mut svdq_model),
                    job => svdq_job_release(addresses[job] as *mut svdq_job),
                }
            })
            .join()
            .unwrap();
        }
    }
}

#[test]
fn shutdown_ends_calls_and_jobs_of_its_context_and_of_no_other() {
    let (context, demo) = (create(), demo());
    let mut own = ptr::null_mut();
    ok(unsafe { svdq_model_load(context, &model_params(&[source(&demo)]), &mut own) });
    let (other, address) = (submit(model(), &params(1, 3)), own as usize);
    let job = submit(own, &params(1, 1000));
    let call = thread::spawn(move || {
        pixels(SIDE, |image| unsafe { svdq_generate(address as *mut svdq_model, &params(1, 1000), image) }).0
    });
    while poll(job).state == SVDQ_JOB_QUEUED {
        thread::yield_now();
    }
    ok(unsafe { svdq_context_shutdown(context, u32::MAX) });
    ok(unsafe { svdq_context_shutdown(context, 0) });
    assert_eq!(poll(job).result, SVDQ_ERR_CANCELLED);
    let result = call.join().unwrap();
    assert!([SVDQ_ERR_SHUTTING_DOWN, SVDQ_ERR_CANCELLED].contains(&result), "{result}");
    let mut none = ptr::dangling_mut();
    assert_eq!(unsafe { svdq_job_submit(own, &params(1, 1), &mut none) }, SVDQ_ERR_SHUTTING_DOWN);
    assert!(none.is_null());
    ok(unsafe { svdq_job_wait(other, u32::MAX) });
    unsafe {
        svdq_job_release(job);
        svdq_job_release(other);
        svdq_context_release(context);
        svdq_model_release(own);
    }
}

/// Half of them took no longer than the first time, all but one in a hundred no longer than the second.
fn times(mut calls: Vec<Duration>) -> [Duration; 2] {
    calls.sort_unstable();
    [calls[calls.len() / 2], calls[calls.len() * 99 / 100]]
}

fn timed<T>(call: impl FnOnce() -> T) -> (Duration, T) {
    let begin = Instant::now();
    let value = call();
    (begin.elapsed(), value)
}

#[test]
#[ignore = "measures, on a machine that does nothing else"]
fn how_long_calls_take() {
    let own = load(&demo());
    let (mut submits, mut polls, mut cancels) = (vec![], vec![], vec![]);
    for seed in 0..1000 {
        let (time, job) = timed(|| submit(own, &params(seed, 1000)));
        submits.push(time);
        for _ in 0..5 {
            polls.push(timed(|| poll(job)).0);
        }
        unsafe { svdq_job_release(job) };
    }
    println!("submit {:?}, poll {:?} (median, 99 %)", times(submits), times(polls));
    // The demo's own size, cancelled anywhere.
    for percent in 0..100 {
        let job = submit(own, &svdq_generate_params { width: 0, height: 0, ..params(1, 20) });
        while poll(job).fraction * 100.0 < percent as f32 {}
        ok(unsafe { svdq_job_cancel(job) });
        cancels.push(timed(|| unsafe { svdq_job_wait(job, u32::MAX) }).0);
        unsafe { svdq_job_release(job) };
    }
    println!("cancel {:?}, worst {:?}", times(cancels.clone()), cancels.iter().max().unwrap());
    let creates = (0..20).map(|_| {
        let (time, context) = timed(create);
        unsafe { svdq_context_release(context) };
        time
    });
    println!("context {:?}", times(creates.collect()));
    unsafe { svdq_model_release(own) };
}
