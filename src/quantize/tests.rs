//! Whole checkpoints: a small random transformer through the file and back.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use super::random::Random;
use super::*;
use crate::memory::HostMemory;
use crate::weights::pack::{
    unpack_awq, unpack_codes, unpack_lora_down, unpack_lora_up, unpack_vector, unpack_wscales,
};
use crate::weights::testing::TempDir;

const HIDDEN: usize = 128;

/// A transformer folder with one block of each kind; `hidden` channels in one head.
fn transformer_folder(hidden: usize) -> TempDir {
    let dir = TempDir::new();
    let config = json!({
        "_class_name": "FluxTransformer2DModel", "in_channels": 16, "num_layers": 1, "num_single_layers": 1,
        "attention_head_dim": hidden, "num_attention_heads": 1, "joint_attention_dim": 64,
        "pooled_projection_dim": 32, "guidance_embeds": true,
        "axes_dims_rope": [16, (hidden - 16) / 2, (hidden - 16) / 2],
    });
    dir.write("config.json", config.to_string().as_bytes());
    let mut random = Random::new(hidden as u64);
    let tensors = sources(hidden);
    let mut writer = Writer::create(&dir.path().join("model.safetensors"), &[], tensors).unwrap();
    while let Some((name, shape)) = writer.due() {
        let (rows, cols) = (shape[0], shape.get(1).copied().unwrap_or(1));
        // columns of different size, and a few large ones
        let sizes: Vec<f32> =
            (0..cols).map(|c| if c % 37 == 0 { 0.4 } else { 0.05 + 0.02 * random.symmetric() }).collect();
        let values: Vec<f32> = (0..rows * cols).map(|i| random.symmetric() * sizes[i % cols]).collect();
        writer.write(&name, &f32_to_bf16(&values)).unwrap();
    }
    writer.finish().unwrap();
    dir
}

fn sources(hidden: usize) -> Vec<(String, Dtype, Vec<usize>)> {
    let mut tensors = Vec::new();
    let mut linear = |name: &str, n: usize, k: usize| {
        tensors.push((format!("{name}.weight"), Dtype::BF16, vec![n, k]));
        tensors.push((format!("{name}.bias"), Dtype::BF16, vec![n]));
    };
    let double = "transformer_blocks.0";
    for (norm, qkv, out, mlp) in [
        ("norm1", ["to_q", "to_k", "to_v"], "to_out.0", "ff"),
        ("norm1_context", ["add_q_proj", "add_k_proj", "add_v_proj"], "to_add_out", "ff_context"),
    ] {
        linear(&format!("{double}.{norm}.linear"), 6 * hidden, hidden);
        for name in qkv.into_iter().chain([out]) {
            linear(&format!("{double}.attn.{name}"), hidden, hidden);
        }
        linear(&format!("{double}.{mlp}.net.0.proj"), 4 * hidden, hidden);
        linear(&format!("{double}.{mlp}.net.2"), hidden, 4 * hidden);
    }
    let single = "single_transformer_blocks.0";
    linear(&format!("{single}.norm.linear"), 3 * hidden, hidden);
    for name in ["to_q", "to_k", "to_v"] {
        linear(&format!("{single}.attn.{name}"), hidden, hidden);
    }
    linear(&format!("{single}.proj_mlp"), 4 * hidden, hidden);
    linear(&format!("{single}.proj_out"), hidden, 5 * hidden);
    linear("x_embedder", hidden, 16);
    linear("context_embedder", hidden, 64);
    for (embedder, k) in [("timestep", 256), ("guidance", 256), ("text", 32)] {
        linear(&format!("time_text_embed.{embedder}_embedder.linear_1"), hidden, k);
        linear(&format!("time_text_embed.{embedder}_embedder.linear_2"), hidden, hidden);
    }
    linear("norm_out.linear", 2 * hidden, hidden);
    linear("proj_out", 16, hidden);
    for name in ["norm_q", "norm_k", "norm_added_q", "norm_added_k"] {
        tensors.push((format!("{double}.attn.{name}.weight"), Dtype::BF16, vec![hidden]));
    }
    for name in ["norm_q", "norm_k"] {
        tensors.push((format!("{single}.attn.{name}.weight"), Dtype::BF16, vec![hidden]));
    }
    tensors
}

fn options(threads: usize) -> QuantizeOptions {
    QuantizeOptions { rank: 16, rounds: 2, threads }
}

fn run(input: &Path, output: &Path, options: &QuantizeOptions) -> Result<Report> {
    quantize(input, output, options, &mut |_| ControlFlow::Continue(()))
}

/// What a 4-bit linear does, as a dense one: `[n, k]` and the bias that goes with an unshifted input.
fn dequantised(source: LinearSource<'_>) -> (Vec<f64>, Vec<f64>) {
    match source {
        LinearSource::Awq(awq) => {
            let dense = unpack_awq(&awq);
            (
                dense.weight.values().unwrap().iter().map(|&w| w as f64).collect(),
                dense.bias.iter().map(|&b| b as f64).collect(),
            )
        }
        LinearSource::Svdq(s) => {
            let (n, k) = (s.n, s.k);
            let codes = unpack_codes(&s.qweight, n, k);
            let scales = unpack_wscales(&s.wscales, n, k);
            let smooth = unpack_vector(&s.smooth);
            let (down, up) = (
                unpack_lora_down(&HostMemory::default(), &s.lora_down, k, s.rank).unwrap(),
                unpack_lora_up(&HostMemory::default(), &s.lora_up, n, s.rank).unwrap(),
            );
            let mut bias: Vec<f64> = unpack_vector(&s.bias).iter().map(|&b| b as f64).collect();
            let mut weight = vec![0.0; n * k];
            for row in 0..n {
                for col in 0..k {
                    let code =
                        codes[row * k + col] as f64 * scales[col / 64 * n + row] as f64 / smooth[col] as f64;
                    let branch: f64 =
                        (0..s.rank).map(|r| up[row * s.rank + r] as f64 * down[r * k + col] as f64).sum();
                    weight[row * k + col] = code + branch;
                    if s.unsigned {
                        bias[row] += 0.171875 * code;
                    }
                }
            }
            (weight, bias)
        }
        LinearSource::Dense(_) => panic!("a dense linear in a 4-bit file"),
    }
}

/// Power of the outputs of `weight`, `[n, k]`, for the inputs that the quantiser assumes.
fn output_power(weight: &[f64], k: usize, inputs: &Inputs, part: Part) -> f64 {
    if part == Part::Modulation {
        let samples = inputs.conditioning();
        let output = |row: &[f64], s: usize| -> f64 {
            row.iter().enumerate().map(|(i, w)| w * samples.row(i)[s] as f64).sum()
        };
        return weight.chunks(k).flat_map(|row| (0..samples.cols).map(move |s| output(row, s).powi(2))).sum();
    }
    let rms = inputs.rms(part, k);
    weight.iter().enumerate().map(|(i, w)| (w * rms[i % k] as f64).powi(2)).sum()
}

fn open(weights: &FluxWeights, block: Block, part: Part) -> LinearSource<'_> {
    match block {
        Block::Double(index, stream) => weights.double(index, stream, part).unwrap(),
        Block::Single(index) => weights.single(index, part).unwrap(),
    }
}

#[test]
fn the_file_is_what_the_report_says() {
    let input = transformer_folder(HIDDEN);
    let out = TempDir::new();
    let path = out.path().join("out.safetensors");
    let report = run(input.path(), &path, &options(2)).unwrap();
    assert_eq!(report.bytes, std::fs::metadata(&path).unwrap().len());

    let (dense, quantised) = (FluxWeights::open(input.path()).unwrap(), FluxWeights::open(&path).unwrap());
    assert_eq!(quantised.rank(), Some(16));
    assert_eq!(quantised.config(), dense.config());
    let linears = linears(dense.config());
    assert_eq!(report.layers.len(), linears.len());
    let mut inputs = Inputs::sample(&dense, 1).unwrap();
    for (layer, (block, part)) in report.layers.iter().zip(linears) {
        let wanted = match open(&dense, block, part) {
            LinearSource::Dense(dense) => dense,
            _ => panic!("{layer}: the input is dense"),
        };
        let (weight, bias) = dequantised(open(&quantised, block, part));
        if part == Part::Modulation {
            inputs.enter_block(&wanted, block.chunks()).unwrap();
        }
        let diff: Vec<f64> =
            wanted.weight.values().unwrap().iter().zip(&weight).map(|(&w, v)| w as f64 - v).collect();
        let all: Vec<f64> = wanted.weight.values().unwrap().iter().map(|&w| w as f64).collect();
        let [power, error] = [all, diff].map(|w| output_power(&w, wanted.k, &inputs, part));
        // sums in f32 by group on one side
        assert!((decibel(power, error) - layer.sqnr_db).abs() < 0.01, "{layer}: {}", decibel(power, error));
        assert!(layer.sqnr_db > 15.0, "{layer}");
        for (row, &b) in bias.iter().enumerate() {
            let wanted = wanted.bias.get(row).copied().unwrap_or(0.0) as f64;
            // one rounding to bf16 of values under 2
            assert!((b - wanted).abs() <= 1.0 / 256.0, "{layer}: bias {row} is {b}, not {wanted}");
        }
    }
}

#[test]
fn inputs_are_as_large_as_the_modulation_makes_them() {
    let input = transformer_folder(HIDDEN);
    let weights = FluxWeights::open(input.path()).unwrap();
    let LinearSource::Dense(mut modulation) = weights.single(0, Part::Modulation).unwrap() else {
        panic!("the input is dense");
    };
    // constants: shift 3 and scale 4 (its 1 included) in channel 5, elsewhere shift 0 and scale 1
    modulation.weight = vec![0.0; modulation.n * modulation.k].into();
    modulation.bias = [vec![0.0; HIDDEN], vec![1.0; HIDDEN], vec![9.0; HIDDEN]].concat();
    modulation.bias[5] = 3.0;
    modulation.bias[HIDDEN + 5] = 4.0;
    let mut inputs = Inputs::sample(&weights, 1).unwrap();
    inputs.enter_block(&modulation, 3).unwrap();
    for part in [Part::Qkv, Part::Fc1] {
        let rms = inputs.rms(part, HIDDEN);
        assert_eq!((rms.len(), rms[5], rms[6]), (HIDDEN, 5.0, 1.0));
    }
    assert_eq!(inputs.rms(Part::Fc2, 4), [1.0; 4]);
}

#[test]
fn all_else_is_copied() {
    let input = transformer_folder(HIDDEN);
    let out = TempDir::new();
    let path = out.path().join("out.safetensors");
    run(input.path(), &path, &options(1)).unwrap();
    let (from, to) = (Checkpoint::open(input.path()).unwrap(), Checkpoint::open(&path).unwrap());
    let config = FluxWeights::open(&path).unwrap().config().clone();
    let names: Vec<String> = inventory(&config, 16).into_iter().map(|t| t.0).collect();
    assert_eq!(to.names().count(), names.len());
    for (name, source) in [
        ("transformer_blocks.0.norm_added_k.weight", "transformer_blocks.0.attn.norm_added_k.weight"),
        ("single_transformer_blocks.0.norm_q.weight", "single_transformer_blocks.0.attn.norm_q.weight"),
        ("norm_out.linear.weight", "norm_out.linear.weight"),
        ("time_text_embed.text_embedder.linear_1.bias", "time_text_embed.text_embedder.linear_1.bias"),
    ] {
        assert_eq!(
            to.get(name).unwrap().bytes().unwrap(),
            from.get(source).unwrap().bytes().unwrap(),
            "{name}"
        );
    }
    let quantization: Value = serde_json::from_str(to.metadata("quantization_config").unwrap()).unwrap();
    assert_eq!(quantization["rank"], 16);
    assert_eq!(to.metadata("model_class"), Some("NunchakuFluxTransformer2dModel"));
    let comfy: HashMap<String, Value> = serde_json::from_str(to.metadata("comfy_config").unwrap()).unwrap();
    assert_eq!(comfy["model_config"]["hidden_size"], HIDDEN);
}

#[test]
fn the_bytes_do_not_depend_on_the_number_of_threads() {
    let input = transformer_folder(HIDDEN);
    let out = TempDir::new();
    let bytes = |threads: usize| {
        let path = out.path().join(format!("{threads}.safetensors"));
        run(input.path(), &path, &options(threads)).unwrap();
        std::fs::read(path).unwrap()
    };
    let one = bytes(1);
    assert!(one == bytes(3) && one == bytes(8));
}

#[test]
fn cancelling_leaves_what_was_there() {
    let input = transformer_folder(HIDDEN);
    let out = TempDir::new();
    let path = out.write("out.safetensors", b"before");
    let mut seen = 0;
    let result = quantize(input.path(), &path, &options(1), &mut |layer| {
        seen += 1;
        assert_eq!((layer.done, layer.total), (seen, 15));
        if seen == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(result, Err(Error::Cancelled)));
    assert_eq!(seen, 3);
    assert_eq!(std::fs::read(&path).unwrap(), b"before");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1);
}

/// The error of a run, which must leave the folder `out` empty.
fn refused(input: &Path, options: &QuantizeOptions) -> String {
    let out = TempDir::new();
    let error = run(input, &out.path().join("out.safetensors"), options).unwrap_err().to_string();
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0, "{error}");
    error
}

#[test]
fn options_out_of_range_are_refused() {
    let input = transformer_folder(HIDDEN);
    for rank in [0, 8, 24, 144, 2048] {
        let error = refused(input.path(), &QuantizeOptions { rank, ..options(1) });
        assert!(error.contains(&format!("rank {rank} ")), "{error}");
    }
    let error = refused(input.path(), &QuantizeOptions { rounds: 0, ..options(1) });
    assert!(error.contains("rounds"), "{error}");
}

#[test]
fn inputs_that_cannot_be_quantised_are_refused() {
    let odd = refused(transformer_folder(64).path(), &options(1));
    assert!(odd.contains("64 channels") && odd.contains("128"), "{odd}");

    let input = transformer_folder(HIDDEN);
    let again = TempDir::new();
    let path = again.path().join("out.safetensors");
    run(input.path(), &path, &options(1)).unwrap();
    let twice = refused(&path, &options(1));
    assert!(twice.contains("out.safetensors") && twice.contains("4-bit already"), "{twice}");

    let path = input.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 2 * HIDDEN - 2..end - 2 * HIDDEN].copy_from_slice(&[0x80, 0x7f]); // copies need not be finite
    std::fs::write(&path, &bytes).unwrap();
    run(input.path(), &again.path().join("inf.safetensors"), &options(1)).unwrap();
    let first = bytes.len() - Checkpoint::open(&path).unwrap().tensors().map(|t| t.len()).sum::<usize>();
    bytes[first..first + 2].copy_from_slice(&[0xc0, 0x7f]);
    std::fs::write(&path, &bytes).unwrap();
    let nan = refused(input.path(), &options(1));
    assert!(nan.contains("transformer_blocks.0.norm1.linear") && nan.contains("not finite"), "{nan}");
}

#[test]
fn the_input_is_not_overwritten() {
    let input = transformer_folder(HIDDEN);
    let path = input.path().join("model.safetensors");
    let before = std::fs::read(&path).unwrap();
    let error = run(input.path(), &path, &options(1)).unwrap_err().to_string();
    assert!(error.contains("part of the input"), "{error}");
    assert!(before == std::fs::read(&path).unwrap());
}

#[test]
fn outputs_that_cannot_be_written_are_errors() {
    let input = transformer_folder(HIDDEN);
    let error = run(input.path(), &input.path().join("no/out.safetensors"), &options(1)).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    assert!(run(input.path(), std::env::temp_dir().as_path(), &options(1)).is_err());
}
