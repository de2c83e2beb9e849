//! The C API, `include/svdq.h`: checks and conversions only, no logic lives here.
//!
//! The header is generated from these modules, whose doc comments therefore speak to C programmers.
//! `SVDQ_BLESS=1 cargo test --release --test c_api header` writes it anew after a change.
//! So are the raw bindings for C#: `SVDQ_BLESS=1 cargo test --release --test bindings unity`.
//!
//! Every function takes its arguments apart with the helpers of `boundary`, calls the engine and
//! puts the outcome back; a panic becomes `SVDQ_ERR_INTERNAL`.

#![allow(non_camel_case_types, reason = "the types carry the names that they have in C")]
#![allow(unsafe_code, reason = "arguments come from C")]
#![allow(clippy::missing_safety_doc, reason = "the rules for callers are those of the header's first page")]

mod boundary;
mod context;
mod device;
mod generate;
mod image;
mod job;
mod lora;
mod model;
mod prompt;
mod result;
mod source;
mod version;

pub use context::*;
pub use device::*;
pub use generate::*;
pub use image::*;
pub use job::*;
pub use lora::*;
pub use model::*;
pub use prompt::*;
pub use result::*;
pub use source::*;
pub use version::*;

#[cfg(test)]
mod tests;
