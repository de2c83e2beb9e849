#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::super::scheduler::{Key, Scheduler};
use super::super::{ContextOptions, DeviceSelect, PixelFormat, Source};
use super::*;

fn context() -> Context {
    Context::new(ContextOptions { device: DeviceSelect::Cpu, threads: 2, ..Default::default() }).unwrap()
}

fn demo() -> ModelOptions {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
    ModelOptions { sources: vec![Source::Path(folder)], ..Default::default() }
}

fn model() -> Model {
    Model::load(&context(), &demo()).unwrap()
}

const SIDE: u32 = 32;

fn params(seed: u64) -> GenerateParams<'static> {
    GenerateParams { prompt: "a key", width: SIDE, height: SIDE, steps: 3, seed, ..Default::default() }
}

fn pixels(write: impl FnOnce(&mut ImageMut<'_>)) -> Vec<u8> {
    let mut pixels = vec![0; (SIDE * SIDE * 3) as usize];
    write(&mut ImageMut::new(&mut pixels, PixelFormat::Rgb8, SIDE, SIDE, 0, false).unwrap());
    pixels
}

fn generate(model: &Model, seed: u64) -> Vec<u8> {
    let go_on = &mut |_| ControlFlow::Continue(());
    pixels(|image| assert!(model.generate(&params(seed), image, go_on).is_ok()))
}

fn finish(job: &Job) -> Vec<u8> {
    assert!(job.wait(None));
    pixels(|image| job.read_image(image).unwrap())
}

/// Holds the model, as a picture does that is being made.
fn hold(model: &Model) -> Turn {
    let (scheduler, key) = model.scheduler();
    scheduler.enter(Some(key)).unwrap()
}

#[test]
fn a_job_makes_the_picture_that_generate_makes() {
    let model = model();
    let job = model.submit(&params(5)).unwrap();
    let (mut last, mut phases) = (JobStatus::default(), vec![]);
    let end = loop {
        let status = job.status();
        assert!(status.fraction >= last.fraction && status.step <= status.steps, "{last:?}, {status:?}");
        assert_eq!(status.fraction == 1.0, status.state == JobState::Done);
        if status.state == JobState::Done {
            break status;
        }
        if phases.last() != Some(&status.phase) {
            phases.push(status.phase);
        }
        last = status;
    };
    let order = [JobPhase::None, JobPhase::Encode, JobPhase::Denoise, JobPhase::Decode];
    assert!(phases.is_sorted_by_key(|phase| order.iter().position(|other| other == phase)), "{phases:?}");
    assert_eq!((end.state, end.phase, end.fraction), (JobState::Done, JobPhase::None, 1.0));
    assert_eq!((end.step, end.steps, end.seed), (3, 3, 5));
    assert!([end.encode, end.denoise, end.decode].iter().all(|time| *time > Duration::ZERO));
    assert_eq!(end.load, Duration::ZERO);
    assert_eq!(finish(&job), generate(&model, 5));
    assert_eq!(finish(&job), finish(&job), "a picture may be read twice");
    assert!(matches!(job.take_model(), Err(Error::InvalidArgument(_))));
}

#[test]
fn parameters_are_checked_when_a_job_is_submitted() {
    let model = model();
    let odd = GenerateParams { width: 33, ..params(0) };
    assert!(matches!(model.submit(&odd), Err(Error::InvalidArgument(_))));
    let job = model.submit(&params(0)).unwrap();
    let mut pixels = vec![0; 64 * 64 * 3];
    let mut other = ImageMut::new(&mut pixels, PixelFormat::Rgb8, 64, 64, 0, false).unwrap();
    assert!(job.wait(None));
    assert!(matches!(job.read_image(&mut other), Err(Error::InvalidArgument(_))));
}

#[test]
fn a_job_outlives_the_handles_that_it_was_made_from() {
    let model = model();
    let expected = generate(&model, 1);
    let job = model.submit(&params(1)).unwrap();
    drop(model);
    assert_eq!(finish(&job), expected);
}

#[test]
fn a_job_that_is_dropped_leaves_no_pixels() {
    let model = model();
    let memory = &model.context().memory;
    generate(&model, 1);
    let before = memory.used();
    let job = model.submit(&GenerateParams { preview_every: 1, ..params(1) }).unwrap();
    finish(&job);
    assert!(memory.used() > before);
    // As the job's thread has it when it has told of the end.
    let thread = job.shared.clone();
    drop(job);
    assert_eq!(memory.used(), before);
    drop(thread);
}

#[test]
fn jobs_and_calls_take_turns_in_the_order_of_their_arrival() {
    let model = model();
    let turn = hold(&model);
    let order = Mutex::new(vec![]);
    thread::scope(|scope| {
        let (model, order) = (&model, &order);
        let first = model.submit(&params(1)).unwrap();
        let waiting = |count| {
            while model.scheduler().0.waiting() < count {
                thread::yield_now();
            }
        };
        scope.spawn(move || {
            generate(model, 2);
            order.lock().unwrap().push("call");
        });
        waiting(2);
        let second = model.submit(&params(3)).unwrap();
        assert_eq!(first.status().state, JobState::Queued);
        assert!(matches!(first.result(), Err(Error::Busy(_))));
        drop(turn);
        assert!(second.wait(None));
        assert!(first.wait(Some(Duration::ZERO)), "the first job ended before the second");
        order.lock().unwrap().push("second job");
    });
    assert_eq!(order.into_inner().unwrap(), ["call", "second job"]);
}

#[test]
fn a_load_does_not_wait_for_a_picture() {
    let context = context();
    let model = Model::load(&context, &demo()).unwrap();
    let turn = hold(&model);
    let picture = model.submit(&params(1)).unwrap();
    let load = Model::submit_load(&context, &demo()).unwrap();
    assert!(load.wait(None));
    assert_eq!((load.status().state, load.status().fraction), (JobState::Done, 1.0));
    assert!(load.status().load > Duration::ZERO);
    assert_eq!(picture.status().state, JobState::Queued);
    let loaded = load.take_model().unwrap();
    assert!(matches!(load.take_model(), Err(Error::InvalidArgument(_))), "a model is taken once");
    assert!(matches!(
        load.read_image(&mut ImageMut::new(&mut [0; 3], PixelFormat::Rgb8, 1, 1, 0, false).unwrap()),
        Err(Error::InvalidArgument(_))
    ));
    drop((load, turn));
    assert_eq!(generate(&loaded, 1), finish(&picture));
}

#[test]
fn what_goes_wrong_in_a_load_is_its_result() {
    let options = ModelOptions { sources: vec![Source::Path("/nowhere".into())], ..Default::default() };
    let job = Model::submit_load(&context(), &options).unwrap();
    assert!(job.wait(None));
    assert_eq!(job.status().state, JobState::Failed);
    assert!(job.status().fraction < 1.0);
    for _ in 0..2 {
        let error = job.take_model().err().unwrap();
        assert!(matches!(&error, Error::Job(error) if matches!(**error, Error::NotFound { .. })));
        assert!(error.to_string().contains("/nowhere"), "{error}");
    }
    job.cancel();
    assert_eq!(job.status().state, JobState::Failed);
}

#[test]
fn a_waiting_job_is_cancelled_at_once() {
    let model = model();
    let turn = hold(&model);
    let jobs: Vec<_> = (0..3).map(|seed| model.submit(&params(seed)).unwrap()).collect();
    jobs[1].cancel();
    assert!(jobs[1].wait(Some(Duration::ZERO)));
    assert_eq!(jobs[1].status().state, JobState::Cancelled);
    assert!(jobs[1].result().is_err_and(|error| error.to_string() == "cancelled"));
    assert_eq!(jobs[0].status().state, JobState::Queued);
    drop(turn);
    assert_eq!(finish(&jobs[2]), generate(&model, 2));
    assert_eq!(finish(&jobs[0]), generate(&model, 0));
}

/// Work that the test decides on.
struct Act<F: Fn(&Turn) -> Result<Output> + Send>(F, Log);

impl<F: Fn(&Turn) -> Result<Output> + Send> Make for Act<F> {
    const NAME: &'static str = "an act";

    fn log(&self) -> &Log {
        &self.1
    }

    fn make(&self, shared: &Shared, turn: &Turn) -> Result<Output> {
        shared.advance(JobPhase::Encode, 0, 0.0);
        self.0(turn)
    }
}

fn submit(scheduler: &Scheduler, key: Key, act: impl Fn(&Turn) -> Result<Output> + Send + 'static) -> Job {
    let shared = Shared::new(JobStatus::default(), Cancel::default(), None, false);
    let work = Box::new(Task { what: Act(act, Log::default()), running: Guard(shared.clone()) });
    let place = scheduler.submit(Lane::Pictures, Some(key), shared.cancel.clone(), work).unwrap();
    Job { shared, place }
}

fn nothing() -> Result<Output> {
    Ok(Output::Model(None))
}

fn until_cancelled(turn: &Turn) -> Result<Output> {
    loop {
        turn.cancel().check()?;
        thread::yield_now();
    }
}

#[test]
fn a_panic_fails_its_job_and_no_other() {
    let (scheduler, key) = (Scheduler::new().unwrap(), Key::new());
    for _ in 0..3 {
        let job = submit(&scheduler, key, |_| panic!("tile {}", 7));
        assert!(job.wait(None));
        assert_eq!(job.status().state, JobState::Failed);
        assert_eq!(job.result().unwrap_err().to_string(), "internal error: tile 7");
    }
    assert!(submit(&scheduler, key, |_| nothing()).wait(None));
}

#[test]
fn a_job_that_was_cancelled_is_not_done_even_when_it_was_too_late() {
    let (scheduler, key) = (Scheduler::new().unwrap(), Key::new());
    let barriers: [Arc<Barrier>; 2] = [(); 2].map(|()| Arc::new(Barrier::new(2)));
    let [begun, go_on] = barriers.clone();
    let job = submit(&scheduler, key, move |_| {
        begun.wait();
        go_on.wait();
        nothing()
    });
    barriers[0].wait();
    job.cancel();
    assert_eq!(job.status().state, JobState::Running);
    barriers[1].wait();
    assert!(job.wait(None));
    assert_eq!(job.status().state, JobState::Cancelled);
}

#[test]
fn shut_down_ends_everything_and_refuses_what_comes() {
    let context = context();
    let (scheduler, key) = (context.scheduler(), Key::new());
    let runs = submit(scheduler, key, until_cancelled);
    let waits = submit(scheduler, key, |_| nothing());
    let deaf = scheduler.enter(None).unwrap();
    thread::scope(|scope| {
        let call = scope.spawn(|| scheduler.enter(Some(key)).map(drop));
        while scheduler.waiting() < 2 {
            thread::yield_now();
        }
        assert!(!context.shut_down(Some(Duration::from_millis(20))), "a call runs");
        assert!(matches!(call.join().unwrap(), Err(Error::ShuttingDown)));
    });
    assert!(deaf.cancel().check().is_err(), "a running call is cancelled");
    assert!(runs.wait(None));
    for job in [&runs, &waits] {
        assert_eq!(job.status().state, JobState::Cancelled);
    }
    drop(deaf);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(context.shut_down(None)));
        }
    });
    assert!(matches!(scheduler.enter(None), Err(Error::ShuttingDown)));
    assert!(matches!(Model::submit_load(&context, &demo()), Err(Error::ShuttingDown)));
    assert!(matches!(Model::load(&context, &demo()), Err(Error::ShuttingDown)));
}

#[test]
fn a_model_of_a_context_that_was_shut_down_makes_nothing() {
    let context = context();
    let model = Model::load(&context, &demo()).unwrap();
    assert!(context.shut_down(None));
    assert!(matches!(model.submit(&params(1)), Err(Error::ShuttingDown)));
    let go_on = &mut |_| ControlFlow::Continue(());
    pixels(|image| assert!(matches!(model.generate(&params(1), image, go_on), Err(Error::ShuttingDown))));
}

/// Jobs are released while they wait and while they run, and the last handle of everything is dropped by a worker.
#[test]
fn threads_end_when_nothing_is_held_any_more() {
    struct Ended(Arc<AtomicBool>);
    impl Drop for Ended {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    for _ in 0..20 {
        let (scheduler, key) = (Scheduler::new().unwrap(), Key::new());
        let threads = scheduler.threads();
        let ended = Arc::new(AtomicBool::new(false));
        let held = (scheduler.clone(), Ended(ended.clone()));
        let runs = submit(&scheduler, key, move |turn| {
            let _ = &held;
            until_cancelled(turn)
        });
        let last = scheduler.clone();
        let waits = submit(&scheduler, key, move |_| {
            let _ = &last;
            nothing()
        });
        drop(scheduler);
        thread::spawn(|| drop(runs)).join().unwrap();
        assert!(waits.wait(None));
        assert!(ended.load(Ordering::SeqCst), "a released job holds nothing");
        while threads() > 0 {
            thread::yield_now();
        }
    }
}

/// Cancelled before each of its checks in turn, by the thread that runs it and by others, a picture leaves no trace.
#[test]
fn a_model_makes_the_same_picture_after_any_cancel() {
    let model = model();
    let expected = generate(&model, 9);
    for point in 0..5 {
        let mut seen = 0;
        let mut progress = |_| {
            seen += 1;
            if seen > point { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        pixels(|image| {
            let result = model.generate(&params(9), image, &mut progress);
            assert!(matches!(result, Err(Error::Cancelled)), "point {point}");
        });
        assert_eq!(seen, point + 1);
        assert_eq!(generate(&model, 9), expected, "cancelled at point {point}");
    }
    thread::scope(|scope| {
        for thread in 0..8 {
            let (model, expected) = (&model, &expected);
            scope.spawn(move || {
                for round in 0..4 {
                    let job = model.submit(&params(9)).unwrap();
                    thread::scope(|scope| {
                        scope.spawn(|| {
                            // Some before it starts, some while it runs, some after it ended.
                            job.wait(Some(Duration::from_millis(17 * thread * round)));
                            job.cancel();
                        });
                        job.wait(None);
                    });
                    match job.status().state {
                        JobState::Done => assert_eq!(finish(&job), *expected),
                        state => assert_eq!(state, JobState::Cancelled),
                    }
                }
            });
        }
    });
    assert_eq!(generate(&model, 9), expected);
}
