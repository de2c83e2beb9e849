//! Programs that use the library over the fake driver. A process has one driver, so that each test runs one of them in
//! a process of its own: itself, as the test that is ignored.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::process::Command;

use svdq::Error;
use svdq::engine::{
    Context, ContextOptions, DeviceSelect, GenerateParams, ImageMut, Lora, Model, ModelOptions, PixelFormat,
};

use crate::{FAKE, nothing_left, reported, succeeds};

/// Runs the test `program` over the fake driver, which has to be left clean. Returns what the driver saw.
pub(crate) fn run(program: &str, settings: &[(&str, &str)]) -> HashMap<String, i64> {
    let (output, counts) = reported(program, |report| {
        Command::new(std::env::current_exe().unwrap())
            .args([program, "--exact", "--ignored", "--test-threads=1"])
            .env("LD_LIBRARY_PATH", &*FAKE)
            .envs(settings.iter().copied().chain([report]))
            .output()
            .unwrap()
    });
    succeeds(&output);
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{program} is no test");
    nothing_left(&counts);
    counts
}

fn load(device: DeviceSelect) -> Model {
    load_into(&Context::new(ContextOptions { device, threads: 1, ..Default::default() }).unwrap()).unwrap()
}

pub(crate) fn load_into(context: &Context) -> svdq::Result<Model> {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo");
    Model::load(context, &ModelOptions { sources: vec![demo.into()], ..Default::default() })
}

pub(crate) fn image(model: &Model, side: u32) -> svdq::Result<Vec<u8>> {
    image_with(model, side, &[])
}

fn image_with(model: &Model, side: u32, loras: &[(Lora, f32)]) -> svdq::Result<Vec<u8>> {
    let mut pixels = vec![0; (side * side * 3) as usize];
    let mut image = ImageMut::new(&mut pixels, PixelFormat::Rgb8, side, side, 0, false)?;
    let prompt = "red potion";
    let params = GenerateParams { prompt, width: side, height: side, steps: 2, loras, ..Default::default() };
    let mut asked = 0;
    let result = model.generate(&params, &mut image, &mut |_| {
        asked += 1;
        ControlFlow::Continue(())
    });
    assert!(
        result.is_ok() || asked == 0 || matches!(result, Err(Error::DeviceLost(_))),
        "it had begun to run"
    );
    result.map(|_| pixels)
}

#[test]
#[cfg_attr(not(svdq_kernels), ignore = "this build has no GPU kernels")]
fn images_that_do_not_fit() {
    run("inside::too_large", &[("FAKE_MEMORY", "40000000")]);
}

#[test]
#[ignore = "run by images_that_do_not_fit"]
fn too_large() {
    let model = load(DeviceSelect::Cuda(0));
    let first = image(&model, 32).unwrap();
    for side in [1024, 2048] {
        match image(&model, side) {
            Err(Error::OutOfDeviceMemory { need, free, .. }) => assert!(need > free && free < 40_000_000),
            other => panic!("{side}: {other:?}"),
        }
        assert_eq!(image(&model, 32).unwrap(), first);
    }
}

#[test]
#[cfg_attr(not(svdq_kernels), ignore = "this build has no GPU kernels")]
fn a_lost_gpu_is_the_only_one() {
    run("inside::lost", &[("FAKE_DEVICES", "2"), ("FAKE_LOST_AT", "400")]);
}

#[test]
#[ignore = "run by a_lost_gpu_is_the_only_one"]
fn lost() {
    let [first, second] = [0, 1].map(|index| load(DeviceSelect::Cuda(index)));
    while image(&first, 32).is_ok() {}
    for _ in 0..3 {
        assert!(matches!(image(&first, 32), Err(Error::DeviceLost(_))));
        image(&second, 32).unwrap();
    }
}

#[test]
#[cfg_attr(not(svdq_kernels), ignore = "this build has no GPU kernels")]
fn loras_come_and_go() {
    run("inside::loras", &[]);
}

#[test]
#[ignore = "run by loras_come_and_go"]
fn loras() {
    let context =
        Context::new(ContextOptions { device: DeviceSelect::Cuda(0), threads: 1, ..Default::default() })
            .unwrap();
    let model = load_into(&context).unwrap();
    let green = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo/lora/pocket-green.safetensors");
    let mut taken = Vec::new();
    image(&model, 32).unwrap();
    for _ in 0..4 {
        taken.push(context.memory().unwrap().gpu.unwrap().used);
        let [one, other] = [(); 2].map(|()| Lora::load(&model, green).unwrap());
        for loras in [&[(one.clone(), 0.5)][..], &[(one.clone(), 1.0), (other, 0.5)], &[]] {
            image_with(&model, 32, loras).unwrap();
        }
    }
    // The first ones take memory, which those after them use again.
    assert!(taken[0] < taken[1] && taken[1] == taken[2] && taken[2] == taken[3], "{taken:?}");
}

#[test]
#[cfg_attr(not(svdq_kernels), ignore = "this build has no GPU kernels")]
fn contexts_on_threads() {
    run("inside::threads", &[("FAKE_DEVICES", "2")]);
}

#[test]
#[ignore = "run by contexts_on_threads"]
fn threads() {
    std::thread::scope(|scope| {
        for index in [0, 1, 0, 1] {
            scope.spawn(move || {
                let model = load(DeviceSelect::Cuda(index));
                for side in [32, 64, 32] {
                    image(&model, side).unwrap();
                }
            });
        }
    });
}

#[test]
#[cfg_attr(not(svdq_kernels), ignore = "this build has no GPU kernels")]
fn models_fit_into_budgets() {
    run("inside::budgets", &[]);
}

#[test]
#[ignore = "run by models_fit_into_budgets"]
fn budgets() {
    const SIDE: u32 = 128;
    let open = |memory_budget| {
        let device = DeviceSelect::Cuda(0);
        Context::new(ContextOptions { device, threads: 1, memory_budget, ..Default::default() }).unwrap()
    };
    let peak = |context: &Context| context.memory().unwrap().gpu.unwrap().peak;
    let context = open(0);
    let model = load_into(&context).unwrap();
    image(&model, SIDE).unwrap();
    let (everything, mut weights) = (peak(&context), vec![model.gpu_bytes()[0]]);
    drop((model, context));

    for budget in (0..everything).rev().step_by(everything as usize / 100) {
        let context = open(budget);
        match load_into(&context) {
            Ok(model) => {
                image(&model, SIDE).unwrap();
                assert!(peak(&context) <= budget, "{} of {budget}", peak(&context));
                weights.push(model.gpu_bytes()[0]);
            }
            Err(Error::MemoryBudget { need, budget: asked, .. }) => {
                assert!(need > budget && asked == budget);
                assert_eq!(context.memory().unwrap().gpu.unwrap().used, 0);
                // Packed, then without encoders, then without modulation.
                weights.dedup();
                assert!(weights.len() == 4 && weights.is_sorted_by(|a, b| a > b), "{weights:?}");
                return;
            }
            Err(error) => panic!("{budget}: {error}"),
        }
    }
    panic!("it fits into nothing");
}
