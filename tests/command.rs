//! The `svdq` command, run as a user would run it.

#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A folder for a test's files, removed with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("svdq-command-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(&self.0).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn svdq<S: AsRef<OsStr>>(args: &[S]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_svdq"))
        .args(args)
        .current_dir(ROOT)
        .env_remove("SVDQ_MODEL")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Pixels and the `parameters` text of a PNG.
fn read_png(path: &Path) -> ((u32, u32), Vec<u8>, String) {
    let decoder = png::Decoder::new(std::io::BufReader::new(fs::File::open(path).unwrap()));
    let mut reader = decoder.read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut pixels).unwrap();
    let info = reader.info();
    let chunk = info.utf8_text.iter().find(|chunk| chunk.keyword == "parameters").unwrap();
    ((info.width, info.height), pixels, chunk.get_text().unwrap())
}

/// The README's first command, with another name for the file: a picture, and nothing on a pipe.
#[test]
fn generate_makes_a_picture() {
    let folder = Folder::new("picture");
    let path = folder.0.join("potion.png");
    let run = svdq(&[
        OsStr::new("generate"),
        OsStr::new("pixel art blue potion"),
        OsStr::new("-o"),
        path.as_os_str(),
    ]);
    assert!(run.status.success(), "{}", text(&run.stderr));
    assert_eq!((text(&run.stdout), text(&run.stderr)), (String::new(), String::new()));
    assert_eq!(folder.names(), ["potion.png"]);

    let (size, pixels, parameters) = read_png(&path);
    assert_eq!(size, (128, 128));
    assert!(parameters.starts_with("pixel art blue potion\nSteps: 20, "), "{parameters}");
    assert!(parameters.contains("Guidance: 3.5, Seed: 0, Size: 128x128, Profile: W4A8"), "{parameters}");
    // A potion on a light ground: neither flat nor noise, with more blue than red in its dark pixels.
    let dark: Vec<&[u8]> =
        pixels.chunks(3).filter(|p| p.iter().map(|&c| u32::from(c)).sum::<u32>() < 400).collect();
    assert!(dark.len() > 500 && dark.len() < 128 * 128 / 2, "{} dark pixels", dark.len());
    let sum = |channel: usize| dark.iter().map(|p| u64::from(p[channel])).sum::<u64>();
    assert!(sum(2) > sum(0), "blue {} red {}", sum(2), sum(0));
}

#[test]
fn the_same_seed_is_the_same_file_with_any_number_of_threads() {
    let folder = Folder::new("seed");
    let file = |name: &str, options: &[&str]| {
        let path = folder.0.join(name);
        let mut args =
            vec!["generate", "pixel art kite shield", "--steps", "3", "-o", path.to_str().unwrap()];
        args.extend(options);
        let run = svdq(&args);
        assert!(run.status.success(), "{}", text(&run.stderr));
        fs::read(path).unwrap()
    };
    for profile in ["w4a4", "w4a8", "w4a16"] {
        let first = file("a.png", &["--seed", "7", "--profile", profile, "--threads", "1"]);
        assert_eq!(
            first,
            file("b.png", &["--seed", "7", "--profile", profile, "--threads", "3"]),
            "{profile}"
        );
        assert_ne!(first, file("c.png", &["--seed", "8", "--profile", profile]), "{profile}");
    }
}

/// Sizes other than the default, not square, down to one patch.
#[test]
fn generate_makes_other_sizes() {
    let folder = Folder::new("sizes");
    for (size, expected) in [("160x96", (160, 96)), ("16x16", (16, 16))] {
        let path = folder.0.join("out.png");
        let run = svdq(&[
            "generate",
            "a flat icon of a key",
            "--size",
            size,
            "--steps",
            "2",
            "-o",
            path.to_str().unwrap(),
        ]);
        assert!(run.status.success(), "{}", text(&run.stderr));
        assert_eq!(read_png(&path).0, expected);
    }
}

/// Each names what is wrong, in one line, and leaves no file.
#[test]
fn bad_arguments_are_refused() {
    let folder = Folder::new("bad");
    let out = folder.0.join("out.png");
    let out = out.to_str().unwrap();
    let cases: &[(&[&str], i32, &str)] = &[
        (&["generate", "x", "-o", out, "--size", "0x128"], 2, "0x128"),
        (&["generate", "x", "-o", out, "--size", "banana"], 2, "banana"),
        (
            &["generate", "x", "-o", out, "--size", "120x128"],
            1,
            "width is 120, which is not a multiple of 16",
        ),
        (&["generate", "x", "-o", out, "--size", "128x99999984"], 1, "height is 99999984"),
        (&["generate", "x", "-o", out, "--size", "4096x4096"], 1, "4096x4096 pixels are too many"),
        (&["generate", "x", "-o", out, "--steps", "0"], 2, "--steps"),
        (&["generate", "x", "-o", out, "--steps", "1001"], 1, "steps is 1001"),
        (&["generate", "x", "-o", out, "--guidance", "-1"], 1, "guidance is -1"),
        (&["generate", "x", "-o", out, "--guidance", "NaN"], 1, "guidance is NaN"),
        (&["generate", "x", "-o", out, "--profile", "w2a2"], 2, "w2a2"),
        (&["generate", "x", "-o", out, "--threads", "100000"], 1, "threads is 100000"),
        (&["generate", "x", "-o", out, "--colour", "red"], 2, "--colour"),
        (&["generate", "x", "-o", out, "--model", "src"], 1, "src"),
        (&["generate", "x", "-o", out, "--model", "nowhere"], 1, "nowhere"),
        (&["generate", "x", "-o", out, "--transformer", "assets/demo/vae"], 1, "assets/demo/vae"),
        (&["generate", "x", "-o", out, "--transformer", "README.md"], 1, "README.md"),
        (&["generate", "x", "-o", out, "--lora", "nowhere"], 1, "nowhere"),
        (&["generate", "x", "-o", out, "--lora", "nowhere:0.5"], 1, "nowhere"),
        (&["generate", "x", "-o", out, "--lora", "README.md:half"], 1, "README.md:half"),
        (&["generate", "x", "-o", out, "--lora", "README.md:inf"], 2, "strength of inf"),
        (&["generate", "x", "-o", out, "--lora", "README.md"], 1, "README.md"),
        (
            &["generate", "x", "-o", out, "--lora", "tests/golden/lora/xlabs.safetensors:0.5"],
            1,
            "xlabs.safetensors: tensor `double_blocks.0.processor.",
        ),
        (&["generate", "x", "-o", "nowhere/out.png"], 1, "nowhere/out.png"),
        (&["generate", "x", "-o", "src"], 1, "src"),
        (&["generate"], 2, "prompt"),
        (&["paint"], 2, "paint"),
        (&[], 2, "command"),
        (&["inspect"], 2, "path"),
        (&["inspect", "nowhere"], 1, "nowhere"),
        (&["inspect", "README.md"], 1, "README.md"),
        (&["quantize", "assets/demo"], 2, "file to write"),
        (&["quantize", "assets/demo/vae", out], 1, "assets/demo/vae"),
        (&["quantize", "assets/demo", out, "--rank", "20"], 1, "20"),
    ];
    for (args, status, expected) in cases {
        let run = svdq(args);
        let message = text(&run.stderr);
        assert_eq!(run.status.code(), Some(*status), "{args:?}: {message}");
        assert!(message.starts_with("svdq: ") && message.contains(expected), "{args:?}: {message}");
        assert!(message.trim_end().lines().count() <= 2, "{args:?}: {message}");
        assert!(run.stdout.is_empty(), "{args:?}");
    }
    assert!(folder.names().is_empty(), "{:?}", folder.names());
}

/// A picture beyond the memory that the process may have is refused while it is made, and no file is left.
#[test]
fn too_little_memory_is_an_error() {
    let folder = Folder::new("memory");
    let command = "ulimit -v 400000; exec \"$0\" generate x --size 1024x1024 --steps 1 --threads 2 -o \"$1\"";
    let run = Command::new("sh")
        .args(["-c", command, env!("CARGO_BIN_EXE_svdq")])
        .arg(folder.0.join("out.png"))
        .current_dir(ROOT)
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(1), "{}", text(&run.stderr));
    assert!(
        text(&run.stderr).contains("bytes of memory are needed for activations"),
        "{}",
        text(&run.stderr)
    );
    assert!(folder.names().is_empty(), "{:?}", folder.names());
}

#[test]
fn a_prompt_that_is_not_utf_8_is_refused() {
    let run = svdq(&[OsStr::new("generate"), OsStr::from_bytes(b"potion \xff")]);
    assert_eq!(run.status.code(), Some(2));
    assert!(text(&run.stderr).contains("unicode"), "{}", text(&run.stderr));
}

/// A model quantised by the command is inspected and runs.
#[test]
fn quantize_inspect_generate() {
    let folder = Folder::new("quantize");
    let file = folder.0.join("svdq-int4_r16.safetensors");
    let file = file.to_str().unwrap();
    let run = svdq(&["quantize", "assets/demo", file, "--rank", "16"]);
    assert!(run.status.success(), "{}", text(&run.stderr));
    assert!(text(&run.stdout).contains("transformer_blocks.0.qkv_proj"), "{}", text(&run.stdout));
    assert_eq!(folder.names(), ["svdq-int4_r16.safetensors"]);

    let run = svdq(&["inspect", file]);
    let summary = text(&run.stdout);
    assert!(run.status.success() && summary.contains("INT4") && summary.contains("16"), "{summary}");

    let out = folder.0.join("out.png");
    let run = svdq(&[
        "generate",
        "pixel art key",
        "--transformer",
        file,
        "--steps",
        "2",
        "-o",
        out.to_str().unwrap(),
    ]);
    assert!(run.status.success(), "{}", text(&run.stderr));
    assert_eq!(read_png(&out).0, (128, 128));
}

/// A LoRA of one layer: written, explained, used with two strengths, and in the picture's parameters.
#[test]
fn inspect_and_generate_with_a_lora() {
    use safetensors::{Dtype, tensor::TensorView};
    let folder = Folder::new("lora");
    let file = folder.0.join("wild.safetensors");
    // bfloat16 values between 1/8 and 1/4 of both signs
    let data: Vec<u8> =
        (0..1024 * 2).flat_map(|i: usize| [i as u8 & 0x7f, [0x3e, 0xbe][i % 3 / 2]]).collect();
    let tensor = |shape: [usize; 2]| {
        TensorView::new(Dtype::BF16, shape.to_vec(), &data[..shape[0] * shape[1] * 2]).unwrap()
    };
    let tensors = [
        ("lora_unet_double_blocks_0_img_mlp_0.lora_down.weight", tensor([2, 256])),
        ("lora_unet_double_blocks_0_img_mlp_0.lora_up.weight", tensor([1024, 2])),
        ("lora_unet_double_blocks_99_img_mlp_0.alpha", tensor([1, 1])),
    ];
    fs::write(&file, safetensors::serialize(tensors, None).unwrap()).unwrap();
    let file = file.to_str().unwrap();

    let run = svdq(&["inspect", file]);
    let summary = text(&run.stdout);
    assert!(run.status.success(), "{}", text(&run.stderr));
    for part in [file, "LoRA for FLUX.1, names: kohya", "1 modules, rank 2", "BF16"] {
        assert!(summary.contains(part), "{summary}");
    }

    let out = folder.0.join("out.png");
    let picture = |lora: &[&str]| {
        let mut args = vec!["generate", "pixel art key", "--steps", "2", "-o", out.to_str().unwrap()];
        args.extend(lora.iter().flat_map(|lora| ["--lora", lora]));
        let run = svdq(&args);
        assert!(run.status.success(), "{}", text(&run.stderr));
        let (_, pixels, parameters) = read_png(&out);
        (pixels, parameters, text(&run.stderr))
    };
    let (plain, parameters, _) = picture(&[]);
    assert!(!parameters.contains("LoRA"), "{parameters}");
    let (whole, parameters, warning) = picture(&[file]);
    assert!(whole != plain && parameters.contains(", LoRAs: wild:1, "), "{parameters}");
    assert!(warning.contains("no place for 1 tensors, such as `lora_unet_double_blocks_99_"), "{warning}");
    let (half, parameters, _) = picture(&[&format!("{file}:0.5")]);
    assert!(half != plain && half != whole && parameters.contains("wild:0.5"), "{parameters}");
    assert!(picture(&[&format!("{file}:0")]).0 == plain);
}

#[test]
fn bench_says_what_it_measured() {
    let args = ["bench", "--size", "32x32", "--steps", "2", "--runs", "1", "--device", "cpu"];
    let output = svdq(&args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines = text(&output.stdout);
    for name in ["load", "text encoders", "VAE", "whole image", "a step"] {
        assert!(lines.lines().any(|line| line.starts_with(name)), "no {name} in {lines}");
    }

    let output = svdq(&[&args[..], &["--json"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["device"], &json["model"], &json["runs"]), (&"CPU".into(), &"demo".into(), &1.into()));
    assert!(json["peak_bytes"].is_null() && json["load_ms"].as_f64().unwrap() > 0.0);
    assert!(
        json["read_and_copy_ms"].as_f64().unwrap() > 0.0 && json["file_bytes"].as_u64().unwrap() > 10_000_000
    );
    let size = &json["sizes"][0];
    assert_eq!((&size["width"], &size["height"], &size["steps"]), (&32.into(), &32.into(), &2.into()));
    assert!(size["kernels"].as_array().unwrap().is_empty());
    let time = |name: &str| size[name].as_f64().unwrap();
    let parts = time("text_encoders_ms") + time("transformer_ms") + time("vae_ms");
    assert!(parts > 0.0 && parts <= time("image_ms") && time("step_ms") > 0.0);

    let output = svdq(&["bench", "--random-weights", "--model", "flux.2"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--random-weights needs --model flux.1-dev or flux.1-schnell"));
}

/// A LoRA for a control image: what is said of it, and the rest of it in the picture.
#[test]
fn a_control_lora_without_its_image() {
    use safetensors::{Dtype, tensor::TensorView};
    let folder = Folder::new("control");
    let out = folder.0.join("out.png");
    let ones = [0x80, 0x3d].repeat(2 * 256);
    let picture = |columns: usize| {
        let file = folder.0.join("canny.safetensors");
        // bfloat16 sixteenths; in A, those of the control image are as large as bfloat16 can be.
        let row = [[0x80, 0x3d].repeat(64), [0x7f, 0x7f].repeat(columns - 64)].concat();
        let tensors = [
            ("img_in.lora_A.weight", TensorView::new(Dtype::BF16, vec![1, columns], &row).unwrap()),
            ("img_in.lora_B.weight", TensorView::new(Dtype::BF16, vec![256, 1], &ones[..512]).unwrap()),
        ];
        fs::write(&file, safetensors::serialize(tensors, None).unwrap()).unwrap();
        let file = file.to_str().unwrap();
        let summary = text(&svdq(&["inspect", file]).stdout);
        assert_eq!(summary.contains("64 channels of a control image"), columns == 128, "{summary}");
        let out = out.to_str().unwrap();
        let run = svdq(&["generate", "pixel art key", "--steps", "2", "--lora", file, "-o", out]);
        assert!(run.status.success(), "{}", text(&run.stderr));
        assert_eq!(text(&run.stderr).contains("control image"), columns == 128, "{}", text(&run.stderr));
        read_png(Path::new(out)).1
    };
    let run = svdq(&["generate", "pixel art key", "--steps", "2", "-o", out.to_str().unwrap()]);
    assert!(run.status.success(), "{}", text(&run.stderr));
    let plain = read_png(&out).1;
    let wide = picture(128);
    assert!(wide == picture(64) && wide != plain);
}
