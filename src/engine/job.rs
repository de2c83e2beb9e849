//! Work in the background: a picture that is made, or a model that is loaded, while the program goes on.

use std::fmt;
use std::mem::replace;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::picture::Picture;
use super::scheduler::{Lane, Place, Turn, Work};
use super::{Context, GenerateParams, ImageMut, Log, Model, ModelOptions, Progress, report};
use crate::pipeline::flux::{Preview, Watch};
use crate::weights::Loading;
use crate::{Cancel, Error, Result};

/// Work that a context does in a thread of its own. All calls but [`Self::wait`] return at once, and all may be made from
/// any thread. Dropping a job cancels it.
pub struct Job {
    shared: Arc<Shared>,
    place: Place,
}

/// Where a job is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum JobState {
    /// It waits for its turn.
    #[default]
    Queued,
    /// It runs.
    Running,
    /// It is done, and its result is there.
    Done,
    /// It was cancelled before it was done.
    Cancelled,
    /// It failed.
    Failed,
}

/// What a job does at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum JobPhase {
    /// Nothing: it has not begun, or it has ended.
    #[default]
    None,
    /// A model's weights are read.
    Load,
    /// The prompt is encoded.
    Encode,
    /// The image is denoised, step by step.
    Denoise,
    /// Latents become pixels.
    Decode,
}

/// How far a job is, and what it took so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct JobStatus {
    /// Where it is.
    pub state: JobState,
    /// What it does.
    pub phase: JobPhase,
    /// Denoising steps that are done.
    pub step: u32,
    /// Denoising steps of the picture; 0 for a load.
    pub steps: u32,
    /// 0 to 1; it never shrinks, and is 1 only when the job is done.
    pub fraction: f32,
    /// Time before its turn came.
    pub queue: Duration,
    /// Time of [`JobPhase::Load`].
    pub load: Duration,
    /// Time of [`JobPhase::Encode`].
    pub encode: Duration,
    /// Time of [`JobPhase::Denoise`].
    pub denoise: Duration,
    /// Time of [`JobPhase::Decode`].
    pub decode: Duration,
    /// The picture's seed.
    pub seed: u64,
    /// Previews so far.
    pub previews: u32,
    /// Width and height of a preview in pixels; 0 while there is none.
    pub preview_size: [u32; 2],
}

/// What the handle and the thread that works share.
struct Shared {
    cancel: Cancel,
    /// Of a load: its progress.
    loading: Option<Loading>,
    /// Whether there are going to be previews.
    previews: bool,
    state: Mutex<State>,
    ended: Condvar,
}

struct State {
    status: JobStatus,
    /// When the present phase began.
    since: Instant,
    /// None until it ended.
    outcome: Option<Outcome>,
    /// The newest one.
    preview: Option<Arc<Preview>>,
}

type Outcome = std::result::Result<Output, Arc<Error>>;

enum Output {
    Picture(Arc<Preview>),
    /// None: it was taken.
    Model(Option<Model>),
}

impl Job {
    /// Where the job is. Never waits.
    pub fn status(&self) -> JobStatus {
        let mut state = self.shared.state();
        if state.status.phase == JobPhase::Load
            && let Some(loading) = &self.shared.loading
        {
            state.status.reach(loading.fraction());
        }
        state.status
    }

    /// Waits until the job has ended, however it did; false if `timeout` (`None`: none) ended first.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let shared = &self.shared;
        let state = shared.state();
        let going_on = |state: &mut State| state.outcome.is_none();
        let state = match timeout {
            None => shared.ended.wait_while(state, going_on).unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                let wait = shared.ended.wait_timeout_while(state, timeout, going_on);
                wait.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        state.outcome.is_some()
    }

    /// Asks the job to stop. One that waits for its turn has ended when this returns; one that runs ends soon, as cancelled.
    /// Does nothing to one that has ended.
    pub fn cancel(&self) {
        let state = self.shared.state();
        // Under the lock: a job that has not ended now, ends as cancelled.
        self.shared.cancel.cancel();
        drop(state);
        self.place.leave();
    }

    /// What the job came to.
    ///
    /// # Errors
    /// [`Error::Busy`] until it has ended; [`Error::Job`] if it failed or was cancelled.
    pub fn result(&self) -> Result<()> {
        self.shared.state().output().map(drop)
    }

    /// Copies the finished picture.
    ///
    /// # Errors
    /// As [`Self::result`]; [`Error::InvalidArgument`] if `image` is not of the picture's size, or the job loads a model.
    pub fn read_image(&self, image: &mut ImageMut<'_>) -> Result<()> {
        let picture = match self.shared.state().output()? {
            Output::Picture(picture) => picture.clone(),
            Output::Model(_) => {
                return Err(Error::InvalidArgument("the job loads a model, it makes no picture".into()));
            }
        };
        copy(&picture, image)
    }

    /// Copies the newest preview. It stays when the job has ended.
    ///
    /// # Errors
    /// [`Error::Busy`] while there is none; [`Error::InvalidArgument`] if `image` is not of its size, or the job makes none.
    pub fn read_preview(&self, image: &mut ImageMut<'_>) -> Result<()> {
        let state = self.shared.state();
        let Some(preview) = state.preview.clone() else {
            return Err(match (&state.outcome, self.shared.previews) {
                (None, true) => Error::Busy("the job has no preview yet".into()),
                _ => Error::InvalidArgument("the job has no previews".into()),
            });
        };
        drop(state);
        copy(&preview, image)
    }

    /// The model that was loaded; the job has none afterwards.
    ///
    /// # Errors
    /// As [`Self::result`]; [`Error::InvalidArgument`] if it was taken before, or the job makes a picture.
    pub fn take_model(&self) -> Result<Model> {
        let nothing = match self.shared.state().output()? {
            Output::Model(model) => match model.take() {
                Some(model) => return Ok(model),
                None => "the job's model was taken before",
            },
            Output::Picture(_) => "the job makes a picture, it loads no model",
        };
        Err(Error::InvalidArgument(nothing.into()))
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.cancel();
        // Nobody can ask for them any more, though the job's thread may hold the rest for a moment.
        let mut state = self.shared.state();
        let output = state.outcome.as_mut().map(|outcome| replace(outcome, Err(Arc::new(Error::Cancelled))));
        let preview = state.preview.take();
        drop(state);
        // Outside of the lock: a model takes a while.
        drop((output, preview));
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Job").field(&self.status()).finish()
    }
}

impl Model {
    /// Makes a picture in the background: [`Self::generate`] as a job. Everything in `params` is copied.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] names the parameter that the model cannot do; [`Error::ShuttingDown`] after
    /// [`Context::shut_down`]. What goes wrong later is the job's result.
    pub fn submit(&self, params: &GenerateParams<'_>) -> Result<Job> {
        let picture = self.picture(params, &self.context().memory)?;
        let status = JobStatus { steps: picture.steps(), seed: picture.seed, ..Default::default() };
        let picture = Generate { model: self.clone(), picture };
        let (scheduler, key) = self.scheduler();
        let shared = Shared::new(status, Cancel::default(), None, params.preview_every > 0);
        let work = Box::new(Task { what: picture, running: Guard(shared.clone()) });
        let place = scheduler.submit(Lane::Pictures, Some(key), shared.cancel.clone(), work)?;
        Ok(Job { shared, place })
    }

    /// Loads a model in the background: [`Self::load`] as a job.
    ///
    /// # Errors
    /// [`Error::ShuttingDown`] after [`Context::shut_down`]. What goes wrong later is the job's result.
    pub fn submit_load(context: &Context, options: &ModelOptions) -> Result<Job> {
        let cancel = Cancel::default();
        let loading = Loading::new(cancel.clone(), context.memory.clone());
        let load = Load { context: context.clone(), options: options.clone(), loading: loading.clone() };
        let shared = Shared::new(JobStatus::default(), cancel, Some(loading), false);
        let work = Box::new(Task { what: load, running: Guard(shared.clone()) });
        let place = context.scheduler().submit(Lane::Loads, None, shared.cancel.clone(), work)?;
        Ok(Job { shared, place })
    }
}

impl Shared {
    fn new(status: JobStatus, cancel: Cancel, loading: Option<Loading>, previews: bool) -> Arc<Self> {
        let state = State { status, since: Instant::now(), outcome: None, preview: None };
        Arc::new(Shared { cancel, loading, previews, state: Mutex::new(state), ended: Condvar::new() })
    }

    /// Locked only to copy, and while nothing can panic.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next phase begins, or a step of it.
    fn advance(&self, phase: JobPhase, step: u32, fraction: f32) {
        let mut state = self.state();
        state.enter(phase);
        let status = &mut state.status;
        status.state = JobState::Running;
        status.step = step;
        status.reach(fraction);
    }

    /// Ends the job, unless it has ended. What was asked to stop has not been done, even if it was too late to stop.
    fn end(&self, mut result: Result<Output>) {
        let mut state = self.state();
        if state.outcome.is_some() {
            return;
        }
        while result.is_ok() && self.cancel.check().is_err() {
            // The output may be a model, which takes a while to drop: outside of the lock, and before anybody is told.
            drop(state);
            result = Err(Error::Cancelled);
            state = self.state();
        }
        state.enter(JobPhase::None);
        state.status.state = match &result {
            Ok(_) => JobState::Done,
            Err(Error::Cancelled) => JobState::Cancelled,
            Err(_) => JobState::Failed,
        };
        if result.is_ok() {
            state.status.fraction = 1.0;
        }
        state.outcome = Some(result.map_err(Arc::new));
        drop(state);
        self.ended.notify_all();
    }
}

impl JobStatus {
    /// Progress of a job that is not done.
    fn reach(&mut self, fraction: f32) {
        self.fraction = self.fraction.max(fraction.min(1.0 - f32::EPSILON));
    }
}

impl State {
    fn output(&mut self) -> Result<&mut Output> {
        match &mut self.outcome {
            None => Err(Error::Busy("the job has not ended".into())),
            Some(Err(error)) => Err(Error::Job(error.clone())),
            Some(Ok(output)) => Ok(output),
        }
    }

    /// Ends the present phase, if `phase` is another.
    fn enter(&mut self, phase: JobPhase) {
        let status = &mut self.status;
        let time = match status.phase {
            _ if status.state == JobState::Queued => &mut status.queue,
            same if same == phase => return,
            JobPhase::Load => &mut status.load,
            JobPhase::Encode => &mut status.encode,
            JobPhase::Denoise => &mut status.denoise,
            JobPhase::Decode => &mut status.decode,
            JobPhase::None => return,
        };
        let now = Instant::now();
        *time += now - self.since;
        self.since = now;
        status.phase = phase;
    }
}

/// Ends a job as cancelled that is dropped before it ended.
struct Guard(Arc<Shared>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.end(Err(Error::Cancelled));
    }
}

/// A job in the line. Dropped from there, it gives back its model before it ends.
struct Task<T> {
    what: T,
    running: Guard,
}

trait Make: Send {
    /// For the log.
    const NAME: &'static str;

    fn log(&self) -> &Log;

    fn make(&self, shared: &Shared, turn: &Turn) -> Result<Output>;
}

impl<T: Make> Work for Task<T> {
    fn run(self: Box<Self>, turn: Turn) {
        let Task { what, running: Guard(ref shared) } = *self;
        let start = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| what.make(shared, &turn)));
        let result = result.unwrap_or_else(|panic| Err(Error::panic(&*panic)));
        report::job(what.log(), T::NAME, &result, start.elapsed());
        // Whoever sees that the job has ended may take the next turn, and finds nothing held.
        drop((what, turn));
        shared.end(result);
    }
}

struct Generate {
    model: Model,
    picture: Picture,
}

impl Make for Generate {
    const NAME: &'static str = "a picture";

    fn log(&self) -> &Log {
        self.model.log()
    }

    fn make(&self, shared: &Shared, turn: &Turn) -> Result<Output> {
        shared.advance(JobPhase::Encode, 0, 0.0);
        let (rgb, _) =
            self.model.make(&self.picture, turn.cancel(), &mut Follow { shared, turn, log: self.log() })?;
        let (width, height) = (self.picture.width, self.picture.height);
        Ok(Output::Picture(Arc::new(Preview { rgb, width, height })))
    }
}

/// How much of a picture's time the encoders take, and what is left for the VAE, about.
const ENCODED: f32 = 0.05;
const DENOISED: f32 = 0.95;

/// A picture that is being made.
struct Follow<'a> {
    shared: &'a Shared,
    turn: &'a Turn,
    log: &'a Log,
}

impl Watch for Follow<'_> {
    fn progress(&mut self, at: Progress) -> ControlFlow<()> {
        let shared = self.shared;
        match at {
            Progress::Encode => {}
            Progress::Denoise { step, steps } => {
                let part = (DENOISED - ENCODED) * step as f32 / steps as f32;
                shared.advance(JobPhase::Denoise, step as u32, ENCODED + part);
            }
            Progress::Decode => {
                let steps = shared.state().status.steps;
                shared.advance(JobPhase::Decode, steps, DENOISED);
            }
        }
        if self.turn.cancel().check().is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn warning(&mut self, line: &str) {
        self.log.warning(line);
    }

    fn preview(&mut self, preview: Preview) {
        let mut state = self.shared.state();
        state.status.previews += 1;
        state.status.preview_size = [preview.width, preview.height];
        let before = state.preview.replace(Arc::new(preview));
        drop(state);
        // Outside of the lock.
        drop(before);
    }
}

fn copy(picture: &Preview, image: &mut ImageMut<'_>) -> Result<()> {
    image.check_size(picture.width, picture.height)?;
    image.write_rgb8(&picture.rgb);
    Ok(())
}

struct Load {
    context: Context,
    options: ModelOptions,
    loading: Loading,
}

impl Make for Load {
    const NAME: &'static str = "loading a model";

    fn log(&self) -> &Log {
        self.context.log()
    }

    fn make(&self, shared: &Shared, turn: &Turn) -> Result<Output> {
        shared.advance(JobPhase::Load, 0, 0.0);
        turn.cancel().check()?;
        Ok(Output::Model(Some(Model::load_with(&self.context, &self.options, &self.loading)?)))
    }
}

#[cfg(test)]
mod tests;
