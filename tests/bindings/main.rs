//! The bindings: each compiled as its users compile it, and run with the demo model.
//!
//! They need compilers that Rust does not (c++, clang++, mono), so these tests are ignored by default
//! and run by .ci/run.

#![allow(clippy::unwrap_used, reason = "tests")]

mod cpp;
#[path = "../shared/commands.rs"]
mod support;
mod unity;
mod unreal;
