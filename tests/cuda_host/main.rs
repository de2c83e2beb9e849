//! The path to the GPU on machines without one: the `svdq` command over stand-ins for the NVIDIA driver.
//!
//! fake.c is a driver whose kernels do nothing. Builds without GPU kernels stop where those would be loaded; the
//! tests that go further are ignored there.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks, reason = "contexts calls C functions")]

mod contexts;
mod inside;
mod profiles;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

/// A folder with `source` compiled to a libcuda.so.1.
fn driver(name: &str, source: &Path) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_host").join(name);
    fs::create_dir_all(&folder).unwrap();
    let cc = std::env::var("CC").unwrap_or("cc".into());
    let status = Command::new(cc)
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
        .args([&folder.join("libcuda.so.1"), source])
        .status();
    assert!(status.unwrap().success());
    folder
}

static FAKE: LazyLock<PathBuf> =
    LazyLock::new(|| driver("fake", &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda_host/fake.c")));

/// A libcuda.so.1 of a few lines of C.
fn small_driver(name: &str, code: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_host");
    fs::create_dir_all(&folder).unwrap();
    let source = folder.join(format!("{name}.c"));
    fs::write(&source, code).unwrap();
    driver(name, &source)
}

/// `svdq generate` of a small image on `device`, over the driver in `folder`.
fn generate(device: &str, folder: &Path, settings: &[(&str, &str)]) -> Output {
    let image = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("cuda_host-{:?}.png", std::thread::current().id()));
    let args = ["generate", "red potion", "--size", "32x32", "--steps", "2", "--device", device, "-o"];
    svdq(&[&args[..], &[image.to_str().unwrap()]].concat(), folder, settings)
}

/// The `svdq` command over the driver in `folder`.
fn svdq(args: &[&str], folder: &Path, settings: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_svdq"))
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_remove("SVDQ_MODEL")
        .env("LD_LIBRARY_PATH", folder)
        .envs(settings.iter().copied())
        .output()
        .unwrap()
}

#[track_caller]
fn succeeds(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The command failed as it fails for any reason, with one line that contains `what`.
#[track_caller]
fn fails(output: &Output, what: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(what) && text.lines().count() == 1, "{text}");
}

#[test]
fn no_driver() {
    let empty = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_host/empty");
    fs::create_dir_all(&empty).unwrap();
    succeeds(&generate("auto", &empty, &[]));
    // A machine with a GPU has a driver elsewhere.
    if Command::new("ldconfig").arg("-p").output().is_ok_and(|out| !text(&out.stdout).contains("libcuda.so"))
    {
        fails(&generate("cuda", &empty, &[]), "no NVIDIA driver: libcuda is not installed");
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn drivers_that_are_no_use() {
    let stub = small_driver(
        "stub",
        "int cuDriverGetVersion(int *v) { return (void)v, 34; } int cuInit(unsigned f) { return (void)f, 34; }",
    );
    let ancient = small_driver("ancient", "int cuInit(unsigned f) { return (void)f, 0; }");
    let lacking = small_driver(
        "lacking",
        "int cuDriverGetVersion(int *v) { return *v = 13000, 0; } int cuInit(unsigned f) { return (void)f, 0; }",
    );
    let version = |found| [("FAKE_VERSION", found)];
    for (folder, settings, what) in [
        (&stub, &[][..], "no NVIDIA driver: libcuda is the toolkit's stub"),
        (&ancient, &[], "knows CUDA 0.0 and 13.0 is needed: install driver 580 or newer"),
        (&lacking, &[], "no NVIDIA driver: libcuda lacks cuGetErrorName"),
        (&FAKE, &version("12040"), "knows CUDA 12.4 and 13.0 is needed: install driver 580 or newer"),
        (&FAKE, &[("FAKE_INIT", "100")], "there is no GPU 0: the NVIDIA driver offers 0"),
        (&FAKE, &[("FAKE_INIT", "803")], "no NVIDIA driver: libcuda cannot be initialised: CUDA error 803"),
        (&FAKE, &[("FAKE_DEVICES", "0")], "there is no GPU 0"),
        (
            &FAKE,
            &[("FAKE_CAPABILITY", "70")],
            "Fake GPU 0 has compute capability 7.0: this version has kernels for",
        ),
    ] {
        fails(&generate("cuda", folder, settings), what);
        succeeds(&generate("auto", folder, settings));
    }
    fails(&generate("cuda:3", &FAKE, &[]), "there is no GPU 3: the NVIDIA driver offers 1");
}

#[test]
#[cfg(not(svdq_kernels))]
fn builds_without_kernels() {
    fails(&generate("cuda", &FAKE, &[]), "no GPU kernels: it was made without nvcc");
    succeeds(&generate("auto", &FAKE, &[]));
}

/// What the fake driver saw in the image of `settings`, and the run.
fn traced(name: &str, settings: &[(&str, &str)]) -> (Output, HashMap<String, i64>) {
    reported(name, |report| generate("cuda", &FAKE, &[settings, &[report]].concat()))
}

/// What the fake driver saw in a `run` with this setting, and the run.
fn reported(name: &str, run: impl FnOnce((&str, &str)) -> Output) -> (Output, HashMap<String, i64>) {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cuda_host-{name}.report"));
    let _ = fs::remove_file(&path);
    let output = run(("FAKE_REPORT", path.to_str().unwrap()));
    let lines = fs::read_to_string(&path).unwrap();
    let counts = lines.lines().map(|line| line.rsplit_once(' ').unwrap());
    (output, counts.map(|(name, count)| (name.to_owned(), count.parse().unwrap())).collect())
}

/// Nothing is left on the GPU, and nothing was asked of the driver that it would have refused.
#[track_caller]
fn nothing_left(counts: &HashMap<String, i64>) {
    let all = [
        "live_allocations",
        "live_bytes",
        "contexts",
        "streams",
        "modules",
        "pinned",
        "events",
        "graphs",
        "pushed",
        "wrong",
    ];
    for name in all {
        assert_eq!(counts[name], 0, "{name}: {counts:?}");
    }
}

#[test]
#[cfg_attr(not(svdq_kernels), ignore = "this build has no GPU kernels")]
fn an_image_leaves_nothing_behind() {
    let (output, counts) = traced("image", &[]);
    succeeds(&output);
    nothing_left(&counts);
    assert!(counts["launches"] > 100, "{counts:?}");
}

/// Of three images of four steps, one step runs as it is and one is recorded; the later images record nothing. The steps
/// that are timed after them have one more tensor on the device, and are recorded once, too.
#[test]
#[cfg_attr(not(svdq_kernels), ignore = "this build has no GPU kernels")]
fn a_step_is_recorded_once() {
    let args = ["bench", "--runs", "2", "--size", "32x32", "--steps", "4", "--device", "cuda"];
    let (output, counts) = reported("recorded", |report| svdq(&args, &FAKE, &[report]));
    succeeds(&output);
    nothing_left(&counts);
    assert_eq!([counts["recordings"], counts["replays"]], [2, 3 * 4 - 1 + 6 * 4 + 1], "{counts:?}");
}

#[test]
#[cfg_attr(not(svdq_kernels), ignore = "this build has no GPU kernels")]
fn later_images_allocate_nothing() {
    let [few, many] = ["1", "5"].map(|runs| {
        let (output, counts) = reported("runs", |report| {
            let args = ["bench", "--device", "cuda", "--size", "48x32", "--steps", "3", "--runs", runs];
            svdq(&args, &FAKE, &[report])
        });
        succeeds(&output);
        nothing_left(&counts);
        counts
    });
    assert!(many["launches"] > few["launches"]);
    assert_eq!(few["allocations"], many["allocations"]);
}

#[test]
#[cfg_attr(not(svdq_kernels), ignore = "this build has no GPU kernels")]
fn memory_that_cannot_be_pinned() {
    let (output, counts) = traced("pinned", &[("FAKE_NO_PINNED", "1")]);
    fails(&output, "bytes of memory are needed for copies to the GPU");
    nothing_left(&counts);
}

#[test]
#[cfg_attr(not(svdq_kernels), ignore = "this build has no GPU kernels")]
fn every_allocation_may_fail() {
    let (_, counts) = traced("oom", &[]);
    let allocations = counts["allocations"];
    assert!((2..20).contains(&allocations), "{counts:?}");
    for n in 1..=allocations {
        let (output, counts) = traced("oom", &[("FAKE_OOM_AT", &n.to_string())]);
        fails(&output, "not enough GPU memory for ");
        let text = text(&output.stderr);
        assert!(text.contains(" bytes are needed, ") && text.contains(" are free"), "{text}");
        nothing_left(&counts);
    }
}

#[test]
#[cfg_attr(not(svdq_kernels), ignore = "this build has no GPU kernels")]
fn a_gpu_may_be_lost() {
    let launches = ["1", "50", "200"].map(|n| ("FAKE_LOST_AT", n));
    let copies = ["1", "100", "300"].map(|n| ("FAKE_LOST_COPY", n));
    for setting in launches.into_iter().chain(copies) {
        let (output, counts) = traced("lost", &[setting]);
        fails(&output, "the GPU was lost: ");
        assert!(counts["pushed"] == 0 && counts["wrong"] == 0, "{counts:?}");
    }
}
