//! Every operation on the GPU against the CPU, on random inputs with outlier channels and odd sizes, and the demo
//! model's images: in every profile that the GPU has, and once more as if it were of compute capability 8.0.
//! With SVDQ_FULL_WIDTH=FOLDER, also the blocks that tests/golden/full_width.py wrote there.
//! `gpu [NAME]...` runs the tests whose names contain one of these; SVDQ_GPU=require makes it a
//! failure that there is no GPU.

#![allow(clippy::unwrap_used)]

mod engine;
mod full_width;
mod image;
mod linear;
mod lora;
mod model;
mod rows;
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use support::Devices;
use svdq::Error;
use svdq::device::cuda::{Gpu, Priority};
use svdq::ops::Profile;

type Test = fn(&Devices);

/// What does not depend on the profile.
const GENERAL: &[(&str, Test)] = &[
    ("tensors", rows::tensors),
    ("norms", rows::norms),
    ("attention", rows::attention),
    ("dense_linears", linear::dense),
    ("awq_linears", linear::awq),
    ("columns", linear::columns),
    ("dense_qkv", linear::dense_qkv),
    ("dense_mlp", linear::dense_mlp),
    ("convolutions", image::convolutions),
    ("group_norms", image::group_norms),
    ("pixels", image::pixels),
    ("dense_images", model::dense_images),
    ("budgets", model::budgets),
    ("lora_linears", lora::linears),
    ("two_threads", model::two_threads),
    ("jobs", engine::jobs),
    ("pictures_from_pictures", engine::pictures_from_pictures),
    ("budgets_at_run_time", engine::budgets_at_run_time),
    ("loads", engine::loads),
    ("cancel_storm", engine::cancel_storm),
];

/// What runs in every profile, with INT4 and with NVFP4 weights.
const QUANTIZED: &[(&str, Test)] = &[
    ("svdq_linears", linear::svdq),
    ("svdq_qkv", linear::svdq_qkv),
    ("svdq_mlp", linear::svdq_mlp),
    ("lora_svdq", lora::svdq),
    ("lora_qkv", lora::qkv),
    ("lora_mlp", lora::mlp),
];

/// What is there in one profile only, and what the demo model's INT4 weights are needed for.
const W4A8: &[(&str, Test)] = &[("folded_codes", linear::folded_codes), ("lora_too_many", lora::too_many)];
const INT4: &[(&str, Test)] = &[("images", model::images), ("lora_images", lora::images)];

fn main() -> ExitCode {
    let gpu = match Gpu::open(0, Priority::Low) {
        Ok(gpu) => gpu,
        Err(error @ (Error::NoDriver(_) | Error::NoDevice(_) | Error::DeviceUnsupported(_))) => {
            println!("GPU tests skipped: {error}");
            return ExitCode::from(std::env::var("SVDQ_GPU").is_ok_and(|value| value == "require") as u8);
        }
        Err(error) => {
            println!("GPU tests failed: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("on {}", gpu.info().name);
    let older = Gpu::open_as(0, 80, Priority::Low);
    let gpus = [Ok(gpu), older].map(|gpu| gpu.map_err(|error| println!("GPU tests failed: {error}")));
    let [Ok(gpu), Ok(older)] = gpus else { return ExitCode::FAILURE };
    let mut tests =
        Tests { wanted: std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect(), failed: 0 };
    for gpu in [&gpu, &older] {
        let capability = gpu.info().compute_capability;
        tests.run(GENERAL, &Devices::new(gpu, Profile::W4A16, false), &format!("sm_{capability} "));
        for (nvfp4, kind) in [(false, "int4"), (true, "nvfp4")] {
            for profile in [Profile::W4A4, Profile::W4A8, Profile::W4A16] {
                if gpu.check(nvfp4, profile).is_err() {
                    continue;
                }
                let setup = format!("sm_{capability} {kind} {profile:?} ");
                let devices = Devices::new(gpu, profile, nvfp4);
                tests.run(QUANTIZED, &devices, &setup);
                if profile == Profile::W4A8 {
                    tests.run(W4A8, &devices, &setup);
                }
                if !nvfp4 {
                    tests.run(INT4, &devices, &setup);
                }
            }
        }
    }
    tests.one("full_size", || engine::full_size(&gpu));
    match std::env::var_os("SVDQ_FULL_WIDTH") {
        None => println!("test full_width ... not run: SVDQ_FULL_WIDTH names no folder of full_width.py"),
        Some(folder) => tests.one("full_width", || full_width::full_width(&gpu, folder.as_ref())),
    }
    println!("{} failed", tests.failed);
    ExitCode::from(u8::from(tests.failed > 0))
}

struct Tests {
    /// Parts of names; empty: all.
    wanted: Vec<String>,
    failed: usize,
}

impl Tests {
    fn run(&mut self, tests: &[(&str, Test)], devices: &Devices, setup: &str) {
        for (name, test) in tests {
            self.one(&format!("{setup}{name}"), || test(devices));
        }
    }

    fn one(&mut self, name: &str, test: impl Fn()) {
        if !self.wanted.is_empty() && !self.wanted.iter().any(|part| name.contains(part.as_str())) {
            return;
        }
        let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        self.failed += usize::from(!passed);
    }
}
