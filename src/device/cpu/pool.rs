//! The device's own threads: joined when it is dropped, and never shared with the host program.

#![allow(unsafe_code, reason = "a task borrows from its caller, who waits for it")]

use std::any::Any;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::threads;

/// How long an idle thread looks for work before it sleeps: longer than the pause between two
/// operations, and too short to be noticed.
const SPIN: Duration = Duration::from_micros(50);

/// A fixed number of threads that work on one job at a time.
pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the caller whose job is running.
    turn: Mutex<()>,
}

struct Shared {
    state: Mutex<State>,
    /// Counts the jobs (and the end), so that an idle thread can watch without the lock.
    epoch: AtomicUsize,
    /// Workers inside the current job; changed under the lock, watched without.
    inside: AtomicUsize,
    wake: Condvar,
    done: Condvar,
}

struct State {
    job: Option<JobRef>,
    sleeping: usize,
    stop: bool,
}

/// One call of [`Pool::run`], on its caller's stack.
struct Job<'a> {
    task: &'a (dyn Fn(usize, usize) + Sync),
    tasks: usize,
    next: AtomicUsize,
    panicked: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// A job whose lifetime the type system no longer knows.
#[derive(Clone, Copy)]
struct JobRef(*const Job<'static>);

// SAFETY: `Job` is `Sync`: its task is, and the rest are atomics and a mutex.
unsafe impl Send for JobRef {}

impl Job<'_> {
    /// Takes tasks until there are none left. A panic ends the job; the caller gets it.
    fn work(&self, thread: usize) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            while !self.panicked.load(Ordering::Relaxed) {
                let i = self.next.fetch_add(1, Ordering::Relaxed);
                if i >= self.tasks {
                    break;
                }
                (self.task)(thread, i);
            }
        }));
        if let Err(payload) = result {
            self.panicked.store(true, Ordering::Relaxed);
            lock(&self.panic).get_or_insert(payload);
        }
    }
}

/// No code that can panic runs under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// `threads` threads, the caller of [`Self::run`] included.
    pub(super) fn new(threads: usize) -> std::io::Result<Pool> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State { job: None, sleeping: 0, stop: false }),
            epoch: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            wake: Condvar::new(),
            done: Condvar::new(),
        });
        let mut pool = Pool { shared, workers: Vec::new(), turn: Mutex::new(()) };
        for thread in 1..threads {
            let shared = pool.shared.clone();
            let builder = threads::builder("");
            pool.workers.push(builder.spawn(move || shared.serve(thread))?);
        }
        Ok(pool)
    }

    /// Number of threads, the caller included.
    pub(super) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(thread, 0)` to `task(thread, tasks - 1)`, each once, on any thread in any order, and returns when
    /// all are done. The caller's thread is number 0, and the only one for a single task. A panic of a task becomes the
    /// caller's. Tasks must not call `run`.
    pub(super) fn run(&self, tasks: usize, task: impl Fn(usize, usize) + Sync) {
        if tasks <= 1 || self.workers.is_empty() {
            (0..tasks).for_each(|i| task(0, i));
            return;
        }
        let job = Job {
            task: &task,
            tasks,
            next: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            panic: Mutex::new(None),
        };
        {
            let _turn = lock(&self.turn);
            self.shared.open(JobRef(std::ptr::from_ref(&job).cast()));
            job.work(0);
            self.shared.close();
        }
        if let Some(payload) = job.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(payload);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        {
            let mut state = lock(&self.shared.state);
            state.stop = true;
            self.shared.epoch.fetch_add(1, Ordering::Release);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker's panics are carried to the callers of `run`.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn open(&self, job: JobRef) {
        let mut state = lock(&self.state);
        state.job = Some(job);
        self.epoch.fetch_add(1, Ordering::Release);
        if state.sleeping > 0 {
            self.wake.notify_all();
        }
    }

    /// Lets no more workers in, and waits for those inside.
    fn close(&self) {
        lock(&self.state).job = None;
        if spin_until(|| self.inside.load(Ordering::Acquire) == 0) {
            return;
        }
        let mut state = lock(&self.state);
        while self.inside.load(Ordering::Acquire) > 0 {
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The life of a worker, the `thread`-th thread.
    fn serve(&self, thread: usize) {
        let mut seen = 0;
        loop {
            spin_until(|| self.epoch.load(Ordering::Acquire) != seen);
            let mut state = lock(&self.state);
            while self.epoch.load(Ordering::Acquire) == seen {
                state.sleeping += 1;
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.sleeping -= 1;
            }
            seen = self.epoch.load(Ordering::Acquire);
            if state.stop {
                return;
            }
            let Some(JobRef(job)) = state.job else { continue };
            self.inside.fetch_add(1, Ordering::Relaxed);
            drop(state);
            // SAFETY: `close` waits for `inside` to become zero before `run` returns, and
            // `inside` was raised under the lock while the job was open: the job is alive.
            unsafe { &*job }.work(thread);
            let _state = lock(&self.state);
            if self.inside.fetch_sub(1, Ordering::Release) == 1 {
                self.done.notify_one();
            }
        }
    }
}

/// Whether `ready` came true within [`SPIN`].
fn spin_until(ready: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..64 {
            if ready() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > SPIN {
            return false;
        }
    }
}

/// A slice of which several tasks write different parts.
pub(super) struct Disjoint<'a, T> {
    data: *mut T,
    len: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: it only hands out parts that no other task has, by the contract of `slice`.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(super) fn new(data: &'a mut [T]) -> Self {
        Disjoint { data: data.as_mut_ptr(), len: data.len(), owner: PhantomData }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// No two slices that are alive at the same time overlap.
    #[allow(clippy::mut_from_ref, reason = "the contract is the point of this type")]
    pub(super) unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: in bounds, and nobody else's by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads).unwrap();
            for round in 0..300 {
                let tasks = round % 37;
                let (mut counts, mut busy) = (vec![0u8; tasks], vec![false; threads]);
                let (done, owned) = (Disjoint::new(&mut counts), Disjoint::new(&mut busy));
                pool.run(tasks, |thread, i| {
                    // SAFETY: a task runs once, and a thread does one at a time.
                    let (count, busy) = unsafe { (done.slice(i..i + 1), owned.slice(thread..thread + 1)) };
                    assert!(!std::mem::replace(&mut busy[0], true));
                    count[0] += 1;
                    busy[0] = false;
                });
                assert!(counts.iter().all(|&c| c == 1));
                if round % 100 == 0 {
                    std::thread::sleep(SPIN * 4);
                }
            }
        }
    }

    #[test]
    fn callers_on_several_threads_take_turns() {
        let pool = Pool::new(3).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let sum = AtomicUsize::new(0);
                        pool.run(10, |_, i| _ = sum.fetch_add(i, Ordering::Relaxed));
                        assert_eq!(sum.into_inner(), 45);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3).unwrap();
        for bad in [0, 7, 63] {
            let run = || pool.run(64, |_, i| assert!(i != bad, "task {i}"));
            let payload = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
            assert_eq!(payload.downcast_ref::<String>().unwrap(), &format!("task {bad}"));
            let sum = AtomicUsize::new(0);
            pool.run(64, |_, i| _ = sum.fetch_add(i, Ordering::Relaxed));
            assert_eq!(sum.into_inner(), 2016);
        }
    }
}
