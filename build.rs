//! How the shared library is linked.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        // Programs ask the loader for the ABI that they were built with.
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libsvdq.so.0");
        // Rust's thread-local destructors run in code of the library: dlclose must not unmap it.
        println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}
