//! The whole pipeline through the Rust API, against diffusers' pictures (`tests/golden/make_pipeline.py`).

#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use safetensors::SafeTensors;
use svdq::Error;
use svdq::engine::{
    Context, ContextOptions, GenerateParams, ImageMut, ImageRef, JobState, Model, ModelOptions, PixelFormat,
    Progress, Source,
};
use svdq::ops::Profile;

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo")
}

/// The demo model, with `options.sources` in place of its own parts.
fn load(mut options: ModelOptions) -> Model {
    options.sources.push(demo().into());
    let context = Context::new(ContextOptions::default()).unwrap();
    Model::load(&context, &options).unwrap()
}

fn dense() -> ModelOptions {
    ModelOptions { sources: vec![demo().join("transformer").into()], ..Default::default() }
}

fn generate(model: &Model, params: &GenerateParams<'_>) -> Vec<u8> {
    let mut pixels = vec![0; 128 * 128 * 3];
    let mut image = ImageMut::new(&mut pixels, PixelFormat::Rgb8, 128, 128, 0, false).unwrap();
    model.generate(params, &mut image, &mut |_| ControlFlow::Continue(())).unwrap();
    pixels
}

/// The 16-bit transformer in float32, three prompts: no channel of any pixel is off by more than 2 of 255.
#[test]
fn pictures_equal_diffusers() {
    let bytes =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pipeline.safetensors"))
            .unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let model = load(dense());
    for (seed, prompt) in [
        (1000, "pixel art blue potion"),
        (1001, "a 3d render of a red apple"),
        (1002, "a cartoon icon of a robot, pink background"),
    ] {
        let picture = generate(&model, &GenerateParams { prompt, seed, ..Default::default() });
        let wanted = golden.tensor(&format!("{seed}.image")).unwrap();
        assert_eq!(wanted.data().len(), picture.len());
        let off = picture.iter().zip(wanted.data()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(off <= 2, "{prompt}: off by {off}");
    }
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)).unwrap()
}

/// From the first of the pictures above, in three strengths, as diffusers' `FluxImg2ImgPipeline`: no channel of any pixel is
/// off by more than 2 of 255.
#[test]
fn pictures_from_a_picture_equal_diffusers() {
    let (start, wanted) = (golden("pipeline.safetensors"), golden("image_input.safetensors"));
    let start = SafeTensors::deserialize(&start).unwrap();
    let start = start.tensor("1000.image").unwrap();
    let wanted = SafeTensors::deserialize(&wanted).unwrap();
    let init = Some(ImageRef::new(start.data(), PixelFormat::Rgb8, 128, 128, 0, false).unwrap());
    let model = load(ModelOptions { image_input: true, ..dense() });
    for strength in ["0.3", "0.6", "1.0"] {
        let params = GenerateParams {
            prompt: "a 3d render of a red apple",
            seed: 7,
            steps: 10,
            init,
            init_strength: strength.parse().unwrap(),
            ..Default::default()
        };
        let picture = generate(&model, &params);
        let wanted = wanted.tensor(&format!("{strength}.image")).unwrap();
        let off = picture.iter().zip(wanted.data()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(off <= 2, "{strength}: off by {off}");
        if strength == "0.6" {
            assert!(
                generate(&model, &GenerateParams { init_strength: 0.0, ..params }) == picture,
                "the default"
            );
        }
    }
    let without = load(dense()).resolve(&GenerateParams { init, ..Default::default() });
    assert!(without.is_err_and(|error| error.to_string().contains("without image input")));
}

/// The mean colours of blocks of 8x8 pixels.
fn blocks(picture: &[u8]) -> Vec<u8> {
    let block = |row: usize, column: usize, channel: usize| {
        let pixel = |i: usize| picture[((8 * row + i / 8) * 128 + 8 * column + i % 8) * 3 + channel];
        ((0..64).map(|i| u32::from(pixel(i))).sum::<u32>() as f64 / 64.0).round() as u8
    };
    (0..16 * 16 * 3).map(|i| block(i / 48, i / 3 % 16, i % 3)).collect()
}

/// Previews come closer to the picture with the steps, and do not change it. The bounds are about 2 dB under what was
/// measured; the best linear function for these pictures themselves reaches 24.7 to 28.7 dB.
#[test]
fn previews_look_like_the_picture() {
    let model = load(dense());
    for (seed, prompt, bound) in [
        (1000, "pixel art blue potion", 20.0),
        (1001, "a 3d render of a red apple", 20.0),
        (1002, "a cartoon icon of a robot, pink background", 22.0),
    ] {
        let params = GenerateParams { prompt, seed, ..Default::default() };
        let plain = blocks(&generate(&model, &params));
        let whole = generate(&model, &params);
        let job = model.submit(&GenerateParams { preview_every: 5, ..params }).unwrap();
        let (mut seen, mut close) = (0, vec![]);
        while job.status().state == JobState::Queued || job.status().state == JobState::Running || seen < 4 {
            let status = job.status();
            if status.previews == seen {
                assert_ne!(status.state, JobState::Failed, "{:?}", job.result());
                std::thread::yield_now();
                continue;
            }
            seen = status.previews;
            assert_eq!(status.preview_size, [16, 16]);
            let mut preview = vec![0; 16 * 16 * 3];
            let mut image = ImageMut::new(&mut preview, PixelFormat::Rgb8, 16, 16, 0, false).unwrap();
            job.read_preview(&mut image).unwrap();
            close.push(psnr(&preview, &plain));
        }
        assert!(job.wait(None));
        println!("{prompt}: previews of {close:.1?} dB");
        let last = close.last().copied().unwrap();
        assert!(last > bound && last > close[0], "{prompt}: {close:?} dB");
        let mut pixels = vec![0; 128 * 128 * 3];
        let mut image = ImageMut::new(&mut pixels, PixelFormat::Rgb8, 128, 128, 0, false).unwrap();
        job.read_image(&mut image).unwrap();
        assert!(pixels == whole, "previews have changed the picture");
    }
}

/// Networks as files on their own, CLIP as ComfyUI names it: without their config.json, the picture is the same.
#[test]
fn files_on_their_own_make_the_same_picture() {
    let folder = std::env::temp_dir().join(format!("svdq-files-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let bytes = std::fs::read(demo().join("text_encoder/model.safetensors")).unwrap();
    let clip = SafeTensors::deserialize(&bytes).unwrap();
    let renamed = clip.iter().map(|(name, tensor)| (format!("transformer.{name}"), tensor));
    safetensors::serialize_to_file(renamed, None, &folder.join("clip_l.safetensors")).unwrap();
    std::fs::copy(demo().join("text_encoder_2/model.safetensors"), folder.join("t5xxl.safetensors")).unwrap();
    let transformer = demo().join("svdq-int4_r32-demo.safetensors");

    let params = GenerateParams { prompt: "a red apple", seed: 7, steps: 3, ..Default::default() };
    let files = load(ModelOptions {
        sources: vec![demo().join("vae").into(), folder.clone().into(), transformer.clone().into()],
        ..Default::default()
    });
    assert!(generate(&files, &params) == generate(&load(ModelOptions::default()), &params));

    // FLUX.1's own tokenizers go with files alone; the demo model has others.
    let sources = [transformer, folder.clone(), demo().join("vae")].map(Source::from).to_vec();
    let context = Context::new(ContextOptions::default()).unwrap();
    let error =
        Model::load(&context, &ModelOptions { sources, ..Default::default() }).err().unwrap().to_string();
    assert!(error.contains("clip_l.safetensors: has 3030 tokens, but its tokenizer 49408"), "{error}");
    std::fs::remove_dir_all(folder).unwrap();
}

fn psnr(a: &[u8], b: &[u8]) -> f64 {
    let error: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum();
    10.0 * (255f64.powi(2) * a.len() as f64 / error).log10()
}

/// The 4-bit model that ships stays close to the 16-bit one, and 8-bit activations bring it closer. The bounds are
/// about 3 dB under what was measured.
#[test]
fn the_4_bit_model_is_close_to_the_16_bit_one() {
    let params = GenerateParams { prompt: "pixel art kite shield", seed: 1014, ..Default::default() };
    let reference = generate(&load(dense()), &params);
    let of = |profile| {
        let model = load(ModelOptions { profile: Some(profile), ..Default::default() });
        assert!(model.info().rank == Some(32) && model.profile() == profile);
        psnr(&generate(&model, &params), &reference)
    };
    let (w4a4, w4a8) = (of(Profile::W4A4), of(Profile::W4A8));
    println!("w4a4 {w4a4:.2} dB, w4a8 {w4a8:.2} dB");
    assert!(w4a4 > 22.0 && w4a8 > 25.0 && w4a8 > w4a4, "w4a4 {w4a4:.2} dB, w4a8 {w4a8:.2} dB");
}

/// Progress goes through all phases in order; breaking in any of them cancels, writes nothing, and leaves the model as it was.
#[test]
fn a_run_can_be_cancelled_anywhere() {
    let model = load(ModelOptions::default());
    let params = GenerateParams { prompt: "pixel art key", steps: 3, ..Default::default() };
    let mut seen = Vec::new();
    let mut pixels = vec![0; 128 * 128 * 3];
    let mut image = ImageMut::new(&mut pixels, PixelFormat::Rgb8, 128, 128, 0, false).unwrap();
    model
        .generate(&params, &mut image, &mut |at| {
            seen.push(at);
            ControlFlow::Continue(())
        })
        .unwrap();
    let step = |step| Progress::Denoise { step, steps: 3 };
    assert_eq!(seen, [Progress::Encode, step(0), step(1), step(2), Progress::Decode]);

    for stop in seen {
        let mut untouched = vec![0xAA; 128 * 128 * 3];
        let mut image = ImageMut::new(&mut untouched, PixelFormat::Rgb8, 128, 128, 0, false).unwrap();
        let result = model.generate(&params, &mut image, &mut |at| {
            if at == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(result, Err(Error::Cancelled)));
        assert!(untouched.iter().all(|&byte| byte == 0xAA));
    }
    assert_eq!(generate(&model, &params), pixels);
}

/// Several threads on one model take turns, and each gets its own picture.
#[test]
fn threads_share_a_model() {
    let model = load(ModelOptions::default());
    let picture = |model: &Model, seed| {
        generate(model, &GenerateParams { prompt: "pixel art key", steps: 2, seed, ..Default::default() })
    };
    let alone: Vec<_> = (0..3).map(|seed| picture(&model, seed)).collect();
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for (seed, alone) in alone.iter().enumerate() {
            let (model, done) = (model.clone(), &done);
            scope.spawn(move || {
                assert_eq!(&picture(&model, seed as u64), alone);
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
    });
    assert_eq!(done.into_inner(), 3);
}
