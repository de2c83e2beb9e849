//! Staying close to the GPU: whoever asks it for step after step waits until the one before the last is done.

#![allow(unsafe_code, reason = "calls the driver")]

use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError};

use super::api::CUevent;
use super::driver::Context;
use crate::Result;

/// The end of what was asked for before the last call of [`Pace::keep`].
#[derive(Default)]
pub(super) struct Pace {
    last: Mutex<Option<Moment>>,
}

/// A moment in a context's stream.
struct Moment {
    context: Arc<Context>,
    event: CUevent,
}

// SAFETY: events are the driver's objects, which may be used from any thread.
unsafe impl Send for Moment {}

/// CU_EVENT_BLOCKING_SYNC: who waits sleeps. CU_EVENT_DISABLE_TIMING.
const FLAGS: u32 = 1 | 2;

impl Pace {
    /// Notes where the stream is, and waits until it has come past the last such note.
    pub(super) fn keep(&self, context: &Arc<Context>) -> Result<()> {
        if context.is_idle() {
            return Ok(());
        }
        let _current = context.enter()?;
        let mut event = null_mut();
        // SAFETY: `event` lives; `Moment` destroys it.
        context.check("cuEventCreate", unsafe { context.api.cuEventCreate(&mut event, FLAGS) })?;
        let now = Moment { context: context.clone(), event };
        // SAFETY: both are ours.
        context.check("cuEventRecord", unsafe { context.api.cuEventRecord(event, context.stream()) })?;
        let before = self.last.lock().unwrap_or_else(PoisonError::into_inner).replace(now);
        let Some(before) = before else { return Ok(()) };
        // SAFETY: the event was recorded.
        context.check("cuEventSynchronize", unsafe { context.api.cuEventSynchronize(before.event) })
    }
}

impl Drop for Moment {
    fn drop(&mut self) {
        // Also of a GPU that was lost.
        let _current = self.context.enter();
        // SAFETY: the event is ours, and nobody uses it any more.
        let _ = unsafe { self.context.api.cuEventDestroy_v2(self.event) };
    }
}
