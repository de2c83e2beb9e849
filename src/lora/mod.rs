//! LoRAs: low-rank updates of a network's linears, attached for a run and never merged into the weights.

mod sites;

pub use sites::{Attached, Linear, Patch, Run, Sites, Target, Vector};
