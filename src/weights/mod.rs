//! Checkpoints: safetensors files and folders, their configs, and Nunchaku's packing.

mod checkpoint;
mod files;
pub(crate) mod float;
pub mod flux;
mod header;
mod inspect;
mod json;
mod loading;
mod locate;
mod location;
pub(crate) mod names;
mod numbers;
pub mod pack;
mod pipeline;
pub(crate) mod random;
mod source;
#[cfg(test)]
pub(crate) mod testing;

pub use checkpoint::{Checkpoint, Tensor};
pub use files::ModelFiles;
pub use inspect::{Amount, Part, Summary, inspect};
pub use json::{parse_json, read_json, read_text};
pub use loading::Loading;
pub use location::{Location, ReadAt};
pub use names::PartKind;
pub use numbers::{Bytes, Numbers};
pub use pipeline::{Defaults, PipelineFolder};
pub use random::RandomSizes;
pub use safetensors::Dtype;
pub use source::Source;
