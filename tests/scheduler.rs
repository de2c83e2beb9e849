//! The scheduler of src/engine in every order of events that its threads can come to, tried by loom: whatever happens
//! first, each job is done or dropped, nobody waits for ever, and a model is used by one at a time.

#![allow(dead_code, reason = "not all of the scheduler is used here")]
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(unsafe_code, reason = "what is tested is that it is sound")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use loom::cell::UnsafeCell;
pub(crate) use svdq::{Cancel, Error, Result};

mod sync {
    pub(super) use loom::sync::{Condvar, Mutex, MutexGuard};
    pub(super) use loom::thread::JoinHandle;

    pub(super) mod threads {
        pub(crate) fn builder(what: &str) -> loom::thread::Builder {
            loom::thread::Builder::new().name(what.into())
        }

        pub(crate) fn refused(error: std::io::Error) -> svdq::Error {
            svdq::Error::Internal(error.to_string())
        }
    }
}

#[path = "../src/engine/scheduler.rs"]
mod scheduler;

use scheduler::{Key, Lane, Scheduler, Turn, Work};

/// Tries all orders with up to two threads being interrupted where they need not.
fn explore(test: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(test);
}

/// Counts how many were done, and how many are no more.
#[derive(Default)]
struct Counts {
    done: AtomicUsize,
    dropped: AtomicUsize,
}

/// What jobs and calls of one model use; loom fails when two do at a time.
struct Model(UnsafeCell<u32>);

// SAFETY: that only one thread uses it at a time is what is tested; loom looks before it happens.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl Model {
    fn new() -> Arc<Self> {
        Arc::new(Model(UnsafeCell::new(0)))
    }

    fn work(&self) {
        // SAFETY: as above.
        self.0.with_mut(|count| unsafe { *count += 1 });
    }
}

/// A job, which holds its context as real ones do.
struct Job {
    model: Arc<Model>,
    counts: Arc<Counts>,
    scheduler: Option<Scheduler>,
}

impl Work for Job {
    fn run(self: Box<Self>, turn: Turn) {
        if turn.cancel().check().is_ok() {
            self.model.work();
        }
        self.counts.done.fetch_add(1, Ordering::SeqCst);
        drop(self);
        drop(turn);
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.counts.dropped.fetch_add(1, Ordering::SeqCst);
        self.scheduler = None;
    }
}

fn job(scheduler: &Scheduler, model: &Arc<Model>, counts: &Arc<Counts>) -> Box<Job> {
    Box::new(Job { model: model.clone(), counts: counts.clone(), scheduler: Some(scheduler.clone()) })
}

#[test]
fn a_job_is_released_while_it_waits_or_runs() {
    explore(|| {
        let (scheduler, model, counts) = (Scheduler::new().unwrap(), Model::new(), Arc::<Counts>::default());
        let work = job(&scheduler, &model, &counts);
        let place = scheduler.submit(Lane::Pictures, Some(Key::new()), Cancel::default(), work).unwrap();
        // All threads have to end by themselves: loom fails when one does not.
        drop(scheduler);
        place.leave();
        assert!(counts.done.load(Ordering::SeqCst) <= 1);
    });
}

#[test]
fn a_call_and_a_job_take_turns() {
    explore(|| {
        let (scheduler, model, counts) = (Scheduler::new().unwrap(), Model::new(), Arc::<Counts>::default());
        let key = Key::new();
        let work = job(&scheduler, &model, &counts);
        let place = scheduler.submit(Lane::Pictures, Some(key), Cancel::default(), work).unwrap();
        let turn = scheduler.enter(Some(key)).unwrap();
        assert_eq!(counts.done.load(Ordering::SeqCst), 1, "the job came first");
        model.work();
        drop((turn, place));
    });
}

#[test]
fn shut_down_meets_calls_and_jobs() {
    explore(|| {
        let (scheduler, model, counts) = (Scheduler::new().unwrap(), Model::new(), Arc::<Counts>::default());
        let key = Key::new();
        let caller = {
            let (scheduler, model) = (scheduler.clone(), model.clone());
            loom::thread::spawn(move || match scheduler.enter(Some(key)) {
                Ok(turn) => {
                    model.work();
                    drop(turn);
                }
                Err(error) => assert!(matches!(error, Error::ShuttingDown)),
            })
        };
        let work = job(&scheduler, &model, &counts);
        let place = scheduler.submit(Lane::Pictures, Some(key), Cancel::default(), work);
        assert!(scheduler.shut_down(None));
        assert_eq!(counts.dropped.load(Ordering::SeqCst), 1, "the job has ended");
        assert!(
            scheduler.submit(Lane::Loads, None, Cancel::default(), job(&scheduler, &model, &counts)).is_err()
        );
        drop(place);
        caller.join().unwrap();
    });
}
