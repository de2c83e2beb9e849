//! The host's memory as the program gives it: counted, refused at every turn, and given back.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::ptr;
use std::sync::{Mutex, MutexGuard};

use svdq::capi::*;

use crate::support::{demo, last_error, load_into, lora, lora_file, model_params, ok, sized, source};

/// Memory whose every allocation is written down, and can be made to fail.
#[derive(Default)]
struct Ledger(Mutex<Books>);

#[derive(Default)]
struct Books {
    /// Size and alignment of what is taken.
    taken: HashMap<usize, (usize, usize)>,
    used: u64,
    peak: u64,
    /// Allocations that were asked for.
    calls: u64,
    /// Which of them fail.
    fail: Fail,
    /// What is given is this many bytes off.
    shift: usize,
    /// What was given back as something else than it was taken for.
    wrong: u64,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Fail {
    #[default]
    None,
    All,
    /// Counts from 1.
    Call(u64),
}

impl Ledger {
    fn leaked() -> &'static Self {
        Box::leak(Box::default())
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap()
    }

    fn context(&'static self) -> *mut svdq_context {
        let params = svdq_context_params {
            device_select: SVDQ_DEVICE_CPU,
            threads: 2,
            alloc: Some(give),
            free: Some(take_back),
            alloc_user: ptr::from_ref(self).cast_mut().cast(),
            ..sized()
        };
        let mut context = ptr::null_mut();
        ok(unsafe { svdq_context_create(&params, &mut context) });
        context
    }
}

fn layout(size: usize, alignment: usize) -> Layout {
    Layout::from_size_align(size + alignment, alignment).unwrap()
}

unsafe extern "C" fn give(user: *mut c_void, size: usize, alignment: usize) -> *mut c_void {
    let mut books = unsafe { &*user.cast::<Ledger>() }.books();
    books.calls += 1;
    if books.fail == Fail::All || books.fail == Fail::Call(books.calls) {
        return ptr::null_mut();
    }
    let at = unsafe { alloc(layout(size, alignment)).add(books.shift) };
    books.taken.insert(at.addr(), (size, alignment));
    books.used += size as u64;
    books.peak = books.peak.max(books.used);
    at.cast()
}

unsafe extern "C" fn take_back(user: *mut c_void, memory: *mut c_void, size: usize, alignment: usize) {
    let mut books = unsafe { &*user.cast::<Ledger>() }.books();
    if books.taken.remove(&memory.addr()) != Some((size, alignment)) {
        books.wrong += 1;
        return;
    }
    books.used -= size as u64;
    unsafe { dealloc(memory.cast::<u8>().sub(books.shift), layout(size, alignment)) };
}

/// What svdq_context_get_memory says is used, and the most that ever was.
fn host(context: *const svdq_context) -> [u64; 2] {
    let mut info: svdq_memory_info = sized();
    ok(unsafe { svdq_context_get_memory(context, &mut info) });
    [info.host_used, info.host_peak]
}

fn picture() -> svdq_generate_params {
    svdq_generate_params { width: 16, height: 16, steps: 1, prompt: c"a key".as_ptr(), ..sized() }
}

fn image(pixels: &mut [u8]) -> svdq_image {
    let (pixels, capacity) = (pixels.as_mut_ptr().cast(), pixels.len() as u64);
    svdq_image { format: SVDQ_FORMAT_RGBA8, width: 16, height: 16, pixels, capacity, ..sized() }
}

type Outcome<T> = Result<T, (svdq_result, String)>;

fn outcome<T>(result: svdq_result, value: T) -> Outcome<T> {
    if result == SVDQ_OK { Ok(value) } else { Err((result, last_error())) }
}

fn load(context: *mut svdq_context) -> Outcome<*mut svdq_model> {
    let (demo, mut model) = (demo(), ptr::dangling_mut());
    let result = unsafe { svdq_model_load(context, &model_params(&[source(&demo)]), &mut model) };
    assert_eq!(result == SVDQ_OK, !model.is_null());
    outcome(result, model)
}

fn load_lora(model: *mut svdq_model, path: &CStr) -> Outcome<*mut svdq_lora> {
    let mut lora = ptr::dangling_mut();
    let result = unsafe { svdq_lora_load(model, &source(path), &mut lora) };
    assert_eq!(result == SVDQ_OK, !lora.is_null());
    outcome(result, lora)
}

fn generate(model: *mut svdq_model, params: &svdq_generate_params) -> Outcome<Vec<u8>> {
    let mut pixels = vec![0; 16 * 16 * 4];
    let result = unsafe { svdq_generate(model, params, &image(&mut pixels)) };
    outcome(result, pixels)
}

/// The same picture, made by a job.
fn submit(ledger: &Ledger, model: *mut svdq_model, params: &svdq_generate_params) -> Outcome<Vec<u8>> {
    let before = ledger.books().used;
    let (mut job, mut pixels) = (ptr::dangling_mut(), vec![0; 16 * 16 * 4]);
    unsafe {
        let result = svdq_job_submit(model, params, &mut job);
        assert_eq!(result == SVDQ_OK, !job.is_null());
        outcome(result, ())?;
        let result = svdq_job_wait(job, u32::MAX);
        let (mut text, mut status) = ([0 as c_char; 1000], sized::<svdq_job_status>());
        ok(svdq_job_error(job, text.as_mut_ptr(), text.len(), ptr::null_mut()));
        ok(svdq_job_poll(job, &mut status));
        assert_eq!(status.result, result);
        if result == SVDQ_OK {
            ok(svdq_job_read_image(job, SVDQ_JOB_IMAGE, &image(&mut pixels)));
        }
        svdq_job_release(job);
        assert_eq!(ledger.books().used, before, "a job has left something behind");
        let text = CStr::from_ptr(text.as_ptr()).to_str().unwrap();
        if result == SVDQ_OK { Ok(pixels) } else { Err((result, text.to_owned())) }
    }
}

/// Lets each allocation of `attempt` fail in turn. Every failure has to be said and to leave nothing behind; `check`
/// looks at what is still there. Returns what `attempt` makes when none fails.
fn fail_each<T>(ledger: &Ledger, attempt: impl Fn() -> Outcome<T>, drop: fn(T), check: impl Fn()) -> T {
    let calls = || ledger.books().calls;
    let before = calls();
    drop(attempt().unwrap());
    let count = calls() - before;
    assert!(count > 0, "nothing is taken");
    check();
    for n in 1..=count {
        let used = {
            let mut books = ledger.books();
            books.fail = Fail::Call(books.calls + n);
            books.used
        };
        let outcome = attempt();
        ledger.books().fail = Fail::None;
        match outcome {
            Ok(_) => panic!("allocation {n} of {count} failed, and nobody noticed"),
            Err((SVDQ_ERR_OUT_OF_HOST_MEMORY, text)) => assert!(text.contains("bytes"), "{text:?}"),
            Err(error) => panic!("allocation {n} of {count}: {error:?}"),
        }
        assert_eq!(ledger.books().used, used, "allocation {n} of {count} has left something behind");
        check();
    }
    attempt().unwrap()
}

#[test]
fn an_allocation_that_fails_is_said_and_harms_nothing() {
    let (ledger, file) = (Ledger::leaked(), lora_file());
    let context = ledger.context();
    let release = |model| unsafe { svdq_model_release(model) };
    let model = fail_each(ledger, || load(context), release, || ());

    let plain = generate(model, &picture()).unwrap();
    let release = |lora| unsafe { svdq_lora_release(lora) };
    let unchanged = || assert!(generate(model, &picture()).unwrap() == plain, "the picture has changed");
    let lora = fail_each(ledger, || load_lora(model, &file), release, unchanged);

    let loras = [svdq_lora_ref { strength: 1.0, lora, ..sized() }];
    // Of another prompt, so that it is encoded every time.
    let prompt = c"a red potion".as_ptr();
    let styled = svdq_generate_params { prompt, loras: loras.as_ptr(), lora_count: 1, ..picture() };
    let expected = generate(model, &styled).unwrap();
    assert!(expected != plain);
    let made = fail_each(ledger, || generate(model, &styled), drop, unchanged);
    assert!(made == expected, "the picture has changed");
    let unchanged =
        || assert!(submit(ledger, model, &picture()).unwrap() == plain, "the picture has changed");
    let made = fail_each(ledger, || submit(ledger, model, &styled), drop, unchanged);
    assert!(made == expected, "the picture has changed");

    unsafe { (svdq_lora_release(lora), svdq_model_release(model)) };
    assert_eq!(host(context)[0], 0);
    unsafe { svdq_context_release(context) };
    let books = ledger.books();
    assert_eq!((books.used, books.taken.len(), books.wrong), (0, 0, 0));
}

#[test]
fn memory_that_is_of_no_use_is_given_back() {
    let ledger = Ledger::leaked();
    let context = ledger.context();
    let refused = || {
        let (result, text) = load(context).unwrap_err();
        assert_eq!(result, SVDQ_ERR_OUT_OF_HOST_MEMORY, "{text}");
        assert!(text.contains("bytes"), "{text}");
        let books = ledger.books();
        assert_eq!((books.used, books.taken.len(), books.wrong), (0, 0, 0));
    };
    ledger.books().fail = Fail::All;
    refused();
    assert_eq!(host(context), [0; 2]);
    ledger.books().fail = Fail::None;
    for shift in [1, 8, 16, 32] {
        ledger.books().shift = shift;
        refused();
        assert_eq!(host(context), [0; 2]);
    }
    ledger.books().shift = 0;
    let model = load(context).unwrap();
    generate(model, &picture()).unwrap();
    unsafe { (svdq_model_release(model), svdq_context_release(context)) };
    let books = ledger.books();
    assert_eq!((books.used, books.taken.len(), books.wrong), (0, 0, 0));
}

#[test]
fn models_come_and_go_and_leave_nothing() {
    let (ledger, file) = (Ledger::leaked(), lora_file());
    let context = ledger.context();
    let agree = || {
        let books = ledger.books();
        assert_eq!((books.used, books.peak, books.wrong), (host(context)[0], host(context)[1], 0));
        books.used
    };
    let mut first = None;
    for round in 0..50 {
        let model = load_into(context, &demo());
        let loaded = agree();
        let mut info: svdq_model_info = sized();
        ok(unsafe { svdq_model_get_info(model, &mut info) });
        assert_eq!(info.host_bytes, loaded);
        let lora = lora(model, &file);
        let used = agree();
        assert!(used > loaded && loaded > 1 << 20, "{loaded}, with a LoRA {used}");
        assert_eq!(*first.get_or_insert([loaded, used]), [loaded, used], "round {round}");
        if round % 10 == 0 {
            generate(model, &picture()).unwrap();
            submit(ledger, model, &picture()).unwrap();
        }
        if round % 2 == 0 {
            unsafe { (svdq_model_release(model), svdq_lora_release(lora)) };
        } else {
            unsafe { (svdq_lora_release(lora), svdq_model_release(model)) };
        }
        assert_eq!(agree(), 0, "round {round}");
    }
    let (first, peak) = (first.unwrap()[0], host(context)[1]);
    assert!(peak < 2 * first, "at the most {peak} bytes for a model of {first}");
    unsafe { svdq_context_release(context) };
}
