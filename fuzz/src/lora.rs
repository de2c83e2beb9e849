//! Any bytes as a LoRA for a tiny FLUX: it is put on the CPU and attached, or refused with an error.
//!
//! An input is a header up to the first newline, and then the tensors' bytes, so that the fuzzer need not guess the
//! header's length.

use std::path::Path;
use std::sync::LazyLock;

use svdq::device::cpu::Cpu;
use svdq::lora::{self, Attached, Description, Sites};
use svdq::ops::{DenseSource, LinearSource, Profile, Storage, Usage};
use svdq::weights::Checkpoint;

static CPU: LazyLock<Cpu> = LazyLock::new(|| Cpu::new(1, Profile::W4A8).expect("threads"));
/// Transformer, CLIP and T5.
static SITES: LazyLock<[Sites; 3]> = LazyLock::new(|| [transformer(), clip(), t5()]);

fn add(sites: &mut Sites, names: &[&str], n: usize, k: usize) {
    let source = DenseSource { n, k, weight: vec![0.0; n * k].into(), bias: vec![], storage: Storage::Bf16 };
    let names = names.iter().map(|name| (*name).to_owned());
    let _ = sites.linear(&*CPU, Usage::Step, &LinearSource::Dense(source), names).expect("a linear");
}

fn transformer() -> Sites {
    let mut sites = Sites::default();
    let double = |name: &str| format!("transformer_blocks.0.{name}");
    let qkv = ["attn.to_q", "attn.to_k", "attn.to_v"];
    let add_all = |sites: &mut Sites, prefix: &str, names: &[&str], n, k| {
        let names: Vec<String> = names.iter().map(|name| format!("{prefix}.0.{name}")).collect();
        add(sites, &names.iter().map(String::as_str).collect::<Vec<_>>(), n, k);
    };
    add(&mut sites, &["x_embedder"], 4, 2);
    add(&mut sites, &["norm_out.linear"], 8, 4);
    add_all(&mut sites, "transformer_blocks", &["norm1.linear"], 24, 4);
    add_all(&mut sites, "transformer_blocks", &qkv, 12, 4);
    add_all(&mut sites, "single_transformer_blocks", &["norm.linear"], 12, 4);
    add_all(&mut sites, "single_transformer_blocks", &qkv, 12, 4);
    add_all(&mut sites, "single_transformer_blocks", &["proj_mlp"], 8, 4);
    add_all(&mut sites, "single_transformer_blocks", &["proj_out"], 4, 4);
    add_all(&mut sites, "single_transformer_blocks", &["proj_out"], 4, 8);
    let _ = sites.vector(&*CPU, &[1.0; 2], double("attn.norm_q")).expect("a vector");
    sites
}

fn clip() -> Sites {
    let mut sites = Sites::default();
    add(&mut sites, &["encoder.layers.0.mlp.fc1"], 8, 4);
    sites
}

fn t5() -> Sites {
    let mut sites = Sites::default();
    add(&mut sites, &["encoder.block.0.layer.0.SelfAttention.o"], 4, 4);
    sites
}

pub fn run(input: &[u8]) {
    let Some(end) = input.iter().position(|&b| b == b'\n') else { return };
    let mut file = (end as u64).to_le_bytes().to_vec();
    file.extend(&input[..end]);
    file.extend(&input[end + 1..]);
    let Ok(checkpoint) = Checkpoint::from_bytes(Path::new("fuzz.safetensors"), file) else { return };
    let _ = Description::of(&checkpoint).map(|d| d.to_string());
    let [transformer, clip, t5] = &*SITES;
    if let Ok((patches, info)) = lora::load(&*CPU, &checkpoint, [transformer, clip, t5]) {
        assert!(info.modules > 0);
        for (patch, sites) in patches.iter().zip([transformer, clip, t5]) {
            let _ = Attached::new(sites, [(patch, 0.5)]);
        }
    }
}
