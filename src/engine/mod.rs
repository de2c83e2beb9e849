//! Contexts, models and LoRAs: what a program holds.
//!
//! A [`Context`] owns the device; a [`Model`] owns weights on it and keeps the context alive; a [`Lora`] belongs to a
//! model and keeps it alive. All are handles: cloning one is cheap, and they may be used and dropped on any thread in any order.

mod bench;
mod image;
mod lora;
mod model;

pub use crate::pipeline::flux::{Progress, Timings};
pub use bench::{TransformerTimes, time_transformer};
pub use image::{ImageMut, PixelFormat};
pub use lora::{Lora, LoraInfo};
pub use model::{GenerateParams, Model, ModelInfo, ModelOptions};

use crate::{Error, Result};

/// More threads than this are refused: no machine has them, so the value is a mistake.
const MAX_THREADS: usize = 1024;

/// How to make a [`Context`].
#[derive(Clone, Debug, Default)]
pub struct ContextOptions {
    /// CPU threads to compute with, the caller's own included; 0 means one for each core. Images do not
    /// depend on it.
    pub threads: usize,
}

/// The device on which models run.
#[derive(Clone, Debug)]
pub struct Context {
    threads: usize,
}

impl Context {
    /// Opens the CPU.
    pub fn new(options: ContextOptions) -> Result<Self> {
        let ContextOptions { threads } = options;
        if threads > MAX_THREADS {
            return Err(Error::InvalidArgument(format!(
                "threads is {threads}, at most {MAX_THREADS} are allowed"
            )));
        }
        Ok(Context { threads })
    }
}
