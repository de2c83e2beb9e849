//! The devices that implement [`crate::ops::Device`].

pub mod cpu;
pub mod cuda;
