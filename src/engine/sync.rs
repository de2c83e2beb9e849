//! What the scheduler waits with. tests/scheduler.rs puts loom's in its place, which tries every order of events.

pub(super) use std::sync::{Condvar, Mutex, MutexGuard};
pub(super) use std::thread::JoinHandle;

pub(super) use crate::threads;
