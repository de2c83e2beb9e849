//! What the fuzz targets do with an input. `tests/fuzz.rs` of the library gives them their seeds.

pub mod api;
pub mod checkpoint;
pub mod flux;
pub mod lora;
pub mod names;
mod tensors;
