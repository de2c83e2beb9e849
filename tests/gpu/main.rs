//! Every operation on the GPU against the CPU, on random inputs with outlier channels and odd sizes, and the demo
//! model's images. `gpu [NAME]...` runs the tests whose names contain one of these; SVDQ_GPU=require makes it a
//! failure that there is no GPU.

#![allow(clippy::unwrap_used)]

mod image;
mod linear;
mod model;
mod rows;
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use support::Devices;
use svdq::Error;
use svdq::device::cuda::Gpu;

type Test = fn(&Devices);

const TESTS: &[(&str, Test)] = &[
    ("tensors", rows::tensors),
    ("norms", rows::norms),
    ("attention", rows::attention),
    ("dense_linears", linear::dense),
    ("awq_linears", linear::awq),
    ("columns", linear::columns),
    ("folded_codes", linear::folded_codes),
    ("svdq_linears", linear::svdq),
    ("svdq_qkv", linear::svdq_qkv),
    ("svdq_mlp", linear::svdq_mlp),
    ("dense_qkv", linear::dense_qkv),
    ("dense_mlp", linear::dense_mlp),
    ("convolutions", image::convolutions),
    ("group_norms", image::group_norms),
    ("pixels", image::pixels),
    ("images", model::images),
    ("two_threads", model::two_threads),
];

fn main() -> ExitCode {
    let gpu = match Gpu::open(0) {
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
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let devices = Devices::new(gpu);
    let mut failed = 0;
    for (name, test) in TESTS {
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        let passed = catch_unwind(AssertUnwindSafe(|| test(&devices))).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += usize::from(!passed);
    }
    println!("{failed} failed");
    ExitCode::from(u8::from(failed > 0))
}
