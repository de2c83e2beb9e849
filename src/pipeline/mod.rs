//! From a prompt to pixels: tokens, noise, sigmas and the FLUX recipe.

pub mod flux;
mod latents;
pub mod noise;
pub mod sampler;
pub mod tokenizer;
