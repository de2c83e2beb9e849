//! What an operation is given to work with.

#![allow(unsafe_code, reason = "threads have parts of one buffer")]

use std::fmt::Display;

use super::pool::{Disjoint, Pool};
use super::simd::Level;
use crate::memory::{Buf, HostMemory, Plain};
use crate::{Cancel, Result};

/// Threads, memory, and whether to go on.
pub(super) struct On<'a> {
    pub(super) level: Level,
    pub(super) pool: &'a Pool,
    /// Of results and temporaries; hollow on an idle device.
    pub(super) memory: &'a HostMemory,
    pub(super) cancel: Cancel,
    /// Nothing is computed: an operation takes the memory that it needs, of which it is given none, and is done.
    pub(super) is_idle: bool,
}

impl On<'_> {
    /// `len` zeros.
    pub(super) fn zeros<T: Plain>(&self, len: usize, what: impl Display) -> Result<Buf<T>> {
        Buf::zeroed(self.memory, len, what)
    }

    /// A copy of `data`.
    pub(super) fn copy<T: Plain>(&self, data: &[T], what: impl Display) -> Result<Buf<T>> {
        Buf::copy_of(self.memory, data, what)
    }

    /// Calls `task(0)` to `task(tasks - 1)`, each once, on any thread in any order.
    ///
    /// # Errors
    /// [`crate::Error::Cancelled`]: tasks are left out.
    pub(super) fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) -> Result<()> {
        self.run_in_threads(tasks, |_, i| task(i))
    }

    /// As [`Self::run`], where a task has `len` values of its own, which may be anything at first.
    ///
    /// # Errors
    /// As [`Self::run`], and [`crate::Error::OutOfHostMemory`].
    pub(super) fn run_with<T: Plain>(
        &self,
        tasks: usize,
        len: usize,
        task: impl Fn(usize, &mut [T]) + Sync,
    ) -> Result<()> {
        let threads = if tasks > 1 { self.pool.threads() } else { 1 };
        let mut values = self.zeros(threads.saturating_mul(len), "what threads compute with")?;
        let values = Disjoint::new(&mut values);
        self.run_in_threads(tasks, |thread, i| {
            // SAFETY: a thread does one task at a time.
            task(i, unsafe { values.slice(thread * len..(thread + 1) * len) });
        })
    }

    /// Calls `task(i, chunk)` for the `i`-th `len` elements of `data`.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(super) fn chunks<T: Send>(
        &self,
        data: &mut [T],
        len: usize,
        task: impl Fn(usize, &mut [T]) + Sync,
    ) -> Result<()> {
        let total = data.len();
        let data = Disjoint::new(data);
        self.run(total.div_ceil(len), |i| {
            // SAFETY: every task has its own chunk.
            task(i, unsafe { data.slice(i * len..total.min((i + 1) * len)) });
        })
    }

    fn run_in_threads(&self, tasks: usize, task: impl Fn(usize, usize) + Sync) -> Result<()> {
        if self.is_idle {
            return Ok(());
        }
        self.cancel.check()?;
        self.pool.run(tasks, |thread, i| {
            if self.cancel.check().is_ok() {
                task(thread, i);
            }
        });
        self.cancel.check()
    }
}
