//! The CPU device.

mod plain;

pub use plain::{Conv, Cpu, Input, Linear, Tensor};

#[cfg(test)]
mod tests;
