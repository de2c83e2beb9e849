//! A load that goes on: whether it is to stop, how far it is, and where its memory comes from.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::memory::HostMemory;
use crate::{Cancel, Result};

/// What a load asks before every tensor, and tells after it. Clones are the same load; one thread loads, any may ask how
/// far it is.
#[derive(Clone, Debug, Default)]
pub struct Loading(Arc<State>);

#[derive(Debug, Default)]
struct State {
    cancel: Cancel,
    memory: HostMemory,
    /// Tensors are fetched to be put on the device, and not only to count what memory that takes.
    in_earnest: AtomicBool,
    /// Bytes of tensors: those that have to be read count once when they are, and all count once when they are fetched to
    /// be put on the device.
    done: AtomicU64,
    total: AtomicU64,
}

impl Loading {
    /// A load that ends with [`crate::Error::Cancelled`] at the next tensor once `cancel` asks for it. What it has to read
    /// it puts into `memory`, until it has ended.
    pub fn new(cancel: Cancel, memory: HostMemory) -> Self {
        Loading(Arc::new(State { cancel, memory, ..State::default() }))
    }

    /// How much of the load is done, 0 to 1. It does not shrink.
    pub fn fraction(&self) -> f32 {
        let [done, total] = [&self.0.done, &self.0.total].map(|bytes| bytes.load(Ordering::Relaxed));
        if total == 0 { 0.0 } else { (done as f64 / total as f64).min(1.0) as f32 }
    }

    pub(super) fn memory(&self) -> &HostMemory {
        &self.0.memory
    }

    /// # Errors
    /// [`crate::Error::Cancelled`] once the load is to stop.
    pub(crate) fn check(&self) -> Result<()> {
        self.0.cancel.check()
    }

    /// From now on tensors are fetched to be put on the device.
    pub(crate) fn begin(&self) {
        self.0.in_earnest.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_begun(&self) -> bool {
        self.0.in_earnest.load(Ordering::Relaxed)
    }

    /// So many bytes more have to be done.
    pub(super) fn expect(&self, bytes: u64) {
        self.0.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many bytes more are done.
    pub(super) fn advance(&self, bytes: u64) {
        self.0.done.fetch_add(bytes, Ordering::Relaxed);
    }
}
