#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;

use super::*;
use crate::device::cpu::Cpu;
use crate::memory::Buf;
use crate::ops::{Device, Profile};
use crate::weights::testing::TempDir;
use crate::weights::{Checkpoint, Dtype};

fn cpu() -> Cpu {
    Cpu::new(2, Profile::W4A8).unwrap()
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// A `[1, c, h, w]` tensor as `[h · w, c]`, and `[h, w]`.
fn pixels(io: &Checkpoint, name: &str) -> (Vec<f32>, [usize; 2]) {
    let shape = io.get(name).unwrap().shape;
    let (c, size) = (shape[1], [shape[2], shape[3]]);
    let (values, count) = (io.f32(name, shape).unwrap(), shape[2] * shape[3]);
    ((0..count * c).map(|i| values[i % c * count + i / c]).collect(), size)
}

/// `max |a - b| / max |b|`
fn relative_error(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().all(|v| v.is_finite()));
    let max = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, |m: f32, v| m.max(v.abs()));
    max(&mut a.iter().zip(b).map(|(a, b)| a - b)) / max(&mut b.iter().copied())
}

#[test]
fn decodes_as_diffusers() {
    for name in ["vae", "vae_quant"] {
        let dev = cpu();
        let vae = Vae::load(&dev, &golden(name)).unwrap();
        assert_eq!((vae.factor(), vae.latent_channels()), (8, 4));
        let io = Checkpoint::open(&golden(name).join("io.safetensors")).unwrap();
        let (z, size) = pixels(&io, "latent");
        // The golden is of the network alone, without the pipeline's scale and shift.
        let latents: Vec<f32> = z.iter().map(|z| (z - 0.1159) * 0.3611).collect();
        let image = dev.download(&vae.decode(&dev, &latents, size).unwrap()).unwrap();
        let error = relative_error(&image, &pixels(&io, "decoded").0);
        assert!(error < 1e-4, "{name}: {error}");
    }
}

#[test]
fn encodes_as_diffusers() {
    for name in ["vae", "vae_quant"] {
        let dev = cpu();
        let encoder = VaeEncoder::load(&dev, &golden(name)).unwrap();
        let io = Checkpoint::open(&golden(name).join("io.safetensors")).unwrap();
        let (image, size) = pixels(&io, "image");
        let encoded = encoder.encode(&dev, &image, size).unwrap();
        for (what, got) in [("mean", encoded.mean), ("logvar", encoded.logvar)] {
            let error = relative_error(&got, &pixels(&io, what).0);
            assert!(error < 1e-4, "{name} {what}: {error}");
        }
    }
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// The golden VAE `vae` with its config and tensors changed.
fn edited(edit: impl FnOnce(&mut serde_json::Value, &mut Tensors)) -> TempDir {
    let mut config =
        serde_json::from_slice(&std::fs::read(golden("vae").join("config.json")).unwrap()).unwrap();
    let file = Checkpoint::open(&golden("vae").join("model.safetensors")).unwrap();
    let mut tensors: Tensors = file
        .tensors()
        .map(|t| (t.name.into(), (t.dtype, t.shape.into(), t.bytes().unwrap().into())))
        .collect();
    edit(&mut config, &mut tensors);
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    let dir = TempDir::new();
    dir.write("model.safetensors", &safetensors::serialize(views, None).unwrap());
    dir.write("config.json", config.to_string().as_bytes());
    dir
}

/// What loading the decoder of an edited VAE answers.
fn refusal(edit: impl FnOnce(&mut serde_json::Value, &mut Tensors)) -> String {
    match Vae::load(&cpu(), edited(edit).path()) {
        Ok(_) => "loads".into(),
        Err(error) => error.to_string(),
    }
}

fn set(
    key: &'static str,
    value: impl Into<serde_json::Value>,
) -> impl FnOnce(&mut serde_json::Value, &mut Tensors) {
    move |config, _| config[key] = value.into()
}

/// Some latents through the VAE of `folder`.
fn decode_waves(dev: &Cpu, folder: &Path) -> Buf<f32> {
    let latents: Vec<f32> = (0..2 * 3 * 4).map(|i| (i as f32).sin()).collect();
    let vae = Vae::load(dev, folder).unwrap();
    dev.download(&vae.decode(dev, &latents, [2, 3]).unwrap()).unwrap()
}

#[test]
fn legacy_attention_is_the_same() {
    let legacy = edited(|_, tensors| {
        for (now, then) in [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")]
        {
            for part in ["weight", "bias"] {
                let name = |linear| format!("decoder.mid_block.attentions.0.{linear}.{part}");
                let mut tensor = tensors.remove(&name(now)).unwrap();
                if part == "weight" {
                    tensor.1.extend([1, 1]);
                }
                tensors.insert(name(then), tensor);
            }
        }
    });
    let dev = cpu();
    let [old, new] = [legacy.path(), &golden("vae")].map(|folder| decode_waves(&dev, folder));
    assert_eq!(old, new);
}

#[test]
fn attention_is_optional() {
    let dir = edited(|config, tensors| {
        config["mid_block_add_attention"] = false.into();
        tensors.retain(|name, _| !name.contains("attentions"));
    });
    let dev = cpu();
    assert!(VaeEncoder::load(&dev, dir.path()).is_ok());
    let [without, with] = [dir.path(), &golden("vae")].map(|folder| decode_waves(&dev, folder));
    assert!(relative_error(&without, &with) > 1e-3);
}

#[test]
fn either_half_may_be_alone() {
    let dev = cpu();
    let decoder = edited(|_, tensors| tensors.retain(|name, _| name.starts_with("decoder")));
    assert!(Vae::load(&dev, decoder.path()).is_ok());
    let error = VaeEncoder::load(&dev, decoder.path()).err().unwrap().to_string();
    assert!(error.contains("`encoder.conv_in.weight` is missing"), "{error}");
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let missing = refusal(|_, t| drop(t.remove("decoder.conv_out.bias")));
    assert!(missing.contains("`decoder.conv_out.bias` is missing"), "{missing}");

    let shape = refusal(|_, t| t.get_mut("decoder.conv_in.weight").unwrap().1 = vec![24, 4, 9]);
    assert!(shape.contains("`decoder.conv_in.weight` has shape [24, 4, 9]"), "{shape}");

    let extra = refusal(|config, _| config["mid_block_add_attention"] = false.into());
    assert!(extra.contains("no place for tensor `decoder.mid_block.attentions.0."), "{extra}");

    let quant = refusal(|config, _| config["use_post_quant_conv"] = true.into());
    assert!(quant.contains("`post_quant_conv.weight` is missing"), "{quant}");

    let latent = refusal(set("latent_channels", 16));
    assert!(latent.contains("`decoder.conv_in.weight` has shape [24, 4, 3, 3]"), "{latent}");

    let layers = refusal(set("layers_per_block", u64::MAX));
    assert!(layers.contains("`decoder.up_blocks.0.resnets.2.norm1.weight` is missing"), "{layers}");
}

#[test]
fn bad_configs_are_named() {
    for (key, value, expected) in [
        ("_class_name", "AutoencoderTiny".into(), "AutoencoderTiny"),
        ("act_fn", "relu".into(), "act_fn relu"),
        ("in_channels", 4.into(), "in_channels"),
        ("up_block_types", vec!["AttnUpDecoderBlock2D"; 4].into(), "AttnUpDecoderBlock2D"),
        ("down_block_types", vec!["DownEncoderBlock2D"; 3].into(), "3, 4 and 4 entries"),
        ("block_out_channels", Vec::<u32>::new().into(), "0 entries"),
        ("block_out_channels", vec![4; 65].into(), "65 entries"),
        ("block_out_channels", vec![8, 16, 16, 0].into(), "does not divide the 0"),
        ("block_out_channels", vec![-1; 4].into(), "block_out_channels"),
        ("norm_num_groups", 3.into(), "norm_num_groups 3 does not divide the 8"),
        ("norm_num_groups", 0.into(), "norm_num_groups 0"),
        ("layers_per_block", 0.into(), "layers_per_block"),
        ("latent_channels", 0.into(), "latent_channels"),
        ("scaling_factor", 0.into(), "scaling_factor 0"),
        ("scaling_factor", 1e300.into(), "scaling_factor inf"),
        ("shift_factor", "x".into(), "shift_factor"),
    ] {
        let answer = refusal(set(key, serde_json::Value::clone(&value)));
        assert!(answer.contains(expected) && answer.contains("config.json"), "{key} {value}: {answer}");
    }
    let nothing = Vae::load(&cpu(), TempDir::new().path()).err().unwrap().to_string();
    assert!(nothing.contains("no .safetensors file"), "{nothing}");
}

#[test]
fn sizes_that_do_not_fit_are_errors() {
    let dev = cpu();
    let vae = Vae::load(&dev, &golden("vae")).unwrap();
    for (count, size) in [(0, [0, 0]), (8, [1, 1]), (4, [1, 2]), (16, [usize::MAX, 5]), (0, [1 << 63, 2])] {
        let error = vae.decode(&dev, &vec![0.0; count], size).err();
        assert!(matches!(error, Some(Error::InvalidArgument(_))), "{count} {size:?}");
    }
    let encoder = VaeEncoder::load(&dev, &golden("vae")).unwrap();
    for (count, size) in [(0, [0, 0]), (8 * 12 * 3, [8, 12]), (8 * 8, [8, 8])] {
        let error = encoder.encode(&dev, &vec![0.0; count], size).err();
        assert!(matches!(error, Some(Error::InvalidArgument(_))), "{count} {size:?}");
    }
}

#[test]
fn flux_1_config_is_legal() {
    let dir = TempDir::new();
    let config = r#"{"_class_name": "AutoencoderKL", "_diffusers_version": "0.30.0.dev0", "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D",
        "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"], "force_upcast": true,
        "in_channels": 3, "latent_channels": 16, "latents_mean": null, "latents_std": null,
        "layers_per_block": 2, "mid_block_add_attention": true, "norm_num_groups": 32, "out_channels": 3,
        "sample_size": 1024, "scaling_factor": 0.3611, "shift_factor": 0.1159, "up_block_types":
        ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
        "use_post_quant_conv": false, "use_quant_conv": false}"#;
    let config = config::Config::load(&dir.write("config.json", config.as_bytes())).unwrap();
    assert_eq!((config.factor(), config.latent_channels, config.mid_channels()), (8, 16, 512));
}
