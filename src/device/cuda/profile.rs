//! What each kernel takes: an event after every launch.

#![allow(unsafe_code, reason = "calls the driver")]

use std::ffi::CStr;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::api::CUevent;
use super::driver::Context;
use crate::Result;
use crate::ops::{KernelTime, Work};

/// What a launch does.
#[derive(Clone, Copy)]
pub(super) struct Task {
    pub(super) name: &'static CStr,
    pub(super) sizes: [usize; 3],
    pub(super) work: Work,
}

impl Task {
    /// Something that moves bytes.
    pub(super) fn bytes(name: &'static CStr, bytes: usize) -> Self {
        Task { name, sizes: [bytes, 0, 0], work: Work::Bytes(bytes as f64) }
    }
}

/// The launches since a profile was begun, if one is being made.
#[derive(Default)]
pub(super) struct Profiler {
    on: AtomicBool,
    marks: Mutex<Vec<Mark>>,
}

/// A moment in the stream, and what ends with it; the first ends nothing.
struct Mark {
    task: Option<Task>,
    event: CUevent,
}

impl Context {
    /// Whether launches are being timed.
    pub(super) fn is_profiled(&self) -> bool {
        self.profiler.on.load(Ordering::Relaxed)
    }

    /// Notes that `task` was asked of the GPU, if launches are being timed.
    pub(super) fn mark(&self, task: Option<Task>) -> Result<()> {
        if !self.is_profiled() {
            return Ok(());
        }
        let _current = self.enter()?;
        let mut event = null_mut();
        // SAFETY: `event` lives; `times` destroys it.
        unsafe {
            self.check("cuEventCreate", self.api.cuEventCreate(&mut event, 0))?;
            self.marks().push(Mark { task, event });
            self.check("cuEventRecord", self.api.cuEventRecord(event, self.stream()))
        }
    }

    /// Times what `work` launches. One thread does this at a time, and other threads' launches count, too.
    pub(super) fn profile(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Vec<KernelTime>> {
        self.profiler.on.store(true, Ordering::Relaxed);
        let done = self.mark(None).and_then(|()| work()).and_then(|()| self.synchronize());
        self.profiler.on.store(false, Ordering::Relaxed);
        let marks = std::mem::take(&mut *self.marks());
        let times = done.and_then(|()| self.times(&marks));
        let _current = self.enter()?;
        for mark in marks {
            // SAFETY: the event is ours, and nobody uses it any more.
            let _ = unsafe { self.api.cuEventDestroy_v2(mark.event) };
        }
        times
    }

    fn marks(&self) -> MutexGuard<'_, Vec<Mark>> {
        self.profiler.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kernel by kernel, in the order in which they first ran.
    fn times(&self, marks: &[Mark]) -> Result<Vec<KernelTime>> {
        let _current = self.enter()?;
        let mut times: Vec<KernelTime> = Vec::new();
        for pair in marks.windows(2) {
            let Some(task) = pair[1].task else { continue };
            let mut milliseconds = 0.0;
            // SAFETY: both events were recorded, and their work is done.
            let code =
                unsafe { self.api.cuEventElapsedTime(&mut milliseconds, pair[0].event, pair[1].event) };
            self.check("cuEventElapsedTime", code)?;
            let (name, sizes) = (task.name.to_string_lossy().into_owned(), task.sizes);
            let time = Duration::from_secs_f32(milliseconds.max(0.0) / 1e3);
            match times.iter_mut().find(|known| known.name == name && known.sizes == sizes) {
                Some(known) => {
                    known.launches += 1;
                    known.time += time;
                }
                None => times.push(KernelTime { name, sizes, launches: 1, time, work: task.work }),
            }
        }
        Ok(times)
    }
}
