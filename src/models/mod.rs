//! The networks, each written once against [`crate::ops::Device`].

pub mod clip;
pub mod flux;
pub mod t5;
pub mod vae;
