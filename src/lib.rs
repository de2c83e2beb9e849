//! libsvdq: FLUX image generation from 4-bit SVDQuant checkpoints, in-process and without Python.
//!
//! C and C++ programs use `include/svdq.h`; Rust programs use [`engine`]. The layers, from the
//! outside in: [`capi`] checks and converts, [`engine`] owns contexts and models, [`pipeline`] turns
//! a prompt into pixels, [`models`] are the networks written once against [`ops`], and [`device`]
//! implements those operations. [`lora`] changes a model without touching its weights. [`weights`] reads checkpoints and [`quantize`] writes them.

mod cancel;
pub mod capi;
pub mod device;
pub mod engine;
mod error;
pub mod lora;
pub mod memory;
pub mod models;
pub mod ops;
pub mod pipeline;
pub mod quantize;
mod threads;
pub mod weights;

pub use cancel::Cancel;
pub use error::{Error, Result};
