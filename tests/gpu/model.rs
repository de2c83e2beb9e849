//! The demo model's images.

use std::ops::ControlFlow;

use svdq::engine::{
    Context, ContextOptions, DeviceSelect, GenerateParams, ImageMut, Model, ModelOptions, PixelFormat,
};

use crate::support::Devices;

fn load(device: DeviceSelect, transformer: Option<&str>) -> Model {
    let context = Context::new(ContextOptions { device, threads: 0 }).unwrap();
    let sources = std::iter::once("assets/demo").chain(transformer).map(Into::into).collect();
    Model::load(&context, &ModelOptions { sources, profile: None }).unwrap()
}

const SIDE: u32 = 128;

fn generate(model: &Model, prompt: &str, steps: u32, seed: u64) -> Vec<u8> {
    let mut pixels = vec![0; (SIDE * SIDE * 3) as usize];
    let mut image = ImageMut::new(&mut pixels, PixelFormat::Rgb8, SIDE, SIDE, 0, false).unwrap();
    let params = GenerateParams { prompt, width: SIDE, height: SIDE, steps, seed, ..Default::default() };
    model.generate(&params, &mut image, &mut |_| ControlFlow::Continue(())).unwrap();
    pixels
}

fn psnr(a: &[u8], b: &[u8]) -> f64 {
    let square: f64 = a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    10.0 * (255.0 * 255.0 * a.len() as f64 / square).log10()
}

const PROMPTS: [&str; 4] =
    ["pixel art blue potion", "pixel art red sword", "pixel art green shield", "pixel art treasure chest"];

/// As on the CPU, in 4 and in 16 bits, and the same bytes again.
///
/// One step differs by the rounding to bf16 alone. Over 20 steps that grows, as any difference does: the CPU itself,
/// made to round its activations to bf16, comes to 35 to 50 dB from its f32 images, depending on the prompt.
pub(crate) fn images(devices: &Devices) {
    for transformer in [None, Some("assets/demo/transformer")] {
        let (cpu, cuda) = (load(DeviceSelect::Cpu, transformer), load(DeviceSelect::Cuda(0), transformer));
        for (steps, worst, mean) in [(1, 44.0, 47.0), (20, 34.0, 40.0)] {
            let mut all = Vec::new();
            for (seed, prompt) in PROMPTS.into_iter().enumerate() {
                let one = |model| generate(model, prompt, steps, seed as u64);
                let (want, got) = (one(&cpu), one(&cuda));
                // Of a single step, the first image asks for every kernel, the second is recorded, the third replayed.
                for which in ["second", "third"] {
                    assert!(one(&cuda) == got, "the {which} image differs");
                }
                all.push(psnr(&want, &got));
                println!("     {prompt}, {steps} steps, {transformer:?}: PSNR {:.1} dB", all[seed]);
            }
            let average = all.iter().sum::<f64>() / all.len() as f64;
            assert!(all.iter().all(|&one| one >= worst) && average >= mean, "PSNR {all:.1?} dB");
        }
    }
    assert!(devices.gpu.free_memory().unwrap() > 0);
}

/// Two models on two threads make what each makes alone.
pub(crate) fn two_threads(_: &Devices) {
    let models =
        [load(DeviceSelect::Cuda(0), None), load(DeviceSelect::Cuda(0), Some("assets/demo/transformer"))];
    let alone = models.each_ref().map(|model| generate(model, PROMPTS[0], 20, 1));
    std::thread::scope(|scope| {
        let running =
            models.each_ref().map(|model| scope.spawn(|| [0; 4].map(|_| generate(model, PROMPTS[0], 20, 1))));
        for (thread, alone) in running.into_iter().zip(&alone) {
            assert!(thread.join().unwrap().iter().all(|image| image == alone));
        }
    });
}
