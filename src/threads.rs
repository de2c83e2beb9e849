//! What the library's threads have in common.

use std::io;
use std::thread::{self, Builder};

use crate::Error;

/// How the names of all of them begin.
const NAME: &str = "svdq";

/// What every thread is started with. The size of the stack is said because the standard library asks the environment for
/// it otherwise.
pub(crate) fn builder(what: &str) -> Builder {
    Builder::new().name(format!("{NAME}{what}")).stack_size(2 << 20)
}

/// Whether this is one of them.
pub(crate) fn is_one() -> bool {
    thread::current().name().is_some_and(|name| name.starts_with(NAME))
}

/// The system gives no more threads.
pub(crate) fn refused(error: io::Error) -> Error {
    Error::Internal(format!("cannot start a thread: {error}"))
}
