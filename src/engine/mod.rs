//! Contexts, models and LoRAs: what a program holds.
//!
//! A [`Context`] owns the device; a [`Model`] owns weights on it and keeps the context alive; a [`Lora`] belongs to a
//! model and keeps it alive. All are handles: cloning one is cheap, and they may be used and dropped on any thread in any order.

mod context;
mod device;
mod image;
mod job;
mod log;
mod lora;
mod model;
mod opened;
mod picture;
mod prompt;
mod report;
mod scheduler;
mod sync;

pub use crate::device::cuda::{DeviceInfo, GpuMemory, Priority, device, devices, profiles};
pub use crate::ops::{KernelTime, Work};
pub use crate::pipeline::flux::{Progress, StepTimes, Timings};
pub use crate::weights::{RandomSizes, ReadAt, Source};
pub use context::{Context, ContextOptions, DeviceSelect, MemoryInfo};
pub use image::{ImageMut, ImageRef, PixelFormat};
pub use job::{Job, JobPhase, JobState, JobStatus};
pub use log::{Level, Log, LogFn};
pub use lora::{Lora, LoraInfo};
pub use model::{Model, ModelInfo, ModelOptions};
pub use picture::{GenerateCost, GenerateParams};
pub use prompt::Prompt;

#[cfg(test)]
mod tests;
