//! The C API: its header, its libraries, its functions called with everything that C can pass, and
//! C programs that use it.
//!
//! Needs a C compiler ($CC or cc) and binutils, which Rust needs to link anyway. The tests that need
//! more than that are ignored by default and run by .ci/run.

#![allow(unsafe_code, reason = "the functions under test are C functions")]
#![allow(clippy::unwrap_used, clippy::undocumented_unsafe_blocks, reason = "tests")]

mod abi;
mod arguments;
#[path = "../shared/commands.rs"]
mod commands;
mod contexts;
mod header;
mod install;
mod jobs;
mod library;
mod loras;
mod memory;
mod models;
mod pictures;
mod programs;
mod readme;
mod sources;
mod structs;
mod support;
