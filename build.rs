//! How the shared library is linked, and the GPU kernels that it carries.
//!
//! The units of kernels/ become a fatbin each, embedded by $OUT_DIR/kernels.rs. No nvcc is no error: the library
//! then has no GPU kernels and computes on the CPU. SVDQ_KERNELS=require turns that into an error,
//! SVDQ_KERNELS=off leaves nvcc alone.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, thread};

/// Every GPU that there are kernels for.
const ALL: &[&str] = &["75", "80", "86", "89", "90a", "120f"];
/// The one of them whose PTX goes with the kernels, for GPUs newer than this list.
const PTX: &str = "80";
/// The GPUs with products of 4-bit integers, and Hopper, which emulates them for tests.
const INT4: &[&str] = &["75", "80", "86", "89", "90a"];
/// kernels/*.cu and their architectures.
const UNITS: &[(&str, &[&str])] = &[
    ("attention", ALL),
    ("attention_sm90", &["90a"]),
    ("attention_wide", ALL),
    ("constants", ALL),
    ("conv3x3_bf16", ALL),
    ("elementwise", ALL),
    ("gemm_bf16", ALL),
    ("gemm_nvfp4_sm120", &["120f"]),
    ("gemm_w4a16", ALL),
    ("gemm_w4a4", INT4),
    ("gemm_w4a4_sm90", &["90a"]),
    ("gemm_w4a8_sm90", &["90a"]),
    ("group_norm", ALL),
    ("norm", ALL),
    ("project_down_sm90", &["90a"]),
    ("quantize", ALL),
    ("unpack_bf16", ALL),
    ("unpack_nvfp4_w4a8", &["90a"]),
    ("unpack_w4a4_sm90", &["90a"]),
    ("unpack_w4a8", &["90a"]),
];
const FLAGS: &[&str] = &["-std=c++17", "-O3", "--fatbin", "--compress-mode=size", "-Werror=all-warnings"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=kernels");
    for name in ["SVDQ_KERNELS", "SVDQ_ARCHS", "NVCC", "CUDA_PATH", "CUDA_HOME", "VIRTUAL_ENV"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        // Programs ask the loader for the ABI that they were built with.
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libsvdq.so.0");
        // Rust's thread-local destructors run in code of the library: dlclose must not unmap it.
        println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let images = match (env::var("SVDQ_KERNELS").as_deref().unwrap_or("auto"), find_nvcc()) {
        ("off", _) => Vec::new(),
        ("auto" | "require", Some(nvcc)) => compile_all(&nvcc, &out),
        ("auto", None) => {
            println!(
                "cargo::warning=no nvcc found: this build computes on the CPU only. Put nvcc 13.0 on PATH or name it in NVCC"
            );
            // Never exists: an nvcc that is installed later is seen at the next build.
            println!("cargo::rerun-if-changed={}", out.join("no-nvcc").display());
            Vec::new()
        }
        ("require", None) => {
            fail("SVDQ_KERNELS=require, but there is no nvcc: put it on PATH or name it in NVCC")
        }
        (other, _) => fail(&format!("SVDQ_KERNELS={other}: it is none of auto, require, off")),
    };
    let archs = if images.is_empty() { "none".into() } else { wanted(ALL, only().as_deref()).join(",") };
    println!("cargo::rustc-env=SVDQ_BUILT_FOR={archs}");
    let mut text = String::new();
    println!("cargo::rustc-check-cfg=cfg(svdq_kernels, svdq_all_archs)");
    if !images.is_empty() {
        println!("cargo::rustc-cfg=svdq_kernels");
        if env::var_os("SVDQ_ARCHS").is_none() {
            println!("cargo::rustc-cfg=svdq_all_archs");
        }
        text += "/// An image at an address that the driver likes.\n#[repr(C, align(64))]\nstruct Aligned<T>(T);\n\n";
    }
    let rows: String = images
        .iter()
        .map(|(name, path)| format!("    ({name:?}, &Aligned(*include_bytes!({path:?})).0),\n"))
        .collect();
    text +=
        &format!("/// Fatbins by the name of their unit.\nstatic IMAGES: &[(&str, &[u8])] = &[\n{rows}];\n");
    fs::write(out.join("kernels.rs"), text).expect("OUT_DIR can be written");
}

/// $NVCC, then nvcc on PATH, in $CUDA_PATH, $CUDA_HOME, the Python wheels of $VIRTUAL_ENV and /usr/local/cuda.
fn find_nvcc() -> Option<PathBuf> {
    let mut tries: Vec<PathBuf> = env::var_os("NVCC").map(PathBuf::from).into_iter().collect();
    tries
        .extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()).map(|folder| folder.join("nvcc")));
    tries.extend(
        ["CUDA_PATH", "CUDA_HOME"]
            .iter()
            .filter_map(env::var_os)
            .map(|folder| Path::new(&folder).join("bin/nvcc")),
    );
    if let Some(folder) = env::var_os("VIRTUAL_ENV") {
        let pythons = fs::read_dir(Path::new(&folder).join("lib")).into_iter().flatten().flatten();
        tries.extend(pythons.map(|python| python.path().join("site-packages/nvidia/cu13/bin/nvcc")));
    }
    tries.push("/usr/local/cuda/bin/nvcc".into());
    // nvcc looks for its parts beside itself, not beside a link to itself.
    tries.into_iter().filter_map(|path| path.canonicalize().ok()).find(|path| path.is_file())
}

/// Compiles all units, as many at once as cargo allows: their names and images.
fn compile_all(nvcc: &Path, out: &Path) -> Vec<(&'static str, PathBuf)> {
    let version = Command::new(nvcc).arg("--version").output();
    let version = version.unwrap_or_else(|error| fail(&format!("{}: {error}", nvcc.display()))).stdout;
    let mut key = DefaultHasher::new();
    (version, FLAGS).hash(&mut key);
    let mut headers: Vec<PathBuf> =
        fs::read_dir("kernels/common").into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    headers.sort();
    for header in headers {
        (&header, fs::read(&header).ok()).hash(&mut key);
    }
    let only = only();
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    let mut images = Vec::new();
    let units: Vec<(&'static str, Vec<String>)> = UNITS
        .iter()
        .map(|(name, archs)| (*name, code_flags(archs, only.as_deref())))
        .filter(|(_, flags)| !flags.is_empty())
        .collect();
    if units.is_empty() {
        fail("SVDQ_ARCHS names none of the architectures in build.rs");
    }
    for batch in units.chunks(jobs) {
        thread::scope(|scope| {
            let start = |(name, code): &'_ (&'static str, Vec<String>)| {
                let (name, code, key) = (*name, code.clone(), key.clone());
                scope.spawn(move || (name, compile(nvcc, name, &code, key, out)))
            };
            let running: Vec<_> = batch.iter().map(start).collect();
            images.extend(running.into_iter().map(|job| job.join().unwrap_or_else(|_| fail("nvcc"))));
        });
    }
    images
}

/// $SVDQ_ARCHS, for a quick build: the only architectures to compile for.
fn only() -> Option<Vec<String>> {
    let list = env::var("SVDQ_ARCHS").ok()?;
    Some(list.split(',').map(str::to_owned).collect())
}

/// All architectures or those in `only`.
fn wanted<'a>(archs: &[&'a str], only: Option<&[String]>) -> Vec<&'a str> {
    let wanted = |arch: &&str| only.is_none_or(|only| only.iter().any(|one| one == arch));
    archs.iter().copied().filter(wanted).collect()
}

/// What tells nvcc the architectures.
fn code_flags(archs: &[&str], only: Option<&[String]>) -> Vec<String> {
    let flag = |arch: &str| format!("-gencode=arch=compute_{arch},code=sm_{arch}");
    let mut flags: Vec<String> = wanted(archs, only).into_iter().map(flag).collect();
    if only.is_none() && archs.contains(&PTX) {
        flags.push(format!("-gencode=arch=compute_{PTX},code=compute_{PTX}"));
    }
    flags
}

/// Compiles one unit, unless its image is there from an earlier build.
fn compile(nvcc: &Path, name: &str, code: &[String], mut key: DefaultHasher, out: &Path) -> PathBuf {
    let unit = Path::new("kernels").join(name).with_extension("cu");
    (code, fs::read(&unit).ok()).hash(&mut key);
    let image = out.join(format!("{name}-{:016x}.fatbin", key.finish()));
    if image.exists() {
        return image;
    }
    let partial = image.with_extension("part");
    let output = Command::new(nvcc).args(FLAGS).args(code).arg("-o").arg(&partial).arg(&unit).output();
    let output = output.unwrap_or_else(|error| fail(&format!("{}: {error}", nvcc.display())));
    if !output.status.success() {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        fail(&format!("nvcc {}:\n{}{}", unit.display(), text(&output.stdout), text(&output.stderr)));
    }
    fs::rename(&partial, &image).unwrap_or_else(|error| fail(&format!("{}: {error}", image.display())));
    image
}

fn fail(why: &str) -> ! {
    eprintln!("{why}");
    std::process::exit(1)
}
