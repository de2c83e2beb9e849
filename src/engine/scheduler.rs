//! Who runs when: the blocking calls and the jobs of one context.
//!
//! All wait in one line. What uses a model goes after everything that came earlier and uses the same one, so that a model
//! does one thing at a time, in order; what uses none waits for nothing. A blocking call runs in its caller's thread. Jobs
//! run in two threads that start with the context, pictures in one and loads in the other: a load never waits for a picture.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::sync::{Condvar, JoinHandle, Mutex, MutexGuard, threads};
use crate::{Cancel, Error, Result};

/// Which thread does a piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    Caller,
    Pictures,
    Loads,
}

/// What is never used by two at a time: a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key(u64);

impl Key {
    /// Another one than all before.
    pub(super) fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        Key(COUNT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What a job does.
pub(super) trait Work: Send {
    /// Does it. The turn ends when `turn` is dropped. Must not panic.
    fn run(self: Box<Self>, turn: Turn);
}

/// A handle to the threads of a context. They end by themselves when the last handle is dropped, which only happens when
/// nothing waits or runs: calls and jobs hold a handle, if only through their model.
#[derive(Clone)]
pub(super) struct Scheduler(Arc<Threads>);

struct Threads {
    line: Arc<Line>,
    /// Locked while they are joined.
    handles: Mutex<Vec<JoinHandle<()>>>,
}

struct Line {
    state: Mutex<State>,
    /// By lane: who waits there is told of every change of the state that may concern it.
    changed: [Condvar; 3],
}

#[derive(Default)]
struct State {
    next: u64,
    /// In the order of their arrival.
    waiting: VecDeque<Waiting>,
    running: Vec<Running>,
    /// Of the jobs' threads, those that have not ended.
    threads: usize,
    /// There is no handle any more.
    closed: bool,
    shut_down: bool,
}

struct Waiting {
    entry: Running,
    lane: Lane,
    /// None: a blocking call.
    work: Option<Box<dyn Work>>,
}

struct Running {
    number: u64,
    key: Option<Key>,
    cancel: Cancel,
}

/// The right to run, until it is dropped.
pub(super) struct Turn {
    line: Arc<Line>,
    number: u64,
    cancel: Cancel,
}

/// A job's place in the line.
pub(super) struct Place {
    line: Arc<Line>,
    number: u64,
}

impl Scheduler {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`Error::Internal`] when the system gives none.
    pub(super) fn new() -> Result<Self> {
        let line =
            Arc::new(Line { state: Mutex::default(), changed: std::array::from_fn(|_| Condvar::new()) });
        let scheduler = Scheduler(Arc::new(Threads { line, handles: Mutex::default() }));
        for (name, lane) in [("-pictures", Lane::Pictures), ("-loads", Lane::Loads)] {
            let line = scheduler.0.line.clone();
            line.state().threads += 1;
            match threads::builder(name).spawn(move || line.serve(lane)) {
                Ok(handle) => lock(&scheduler.0.handles).push(handle),
                Err(error) => {
                    scheduler.0.line.state().threads -= 1;
                    return Err(threads::refused(error));
                }
            }
        }
        Ok(scheduler)
    }

    /// Waits until a blocking call may run.
    ///
    /// # Errors
    /// [`Error::ShuttingDown`] after, or by, [`Self::shut_down`].
    pub(super) fn enter(&self, key: Option<Key>) -> Result<Turn> {
        let (cancel, line) = (Cancel::default(), &self.0.line);
        let mut state = line.state();
        let number = state.push(Lane::Caller, key, cancel.clone(), None)?;
        loop {
            let Some(index) = state.waiting.iter().position(|waiting| waiting.entry.number == number) else {
                return Err(Error::ShuttingDown);
            };
            if state.may_run(index) {
                state.start(index);
                return Ok(Turn { line: line.clone(), number, cancel });
            }
            state = line.wait(Lane::Caller, state);
        }
    }

    /// Puts a job into the line. `cancel` reaches it while it runs; [`Place::leave`] takes it back before.
    ///
    /// # Errors
    /// [`Error::ShuttingDown`] after [`Self::shut_down`].
    pub(super) fn submit(
        &self,
        lane: Lane,
        key: Option<Key>,
        cancel: Cancel,
        work: Box<dyn Work>,
    ) -> Result<Place> {
        let line = &self.0.line;
        let number = line.state().push(lane, key, cancel, Some(work))?;
        // A thread that is woken costs the caller some microseconds: only the one that the job is for.
        line.changed[lane as usize].notify_all();
        Ok(Place { line: line.clone(), number })
    }

    /// Cancels what runs, drops what waits, refuses what comes, and waits until nothing runs and the threads have ended;
    /// false if `timeout` (`None`: none) ended first. Must not be called by what runs.
    pub(super) fn shut_down(&self, timeout: Option<Duration>) -> bool {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let line = &self.0.line;
        let mut state = line.state();
        state.shut_down = true;
        state.running.iter().for_each(|running| running.cancel.cancel());
        let dropped = std::mem::take(&mut state.waiting);
        drop(state);
        line.tell_all();
        // Outside of the lock: it ends jobs and may drop models.
        drop(dropped);

        let mut state = line.state();
        while !(state.running.is_empty() && state.threads == 0) {
            state = match deadline {
                None => line.wait(Lane::Caller, state),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    let wait = line.changed[Lane::Caller as usize].wait_timeout(state, left);
                    wait.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        drop(state);
        let mut handles = lock(&self.0.handles);
        for handle in handles.drain(..) {
            // A thread that panicked has ended, too.
            let _ = handle.join();
        }
        true
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.line.state().closed = true;
        self.line.tell_all();
    }
}

impl Line {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn tell_all(&self) {
        self.changed.iter().for_each(Condvar::notify_all);
    }

    fn wait<'a>(&self, lane: Lane, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed[lane as usize].wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// What a thread does: the jobs of its lane, one after the other.
    fn serve(self: Arc<Self>, lane: Lane) {
        loop {
            let mut state = self.state();
            let (work, turn) = loop {
                if let Some(Waiting { entry: Running { number, cancel, .. }, work, .. }) = state.next_of(lane)
                {
                    break (work, Turn { line: self.clone(), number, cancel });
                }
                if state.closed || state.shut_down {
                    state.threads -= 1;
                    self.tell_all();
                    return;
                }
                state = self.wait(lane, state);
            };
            drop(state);
            if let Some(work) = work {
                work.run(turn);
            }
        }
    }
}

impl State {
    fn push(
        &mut self,
        lane: Lane,
        key: Option<Key>,
        cancel: Cancel,
        work: Option<Box<dyn Work>>,
    ) -> Result<u64> {
        if self.shut_down {
            return Err(Error::ShuttingDown);
        }
        let number = self.next;
        self.next += 1;
        self.waiting.push_back(Waiting { entry: Running { number, key, cancel }, lane, work });
        Ok(number)
    }

    /// Nobody uses, or has waited longer for, what `waiting[index]` uses.
    fn may_run(&self, index: usize) -> bool {
        let Some(key) = self.waiting[index].entry.key else { return true };
        let earlier = self.waiting.iter().take(index).map(|waiting| &waiting.entry);
        !self.running.iter().chain(earlier).any(|other| other.key == Some(key))
    }

    /// Moves `waiting[index]` to those that run.
    fn start(&mut self, index: usize) -> Option<Waiting> {
        let waiting = self.waiting.remove(index)?;
        let Running { number, key, ref cancel } = waiting.entry;
        self.running.push(Running { number, key, cancel: cancel.clone() });
        Some(waiting)
    }

    fn next_of(&mut self, lane: Lane) -> Option<Waiting> {
        let ready = |&index: &usize| self.waiting[index].lane == lane && self.may_run(index);
        let index = (0..self.waiting.len()).find(ready)?;
        self.start(index)
    }
}

impl Turn {
    /// Set when whoever has the turn should stop.
    pub(super) fn cancel(&self) -> &Cancel {
        &self.cancel
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.line.state().running.retain(|running| running.number != self.number);
        self.line.tell_all();
    }
}

impl Place {
    /// Takes the job out of the line, unless it runs or ran already.
    pub(super) fn leave(&self) {
        let mut state = self.line.state();
        let index = state.waiting.iter().position(|waiting| waiting.entry.number == self.number);
        let waiting = index.and_then(|index| state.waiting.remove(index));
        drop(state);
        if waiting.is_some() {
            // Others may have waited for it. Its model may be dropped with it: outside of the lock.
            self.line.tell_all();
        }
    }
}

#[cfg(test)]
impl Scheduler {
    /// How many calls and jobs wait for their turn.
    pub(super) fn waiting(&self) -> usize {
        self.0.line.state().waiting.len()
    }

    /// How many of the threads have not ended, even when the last handle is gone.
    pub(super) fn threads(&self) -> impl Fn() -> usize + use<> {
        let line = self.0.line.clone();
        move || line.state().threads
    }
}

/// No code that can panic runs under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
