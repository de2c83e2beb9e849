#![allow(clippy::unwrap_used)]
use std::fmt::Write;
use std::path::{Path, PathBuf};

use half::bf16;

use super::*;
use crate::ops::{Codes, DenseSource, Storage};
use crate::weights::pack;
use crate::weights::testing::{TempDir, safetensors};

type Tensors = Vec<(String, Dtype, Vec<usize>)>;

fn flux(guidance: bool) -> FluxConfig {
    if guidance { FluxConfig::FLUX_1_DEV } else { FluxConfig::FLUX_1_SCHNELL }
}

fn tiny() -> FluxConfig {
    FluxConfig {
        num_layers: 1,
        num_single_layers: 1,
        num_attention_heads: 2,
        attention_head_dim: 64,
        in_channels: 16,
        out_channels: 16,
        joint_attention_dim: 32,
        pooled_projection_dim: 24,
        guidance_embeds: true,
        axes_dims_rope: [16, 24, 24],
    }
}

fn json(c: &FluxConfig) -> String {
    serde_json::json!({
        "num_layers": c.num_layers, "num_single_layers": c.num_single_layers,
        "num_attention_heads": c.num_attention_heads, "attention_head_dim": c.attention_head_dim,
        "in_channels": c.in_channels, "out_channels": null, "joint_attention_dim": c.joint_attention_dim,
        "pooled_projection_dim": c.pooled_projection_dim, "guidance_embeds": c.guidance_embeds,
        "axes_dims_rope": c.axes_dims_rope,
    })
    .to_string()
}

fn quantization(rank: usize) -> String {
    format!(
        r#"{{"method":"svdquant","weight":{{"dtype":"int4","scale_dtype":null,"group_size":64}},"activation":{{"dtype":"int4","scale_dtype":null,"group_size":64}},"rank":{rank}}}"#
    )
}

fn size(dtype: Dtype, shape: &[usize]) -> usize {
    shape.iter().product::<usize>() * dtype.bitsize() / 8
}

/// The header of a file with these tensors, and the bytes that have to follow it.
fn header(tensors: &Tensors, metadata: &[(&str, String)]) -> (String, usize) {
    let metadata: std::collections::BTreeMap<_, _> = metadata.iter().cloned().collect();
    let mut text = format!("{{\"__metadata__\":{}", serde_json::to_string(&metadata).unwrap());
    let mut at = 0;
    for (name, dtype, shape) in tensors {
        let end = at + size(*dtype, shape);
        write!(
            text,
            ",\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{at},{end}]}}"
        )
        .unwrap();
        at = end;
    }
    (text + "}", at)
}

fn sparse(dir: &TempDir, header: &str, data: usize) -> PathBuf {
    let path = dir.write("svdq.safetensors", &safetensors(header, 0));
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len((8 + header.len() + data) as u64).unwrap();
    path
}

fn in_memory(tensors: &Tensors, metadata: &[(&str, String)]) -> Result<FluxWeights> {
    let (text, data) = header(tensors, metadata);
    FluxWeights::from_checkpoint(Checkpoint::from_bytes(
        Path::new("flux.safetensors"),
        safetensors(&text, data),
    )?)
}

/// Every layer, with the shapes that the network's definition gives.
fn resolve(w: &FluxWeights) -> Result<()> {
    let (d, config) = (w.config().hidden(), w.config().clone());
    let expect = |part, chunks| Part::shape(part, d, 4 * d, chunks);
    for part in Part::ALL {
        for block in 0..config.num_layers {
            for stream in [Stream::Image, Stream::Text] {
                assert_eq!(w.double(block, stream, part)?.shape(), expect(part, 6));
                w.double_norms(block, stream)?;
            }
        }
        for block in 0..config.num_single_layers {
            assert_eq!(w.single(block, part)?.shape(), expect(part, 3));
            w.single_norms(block)?;
        }
    }
    w.plain("x_embedder", d, config.in_channels)?;
    w.plain("context_embedder", d, config.joint_attention_dim)?;
    w.plain("proj_out", config.out_channels, d)?;
    w.norm_out()?;
    Ok(())
}

#[test]
fn real_sizes_are_legal() {
    for (guidance, count) in [(true, 2604), (false, 2600)] {
        let config = flux(guidance);
        let tensors = inventory(&config, 32);
        assert_eq!(tensors.len(), count);
        let (text, data) =
            header(&tensors, &[("config", json(&config)), ("quantization_config", quantization(32))]);
        let file = 8 + text.len() + data;
        // Published: 6.77 GB for dev; schnell lacks the guidance embedder's two linears.
        let expected = if guidance { 6.768e9 } else { 6.768e9 - 2.0 * 3072.0 * (256.0 + 3072.0 + 2.0) };
        assert!((file as f64 - expected).abs() < 1e6, "{file} bytes");

        let (_dir, w) = sparse_flux_1(guidance);
        assert_eq!((w.config(), w.rank()), (&config, Some(32)));
        resolve(&w).unwrap();
        summarise(w.checkpoint().path(), count);
    }
}

/// FLUX.1's 4-bit file, dev or schnell, in its full size: a header and a hole.
pub(crate) fn sparse_flux_1(guidance: bool) -> (TempDir, FluxWeights) {
    let config = flux(guidance);
    let metadata = [("config", json(&config)), ("quantization_config", quantization(32))];
    let (text, data) = header(&inventory(&config, 32), &metadata);
    let dir = TempDir::new();
    let weights = FluxWeights::open(&sparse(&dir, &text, data)).unwrap();
    (dir, weights)
}

/// The amounts that FLUX.1 takes: 8.607 G 4-bit weights, and 3.228 G in modulation.
fn summarise(path: &Path, count: usize) {
    let summary = crate::weights::inspect(path).unwrap();
    let [part] = &summary.parts[..] else { panic!() };
    assert_eq!((part.precision.as_str(), part.total().tensors), ("INT4", count));
    assert_eq!(part.ranks.iter().collect::<Vec<_>>(), [&32]);
    for (kind, tensors, megabytes) in [
        ("4-bit codes", 304, 4303.4),
        ("scales of the codes", 304, 268.9),
        ("low-rank branches", 608, 239.1),
        ("4-bit modulation", 304, 1817.2),
    ] {
        let amount = part.kinds[kind];
        assert_eq!(amount.tensors, tensors, "{kind}");
        assert!((amount.bytes as f64 / 1e6 - megabytes).abs() < 1.0, "{kind}: {amount}");
    }
    let text = summary.to_string();
    let blocks =
        "19 double and 38 single blocks, 3072 channels in 24 heads, T5 4096, CLIP 768, latents 64 -> 64";
    assert!(text.contains(blocks) && text.contains("INT4, rank 32"), "{text}");
    assert_eq!(text.contains("with guidance (dev)"), count == 2604, "{text}");
}

#[test]
fn the_demo_pipeline_is_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
    let folder = crate::weights::PipelineFolder::open(&path).unwrap();
    for path in [folder.transformer(), &folder.dense_transformer()] {
        resolve(&FluxWeights::open(path).unwrap()).unwrap();
    }
    let text = crate::weights::inspect(&path).unwrap().to_string();
    assert!(text.contains("FLUX.1 pipeline") && text.contains("2 double and 3 single blocks"), "{text}");
}

#[test]
fn a_file_without_config_is_read_by_its_tensors() {
    let w = in_memory(&inventory(&FluxConfig { axes_dims_rope: [0; 3], ..flux_head() }, 16), &[]).unwrap();
    assert_eq!((w.config(), w.rank()), (&flux_head(), Some(16)));
    resolve(&w).unwrap();
    let err = in_memory(&inventory(&tiny(), 16), &[]).err().unwrap().to_string();
    assert!(
        err.contains("`axes_dims_rope` [16, 56, 56] are not even numbers that add up to a head's 64"),
        "{err}"
    );
}

/// One head of FLUX.1's size: its axes need not be stated.
fn flux_head() -> FluxConfig {
    FluxConfig { num_attention_heads: 1, attention_head_dim: 128, axes_dims_rope: [16, 56, 56], ..tiny() }
}

#[test]
fn parts_of_4_bit_linears_are_told_apart() {
    let mut tensors = inventory(&tiny(), 16);
    tensors.retain(|(name, ..)| !name.starts_with("transformer_blocks.0.out_proj.lora"));
    let w = in_memory(&tensors, &[("config", json(&tiny()))]).unwrap();
    let LinearSource::Svdq(fc2) = w.double(0, Stream::Text, Part::Fc2).unwrap() else { panic!() };
    assert!(fc2.unsigned && fc2.rank == 16 && fc2.lora_down.len() == 512 * 16 * 2);
    let LinearSource::Svdq(out) = w.double(0, Stream::Image, Part::Out).unwrap() else { panic!() };
    assert!(!out.unsigned && out.rank == 0 && out.lora_up.is_empty());
    let LinearSource::Awq(modulation) = w.single(0, Part::Modulation).unwrap() else { panic!() };
    assert_eq!((modulation.n, modulation.k, modulation.chunks), (384, 128, 3));
}

#[test]
fn what_does_not_fit_is_refused() {
    let config = ("config", json(&tiny()));
    let with = |key: &str, value: serde_json::Value| {
        let mut config: serde_json::Value = serde_json::from_str(&json(&tiny())).unwrap();
        config[key] = value;
        vec![("config", config.to_string())]
    };
    let plain = vec![config.clone()];
    // The tensors of an NVFP4 file.
    let fp4 = vec![config.clone(), ("fp4", String::new())];
    let meta = |text: &str| vec![config.clone(), ("quantization_config", text.to_owned())];
    type Change = fn(&mut Tensors);
    type Case<'a> = (Vec<(&'a str, String)>, Change, &'a str);
    let same: Change = |_| {};
    #[rustfmt::skip]
    let cases: Vec<Case<'_>> = vec![
        (plain.clone(), |t| t.retain(|t| t.0 != "transformer_blocks.0.qkv_proj.smooth"), "`transformer_blocks.0.qkv_proj.smooth` is missing"),
        (plain.clone(), |t| t.retain(|t| t.0 != "single_transformer_blocks.0.out_proj.bias"), "out_proj.bias` is missing"),
        (plain.clone(), |t| t.retain(|t| t.0 != "transformer_blocks.0.mlp_fc1.lora_down"), "mlp_fc1.lora_down` is missing"),
        (plain.clone(), |t| t.retain(|t| t.0 != "transformer_blocks.0.mlp_fc1.lora_up"), "mlp_fc1.lora_up` is missing"),
        (plain.clone(), |t| t.retain(|t| t.0 != "x_embedder.weight"), "`x_embedder.weight` is missing"),
        (plain.clone(), |t| t.retain(|t| !t.0.starts_with("single")), "no FLUX.1 transformer"),
        (plain.clone(), |t| t.clear(), "no FLUX.1 transformer"),
        (plain.clone(), |t| set(t, "transformer_blocks.0.qkv_proj.qweight", Dtype::U8, &[384, 64]), "has dtype U8, I8 is expected"),
        (plain.clone(), |t| set(t, "transformer_blocks.0.qkv_proj.qweight", Dtype::I8, &[384, 128]), "has shape [384, 128], [384, 64] is expected"),
        (plain.clone(), |t| set(t, "transformer_blocks.0.qkv_proj.bias", Dtype::F16, &[384]), "has dtype F16, BF16 is expected"),
        (plain.clone(), |t| set(t, "transformer_blocks.0.qkv_proj.lora_down", Dtype::BF16, &[128, 24]), "a multiple of 16 columns"),
        (plain.clone(), |t| set(t, "transformer_blocks.0.mlp_fc1.qweight", Dtype::I8, &[500, 64]), "[500, 128], 4-bit linears are multiples of [128, 64]"),
        (plain.clone(), |t| set(t, "transformer_blocks.0.mlp_fc1.qweight", Dtype::I8, &[0, 64]), "a matrix of 1 to"),
        (plain.clone(), |t| set(t, "transformer_blocks.0.mlp_fc1.qweight", Dtype::I8, &[usize::MAX, 0]), "a matrix of 1 to"),
        (plain.clone(), |t| set(t, "transformer_blocks.0.norm1.linear.qweight", Dtype::I8, &[192, 64]), "has dtype I8, I32 is expected"),
        (plain.clone(), |t| set(t, "transformer_blocks.0.norm_q.weight", Dtype::BF16, &[60]), "does not divide"),
        (plain.clone(), |t| set(t, "transformer_blocks.0.qkv_proj.wscales", Dtype::F8_E4M3, &[2, 384]), "has shape [2, 384], [8, 384] is expected"),
        (plain.clone(), |t| set(t, "transformer_blocks.0.qkv_proj.wscales", Dtype::F16, &[2, 384]), "has dtype F16, BF16 is expected"),
        (fp4.clone(), |t| set(t, "transformer_blocks.0.out_proj.wtscale", Dtype::F32, &[2]), "out_proj.wtscale` is F32 [2]; one finite number"),
        (fp4.clone(), |t| set(t, "transformer_blocks.0.out_proj.wtscale", Dtype::I8, &[1]), "out_proj.wtscale` is I8 [1]; one finite number"),
        (fp4.clone(), |t| set(t, "transformer_blocks.0.qkv_proj.wcscales", Dtype::BF16, &[128]), "has shape [128], [384] is expected"),
        (plain.clone(), |t| set(t, "proj_out.weight", Dtype::I8, &[16, 128]), "has dtype I8; F32, F16, BF16"),
        (with("num_layers", 2.into()), same, "`num_layers` is 2, the tensors are those of 1"),
        (with("num_single_layers", 4.into()), same, "`num_single_layers` is 4, the tensors are those of 1"),
        (with("num_attention_heads", 4.into()), same, "`num_attention_heads` is 4, the tensors are those of 2"),
        (with("in_channels", 64.into()), same, "`in_channels` is 64, the tensors are those of 16"),
        (with("out_channels", 4.into()), same, "`out_channels` is 4, the tensors are those of 16"),
        (with("guidance_embeds", false.into()), same, "`guidance_embeds` is 0, the tensors are those of 1"),
        (with("joint_attention_dim", 0.into()), same, "`joint_attention_dim` is 0"),
        (with("num_layers", 100_000.into()), same, "`num_layers` is 100000, and must be between 1 and 1024"),
        (with("num_attention_heads", 60_000.into()), same, "are more than 65536 channels"),
        (with("attention_head_dim", (-1).into()), same, "near key `attention_head_dim`"),
        (with("attention_head_dim", "128".into()), same, "near key `attention_head_dim`"),
        (with("axes_dims_rope", serde_json::json!([16, 24, 26])), same, "add up to a head's 64"),
        (with("axes_dims_rope", serde_json::json!([15, 25, 24])), same, "are not even"),
        (with("axes_dims_rope", serde_json::json!([32, 32])), same, "are not three"),
        (with("axes_dims_rope", serde_json::json!([u64::MAX, 2, 64])), same, "add up to"),
        (with("patch_size", 2.into()), same, "`patch_size` 2 cannot be run"),
        (with("_class_name", "SD3Transformer2DModel".into()), same, "`_class_name` is SD3Transformer2DModel"),
        (vec![("config", "{}".into())], same, "`config`: missing field"),
        (vec![("config", "flux".into())], same, "`config`: expected"),
        (meta(&quantization(32)), same, "`rank` is 32, the tensors are of rank 16"),
        (meta("{}"), same, "`quantization_config`: missing field `method`"),
        (meta(r#"{"method":"awq"}"#), same, "awq cannot be run"),
        (meta(&quantization(16)), |t| t.retain(|t| !t.0.ends_with(".qweight")), "there is no tensor `*.qweight`"),
    ];
    for (metadata, change, expected) in cases {
        let mut tensors = inventory(&tiny(), 16);
        if metadata.iter().any(|(key, _)| *key == "fp4") {
            to_fp4(&mut tensors);
        }
        change(&mut tensors);
        let result = in_memory(&tensors, &metadata).and_then(|w| resolve(&w));
        let text = result.err().unwrap_or_else(|| panic!("accepted: {expected}")).to_string();
        assert!(text.starts_with("flux.safetensors: ") && text.contains(expected), "{expected}: {text}");
    }
    resolve(&in_memory(&inventory(&tiny(), 16), &meta(&quantization(16))).unwrap()).unwrap();
    resolve(&in_memory(&inventory(&tiny(), 0), &meta(&quantization(0))).unwrap()).unwrap();
}

/// The scales of an NVFP4 file: those of fused layers are one a channel, of others one a tensor.
fn to_fp4(tensors: &mut Tensors) {
    for (name, ..) in tensors.clone() {
        let Some(layer) = name.strip_suffix(".smooth") else { continue };
        let qweight = &tensors.iter().find(|t| t.0 == format!("{layer}.qweight")).unwrap().2;
        let (n, k) = (qweight[0], qweight[1] * 2);
        set(tensors, &format!("{layer}.wscales"), Dtype::F8_E4M3, &[k / 16, n]);
        tensors.push(match layer.contains("qkv") {
            true => (format!("{layer}.wcscales"), Dtype::BF16, vec![n]),
            false => (format!("{layer}.wtscale"), Dtype::BF16, vec![1]),
        });
    }
}

#[test]
fn nvfp4_is_found_by_its_tensors() {
    let mut tensors = inventory(&tiny(), 16);
    to_fp4(&mut tensors);
    let (text, data) = header(&tensors, &[("config", json(&tiny()))]);
    let ones = |name: &str| name.ends_with(".wcscales") || name.ends_with("t.wtscale");
    let mut file = safetensors(&text, 0);
    for (name, dtype, shape) in &tensors {
        let two = if ones(name) { 2.0 } else { 0.0 };
        match dtype {
            Dtype::BF16 => (0..shape.iter().product())
                .for_each(|_: usize| file.extend(bf16::from_f32(two).to_le_bytes())),
            _ => file.resize(file.len() + size(*dtype, shape), 0),
        }
    }
    assert_eq!(file.len(), 8 + text.len() + data);
    let open = || Checkpoint::from_bytes(Path::new("svdq-int4_r32.safetensors"), file.clone()).unwrap();
    let w = FluxWeights::from_checkpoint(open()).unwrap();
    resolve(&w).unwrap();
    assert_eq!(w.rank(), Some(16));
    let codes = |source: Result<LinearSource<'_>>| match source.unwrap() {
        LinearSource::Svdq(s) => (s.codes, s.unsigned),
        _ => panic!("4-bit weights are expected"),
    };
    let fp4 = |value: f32, n| (Codes::Fp4 { channel_scales: vec![value; n] }, false);
    assert_eq!(codes(w.double(0, Stream::Image, Part::Qkv)), fp4(2.0, 384));
    assert_eq!(codes(w.double(0, Stream::Text, Part::Out)), fp4(2.0, 128));
    assert_eq!(codes(w.single(0, Part::Fc2)), fp4(0.0, 128));

    // Without either scale: 1. With both: their product.
    tensors.retain(|t| !t.0.contains("mlp_fc2.wtscale"));
    let w = in_memory(&tensors, &[("config", json(&tiny()))]).unwrap();
    assert_eq!(codes(w.single(0, Part::Fc2)), fp4(1.0, 128));
    tensors.push(("single_transformer_blocks.0.mlp_fc2.wcscales".into(), Dtype::BF16, vec![128]));
    let w = in_memory(&tensors, &[("config", json(&tiny()))]).unwrap();
    assert_eq!(codes(w.single(0, Part::Fc2)), fp4(0.0, 128));
}

/// A diffusers folder with 4-bit layers: the same modules, of which `dense` keep their matrices.
fn lite(fp4: bool, dense: &[&str]) -> Tensors {
    let mut tensors = Tensors::new();
    let dir = TempDir::new();
    let original = Checkpoint::open(&diffusers(&dir, &tiny())).unwrap();
    for tensor in original.tensors() {
        let name = tensor.name.to_owned();
        let layer = name.strip_suffix(".weight").filter(|_| tensor.shape.len() == 2);
        let Some(layer) = layer.filter(|l| l.contains("blocks.") && !dense.iter().any(|d| l.ends_with(d)))
        else {
            tensors.push((name, tensor.dtype, tensor.shape.to_vec()));
            continue;
        };
        let [n, k] = [tensor.shape[0], tensor.shape[1]];
        let mut push = |suffix: &str, dtype, shape: &[usize]| {
            tensors.push((format!("{layer}.{suffix}"), dtype, shape.to_vec()));
        };
        if layer.contains("norm") {
            push("qweight", Dtype::I32, &[n / 4, k / 2]);
            push("wscales", Dtype::BF16, &[k / 64, n]);
            push("wzeros", Dtype::BF16, &[k / 64, n]);
            continue;
        }
        push("qweight", Dtype::I8, &[n, k / 2]);
        if fp4 {
            push("wscales", Dtype::F8_E4M3, &[k / 16, n]);
            push("wcscales", Dtype::BF16, &[n]);
            push("wtscale", Dtype::BF16, &[1]);
        } else {
            push("wscales", Dtype::BF16, &[k / 64, n]);
        }
        push("smooth_factor", Dtype::BF16, &[k]);
        push("proj_down", Dtype::BF16, &[k, 16]);
        push("proj_up", Dtype::BF16, &[n, 16]);
    }
    tensors
}

#[test]
fn diffusers_folders_with_4_bit_layers_are_read() {
    let open = |tensors: &Tensors| in_memory(tensors, &[("config", json(&tiny()))]);
    for fp4 in [false, true] {
        let w = open(&lite(fp4, &[])).unwrap();
        resolve(&w).unwrap();
        let LinearSource::Svdq(qkv) = w.single(0, Part::Qkv).unwrap() else { panic!() };
        assert_eq!((qkv.n, qkv.rank, qkv.codes.group()), (384, 48, if fp4 { 16 } else { 64 }));
        let LinearSource::Svdq(fc2) = w.single(0, Part::Fc2).unwrap() else { panic!() };
        assert_eq!((fc2.n, fc2.k, fc2.rank, fc2.unsigned), (128, 512, 16, false));
        let LinearSource::Svdq(fc2) = w.double(0, Stream::Text, Part::Fc2).unwrap() else { panic!() };
        assert!(!fc2.unsigned);
        let LinearSource::Awq(modulation) = w.double(0, Stream::Image, Part::Modulation).unwrap() else {
            panic!()
        };
        let bias: Vec<f32> = pack::bf16_to_f32(&modulation.bias).collect();
        assert_eq!(
            (modulation.chunks, [0, 1, 2, 3, 4, 5].map(|chunk| bias[chunk * 128])),
            (1, [0.0, 1.0, 0.0, 0.0, 1.0, 0.0])
        );
    }
    let mixed =
        open(&lite(false, &["norm1.linear", "proj_mlp", "add_q_proj", "add_k_proj", "add_v_proj"])).unwrap();
    resolve(&mixed).unwrap();
    assert!(matches!(mixed.single(0, Part::Fc1).unwrap(), LinearSource::Dense(_)));
    assert!(matches!(mixed.double(0, Stream::Text, Part::Qkv).unwrap(), LinearSource::Dense(_)));
    assert!(matches!(mixed.double(0, Stream::Image, Part::Modulation).unwrap(), LinearSource::Dense(_)));

    let torn = resolve(&open(&lite(false, &["attn.to_k"])).unwrap()).err().unwrap().to_string();
    assert!(torn.contains("attn.to_k.qweight` is missing"), "{torn}");
}

fn set(tensors: &mut Tensors, name: &str, dtype: Dtype, shape: &[usize]) {
    let tensor = tensors.iter_mut().find(|t| t.0 == name).unwrap();
    (tensor.1, tensor.2) = (dtype, shape.to_vec());
}

/// diffusers' names and shapes for `c`, and values that tell every element of every tensor apart.
fn diffusers(dir: &TempDir, c: &FluxConfig) -> PathBuf {
    let (d, mlp) = (c.hidden(), 4 * c.hidden());
    let mut tensors: Tensors =
        inventory(c, 0).into_iter().filter(|t| !t.0.contains("transformer_blocks")).collect();
    let mut linear = |name: String, n: usize, k: usize| {
        tensors.push((format!("{name}.weight"), Dtype::BF16, vec![n, k]));
        tensors.push((format!("{name}.bias"), Dtype::BF16, vec![n]));
    };
    let b = "transformer_blocks.0";
    for (norm, ff) in [("norm1", "ff"), ("norm1_context", "ff_context")] {
        linear(format!("{b}.{norm}.linear"), 6 * d, d);
        linear(format!("{b}.{ff}.net.0.proj"), mlp, d);
        linear(format!("{b}.{ff}.net.2"), d, mlp);
    }
    for name in ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"] {
        linear(format!("{b}.attn.{name}"), d, d);
    }
    let s = "single_transformer_blocks.0";
    linear(format!("{s}.norm.linear"), 3 * d, d);
    linear(format!("{s}.proj_mlp"), mlp, d);
    linear(format!("{s}.proj_out"), d, d + mlp);
    for name in ["to_q", "to_k", "to_v"] {
        linear(format!("{s}.attn.{name}"), d, d);
    }
    for name in ["norm_q", "norm_k", "norm_added_q", "norm_added_k"] {
        tensors.push((format!("{b}.attn.{name}.weight"), Dtype::BF16, vec![c.attention_head_dim]));
    }
    for name in ["norm_q", "norm_k"] {
        tensors.push((format!("{s}.attn.{name}.weight"), Dtype::BF16, vec![c.attention_head_dim]));
    }
    let (text, data) = header(&tensors, &[("format", "pt".into())]);
    let mut file = safetensors(&text, 0);
    file.extend((0..data / 2).flat_map(|i| bf16::from_f32((i * 7919 % 251) as f32).to_le_bytes()));
    dir.write("transformer/config.json", json(c).as_bytes());
    dir.write("transformer/diffusion_pytorch_model.safetensors", &file);
    dir.path().join("transformer")
}

#[test]
fn diffusers_layers_are_put_together() {
    let dir = TempDir::new();
    let w = FluxWeights::open(&diffusers(&dir, &tiny())).unwrap();
    assert_eq!((w.config(), w.rank()), (&tiny(), None));
    resolve(&w).unwrap();
    fn dense(source: Result<LinearSource<'_>>) -> DenseSource<'_> {
        match source.unwrap() {
            LinearSource::Dense(d) => d,
            _ => panic!("dense weights are expected"),
        }
    }
    let d = w.config().hidden();
    let raw =
        |name: &str| w.checkpoint().f32(name, w.checkpoint().get(name).unwrap().shape).unwrap().to_vec();

    let qkv = dense(w.double(0, Stream::Text, Part::Qkv));
    let parts =
        ["q", "k", "v"].map(|x| raw(&format!("transformer_blocks.0.attn.add_{x}_proj.weight"))).concat();
    assert_eq!((qkv.weight.values().unwrap().to_vec(), qkv.storage), (parts, Storage::Bf16));
    let parts =
        ["q", "k", "v"].map(|x| raw(&format!("transformer_blocks.0.attn.add_{x}_proj.bias"))).concat();
    assert_eq!(qkv.bias, parts);

    let modulation = dense(w.double(0, Stream::Image, Part::Modulation));
    let stored = raw("transformer_blocks.0.norm1.linear.bias");
    for (i, (got, stored)) in modulation.bias.iter().zip(&stored).enumerate() {
        assert_eq!(*got, stored + if [1, 4].contains(&(i / d)) { 1.0 } else { 0.0 }, "row {i}");
    }
    let modulation = dense(w.single(0, Part::Modulation));
    let stored = raw("single_transformer_blocks.0.norm.linear.bias");
    for (i, (got, stored)) in modulation.bias.iter().zip(&stored).enumerate() {
        assert_eq!(*got, stored + if i / d == 1 { 1.0 } else { 0.0 }, "row {i}");
    }
    let norm_out = dense(w.norm_out());
    for (i, (got, stored)) in norm_out.bias.iter().zip(&raw("norm_out.linear.bias")).enumerate() {
        assert_eq!(*got, stored + if i < d { 1.0 } else { 0.0 }, "row {i}");
    }

    let (out, fc2) = (dense(w.single(0, Part::Out)), dense(w.single(0, Part::Fc2)));
    let both = raw("single_transformer_blocks.0.proj_out.weight");
    for row in 0..d {
        let columns = &both[row * 5 * d..][..5 * d];
        assert_eq!(out.weight.values().unwrap()[row * d..][..d], columns[..d]);
        assert_eq!(fc2.weight.values().unwrap()[row * 4 * d..][..4 * d], columns[d..]);
    }
    assert!(out.bias.is_empty());
    assert_eq!(fc2.bias, raw("single_transformer_blocks.0.proj_out.bias"));
    assert_eq!(
        w.double_norms(0, Stream::Text).unwrap()[1],
        raw("transformer_blocks.0.attn.norm_added_k.weight")
    );
}

#[test]
fn a_folder_needs_its_config() {
    let dir = TempDir::new();
    let path = diffusers(&dir, &tiny());
    let file = path.join("diffusion_pytorch_model.safetensors");
    assert_eq!(FluxWeights::open(&file).unwrap().config(), &tiny());
    std::fs::remove_file(path.join("config.json")).unwrap();
    assert!(
        matches!(FluxWeights::open(&path), Err(Error::NotFound { path, .. }) if path.ends_with("config.json"))
    );
}

/// The dense and the 4-bit form of modulation give rows in the same order.
#[test]
fn packed_and_dense_modulation_have_rows_in_the_same_order() {
    let w = in_memory(&inventory(&tiny(), 16), &[("config", json(&tiny()))]).unwrap();
    let LinearSource::Awq(mut source) = w.double(0, Stream::Image, Part::Modulation).unwrap() else {
        panic!()
    };
    let (d, n) = (source.n / 6, source.n);
    let bias = pack::f32_to_bf16(
        &(0..n).map(|stored| ((stored % 6) * 20 + stored / 6 % 16) as f32).collect::<Vec<_>>(),
    );
    source.bias = bias.into();
    let dense = pack::unpack_awq(&source);
    for (row, &value) in dense.bias.iter().enumerate() {
        assert_eq!(value, (row / d * 20 + row % d % 16) as f32);
    }
}
