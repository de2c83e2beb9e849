//! C programs that use the libraries, linked the way the header says.
#![cfg(target_os = "linux")]

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{cc, demo, header, library, repository, run, scratch};

/// The demo model.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo");

/// Builds a C99 program with the shared library beside it.
fn build(source: &str, folder: &Path, name: &str, options: &[&str]) -> PathBuf {
    for name in ["libsvdq.so", "libsvdq.so.0"] {
        let _ = symlink(library("libsvdq.so"), folder.join(name));
    }
    let program = folder.join(name);
    let mut cc = cc();
    cc.args(["-std=c99", "-D_DEFAULT_SOURCE", "-o"]).arg(&program).arg(repository(source)).args(options);
    run(cc.arg("-L").arg(folder).args(["-lsvdq", "-Wl,-rpath,$ORIGIN"]));
    program
}

pub(crate) fn shared(source: &str, folder: &Path) -> PathBuf {
    build(source, folder, "shared", &[])
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

/// Runs an example; gives what it printed.
fn example(program: &Path, arguments: &[&str]) -> String {
    run(Command::new(program).args(arguments))
}

/// The size and the pixels of a PPM in which there is something to see.
fn picture(path: &Path) -> ((usize, usize), Vec<u8>) {
    let file = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut parts = file.splitn(4, |&byte| byte == b'\n').map(|part| std::str::from_utf8(part).unwrap_or(""));
    assert_eq!(parts.next(), Some("P6"));
    let size = parts.next().unwrap().split_once(' ').unwrap();
    let size: (usize, usize) = (size.0.parse().unwrap(), size.1.parse().unwrap());
    let pixels = file[file.len() - size.0 * size.1 * 3..].to_vec();
    let mean = pixels.iter().map(|&value| f64::from(value)).sum::<f64>() / pixels.len() as f64;
    let variance =
        pixels.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>() / pixels.len() as f64;
    assert!(variance.sqrt() > 10.0, "{}: all pixels are about {mean}", path.display());
    (size, pixels)
}

const POTION: &str = "pixel art blue potion";

/// The picture of examples-c/generate.c.
fn potion() -> Vec<u8> {
    let folder = scratch(&format!("potion-{:?}", std::thread::current().id()));
    let out = folder.join("potion.ppm");
    example(&shared("examples-c/generate.c", &folder), &[MODEL, POTION, out.to_str().unwrap()]);
    picture(&out).1
}

#[test]
fn generate_makes_the_same_picture_with_either_library() {
    let folder = scratch("generate");
    let source = "examples-c/generate.c";
    assert!(fs::read_to_string(repository(source)).unwrap().lines().count() < 80);
    let pictures = [shared(source, &folder), statically(source, &folder)].map(|program| {
        let out = program.with_extension("ppm");
        example(&program, &[MODEL, POTION, out.to_str().unwrap()]);
        picture(&out)
    });
    assert_eq!(pictures[0].0, (128, 128));
    assert!(pictures[0] == pictures[1], "the libraries do not agree");
}

#[test]
fn lora_changes_the_pictures_that_name_it() {
    let folder = scratch("lora");
    let out = folder.join("potion");
    let printed =
        example(&shared("examples-c/lora.c", &folder), &[MODEL, POTION, out.to_str().unwrap(), LORA]);
    assert!(printed.contains("rank 8"), "{printed}");
    let [plain, full, half] =
        ["0", "1", "mix"].map(|name| picture(&folder.join(format!("potion-{name}.ppm"))).1);
    assert!(plain == potion(), "a picture without LoRAs is not the same");
    assert!(full != plain && half != plain && half != full);
}

#[test]
fn generate_says_what_is_wrong() {
    let program = shared("examples-c/generate.c", &scratch("generate_errors"));
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
fn pak_makes_the_picture_of_the_folder() {
    let folder = scratch("pak");
    let (pak, out) = (folder.join("demo.pak"), folder.join("potion.ppm"));
    let program = shared("examples-c/pak.c", &folder);
    packed(&program, Path::new(MODEL), &pak);
    example(&program, &[pak.to_str().unwrap(), POTION, out.to_str().unwrap()]);
    assert!(picture(&out).1 == potion(), "not the picture of the model's folder");

    let cut = fs::File::options().write(true).open(&pak).unwrap();
    cut.set_len(cut.metadata().unwrap().len() - 1).unwrap();
    let output = Command::new(&program).arg(&pak).args([POTION, "none.ppm"]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("SVDQ_ERR_IO"), "{error}");
}

#[test]
fn async_shows_progress_and_previews() {
    let folder = scratch("async");
    let out = folder.join("potion.ppm");
    let output =
        Command::new(shared("examples-c/async.c", &folder)).args([MODEL, POTION]).arg(&out).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && text.contains("100%"), "{text}");
    assert!(picture(&out).1 == potion(), "not the picture of svdq_generate");
    // A pixel for 8 x 8 of the picture's.
    assert_eq!(picture(&folder.join("potion.ppm.preview.ppm")).0, (16, 16));
}

#[test]
fn async_is_cancelled_by_ctrl_c() {
    let folder = scratch("async_cancel");
    let out = folder.join("potion.ppm");
    let mut program = Command::new(shared("examples-c/async.c", &folder));
    let mut child = program.args([MODEL, POTION]).arg(&out).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let (mut text, mut byte, mut sent) = (Vec::new(), [0], false);
    while stderr.read(&mut byte).unwrap() == 1 {
        text.push(byte[0]);
        if !sent && text.ends_with(b"denoising") {
            run(Command::new("kill").args(["-INT", &child.id().to_string()]));
            sent = true;
        }
    }
    assert!(sent && text.ends_with(b"cancelled\n"), "{}", String::from_utf8_lossy(&text));
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(!out.exists());
}

#[test]
fn frames_are_timed() {
    let program = shared("examples-c/frames.c", &scratch("frames"));
    let printed = example(&program, &[MODEL, "5"]);
    for function in ["svdq_job_submit", "svdq_job_poll", "svdq_job_read_image", "svdq_job_release"] {
        let line = printed.lines().find(|line| line.starts_with(function)).expect(&printed);
        // How long is for a machine that does nothing else: `frames MODEL 20 0.5` fails above 0.5 ms.
        let mut microseconds = line.split_whitespace().skip(2);
        assert!(microseconds.all(|number| number.parse::<f64>().is_ok()), "{printed}");
    }
}

/// The demo model, which takes 16 tokens and makes pictures of 16x16 unless it is told otherwise: for tools that take
/// long.
fn small_model(folder: &Path, steps: u32) -> PathBuf {
    let model = folder.join("model");
    run(Command::new("cp").arg("-r").arg(MODEL).arg(&model));
    let defaults =
        format!("{{\"width\": 16, \"height\": 16, \"steps\": {steps}, \"max_sequence_length\": 16}}");
    fs::write(model.join("svdq.json"), defaults).unwrap();
    model
}

/// Packs a model with examples-c/pak.c.
fn packed(program: &Path, model: &Path, pak: &Path) {
    // The files that its first comment names.
    let files = "find *.json *.safetensors scheduler t* vae -type f | xargs";
    assert!(fs::read_to_string(repository("examples-c/pak.c")).unwrap().contains(files));
    let pack = format!("{files} \"$0\" pack \"$1\"");
    run(Command::new("sh").current_dir(model).args(["-c", &pack]).arg(program).arg(pak));
}

const LORA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo/lora/pocket-green.safetensors");

/// Every example, with arguments for a short run.
fn examples(folder: &Path) -> [(&'static str, Vec<String>); 5] {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let list = |arguments: &[&str]| arguments.iter().map(|&argument| argument.to_owned()).collect::<Vec<_>>();
    let (model, out) = (&path("model"), &path("out.ppm"));
    [
        ("generate", list(&[model, POTION, out])),
        ("async", list(&[model, POTION, out])),
        ("pak", list(&[&path("model.pak"), POTION, out])),
        ("lora", list(&[model, POTION, out, LORA])),
        ("frames", list(&[model, "2"])),
    ]
}

#[test]
fn every_example_is_in_the_list() {
    let files = fs::read_dir(repository("examples-c")).unwrap().map(|entry| entry.unwrap().path());
    let sources = files.filter(|path| path.extension().is_some_and(|extension| extension == "c"));
    let mut names: Vec<_> =
        sources.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    let mut listed = examples(Path::new("")).map(|(name, _)| name);
    listed.sort();
    assert_eq!(names, listed);
}

/// Builds with AddressSanitizer, UndefinedBehaviorSanitizer and the shared library.
fn sanitized(source: &str, folder: &Path, options: &[&str]) -> PathBuf {
    build(
        source,
        folder,
        "sanitized",
        &[&["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover"], options].concat(),
    )
}

/// What a sanitised program printed, and whether it succeeded.
fn run_sanitized(program: &Path, arguments: &[impl AsRef<OsStr>]) -> (bool, String) {
    let mut command = Command::new(program);
    // The stacks of leaks go through the library, which has no frame pointers.
    command.args(arguments).env("ASAN_OPTIONS", "detect_leaks=1:fast_unwind_on_malloc=0");
    let output = command.output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
#[ignore = "needs the sanitizers of gcc"]
fn sanitizers_find_nothing_but_a_planted_leak() {
    let folder = scratch("sanitizers");
    // As many steps as it takes to see a preview.
    packed(&shared("examples-c/pak.c", &folder), &small_model(&folder, 4), &folder.join("model.pak"));
    for (name, arguments) in examples(&folder) {
        let program = sanitized(&format!("examples-c/{name}.c"), &folder, &[]);
        let (success, text) = run_sanitized(&program, &arguments);
        assert!(success, "{name}: {text}");
    }
    let program = sanitized("tests/c_api/lifecycle.c", &folder, &["-DPLANTED_LEAK"]);
    let (success, text) = run_sanitized(&program, &[MODEL, "2"]);
    assert!(!success && text.contains("LeakSanitizer") && text.contains("svdq_model_load"), "{text}");
}

/// Whether valgrind finds nothing, and what it says.
fn valgrind(program: &Path, arguments: &[impl AsRef<OsStr>]) -> (bool, String) {
    let mut valgrind = Command::new("valgrind");
    valgrind.args([
        "--quiet",
        "--error-exitcode=9",
        "--leak-check=full",
        "--show-leak-kinds=definite",
        "--errors-for-leak-kinds=definite",
    ]);
    let output = valgrind.arg(program).args(arguments).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
#[ignore = "needs valgrind"]
fn valgrind_finds_nothing_in_the_examples() {
    let folder = scratch("valgrind_examples");
    packed(&shared("examples-c/pak.c", &folder), &small_model(&folder, 1), &folder.join("model.pak"));
    for (name, arguments) in examples(&folder) {
        let (success, text) = valgrind(&shared(&format!("examples-c/{name}.c"), &folder), &arguments);
        assert!(success, "{name}: {text}");
    }
}

#[test]
#[ignore = "needs valgrind"]
fn valgrind_finds_nothing_but_a_planted_leak() {
    let (source, folder) = ("tests/c_api/lifecycle.c", scratch("valgrind"));
    let model = small_model(&folder, 1);
    let arguments = [model.to_str().unwrap(), "2"];
    let (success, text) = valgrind(&shared(source, &folder), &arguments);
    assert!(success, "{text}");
    let (success, text) = valgrind(&build(source, &folder, "leaks", &["-DPLANTED_LEAK"]), &arguments);
    assert!(!success && text.contains("definitely lost") && text.contains("svdq_model_load"), "{text}");
}
