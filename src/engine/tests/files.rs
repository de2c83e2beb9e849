use std::io::Read;
use std::os::unix::fs::symlink;
use std::sync::Arc;

use flate2::read::GzDecoder;
use serde_json::{Value, json};

use super::*;
use crate::weights::names::tests::{as_bfl, file, vae_as_bfl};
use crate::weights::testing::TempDir;
use crate::weights::{inspect, read_json};

/// Repeats the rows of a tensor until there are so many.
fn grow(tensors: &mut Tensors, name: &str, rows: usize) {
    let (_, shape, bytes) = tensors.get_mut(name).unwrap();
    let row = bytes.len() / std::mem::replace(&mut shape[0], rows);
    *bytes = bytes.iter().copied().cycle().take(rows * row).collect();
}

/// A config.json of the demo model with other values for some keys.
fn config(part: &str, changes: Value) -> Vec<u8> {
    let mut config: Value = read_json(&demo().join(part).join("config.json")).unwrap();
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config.to_string().into_bytes()
}

/// A transformer in Black Forest Labs' names, `clip_l`, `t5xxl` and `ae`, without a config, give the bytes that the same weights
/// give as a diffusers folder. The encoders are given the vocabularies of FLUX.1, whose tokenizers go with files alone.
#[test]
fn single_files_make_the_picture_of_a_diffusers_folder() {
    let mut parts =
        ["transformer", "text_encoder", "text_encoder_2", "vae"].map(|part| read(&demo().join(part)));
    grow(&mut parts[1], "text_model.embeddings.token_embedding.weight", 49408);
    grow(&mut parts[2], "shared.weight", 32128);
    let [transformer, clip, t5, vae] = parts;

    let folder = TempDir::new();
    folder.write("model_index.json", br#"{"_class_name": "FluxPipeline"}"#);
    for (part, name, tensors, changes) in [
        ("transformer", "diffusion_pytorch_model", &transformer, json!({})),
        ("text_encoder", "model", &clip, json!({"vocab_size": 49408, "eos_token_id": 49407})),
        ("text_encoder_2", "model", &t5, json!({"vocab_size": 32128})),
        (
            "vae",
            "diffusion_pytorch_model",
            &vae,
            json!({"norm_num_groups": 32, "scaling_factor": 0.3611, "shift_factor": 0.1159}),
        ),
    ] {
        folder.write(&format!("{part}/config.json"), &config(part, changes));
        folder.write(&format!("{part}/{name}.safetensors"), &file(tensors));
    }
    for (part, packed) in [("tokenizer", "clip_l"), ("tokenizer_2", "t5_xxl")] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("assets/tokenizers/{packed}.json.gz"));
        let mut json = Vec::new();
        GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_end(&mut json).unwrap();
        folder.write(&format!("{part}/tokenizer.json"), &json);
    }
    symlink(demo().join("scheduler"), folder.path().join("scheduler")).unwrap();

    let single = TempDir::new();
    let files = [
        ("flux1-dev.safetensors", as_bfl(transformer, "")),
        ("clip_l.safetensors", clip),
        ("t5xxl_fp16.safetensors", t5),
        ("ae.safetensors", vae_as_bfl(&vae)),
    ];
    assert!(files[0].1.contains_key("double_blocks.0.img_attn.qkv.weight"));
    assert!(files[3].1.contains_key("decoder.mid.attn_1.q.weight"));
    let paths = files.map(|(name, tensors)| single.write(name, &file(&tensors)));

    let want = picture(&load(&[folder.path()]).unwrap(), &[]);
    assert!(want.iter().any(|&v| v != want[0]));
    let sources: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    assert!(picture(&load(&sources).unwrap(), &[]) == want);
    // in memory and without names, the other way round
    let memory = |path: &&Path| {
        let bytes: Arc<Vec<u8>> = std::fs::read(path).unwrap().into();
        Source::Memory { name: None, bytes }
    };
    assert!(picture(&load_sources(sources.iter().rev().map(memory).collect()).unwrap(), &[]) == want);
    // a folder with all of them, as ComfyUI's models
    assert!(picture(&load(&[single.path()]).unwrap(), &[]) == want);
}

/// A folder as the demo model's, but for its class and its transformer.
fn pipeline(class: &str, transformer: &Path, name: &str) -> TempDir {
    let folder = TempDir::new();
    folder.write("model_index.json", json!({"_class_name": class}).to_string().as_bytes());
    symlink(transformer, folder.path().join(name)).unwrap();
    for part in
        ["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae", "scheduler", "svdq.json"]
    {
        symlink(demo().join(part), folder.path().join(part)).unwrap();
    }
    folder
}

/// The transformers of Kontext and Krea are dev's. Without an image, Kontext makes one of text alone.
#[test]
fn kontext_and_krea_make_pictures() {
    let four_bit = demo().join("svdq-int4_r32-demo.safetensors");
    let want = picture(&load(&[&demo()]).unwrap(), &[]);
    for (class, name) in [("FluxKontextPipeline", "kontext"), ("FluxPipeline", "krea")] {
        let folder = pipeline(class, &four_bit, &format!("svdq-int4_r32-flux.1-{name}-dev.safetensors"));
        inspect(folder.path()).unwrap();
        assert!(picture(&load(&[folder.path()]).unwrap(), &[]) == want, "{name}");
    }
}

/// The transformers of Fill, Canny and Depth take images beside the noise: they are explained, and refused by name.
#[test]
fn tools_are_explained_and_refused() {
    let widen = |tensors: &mut Tensors, channels: usize| {
        let (_, shape, bytes) = tensors.get_mut("x_embedder.weight").unwrap();
        let row = 2 * std::mem::replace(&mut shape[1], channels);
        *bytes =
            bytes.chunks(row).flat_map(|row| [row, &vec![0; 2 * channels - row.len()]].concat()).collect();
    };
    for (class, channels) in [("FluxFillPipeline", 384), ("FluxControlPipeline", 128)] {
        let mut dense = read(&demo().join("transformer"));
        widen(&mut dense, channels);
        let transformer = TempDir::new();
        transformer.write("diffusion_pytorch_model.safetensors", &file(&dense));
        let changes = json!({"in_channels": channels, "out_channels": 64});
        transformer.write("config.json", &config("transformer", changes));
        let bfl = TempDir::new();
        let bfl = bfl.write("flux1-tool.safetensors", &file(&as_bfl(dense, "")));
        let mut four_bit = read(&demo().join("svdq-int4_r32-demo.safetensors"));
        widen(&mut four_bit, channels);
        let nunchaku = TempDir::new();
        let nunchaku = nunchaku.write("svdq-int4_r32-tool.safetensors", &file(&four_bit));

        let folder = pipeline(class, transformer.path(), "transformer");
        let demo = demo();
        for sources in
            [&[folder.path()][..], &[transformer.path(), &demo], &[&bfl, &demo], &[&nunchaku, &demo]]
        {
            let summary = inspect(sources[0]).unwrap().to_string();
            assert!(summary.contains(&format!("latents {channels} -> 64")), "{summary}");
            assert!(summary.contains("carry an image beside the noise"), "{summary}");
            let error = load(sources).err().unwrap();
            let text = error.to_string();
            assert!(matches!(error, Error::Unsupported(_)), "{text}");
            assert!(text.contains(&format!("{channels} channels")), "{text}");
            assert!(text.contains("FLUX.1 Fill, Canny and Depth"), "{text}");
        }
    }
}
