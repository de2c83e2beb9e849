//! What a program does with a context beside making a picture: jobs, cancelling, pictures from pictures, memory that comes
//! and goes.

use std::ops::ControlFlow;
use std::thread::sleep;
use std::time::{Duration, Instant};

use svdq::device::cuda::{Gpu, Priority};
use svdq::engine::{
    Context, ContextOptions, DeviceSelect, GenerateParams, ImageMut, ImageRef, Job, JobState, Model,
    ModelOptions, PixelFormat, Prompt, RandomSizes,
};
use svdq::weights::flux::FluxConfig;
use svdq::{Error, Result};

use crate::model::psnr;
use crate::support::Devices;

const SIDE: u32 = 128;
const SMALL: GenerateParams<'_> = GenerateParams {
    prompt: "a flat icon of a sailboat",
    encoded: None,
    width: SIDE,
    height: SIDE,
    steps: 8,
    guidance: 0.0,
    seed: 11,
    loras: &[],
    init: None,
    init_strength: 0.0,
    preview_every: 0,
};

fn context(gpu: Option<&Gpu>) -> Context {
    match gpu {
        Some(gpu) => Context::on(gpu.clone()).unwrap(),
        None => Context::new(ContextOptions { device: DeviceSelect::Cpu, ..Default::default() }).unwrap(),
    }
}

/// With an account of memory of its own.
fn alone(devices: &Devices) -> Context {
    let device = DeviceSelect::Cuda(devices.gpu.info().index);
    Context::new(ContextOptions { device, ..Default::default() }).unwrap()
}

fn load(context: &Context, devices: &Devices) -> Model {
    let sources = vec!["assets/demo".into()];
    let profile = Some(devices.profile);
    Model::load(context, &ModelOptions { sources, profile, image_input: true }).unwrap()
}

fn generate(model: &Model, params: &GenerateParams<'_>) -> Result<Vec<u8>> {
    picture(params.width, params.height, |image| {
        model.generate(params, image, &mut |_| ControlFlow::Continue(())).map(drop)
    })
}

fn picture(width: u32, height: u32, write: impl FnOnce(&mut ImageMut<'_>) -> Result<()>) -> Result<Vec<u8>> {
    let mut pixels = vec![0; (width * height * 3) as usize];
    write(&mut ImageMut::new(&mut pixels, PixelFormat::Rgb8, width, height, 0, false)?)?;
    Ok(pixels)
}

/// A job, an encoded prompt and previews make the same picture; previews are those of the CPU.
pub(crate) fn jobs(devices: &Devices) {
    let previews = [Some(&devices.gpu), None].map(|gpu| {
        let model = load(&context(gpu), devices);
        let want = generate(&model, &SMALL).unwrap();
        let prompt = Prompt::encode(&model, SMALL.prompt, &[]).unwrap();
        let encoded = GenerateParams { encoded: Some(&prompt), prompt: "", ..SMALL };
        assert!(generate(&model, &encoded).unwrap() == want, "the prompt encoded before");
        let job = model.submit(&GenerateParams { preview_every: 2, ..SMALL }).unwrap();
        assert!(job.wait(None));
        job.result().unwrap();
        assert!(picture(SIDE, SIDE, |image| job.read_image(image)).unwrap() == want, "the job's picture");
        let status = job.status();
        assert_eq!((status.previews, status.step), (4, 8));
        let [width, height] = status.preview_size;
        picture(width, height, |image| job.read_preview(image)).unwrap()
    });
    let psnr = psnr(&previews[0], &previews[1]);
    println!("     the last preview, GPU against CPU: {psnr:.1} dB");
    // The same latents but for bf16, and a map that is fitted on either device: the same preview.
    assert!(psnr >= 30.0);
}

/// A picture made from another is the CPU's.
pub(crate) fn pictures_from_pictures(devices: &Devices) {
    let init: Vec<u8> =
        (0..SIDE * SIDE * 3).map(|i| (i / 3 % SIDE + i / 3 / SIDE * (i % 3) / 2) as u8).collect();
    let init = ImageRef::new(&init, PixelFormat::Rgb8, SIDE, SIDE, 0, false).unwrap();
    let params = GenerateParams { init: Some(init), init_strength: 0.5, ..SMALL };
    let made = [Some(&devices.gpu), None].map(|gpu| {
        let model = load(&context(gpu), devices);
        let first = generate(&model, &params).unwrap();
        assert!(generate(&model, &params).unwrap() == first, "the second one differs");
        first
    });
    let psnr = psnr(&made[0], &made[1]);
    println!("     GPU against CPU: {psnr:.1} dB");
    // Four steps, in 16 bits of activations.
    assert!(psnr >= 40.0);
}

/// A budget that shrinks and grows while the model is there.
pub(crate) fn budgets_at_run_time(devices: &Devices) {
    let context = alone(devices);
    let memory = || context.memory().unwrap().gpu.unwrap();
    let before = memory().used;
    let model = load(&context, devices);
    let weights = memory().used;
    let want = generate(&model, &SMALL).unwrap();
    let whole = memory().used;
    assert!(before < weights && weights < whole);
    for (budget, enough) in [(whole, true), ((weights + whole) / 2, false), (whole, true), (0, true)] {
        context.set_memory_budget(budget).unwrap();
        assert!(budget == 0 || memory().used <= budget, "at once");
        match generate(&model, &SMALL) {
            Ok(made) => assert!(enough && made == want, "{budget}"),
            Err(Error::MemoryBudget { need, budget: asked, .. }) => {
                assert!(!enough && need > budget && asked == budget);
            }
            Err(error) => panic!("{budget}: {error}"),
        }
    }
    assert!(matches!(context.set_memory_budget(weights / 2), Err(Error::MemoryBudget { .. })));
    assert!(generate(&model, &SMALL).unwrap() == want, "a budget that was refused");
    drop(model);
    assert_eq!(memory().used, before);
}

/// Loaded and dropped 50 times, a model leaves nothing, by our count and the driver's.
pub(crate) fn loads(devices: &Devices) {
    let context = alone(devices);
    let memory = || {
        let memory = context.memory().unwrap();
        let gpu = memory.gpu.unwrap();
        (gpu.used, memory.host_used, gpu.free)
    };
    let before = memory();
    let mut after = Vec::new();
    for time in 0..50 {
        let model = load(&context, devices);
        if time % 10 == 0 {
            generate(&model, &SMALL).unwrap();
        }
        drop(model);
        after.push(memory());
    }
    assert!(after.iter().all(|after| (after.0, after.1) == (before.0, before.1)), "{before:?}: {after:?}");
    // The first picture may take what the driver keeps for itself.
    let free: Vec<u64> = after.iter().map(|after| after.2).collect();
    assert!(free.iter().all(|&free_then| free_then >= free[0]), "{free:?}");
}

/// Eight threads submit and cancel on one model, which makes the same picture afterwards.
pub(crate) fn cancel_storm(devices: &Devices) {
    let model = load(&context(Some(&devices.gpu)), devices);
    let want = generate(&model, &SMALL).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let (model, want) = (&model, &want);
            scope.spawn(move || {
                for time in 0..12 {
                    let job = model.submit(&SMALL).unwrap();
                    sleep(Duration::from_micros(700 * ((thread * 5 + time * 3) % 11)));
                    job.cancel();
                    assert!(job.wait(None));
                    match job.status().state {
                        JobState::Cancelled => assert!(job.result().is_err()),
                        JobState::Done => {
                            assert!(picture(SIDE, SIDE, |image| job.read_image(image)).unwrap() == *want);
                        }
                        state => panic!("{state:?}: {:?}", job.result()),
                    }
                }
            });
        }
    });
    assert!(generate(&model, &SMALL).unwrap() == want);
}

/// At full size a job ends within a step of being cancelled, and a context that is shut down ends it too. How long it
/// takes to open the device is printed beside it.
pub(crate) fn full_size(gpu: &Gpu) {
    let opened = [(); 5].map(|()| {
        let start = Instant::now();
        drop(Gpu::open(gpu.info().index, Priority::Low).unwrap());
        start.elapsed()
    });
    println!("     to open the GPU again: {opened:.1?}");
    let context = context(Some(gpu));
    let model = Model::random(&context, &RandomSizes::flux_1(FluxConfig::FLUX_1_DEV), None).unwrap();
    let params = GenerateParams { width: 1024, height: 1024, steps: 6, ..SMALL };
    let begun = |job: &Job, step: u32| {
        while job.status().step < step {
            assert!(!job.wait(Some(Duration::from_micros(200))), "{:?}", job.result());
        }
    };
    let job = model.submit(&params).unwrap();
    assert!(job.wait(None));
    let want = picture(1024, 1024, |image| job.read_image(image)).unwrap();
    let step = job.status().denoise / 6;
    let mut took = Vec::new();
    for time in 0..12 {
        let job = model.submit(&GenerateParams { steps: 20, ..params.clone() }).unwrap();
        begun(&job, 1 + time % 3);
        sleep(step * time / 12);
        let (before, start) = (job.status().step, Instant::now());
        job.cancel();
        assert!(job.wait(None));
        took.push(start.elapsed());
        let status = job.status();
        assert_eq!(status.state, JobState::Cancelled);
        assert!(status.step <= before + 1, "at step {before}, it ended after {}", status.step);
    }
    println!("     a step takes {step:.1?}; cancelled after {took:.1?}");
    assert!(generate(&model, &params).unwrap() == want, "after cancelling");
    let job = model.submit(&GenerateParams { steps: 20, ..params }).unwrap();
    begun(&job, 2);
    let start = Instant::now();
    assert!(context.shut_down(None));
    println!("     shut down after {:.1?}", start.elapsed());
    assert_eq!(job.status().state, JobState::Cancelled);
    assert!(matches!(model.submit(&SMALL), Err(Error::ShuttingDown)));
}
