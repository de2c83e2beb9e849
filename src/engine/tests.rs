//! Models from the files that people have, LoRAs that do not fit them, and models of random weights.

#![allow(clippy::unwrap_used)]

mod files;
mod loading;
mod loras;
mod memory;
mod prompts;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::*;
use crate::weights::flux::FluxConfig;
use crate::weights::names::tests::{Tensors, read};
use crate::{Error, Result};

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo")
}

fn load(sources: &[&Path]) -> Result<Model> {
    load_sources(sources.iter().map(|path| Source::from(*path)).collect())
}

fn load_sources(sources: Vec<Source>) -> Result<Model> {
    let context =
        Context::new(ContextOptions { device: DeviceSelect::Cpu, threads: 2, ..Default::default() })?;
    Model::load(&context, &ModelOptions { sources, ..Default::default() })
}

/// A model as small as the kernels and the tokenizers of FLUX.1 allow.
fn sizes() -> RandomSizes {
    let transformer = FluxConfig {
        num_layers: 1,
        num_single_layers: 1,
        num_attention_heads: 2,
        joint_attention_dim: 64,
        pooled_projection_dim: 64,
        ..FluxConfig::FLUX_1_SCHNELL
    };
    RandomSizes { transformer, rank: 16, t5: [1, 1, 64], clip: 1, vae: vec![32, 32] }
}

const SIDE: u32 = 64;

fn try_picture(model: &Model, loras: &[(Lora, f32)]) -> Result<Vec<u8>> {
    let mut pixels = vec![0; (SIDE * SIDE * 3) as usize];
    let mut image = ImageMut::new(&mut pixels, PixelFormat::Rgb8, SIDE, SIDE, 0, false)?;
    let (prompt, seed, steps) = ("pixel art of a castle, night", 5, 2);
    let params =
        GenerateParams { prompt, seed, steps, width: SIDE, height: SIDE, loras, ..Default::default() };
    model.generate(&params, &mut image, &mut |_| ControlFlow::Continue(()))?;
    Ok(pixels)
}

fn picture(model: &Model, loras: &[(Lora, f32)]) -> Vec<u8> {
    try_picture(model, loras).unwrap()
}

/// The whole path of `svdq bench --random-weights`, in small.
#[test]
fn random_models_make_images_and_are_timed() {
    let context =
        Context::new(ContextOptions { device: DeviceSelect::Cpu, threads: 2, ..Default::default() }).unwrap();
    let model = Model::random(&context, &sizes(), None).unwrap();
    assert_eq!((model.info().rank, model.info().default_steps), (Some(16), 4));

    let params = GenerateParams { prompt: "a", width: 32, height: 16, steps: 2, ..Default::default() };
    let mut pixels = vec![0; 32 * 16 * 3];
    let mut image = ImageMut::new(&mut pixels, PixelFormat::Rgb8, 32, 16, 0, false).unwrap();
    model.generate(&params, &mut image, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(pixels.iter().any(|&value| value != pixels[0]), "an image of one colour");

    let times = model.time_steps(&params).unwrap();
    assert!(times.step > std::time::Duration::ZERO && times.asked <= times.step * 4);
    assert!(times.kernels.is_empty(), "a CPU has no kernels");
    let odd = GenerateParams { width: 31, ..params };
    assert!(matches!(model.time_steps(&odd), Err(Error::InvalidArgument(_))));
}

/// Of four steps, the last one.
#[test]
fn steps_from_an_image_are_timed() {
    let context =
        Context::new(ContextOptions { device: DeviceSelect::Cpu, threads: 2, ..Default::default() }).unwrap();
    let options = ModelOptions { sources: vec![demo().into()], image_input: true, ..Default::default() };
    let model = Model::load(&context, &options).unwrap();
    let pixels = [90; 16 * 16 * 3];
    let init = Some(ImageRef::new(&pixels, PixelFormat::Rgb8, 16, 16, 0, false).unwrap());
    let params =
        GenerateParams { init, init_strength: 0.25, width: 16, height: 16, steps: 4, ..Default::default() };
    model.time_steps(&params).unwrap();
}
