//! The devices that implement [`crate::ops::Device`].

pub mod cpu;
