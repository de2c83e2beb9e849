//! A LoRA on the 4-bit demo transformer, against the dequantised weights with the LoRA merged into them.

use std::collections::{BTreeMap, HashMap};

use safetensors::tensor::TensorView;

use super::*;
use crate::device::cpu::tests::Random;
use crate::memory::Buf;
use crate::memory::HostMemory;
use crate::ops::{DenseSource, LinearSource, SvdqSource};
use crate::weights::flux::{FluxConfig, Part, Stream, double_names, single_names};
use crate::weights::{Dtype, pack};

/// What is added to fc2's input before it is quantised.
const SHIFT: f32 = 0.171875;
const STRENGTH: f32 = 0.7;
const RANK: usize = 5;

/// Tensors by diffusers' names: shape and values.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn dense(source: LinearSource<'_>) -> DenseSource<'_> {
    match source {
        LinearSource::Dense(dense) => dense,
        LinearSource::Awq(awq) => pack::unpack_awq(&awq),
        LinearSource::Svdq(svdq) => dequantise(&svdq),
    }
}

/// `W = wq / smooth + B A`, and the bias that fc2 has without its shift.
fn dequantise(source: &SvdqSource<'_>) -> DenseSource<'static> {
    let SvdqSource { n, k, rank, unsigned, .. } = *source;
    let codes = pack::unpack_codes(&source.qweight, n, k);
    let scales = pack::unpack_wscales(&source.wscales, n, k);
    let smooth = pack::unpack_vector(&source.smooth);
    let mut bias = pack::unpack_vector(&source.bias);
    let at = |i: usize| f32::from(codes[i]) * scales[i % k / 64 * n + i / k] / smooth[i % k];
    let mut weight: Vec<f32> = (0..n * k).map(at).collect();
    if unsigned {
        bias.iter_mut().zip(weight.chunks(k)).for_each(|(b, w)| *b += SHIFT * w.iter().sum::<f32>());
    }
    let down = pack::unpack_lora_down(&HostMemory::default(), &source.lora_down, k, rank).unwrap();
    let up = pack::unpack_lora_up(&HostMemory::default(), &source.lora_up, n, rank).unwrap();
    add_product(&mut weight, &up, &down, k, 1.0);
    DenseSource { n, k, weight: weight.into(), bias, storage: crate::ops::Storage::F32 }
}

/// `w += scale · B A`
fn add_product(w: &mut [f32], up: &[f32], down: &[f32], k: usize, scale: f32) {
    let rank = down.len() / k;
    for (row, up) in w.chunks_mut(k).zip(up.chunks(rank)) {
        for (down, up) in down.chunks(k).zip(up) {
            row.iter_mut().zip(down).for_each(|(w, d)| *w += scale * up * d);
        }
    }
}

fn put(
    tensors: &mut Tensors,
    prefix: &str,
    names: &[&str],
    mut linear: DenseSource<'_>,
    scales: &[usize],
    chunks: usize,
) {
    let (n, k) = (linear.n / names.len(), linear.k);
    for scale in scales {
        let channels = linear.n / chunks;
        linear.bias[scale * channels..][..channels].iter_mut().for_each(|b| *b -= 1.0);
    }
    for (i, name) in names.iter().enumerate() {
        let weight = linear.weight.values().unwrap()[i * n * k..][..n * k].to_vec();
        tensors.insert(format!("{prefix}{name}.weight"), (vec![n, k], weight));
        tensors.insert(format!("{prefix}{name}.bias"), (vec![n], linear.bias[i * n..][..n].to_vec()));
    }
}

/// The 4-bit transformer as a 16-bit one would be stored.
fn dequantised(weights: &FluxWeights) -> Tensors {
    let config = weights.config();
    let mut tensors = Tensors::new();
    for index in 0..config.num_layers {
        let prefix = format!("transformer_blocks.{index}.");
        for (stream, norms) in [
            (Stream::Image, ["attn.norm_q", "attn.norm_k"]),
            (Stream::Text, ["attn.norm_added_q", "attn.norm_added_k"]),
        ] {
            for part in Part::ALL {
                let linear = dense(weights.double(index, stream, part).unwrap());
                let scales: &[usize] = if part == Part::Modulation { &[1, 4] } else { &[] };
                put(&mut tensors, &prefix, double_names(stream, part), linear, scales, 6);
            }
            for (name, values) in norms.iter().zip(weights.double_norms(index, stream).unwrap()) {
                tensors.insert(format!("{prefix}{name}.weight"), (vec![values.len()], values));
            }
        }
    }
    for index in 0..config.num_single_layers {
        let prefix = format!("single_transformer_blocks.{index}.");
        let linear = |part| dense(weights.single(index, part).unwrap());
        for part in [Part::Modulation, Part::Qkv, Part::Fc1] {
            let scales: &[usize] = if part == Part::Modulation { &[1] } else { &[] };
            put(&mut tensors, &prefix, single_names(part), linear(part), scales, 3);
        }
        let (out, mut fc2) = (linear(Part::Out), linear(Part::Fc2));
        let rows = out.weight.values().unwrap().chunks(out.k).zip(fc2.weight.values().unwrap().chunks(fc2.k));
        fc2.weight = rows.flat_map(|(a, b)| [a, b].concat()).collect::<Vec<f32>>().into();
        fc2.bias.iter_mut().zip(&out.bias).for_each(|(b, a)| *b += a);
        fc2.k += out.k;
        put(&mut tensors, &prefix, &["proj_out"], fc2, &[], 1);
        for (name, values) in ["attn.norm_q", "attn.norm_k"].iter().zip(weights.single_norms(index).unwrap())
        {
            tensors.insert(format!("{prefix}{name}.weight"), (vec![values.len()], values));
        }
    }
    let file = weights.checkpoint();
    for tensor in file.tensors().filter(|t| !t.name.contains("transformer_blocks.")) {
        let values = file.f32(tensor.name, tensor.shape).unwrap();
        tensors.insert(tensor.name.into(), (tensor.shape.to_vec(), values.to_vec()));
    }
    tensors
}

fn checkpoint(tensors: &Tensors, metadata: Option<HashMap<String, String>>) -> Checkpoint {
    let bytes: Vec<Vec<u8>> =
        tensors.values().map(|(_, v)| v.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, (shape, _)), bytes)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    let bytes = safetensors::serialize(views, metadata).unwrap();
    Checkpoint::from_bytes(Path::new("dense.safetensors"), bytes).unwrap()
}

fn run(run: Run<'_, Cpu>, flux: &Flux<Cpu>) -> Buf<f32> {
    let (cpu, mut random) = (run.dev, Random(3));
    let FluxConfig { joint_attention_dim, in_channels, pooled_projection_dim, .. } = *flux.config();
    let text = cpu.upload(&random.normals(9 * joint_attention_dim, 1.0), joint_attention_dim).unwrap();
    let latents = cpu.upload(&random.normals(24 * in_channels, 1.0), in_channels).unwrap();
    let pooled = random.normals(pooled_projection_dim, 1.0);
    let mut conditioning = flux.condition(run, &[700.0], 3.5, &pooled).unwrap();
    let sequence = flux.sequence(run, &text, 9, [4, 6]).unwrap();
    let mut velocity = cpu.zeros(24, in_channels).unwrap();
    flux.velocity(run, &latents, &sequence, &mut conditioning, 0, &mut velocity).unwrap();
    cpu.download(&velocity).unwrap()
}

/// Of every linear, on 4-bit weights with activations that are not quantised: 1e-3 relative, the issue of f32 sums over
/// five blocks. The merged weights know nothing of low-rank branches.
#[test]
fn updates_of_4_bit_linears_equal_merged_weights() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
    let folder = crate::weights::PipelineFolder::open(&demo).unwrap();
    let weights = FluxWeights::open(folder.transformer()).unwrap();
    assert_eq!(weights.rank(), Some(32));
    let mut merged = dequantised(&weights);

    let mut random = Random(8);
    let mut lora = Tensors::new();
    for (name, (shape, weight)) in &mut merged {
        let ([n, k], Some(layer)) = (shape[..].as_ref(), name.strip_suffix(".weight")) else { continue };
        let (n, k) = (*n, *k);
        let down = random.normals(RANK * k, 1.0 / (k as f32).sqrt());
        let up = random.normals(n * RANK, 0.02);
        add_product(weight, &up, &down, k, STRENGTH);
        lora.insert(format!("transformer.{layer}.lora_A.weight"), (vec![RANK, k], down));
        lora.insert(format!("transformer.{layer}.lora_B.weight"), (vec![n, RANK], up));
    }
    let config = std::fs::read_to_string(demo.join("transformer/config.json")).unwrap();
    let merged = checkpoint(&merged, Some(HashMap::from([("config".into(), config)])));

    let cpu = Cpu::new(2, Profile::W4A16).unwrap();
    let dense = Flux::load(&cpu, &FluxWeights::from_checkpoint(merged).unwrap()).unwrap();
    let want = self::run(Run::plain(&cpu), &dense);

    let flux = Flux::load(&cpu, &weights).unwrap();
    let nothing = Sites::default();
    let (patches, info) = load(&cpu, &checkpoint(&lora, None), [flux.sites(), &nothing, &nothing]).unwrap();
    assert!(info.unused.is_empty(), "{:?}", info.unused);
    let attached = Attached::new(flux.sites(), [(&patches[0], STRENGTH)]).unwrap();
    let error = relative_error(&self::run(Run::with(&cpu, &attached), &flux), &want);
    let effect = relative_error(&self::run(Run::plain(&cpu), &flux), &want);
    assert!(error < 1e-3 && effect > 0.05, "error {error}, effect {effect}");
}

/// Where q, k, v and the MLP lie on top of one another in Black Forest Labs' files, and what the others are called there.
const FUSED: [(&str, &[&str]); 3] = [
    ("img_attn.qkv", &["attn.to_q", "attn.to_k", "attn.to_v"]),
    ("txt_attn.qkv", &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]),
    ("linear1", &["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]),
];
const OTHERS: [(&str, &str); 7] = [
    ("attn.to_out.0", "img_attn.proj"),
    ("attn.to_add_out", "txt_attn.proj"),
    ("ff.net.0.proj", "img_mlp.0"),
    ("ff.net.2", "img_mlp.2"),
    ("ff_context.net.0.proj", "txt_mlp.0"),
    ("ff_context.net.2", "txt_mlp.2"),
    ("proj_out", "linear2"),
];

/// `A` and `B` of a module, row-major.
struct Module {
    rank: usize,
    k: usize,
    down: Vec<f32>,
    up: Vec<f32>,
}

impl Module {
    /// Modules of one input on top of one another: the ranks of all, `B` a diagonal of blocks.
    fn fuse(parts: &[&Module]) -> Module {
        let rank = parts.iter().map(|part| part.rank).sum();
        let (mut down, mut up, mut start) = (vec![], vec![], 0);
        for part in parts {
            down.extend(&part.down);
            for row in part.up.chunks(part.rank) {
                let (before, after) = (vec![0.0; start], vec![0.0; rank - start - part.rank]);
                up.extend([&before, row, &after].concat());
            }
            start += part.rank;
        }
        Module { rank, k: parts[0].k, down, up }
    }
}

/// The modules under the names of Black Forest Labs.
fn as_bfl(modules: &BTreeMap<String, Module>) -> BTreeMap<String, Module> {
    let mut bfl = BTreeMap::new();
    for (name, module) in modules {
        let Some((kind, rest)) = name.split_once("transformer_blocks.") else {
            let theirs = match name.as_str() {
                "proj_out" => "final_layer.linear",
                "x_embedder" => "img_in",
                _ => panic!("{name}"),
            };
            bfl.insert(theirs.into(), Module::fuse(&[module]));
            continue;
        };
        let (index, layer) = rest.split_once('.').unwrap();
        let single = kind == "single_";
        let block = format!("{}_blocks.{index}", if single { "single" } else { "double" });
        let fused = if single { &FUSED[2..] } else { &FUSED[..2] };
        match fused.iter().find(|(_, parts)| parts.contains(&layer)) {
            Some((theirs, parts)) => {
                let part = |part: &&str| &modules[&format!("{kind}transformer_blocks.{index}.{part}")];
                let parts: Vec<&Module> = parts.iter().map(part).collect();
                bfl.insert(format!("{block}.{theirs}"), Module::fuse(&parts));
            }
            None => {
                let (_, theirs) = OTHERS.iter().find(|(ours, _)| *ours == layer).unwrap();
                bfl.insert(format!("{block}.{theirs}"), Module::fuse(&[module]));
            }
        }
    }
    bfl
}

/// Modules of attention under the names of XLabs.
fn as_xlabs(modules: &BTreeMap<String, Module>) -> BTreeMap<String, Module> {
    const PARTS: [(&str, &str, &[&str]); 6] = [
        ("transformer", "double_blocks.N.processor.qkv_lora1", FUSED[0].1),
        ("transformer", "double_blocks.N.processor.qkv_lora2", FUSED[1].1),
        ("transformer", "double_blocks.N.processor.proj_lora1", &["attn.to_out.0"]),
        ("transformer", "double_blocks.N.processor.proj_lora2", &["attn.to_add_out"]),
        ("single_transformer", "single_blocks.N.processor.qkv_lora", FUSED[0].1),
        ("single_transformer", "single_blocks.N.processor.proj_lora", &["proj_out"]),
    ];
    let mut xlabs = BTreeMap::new();
    for (kind, theirs, ours) in PARTS {
        for index in 0.. {
            let part = |part: &&str| modules.get(&format!("{kind}_blocks.{index}.{part}"));
            let Some(parts) = ours.iter().map(part).collect::<Option<Vec<_>>>() else { break };
            xlabs.insert(theirs.replace('N', &index.to_string()), Module::fuse(&parts));
        }
    }
    let ranks = |modules: &BTreeMap<String, Module>| modules.values().map(|m| m.rank).sum::<usize>();
    assert_eq!(ranks(&xlabs), ranks(modules));
    xlabs
}

/// A file of these modules: what stands before their names, `_` for `.` or not, and, where alpha is stated, a `B` that it doubles.
fn named(
    modules: &BTreeMap<String, Module>,
    prefix: &str,
    flat: bool,
    ends: [&str; 2],
    alpha: bool,
) -> Checkpoint {
    let mut tensors = Tensors::new();
    for (name, Module { rank, k, down, up }) in modules {
        let name = if flat { name.replace('.', "_") } else { name.clone() };
        let up: Vec<f32> = up.iter().map(|v| if alpha { v / 2.0 } else { *v }).collect();
        tensors.insert(format!("{prefix}{name}.{}", ends[0]), (vec![*rank, *k], down.clone()));
        tensors.insert(format!("{prefix}{name}.{}", ends[1]), (vec![up.len() / rank, *rank], up));
        if alpha {
            tensors.insert(format!("{prefix}{name}.alpha"), (vec![], vec![2.0 * *rank as f32]));
        }
    }
    checkpoint(&tensors, None)
}

/// The trained LoRA of the demo model, in every naming, on 4-bit weights with activations that are not quantised, against
/// diffusers with the same LoRA on the dequantised weights: 1e-3 relative.
#[test]
fn outputs_of_4_bit_weights_equal_diffusers() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
    let weights = FluxWeights::open(&demo.join("svdq-int4_r32-demo.safetensors")).unwrap();
    let cpu = Cpu::new(2, Profile::W4A16).unwrap();
    let flux = Flux::load(&cpu, &weights).unwrap();
    let io = Checkpoint::open(&path("demo")).unwrap();
    let values = |name: &str| io.f32(name, io.get(name).unwrap().shape).unwrap();
    let velocity = |run: Run<'_, Cpu>| {
        let (text, latents) = (values("txt"), values("img"));
        let (text, latents) = (cpu.upload(&text, 256).unwrap(), cpu.upload(&latents, 64).unwrap());
        let mut conditioning = flux.condition(run, &[700.0], 3.5, &values("pooled")).unwrap();
        let sequence = flux.sequence(run, &text, 9, [4, 6]).unwrap();
        let mut velocity = cpu.zeros(24, 64).unwrap();
        flux.velocity(run, &latents, &sequence, &mut conditioning, 0, &mut velocity).unwrap();
        cpu.download(&velocity).unwrap()
    };
    let error = relative_error(&velocity(Run::plain(&cpu)), &values("plain"));
    assert!(error < 1e-3, "without a LoRA: {error}");

    let file = Checkpoint::open(&demo.join("lora/pocket-green.safetensors")).unwrap();
    let mut modules = BTreeMap::new();
    for tensor in file.tensors() {
        let Some(name) = tensor.name.strip_suffix(".lora_A.weight") else { continue };
        let &[rank, k] = tensor.shape else { panic!("{}", tensor.name) };
        let up = format!("{name}.lora_B.weight");
        let up = file.f32(&up, file.get(&up).unwrap().shape).unwrap();
        let down = file.f32(tensor.name, tensor.shape).unwrap();
        let name = name.strip_prefix("transformer.").unwrap().to_owned();
        modules.insert(name, Module { rank, k, down: down.to_vec(), up: up.to_vec() });
    }
    let bfl = as_bfl(&modules);
    assert!(bfl.contains_key("single_blocks.0.linear1") && bfl.len() < modules.len());
    let (peft, kohya) = (["lora_A.weight", "lora_B.weight"], ["lora_down.weight", "lora_up.weight"]);
    let adapter = ["lora_A.default.weight", "lora_B.default.weight"];
    let files = [
        ("diffusers", file),
        ("bare", named(&modules, "", false, peft, false)),
        ("PEFT", named(&modules, "base_model.model.", false, adapter, false)),
        ("kohya", named(&bfl, "lora_unet_", true, kohya, true)),
        ("kohya with diffusers' names", named(&modules, "lora_transformer_", true, kohya, true)),
        ("ComfyUI", named(&bfl, "diffusion_model.", false, kohya, true)),
        ("Black Forest Labs", named(&bfl, "", false, peft, false)),
        ("Kontext trainers", named(&bfl, "base_model.model.", false, peft, false)),
    ];
    let nothing = Sites::default();
    let with = |file: &Checkpoint| {
        let (patches, info) = load(&cpu, file, [flux.sites(), &nothing, &nothing]).unwrap();
        assert!(info.unused.is_empty(), "{:?}", info.unused);
        let attached = Attached::new(flux.sites(), [(&patches[0], 0.7)]).unwrap();
        velocity(Run::with(&cpu, &attached))
    };
    let want = values("pocket-green@0.7");
    for (naming, file) in files {
        let error = relative_error(&with(&file), &want);
        assert!(error < 1e-3, "{naming}: {error}");
    }

    // XLabs' are of attention alone: the same modules in their names and in diffusers'.
    modules.retain(|name, _| {
        name.contains(".attn.") || name.starts_with("single_") && name.ends_with(".proj_out")
    });
    let xlabs = named(&as_xlabs(&modules), "", false, ["down.weight", "up.weight"], false);
    let error = relative_error(&with(&xlabs), &with(&named(&modules, "transformer.", false, peft, false)));
    assert!(error < 1e-5, "XLabs: {error}");
}
