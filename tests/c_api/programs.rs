//! C programs that use the libraries, linked the way the header says.
#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{cc, demo, header, library, repository, run, scratch};

/// Builds a C99 program with the shared library beside it.
fn shared(source: &str, folder: &Path) -> PathBuf {
    for name in ["libsvdq.so", "libsvdq.so.0"] {
        symlink(library("libsvdq.so"), folder.join(name)).unwrap();
    }
    let program = folder.join("shared");
    let mut cc = cc();
    cc.args(["-std=c99", "-D_DEFAULT_SOURCE", "-o"]).arg(&program).arg(repository(source));
    run(cc.arg("-L").arg(folder).args(["-lsvdq", "-Wl,-rpath,$ORIGIN"]));
    program
}

/// Builds a C99 program with the static library and the libraries that the header names, no others.
fn statically(source: &str, folder: &Path) -> PathBuf {
    let header = header();
    let line = header.lines().skip_while(|line| !line.contains("libsvdq.a and then")).nth(1).unwrap();
    let needed = line.trim_start_matches(" *").split_whitespace();
    let program = folder.join("static");
    let mut cc = cc();
    cc.args(["-std=c99", "-D_DEFAULT_SOURCE", "-o"]).arg(&program).arg(repository(source));
    run(cc.arg(library("libsvdq.a")).arg("-nodefaultlibs").args(needed));
    program
}

#[test]
fn the_example_makes_a_picture_with_either_library() {
    let folder = scratch("example");
    let source = "examples-c/generate.c";
    assert!(fs::read_to_string(repository(source)).unwrap().lines().count() < 80);
    let pictures = [shared(source, &folder), statically(source, &folder)].map(|program| {
        let picture = program.with_extension("ppm");
        let model = repository("assets/demo");
        run(Command::new(&program).arg(model).arg("pixel art blue potion").arg(&picture));
        fs::read(picture).unwrap()
    });
    let pixels = pictures[0].strip_prefix(b"P6\n128 128\n255\n").expect("a PPM of the demo's size");
    assert_eq!(pixels.len(), 128 * 128 * 3);
    let mean = pixels.iter().map(|&value| f64::from(value)).sum::<f64>() / pixels.len() as f64;
    let variance =
        pixels.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>() / pixels.len() as f64;
    assert!(variance.sqrt() > 10.0, "all pixels are about {mean}");
    assert!(pictures[0] == pictures[1], "the libraries do not agree");
}

#[test]
fn the_example_says_what_is_wrong() {
    let program = shared("examples-c/generate.c", &scratch("example_errors"));
    let fails = |arguments: &[&str]| {
        let output = Command::new(&program).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(fails(&[]).starts_with("usage: "));
    let error = fails(&["/nowhere", "a", "a.ppm"]);
    assert!(error.starts_with("svdq_model_load: SVDQ_ERR_NOT_FOUND: /nowhere"), "{error}");
    let error = fails(&[demo().to_str().unwrap(), "a", "/nowhere/a.ppm"]);
    assert!(error.starts_with("/nowhere/a.ppm: "), "{error}");
}

/// It writes nothing and asks the environment for nothing. environment.c, which is told of every question, proves it: it
/// tells, once, of its own.
#[test]
fn the_library_is_quiet() {
    let folder = scratch("quiet");
    let (program, environment) = (shared("tests/c_api/quiet.c", &folder), folder.join("environment.so"));
    let source = repository("tests/c_api/environment.c");
    run(cc().args(["-shared", "-fPIC", "-o"]).arg(&environment).arg(source).arg("-ldl"));
    let speaks = |question: &str| {
        let mut quiet = Command::new(&program);
        quiet.env("LD_PRELOAD", &environment).env("RUST_BACKTRACE", "1");
        quiet.arg(repository("assets/demo")).arg(repository("README.md")).arg(question);
        let output = quiet.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        assert!(output.status.success(), "{}: {}", output.status, text(output.stderr));
        text(output.stdout) + &text(output.stderr)
    };
    assert_eq!(speaks(""), "");
    assert_eq!(speaks("SVDQ_QUESTION"), "asked for SVDQ_QUESTION\n");
}

#[test]
fn memory_does_not_grow() {
    let program = shared("tests/c_api/lifecycle.c", &scratch("lifecycle"));
    // The allocator's caches for each thread would count as memory in use.
    let no_caches = "glibc.malloc.tcache_count=0:glibc.malloc.arena_max=1";
    run(Command::new(program).env("GLIBC_TUNABLES", no_caches).arg(repository("assets/demo")).arg("20"));
}

#[test]
#[ignore = "needs valgrind"]
fn valgrind_finds_nothing() {
    let program = shared("tests/c_api/lifecycle.c", &scratch("valgrind"));
    let mut valgrind = Command::new("valgrind");
    valgrind.args([
        "--quiet",
        "--error-exitcode=9",
        "--leak-check=full",
        "--show-leak-kinds=definite",
        "--errors-for-leak-kinds=definite",
    ]);
    run(valgrind.arg(program).arg(repository("assets/demo")).arg("2"));
}
