//! The networks, each written once against [`crate::ops::Device`].

pub mod clip;
mod embedding;
pub mod flux;
pub mod t5;
#[cfg(test)]
pub(crate) mod testing;
pub mod vae;
