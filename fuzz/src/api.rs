//! Calls of the C API in any order and with any arguments: none crashes, none is an internal error, and what a call says is
//! what it did.
//!
//! An input is text, a call a line: a letter of [`CALLS`], and then a character for each argument. Handles are used as the
//! header allows, and not after their release; other pointers are good, NULL or not aligned. Everything else is anything.

#![allow(
    unsafe_code,
    clippy::undocumented_unsafe_blocks,
    reason = "the functions under test are C functions"
)]

mod files;
mod input;

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{mem, ptr};

use svdq::capi::*;

use files::MODEL;
use input::{Given, Input};

/// More calls than this are no new story.
const MAX_CALLS: usize = 40;
/// Sides of a picture, in pixels, that is really made.
const MAX_SIDE: u32 = 32;
const PIXELS: usize = (MAX_SIDE * MAX_SIDE * 4) as usize;
/// What pixels are before a call.
const BLANK: u8 = 0x5a;

type Call = unsafe fn(&mut Handles, &mut Input<'_>) -> svdq_result;

/// Letters, and what they call.
const CALLS: [(u8, &str, Call); 36] = [
    (b'v', "svdq_version_number", |_, _| (svdq_version_number() == 0).into()),
    (b'V', "svdq_version_string", |_, _| svdq_version_string().is_null().into()),
    (b'n', "svdq_result_name", |_, input| result_name(input)),
    (b'B', "svdq_build_info", |_, input| string(input, |b, c, n| unsafe { svdq_build_info(b, c, n) })),
    (b'e', "svdq_last_error", |_, input| string(input, |b, c, n| unsafe { svdq_last_error(b, c, n) })),
    (b'd', "svdq_device_count", |_, input| unsafe { svdq_device_count(input.give(0u32).ptr()) }),
    (b'D', "svdq_device_get_info", |_, input| unsafe {
        svdq_device_get_info(input.number(&[0]), input.give(sized()).ptr())
    }),
    (b'i', "svdq_context_params_init", |_, input| unsafe {
        svdq_context_params_init(input.give(sized()).ptr())
    }),
    (b'C', "svdq_context_create", Handles::context_create),
    (b'b', "svdq_context_set_memory_budget", |all, input| unsafe {
        svdq_context_set_memory_budget(input.handle(&all.contexts), input.wide(&[0, 1 << 20]))
    }),
    (b'm', "svdq_context_get_memory", |all, input| unsafe {
        svdq_context_get_memory(input.handle(&all.contexts), input.give(sized()).ptr())
    }),
    (b'l', "svdq_context_read_log", |all, input| unsafe {
        let (context, mut level) = (input.handle(&all.contexts), input.give(0));
        string(input, |buf, cap, needed| svdq_context_read_log(context, level.ptr(), buf, cap, needed))
    }),
    (b's', "svdq_context_shutdown", |all, input| unsafe {
        svdq_context_shutdown(input.handle(&all.contexts), input.number(&[u32::MAX, 0, 1]))
    }),
    (b'c', "svdq_context_release", |all, input| release(input.take(&mut all.contexts), svdq_context_release)),
    (b'M', "svdq_model_load", |all, input| unsafe {
        let (context, mut files) = (input.handle(&all.contexts), Files::read(input));
        make(&mut all.models, input, |out| svdq_model_load(context, files.params.ptr(), out))
    }),
    (b'I', "svdq_model_inspect", |_, input| unsafe {
        svdq_model_inspect(Files::read(input).params.ptr(), input.give(sized()).ptr())
    }),
    (b'g', "svdq_model_get_info", |all, input| unsafe {
        svdq_model_get_info(all.model(input), input.give(sized()).ptr())
    }),
    (b'x', "svdq_model_release", |all, input| release(input.take(&mut all.models), svdq_model_release)),
    (b'L', "svdq_lora_load", |all, input| unsafe {
        let (model, source) = (all.model(input), files::lora(input));
        let mut source = input.give(source);
        make(&mut all.loras, input, |out| svdq_lora_load(model, source.ptr(), out))
    }),
    (b'G', "svdq_lora_get_info", |all, input| unsafe {
        svdq_lora_get_info(input.handle(&all.loras), input.give(sized()).ptr())
    }),
    (b'X', "svdq_lora_release", |all, input| release(input.take(&mut all.loras), svdq_lora_release)),
    (b'E', "svdq_prompt_encode", Handles::prompt_encode),
    (b'q', "svdq_prompt_release", |all, input| release(input.take(&mut all.prompts), svdq_prompt_release)),
    (b'a', "svdq_image_bytes", |_, input| unsafe {
        let size = [input.number(&[16, 0]), input.number(&[16, 0])];
        let image = image(input, &mut [], size);
        svdq_image_bytes(input.give(image).ptr(), input.give(0).ptr())
    }),
    (b'o', "svdq_generate_params_init", |all, input| unsafe {
        svdq_generate_params_init(all.model(input), input.give(sized()).ptr())
    }),
    (b'k', "svdq_generate_check", |all, input| unsafe {
        let (model, mut picture) = (all.model(input), Picture::read(all, input, u32::MAX));
        svdq_generate_check(model, picture.params.ptr(), input.give(sized()).ptr())
    }),
    (b'P', "svdq_generate", Handles::generate),
    (b'J', "svdq_job_submit", |all, input| unsafe {
        let (model, mut picture) = (all.model(input), Picture::read(all, input, MAX_SIDE));
        make(&mut all.jobs, input, |out| svdq_job_submit(model, picture.params.ptr(), out))
    }),
    (b'F', "svdq_job_submit_load", |all, input| unsafe {
        let (context, mut files) = (input.handle(&all.contexts), Files::read(input));
        make(&mut all.jobs, input, |out| svdq_job_submit_load(context, files.params.ptr(), out))
    }),
    (b'p', "svdq_job_poll", Handles::job_poll),
    (b'w', "svdq_job_wait", |all, input| unsafe {
        svdq_job_wait(input.handle(&all.jobs), input.number(&[u32::MAX, 0, 1]))
    }),
    (b'z', "svdq_job_cancel", |all, input| unsafe { svdq_job_cancel(input.handle(&all.jobs)) }),
    (b'j', "svdq_job_error", |all, input| unsafe {
        let job = input.handle(&all.jobs);
        string(input, |buf, cap, needed| svdq_job_error(job, buf, cap, needed))
    }),
    (b'r', "svdq_job_read_image", Handles::job_read_image),
    (b't', "svdq_job_take_model", |all, input| unsafe {
        let job = input.handle(&all.jobs);
        make(&mut all.models, input, |out| svdq_job_take_model(job, out))
    }),
    (b'y', "svdq_job_release", |all, input| release(input.take(&mut all.jobs), svdq_job_release)),
];

/// A bit for each of [`CALLS`] that has ever succeeded.
static SUCCEEDED: AtomicU64 = AtomicU64::new(0);

/// The functions that have ever succeeded.
pub fn succeeded() -> BTreeSet<&'static str> {
    let bits = SUCCEEDED.load(Ordering::Relaxed);
    (0..CALLS.len()).filter(|call| bits >> call & 1 == 1).map(|call| CALLS[call].1).collect()
}

/// The picture of a call without arguments.
static PLAIN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let (result, pixels) = Handles::default().picture(&mut Input(&[]));
    assert_eq!(result, SVDQ_OK);
    pixels
});

pub fn run(input: &[u8]) {
    LazyLock::force(&PLAIN);
    let mut handles = Handles::default();
    for line in input.split(|&byte| byte == b'\n').take(MAX_CALLS) {
        let Some((letter, arguments)) = line.split_first() else { continue };
        let Some(call) = CALLS.iter().position(|(known, ..)| known == letter) else { continue };
        let (_, name, function) = CALLS[call];
        // What is on the lists is not released.
        let result = unsafe { function(&mut handles, &mut Input(arguments)) };
        assert_ne!(result, SVDQ_ERR_INTERNAL, "{name}: {}", last_error());
        assert!(result >= 0 || !last_error().is_empty(), "{name} fails without a word");
        SUCCEEDED.fetch_or(u64::from(result == SVDQ_OK) << call, Ordering::Relaxed);
    }
    unsafe { handles.release() };
}

/// The handles that are there.
#[derive(Default)]
struct Handles {
    contexts: Vec<*mut svdq_context>,
    models: Vec<*mut svdq_model>,
    loras: Vec<*mut svdq_lora>,
    prompts: Vec<*mut svdq_prompt>,
    jobs: Vec<*mut svdq_job>,
}

impl Handles {
    /// The model that is always there, for '0', or another one.
    fn model(&self, input: &mut Input<'_>) -> *mut svdq_model {
        if input.digit() == 0 { MODEL.0 } else { input.handle(&self.models) }
    }

    unsafe fn context_create(&mut self, input: &mut Input<'_>) -> svdq_result {
        let threads = input.number(&[1, 2, 0]);
        let device =
            [SVDQ_DEVICE_CPU, SVDQ_DEVICE_BEST, SVDQ_DEVICE_INDEX, SVDQ_DEVICE_UUID, SVDQ_DEVICE_LUID];
        let (hooks, user) = (input.digit(), input.number(&[0]) as usize);
        let params = svdq_context_params {
            // Hundreds take long to start.
            threads: if threads > 3 { threads | 1 << 20 } else { threads },
            device_select: input.number(&device),
            device_index: input.number(&[0]),
            device_id: std::array::from_fn(|_| input.digit()),
            gpu_priority: input.number(&[0, 1, 2]),
            memory_budget: input.wide(&[0, 1 << 20]),
            header_version: input.number(&[0, SVDQ_VERSION_NUMBER]),
            log: (hooks & 1 > 0).then_some(log),
            alloc: (hooks & 2 > 0).then_some(give),
            free: (hooks & 2 > 0 && hooks & 4 == 0).then_some(take_back),
            alloc_user: ptr::without_provenance_mut(user),
            ..sized()
        };
        let mut params = input.give(params);
        make(&mut self.contexts, input, |out| unsafe { svdq_context_create(params.ptr(), out) })
    }

    unsafe fn prompt_encode(&mut self, input: &mut Input<'_>) -> svdq_result {
        let (model, text, mut loras) = (self.model(input), input.text(), Loras::read(self, input));
        let params = svdq_prompt_params {
            text: text.as_ref().map_or(ptr::null(), |text| text.as_ptr()),
            lora_count: loras.count,
            loras: loras.array.ptr(),
            ..sized()
        };
        let mut params = input.give(params);
        make(&mut self.prompts, input, |out| unsafe { svdq_prompt_encode(model, params.ptr(), out) })
    }

    unsafe fn generate(&mut self, input: &mut Input<'_>) -> svdq_result {
        let plain = input.0.is_empty();
        let (result, pixels) = self.picture(input);
        assert!(!plain || pixels == *PLAIN, "the picture has changed");
        result
    }

    fn picture(&self, input: &mut Input<'_>) -> (svdq_result, Vec<u8>) {
        let (model, mut picture) = (self.model(input), Picture::read(self, input, MAX_SIDE));
        let (params, size) = (picture.params.ptr(), picture.size);
        draw(input, size, |out| unsafe { svdq_generate(model, params, out) })
    }

    unsafe fn job_poll(&mut self, input: &mut Input<'_>) -> svdq_result {
        let (job, mut status) = (input.handle(&self.jobs), input.give(sized::<svdq_job_status>()));
        let result = unsafe { svdq_job_poll(job, status.ptr()) };
        let status = status.value();
        if result == SVDQ_OK && status.struct_size as usize == size_of::<svdq_job_status>() {
            let ended = [SVDQ_JOB_DONE, SVDQ_JOB_CANCELLED, SVDQ_JOB_FAILED].contains(&status.state);
            assert_eq!(status.result == SVDQ_PENDING, !ended);
            assert_eq!(status.result == SVDQ_OK, status.state == SVDQ_JOB_DONE);
            assert_eq!(status.fraction == 1.0, status.state == SVDQ_JOB_DONE);
            assert!((0.0..=1.0).contains(&status.fraction) && status.step <= status.steps);
            assert_ne!(status.result, SVDQ_ERR_INTERNAL, "a job");
        }
        result
    }

    unsafe fn job_read_image(&mut self, input: &mut Input<'_>) -> svdq_result {
        let job = input.handle(&self.jobs);
        let which = input.number(&[SVDQ_JOB_IMAGE, SVDQ_JOB_PREVIEW]);
        let size = [input.number(&[16, 32, 2, 4]), input.number(&[16, 32, 2, 4])];
        draw(input, size, |out| unsafe { svdq_job_read_image(job, which, out) }).0
    }

    /// Ends what runs, and releases everything.
    unsafe fn release(self) {
        unsafe {
            self.jobs.iter().for_each(|&job| assert_eq!(svdq_job_cancel(job), SVDQ_OK));
            for &job in &self.jobs {
                let result = svdq_job_wait(job, u32::MAX);
                assert!(result != SVDQ_PENDING && result != SVDQ_ERR_INTERNAL, "a job: {}", last_error());
                svdq_job_release(job);
            }
            for &context in &self.contexts {
                assert_eq!(svdq_context_shutdown(context, u32::MAX), SVDQ_OK);
                svdq_context_release(context);
            }
            self.models.iter().for_each(|&model| svdq_model_release(model));
            self.loras.iter().for_each(|&lora| svdq_lora_release(lora));
            self.prompts.iter().for_each(|&prompt| svdq_prompt_release(prompt));
        }
    }
}

/// What a load is to read.
struct Files {
    params: Given<svdq_model_params>,
    _sources: Given<svdq_source>,
}

impl Files {
    fn read(input: &mut Input<'_>) -> Self {
        let sources = files::model(input);
        let mut array = input.give_array(&sources);
        let params = svdq_model_params {
            profile: input.number(&[0, SVDQ_PROFILE_W4A4, SVDQ_PROFILE_W4A8, SVDQ_PROFILE_W4A16]),
            flags: input.number(&[0, SVDQ_MODEL_IMAGE_INPUT]),
            source_count: count(input, sources.len()),
            sources: array.ptr(),
            ..sized()
        };
        Files { params: input.give(params), _sources: array }
    }
}

/// LoRAs of a prompt or a picture.
struct Loras {
    count: u32,
    array: Given<svdq_lora_ref>,
}

impl Loras {
    fn read(handles: &Handles, input: &mut Input<'_>) -> Self {
        let given = usize::from(input.digit()).min(3);
        let mut array = Vec::new();
        for _ in 0..given {
            let strength = input.float(&[1.0, 0.0, -0.5, f32::NAN]);
            array.push(svdq_lora_ref { strength, lora: input.handle(&handles.loras), ..sized() });
        }
        Loras { count: count(input, given), array: input.give_array(&array) }
    }
}

/// So many elements of an array, or any number: behind the last one there is room, and zeros, which are no element.
fn count(input: &mut Input<'_>, given: usize) -> u32 {
    input.number(&[given as u32, 0])
}

/// What a picture is to be.
struct Picture {
    params: Given<svdq_generate_params>,
    size: [u32; 2],
    _prompt: Option<CString>,
    _loras: Loras,
    _init: Given<svdq_image>,
    _pixels: Vec<u8>,
}

impl Picture {
    /// Sides above `max_side` are none that a picture can have.
    fn read(handles: &Handles, input: &mut Input<'_>, max_side: u32) -> Self {
        let side = |input: &mut Input<'_>| match input.number(&[16, 32]) {
            side if side > max_side => side | 1,
            side => side,
        };
        let size = [side(input), side(input)];
        let steps = match input.number(&[1, 2, 0]) {
            steps if steps > 2 => steps | 1 << 16,
            steps => steps,
        };
        let (prompt, mut loras) = (input.text(), Loras::read(handles, input));
        let (encoded, start) = (input.digit(), input.digit());
        let mut pixels = vec![BLANK; PIXELS];
        let init = image(input, &mut pixels, size);
        let mut init = input.give(init);
        let params = svdq_generate_params {
            width: size[0],
            height: size[1],
            steps,
            guidance: input.float(&[0.0, 3.5, f32::NAN]),
            seed: input.wide(&[0]),
            prompt: prompt.as_ref().map_or(ptr::null(), |prompt| prompt.as_ptr()),
            encoded: if encoded == 0 { ptr::null() } else { input.handle(&handles.prompts) },
            lora_count: loras.count,
            loras: loras.array.ptr(),
            init: if start == 0 { ptr::null() } else { init.ptr() },
            init_strength: input.float(&[0.0, 0.9, -1.0]),
            preview_every: input.number(&[0, 1]),
            ..sized()
        };
        let params = input.give(params);
        Picture { params, size, _prompt: prompt, _loras: loras, _init: init, _pixels: pixels }
    }
}

/// An image of these pixels, as far as they go, or something that is none.
fn image(input: &mut Input<'_>, pixels: &mut [u8], [width, height]: [u32; 2]) -> svdq_image {
    svdq_image {
        format: input.number(&[SVDQ_FORMAT_RGBA8, SVDQ_FORMAT_BGRA8, SVDQ_FORMAT_RGB8]),
        width: input.number(&[width]),
        height: input.number(&[height]),
        row_stride: input.wide(&[0, 4 * MAX_SIDE]),
        flags: input.number(&[0, SVDQ_IMAGE_BOTTOM_UP]),
        reserved: input.number(&[0]),
        pixels: if input.digit() == 1 { ptr::null_mut() } else { pixels.as_mut_ptr().cast() },
        capacity: input.wide(&[u32::MAX]).min(pixels.len() as u64),
        ..sized()
    }
}

/// What a call says and draws, which is nothing if it fails.
fn draw(
    input: &mut Input<'_>,
    size: [u32; 2],
    call: impl FnOnce(*const svdq_image) -> svdq_result,
) -> (svdq_result, Vec<u8>) {
    let mut pixels = vec![BLANK; PIXELS];
    let out = image(input, &mut pixels, size);
    let result = call(input.give(out).ptr());
    assert!(result == SVDQ_OK || pixels.iter().all(|&byte| byte == BLANK), "an output of a failed call");
    (result, pixels)
}

/// Calls what makes a handle, and keeps it: there is one if the call succeeds.
fn make<T>(
    handles: &mut Vec<*mut T>,
    input: &mut Input<'_>,
    call: impl FnOnce(*mut *mut T) -> svdq_result,
) -> svdq_result {
    if input.digit() == 1 {
        return call(ptr::null_mut());
    }
    let mut handle = ptr::dangling_mut();
    let result = call(&mut handle);
    assert_eq!(result == SVDQ_OK, !handle.is_null(), "a handle, or none, and result {result}");
    handles.extend((!handle.is_null()).then_some(handle));
    result
}

/// Calls what writes a string, which ends inside of its buffer.
fn string(
    input: &mut Input<'_>,
    call: impl FnOnce(*mut c_char, usize, *mut usize) -> svdq_result,
) -> svdq_result {
    let cap = input.number(&[1000, 0, 1, 5]).min(1000) as usize;
    let (mut buf, mut needed) = (vec![b'#'; cap], 0);
    let at = if input.digit() == 1 { ptr::null_mut() } else { buf.as_mut_ptr().cast() };
    let needed = if input.digit() == 1 { ptr::null_mut() } else { &raw mut needed };
    let result = call(at, cap, needed);
    if !at.is_null() && cap > 0 && [SVDQ_OK, SVDQ_ERR_BUFFER_TOO_SMALL].contains(&result) {
        let text = CStr::from_bytes_until_nul(&buf).expect("a NUL");
        assert!(text.to_str().is_ok(), "a string is cut inside of a character");
    }
    result
}

fn result_name(input: &mut Input<'_>) -> svdq_result {
    let name = unsafe { CStr::from_ptr(svdq_result_name(input.number(&[0, u32::MAX]) as i32)) };
    assert!(name.to_bytes().starts_with(b"SVDQ_"));
    SVDQ_OK
}

fn release<T>(handle: *mut T, release: unsafe extern "C" fn(*mut T)) -> svdq_result {
    unsafe { release(handle) };
    SVDQ_OK
}

fn last_error() -> String {
    let mut buf = vec![0u8; 1000];
    unsafe { svdq_last_error(buf.as_mut_ptr().cast(), buf.len(), ptr::null_mut()) };
    CStr::from_bytes_until_nul(&buf).expect("a NUL").to_str().expect("UTF-8").to_owned()
}

/// A struct that is zero but for its size.
fn sized<T>() -> T {
    // The structs of the API hold integers, floats and pointers, and begin with their size.
    unsafe {
        let mut value: T = mem::zeroed();
        ptr::from_mut(&mut value).cast::<u32>().write(size_of::<T>() as u32);
        value
    }
}

/// A log that reads its lines, and calls the library.
unsafe extern "C" fn log(_: *mut c_void, level: i32, message: *const c_char) {
    let message = unsafe { CStr::from_ptr(message) };
    assert!((SVDQ_LOG_ERROR..=SVDQ_LOG_DEBUG).contains(&level) && message.to_str().is_ok());
    unsafe { svdq_image_bytes(ptr::null(), ptr::null_mut()) };
}

/// Memory, but none of `user` bytes or more, unless that is 0.
unsafe extern "C" fn give(user: *mut c_void, size: usize, alignment: usize) -> *mut c_void {
    if user.addr() > 0 && size >= user.addr() {
        return ptr::null_mut();
    }
    let layout = Layout::from_size_align(size, alignment).expect("a layout");
    unsafe { alloc(layout).cast() }
}

unsafe extern "C" fn take_back(_: *mut c_void, memory: *mut c_void, size: usize, alignment: usize) {
    let layout = Layout::from_size_align(size, alignment).expect("a layout");
    unsafe { dealloc(memory.cast(), layout) }
}
