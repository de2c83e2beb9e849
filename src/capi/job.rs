//! Work in the background.

use std::ffi::c_char;
use std::time::Duration;

use super::boundary::{
    Sized32, guard, guard_code, handle, make_handle, read_struct, release, write_struct, write_text,
};
use super::generate::Request;
use super::image::image_mut;
use super::model::model_options;
use super::result::code;
use super::{
    SVDQ_OK, SVDQ_PENDING, svdq_context, svdq_generate_params, svdq_image, svdq_model, svdq_model_params,
    svdq_result,
};
use crate::Error;
use crate::engine::{Job, JobPhase, JobState, Model};

/// A picture that is made, or a model that is loaded, in a thread of the library's. A context has one
/// thread for pictures and one for loads, each of which does one job after the other.
pub struct svdq_job(Job);

/// The job waits for its turn.
pub const SVDQ_JOB_QUEUED: u32 = 0;
/// The job runs.
pub const SVDQ_JOB_RUNNING: u32 = 1;
/// The job is done: its picture or model is there.
pub const SVDQ_JOB_DONE: u32 = 2;
/// The job was cancelled before it was done.
pub const SVDQ_JOB_CANCELLED: u32 = 3;
/// The job failed: svdq_job_error says why.
pub const SVDQ_JOB_FAILED: u32 = 4;

/// The job has not begun, or has ended.
pub const SVDQ_PHASE_NONE: u32 = 0;
/// The model is loaded.
pub const SVDQ_PHASE_LOAD: u32 = 1;
/// The prompt is encoded.
pub const SVDQ_PHASE_ENCODE: u32 = 2;
/// The picture is denoised, step by step.
pub const SVDQ_PHASE_DENOISE: u32 = 3;
/// Latents become pixels.
pub const SVDQ_PHASE_DECODE: u32 = 4;

/// The finished picture.
pub const SVDQ_JOB_IMAGE: u32 = 0;
/// The newest preview.
pub const SVDQ_JOB_PREVIEW: u32 = 1;

/// How far a job is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct svdq_job_status {
    /// sizeof(svdq_job_status), set by the caller.
    pub struct_size: u32,
    /// SVDQ_JOB_QUEUED to SVDQ_JOB_FAILED. The last three are the end: nothing changes afterwards.
    pub state: u32,
    /// SVDQ_PHASE_*.
    pub phase: u32,
    /// Denoising steps that are done.
    pub step: u32,
    /// Denoising steps that are run: with svdq_generate_params.init fewer than were asked for. 0: the job
    /// loads a model.
    pub steps: u32,
    /// 0 to 1, never less than before. 1 only when the job is done.
    pub fraction: f32,
    /// SVDQ_PENDING until the job has ended; then what it came to.
    pub result: svdq_result,
    /// Grows with every new preview. 0: there is none yet.
    pub preview_serial: u32,
    /// Pixels of a preview. 0: there is none yet.
    pub preview_width: u32,
    /// Pixels of a preview. 0: there is none yet.
    pub preview_height: u32,
    /// Milliseconds before the job's turn came. This and the following are written when their phase
    /// ends.
    pub queue_ms: f64,
    /// Milliseconds in SVDQ_PHASE_LOAD.
    pub load_ms: f64,
    /// Milliseconds in SVDQ_PHASE_ENCODE.
    pub encode_ms: f64,
    /// Milliseconds in SVDQ_PHASE_DENOISE.
    pub denoise_ms: f64,
    /// Milliseconds in SVDQ_PHASE_DECODE.
    pub decode_ms: f64,
    /// The picture's seed.
    pub seed: u64,
}

// SAFETY: integers and floats, no padding.
unsafe impl Sized32 for svdq_job_status {
    const NAME: &'static str = "svdq_job_status";
}

/// Makes a picture in the background. Returns at once; the picture is the one that svdq_generate would
/// make. Jobs of a context run one after the other, and take turns with svdq_generate at their model.
///
/// model: may be released before the job ends.
/// params: what to generate. Nothing of it is needed after the call: strings, LoRA handles and pixels
/// are copied.
/// out: receives the job, or NULL on failure. Release it with svdq_job_release.
///
/// Errors: SVDQ_ERR_SHUTTING_DOWN, SVDQ_ERR_VERSION_MISMATCH, SVDQ_ERR_INVALID_ARGUMENT. Others that
/// svdq_generate has are the job's result.
/// Threads: any.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_job_submit(
    model: *mut svdq_model,
    params: *const svdq_generate_params,
    out: *mut *mut svdq_job,
) -> svdq_result {
    let submit = || {
        // SAFETY: `model` and `params` are as the header demands.
        let (model, request) = unsafe { (handle(model, "model")?, Request::read(params)?) };
        Ok(svdq_job(model.0.submit(&request.params())?))
    };
    // SAFETY: `out` is as the header demands.
    guard(|| unsafe { make_handle(out, submit) })
}

/// Loads a model in the background. Returns at once; svdq_job_take_model has the model when the job is
/// done. Pictures are made meanwhile.
///
/// context: may be released before the job ends.
/// params: what to load. Nothing of it is needed after the call, but the memory and the callbacks that
/// its sources point to, which have to stay until the job has ended.
/// out: receives the job, or NULL on failure. Release it with svdq_job_release.
///
/// Errors: SVDQ_ERR_SHUTTING_DOWN, SVDQ_ERR_VERSION_MISMATCH, SVDQ_ERR_INVALID_ARGUMENT. Others that
/// svdq_model_load has are the job's result.
/// Threads: any.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_job_submit_load(
    context: *mut svdq_context,
    params: *const svdq_model_params,
    out: *mut *mut svdq_job,
) -> svdq_result {
    let submit = || {
        // SAFETY: `context` and `params` are as the header demands.
        let (context, options) = unsafe { (handle(context, "context")?, model_options(params)?) };
        Ok(svdq_job(Model::submit_load(&context.0, &options)?))
    };
    // SAFETY: `out` is as the header demands.
    guard(|| unsafe { make_handle(out, submit) })
}

/// Says how far a job is. Never waits: call it every frame.
///
/// status: its struct_size must be set. Not written on failure.
///
/// Errors: SVDQ_ERR_INVALID_ARGUMENT. A job that failed is none: see svdq_job_status.result.
/// Threads: any.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_job_poll(job: *const svdq_job, status: *mut svdq_job_status) -> svdq_result {
    // SAFETY: `job` and `status` are as the header demands.
    guard(|| unsafe { write_struct(status, &job_status(&handle(job, "job")?.0)) })
}

/// Waits until a job has ended.
///
/// timeout_ms: milliseconds to wait at most. 0: not at all. UINT32_MAX: without end.
///
/// Returns the job's result, and SVDQ_PENDING if it still runs after timeout_ms.
///
/// Errors: those of the job, SVDQ_ERR_CANCELLED, SVDQ_ERR_INVALID_ARGUMENT.
/// Threads: any, and several at a time.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_job_wait(job: *const svdq_job, timeout_ms: u32) -> svdq_result {
    guard_code(|| {
        // SAFETY: `job` is as the header demands.
        let job = unsafe { &handle(job, "job")?.0 };
        if !job.wait(timeout(timeout_ms)) {
            return Ok(SVDQ_PENDING);
        }
        job.result().map(|()| SVDQ_OK)
    })
}

/// Asks a job to stop. Does not wait: a job whose turn has not come has ended when this returns, one
/// that runs ends within a step. Either ends as SVDQ_JOB_CANCELLED. Success also if it had ended before,
/// which changes nothing. The model stays as it was and may be used at once.
///
/// Errors: SVDQ_ERR_INVALID_ARGUMENT.
/// Threads: any, at any time.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_job_cancel(job: *mut svdq_job) -> svdq_result {
    guard(|| {
        // SAFETY: `job` is as the header demands.
        unsafe { handle(job, "job")? }.0.cancel();
        Ok(())
    })
}

/// Writes why a job failed, in one line of English. Empty unless it failed or was cancelled.
///
/// buf, cap, needed: as for every string out, see the top of this file.
///
/// Errors: SVDQ_ERR_BUFFER_TOO_SMALL, SVDQ_ERR_INVALID_ARGUMENT.
/// Threads: any.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_job_error(
    job: *const svdq_job,
    buf: *mut c_char,
    cap: usize,
    needed: *mut usize,
) -> svdq_result {
    guard(|| {
        // SAFETY: `job` is as the header demands.
        let error = match unsafe { handle(job, "job")? }.0.result() {
            Ok(()) | Err(Error::Busy(_)) => String::new(),
            Err(error) => error.to_string(),
        };
        // SAFETY: `buf` and `needed` are as the header demands.
        unsafe { write_text(&error, buf, cap, needed) }
    })
}

/// Copies a picture out of a job, any number of times.
///
/// which: SVDQ_JOB_IMAGE for the finished picture, whose size out has to have. SVDQ_JOB_PREVIEW for the
/// newest preview, whose size svdq_job_status has, a pixel for 8 x 8 of the picture's; it stays when
/// the job has ended.
/// out: where to. Its pixels are not written on failure.
///
/// Errors: SVDQ_ERR_BUSY until the picture is done, or while there is no preview yet. Those of the job,
/// if it failed. SVDQ_ERR_BUFFER_TOO_SMALL, SVDQ_ERR_VERSION_MISMATCH, SVDQ_ERR_INVALID_ARGUMENT.
/// Threads: any.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_job_read_image(
    job: *const svdq_job,
    which: u32,
    out: *const svdq_image,
) -> svdq_result {
    guard(|| {
        // SAFETY: `job`, `out` and its pixels are as the header demands.
        let (job, mut image) = unsafe { (&handle(job, "job")?.0, image_mut(&read_struct(out)?)?) };
        match which {
            SVDQ_JOB_IMAGE => job.read_image(&mut image),
            SVDQ_JOB_PREVIEW => job.read_preview(&mut image),
            other => Err(Error::InvalidArgument(format!("which is {other}, which is none"))),
        }
    })
}

/// Takes the model that a job has loaded. A job gives it once.
///
/// out: receives the model, or NULL on failure. Release it with svdq_model_release.
///
/// Errors: SVDQ_ERR_BUSY until the job has ended; its own, if it failed. SVDQ_ERR_INVALID_ARGUMENT, also
/// when the model was taken before.
/// Threads: any.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_job_take_model(job: *mut svdq_job, out: *mut *mut svdq_model) -> svdq_result {
    // SAFETY: `job` is as the header demands.
    let take = || Ok(svdq_model(unsafe { handle(job, "job")? }.0.take_model()?));
    // SAFETY: `out` is as the header demands.
    guard(|| unsafe { make_handle(out, take) })
}

/// Releases a job, with its picture, or its model unless that was taken. Cancels a job that has not
/// ended; does not wait for it. NULL is allowed.
///
/// Threads: any, once no other call uses this handle.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_job_release(job: *mut svdq_job) {
    // SAFETY: `job` is as the header demands.
    unsafe { release(job) }
}

/// Milliseconds as the header has them.
pub(super) fn timeout(milliseconds: u32) -> Option<Duration> {
    (milliseconds != u32::MAX).then(|| Duration::from_millis(milliseconds.into()))
}

fn job_status(job: &Job) -> svdq_job_status {
    let status = job.status();
    // Once it has ended, the result is there and stays.
    let result = match status.state {
        JobState::Queued | JobState::Running => SVDQ_PENDING,
        _ => job.result().map_or_else(|error| code(&error), |()| SVDQ_OK),
    };
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    svdq_job_status {
        struct_size: 0,
        state: match status.state {
            JobState::Queued => SVDQ_JOB_QUEUED,
            JobState::Running => SVDQ_JOB_RUNNING,
            JobState::Done => SVDQ_JOB_DONE,
            JobState::Cancelled => SVDQ_JOB_CANCELLED,
            JobState::Failed => SVDQ_JOB_FAILED,
        },
        phase: match status.phase {
            JobPhase::None => SVDQ_PHASE_NONE,
            JobPhase::Load => SVDQ_PHASE_LOAD,
            JobPhase::Encode => SVDQ_PHASE_ENCODE,
            JobPhase::Denoise => SVDQ_PHASE_DENOISE,
            JobPhase::Decode => SVDQ_PHASE_DECODE,
        },
        step: status.step,
        steps: status.steps,
        fraction: status.fraction,
        result,
        preview_serial: status.previews,
        preview_width: status.preview_size[0],
        preview_height: status.preview_size[1],
        queue_ms: ms(status.queue),
        load_ms: ms(status.load),
        encode_ms: ms(status.encode),
        denoise_ms: ms(status.denoise),
        decode_ms: ms(status.decode),
        seed: status.seed,
    }
}
