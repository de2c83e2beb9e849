//! Checkpoints: safetensors files and folders, their configs, and Nunchaku's packing.

pub mod pack;
