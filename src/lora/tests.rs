//! LoRAs on the tiny networks of `tests/golden`, against diffusers and PEFT.

#![allow(clippy::unwrap_used)]

mod files;
mod quantised;

use std::path::{Path, PathBuf};

use super::*;
use crate::device::cpu::Cpu;
use crate::memory::Buf;
use crate::models::clip::Clip;
use crate::models::flux::Flux;
use crate::models::flux::tests::velocity;
use crate::models::t5::T5;
use crate::models::testing::{Golden, relative_error};
use crate::ops::Profile;
use crate::ops::shapes::Shapes;
use crate::weights::flux::FluxWeights;

/// Files that hold the same LoRA in different namings and types of elements.
const SAME: [&str; 8] = [
    "all.diffusers",
    "all.bare",
    "all.peft",
    "all.kohya",
    "all.kohya_diffusers",
    "all.comfyui",
    "all.bfl",
    "all.kontext",
];

/// The tiny networks on the CPU.
struct Networks {
    cpu: Cpu,
    golden: Golden,
    flux: Flux<Cpu>,
    clip: Clip<Cpu>,
    t5: T5<Cpu>,
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/lora/{name}.safetensors"))
}

/// A tensor of `io.safetensors`.
fn expected(name: &str) -> Vec<f32> {
    let io = Checkpoint::open(&path("io")).unwrap();
    io.f32(name, io.get(name).unwrap().shape).unwrap().to_vec()
}

impl Networks {
    fn new() -> Self {
        let cpu = Cpu::new(2, Profile::W4A8).unwrap();
        let golden = Golden::open("flux");
        Networks {
            flux: Flux::load(&cpu, &FluxWeights::open(&golden.folder).unwrap()).unwrap(),
            clip: Clip::load(&cpu, &Golden::open("clip").folder).unwrap(),
            t5: T5::load(&cpu, &Golden::open("t5").folder).unwrap(),
            golden,
            cpu,
        }
    }

    fn sites(&self) -> [&Sites; 3] {
        [self.flux.sites(), self.clip.sites(), self.t5.sites()]
    }

    fn load(&self, file: &Checkpoint) -> Result<([Patch<Cpu>; 3], LoraInfo)> {
        load(&self.cpu, file, self.sites())
    }

    fn open(&self, name: &str) -> [Patch<Cpu>; 3] {
        let (patches, info) = self.load(&Checkpoint::open(&path(name)).unwrap()).unwrap();
        assert!(info.unused.is_empty(), "{name}: {:?}", info.unused);
        patches
    }

    /// The transformer's output with these LoRAs.
    fn velocity(&self, loras: &[(&[Patch<Cpu>; 3], f32)]) -> Buf<f32> {
        let patches = loras.iter().map(|&(patches, strength)| (&patches[0], strength));
        let attached = Attached::new(self.flux.sites(), patches).unwrap();
        velocity(Run::with(&self.cpu, &attached), &self.flux, &self.golden)
    }

    fn plain(&self) -> Buf<f32> {
        velocity(Run::plain(&self.cpu), &self.flux, &self.golden)
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Relative to the largest output: 1e-4, as without LoRAs.
#[track_caller]
fn assert_equal(got: &[f32], name: &str) {
    let error = relative_error(got, &expected(name));
    assert!(error < 1e-4, "{name}: {error}");
}

#[test]
fn every_naming_is_the_same_lora() {
    let networks = Networks::new();
    let first = networks.velocity(&[(&networks.open(SAME[0]), 0.7)]);
    assert_equal(&first, "all@0.7");
    let effect = relative_error(&networks.plain(), &first);
    assert!(effect > 0.1, "the LoRA hardly has an effect: {effect}");
    for name in &SAME[1..] {
        let got = networks.velocity(&[(&networks.open(name), 0.7)]);
        assert!(bits(&got) == bits(&first), "{name}: {}", relative_error(&got, &first));
    }
}

#[test]
fn outputs_equal_diffusers() {
    let networks = Networks::new();
    let [all, split, xlabs, control, wide] =
        ["all.diffusers", "split", "xlabs", "control", "wide"].map(|name| networks.open(name));
    assert_equal(&networks.velocity(&[(&split, 0.5)]), "split@0.5");
    assert_equal(&networks.velocity(&[(&split, -1.25)]), "split@-1.25");
    assert_equal(&networks.velocity(&[(&xlabs, 1.0)]), "xlabs@1.0");
    assert_equal(&networks.velocity(&[(&control, 1.0)]), "control@1.0");
    assert_equal(&networks.velocity(&[(&control, 0.5)]), "control@0.5");
    assert_equal(&networks.velocity(&[(&wide, 0.7)]), "wide@0.7");
    assert_equal(&networks.velocity(&[(&all, 0.7), (&xlabs, -0.5)]), "all@0.7+xlabs@-0.5");
}

#[test]
fn text_encoders_equal_peft() {
    let networks = Networks::new();
    let [flux, clip, t5] = networks.open("text");
    assert!(flux.updates.is_empty());
    let attached = Attached::new(networks.clip.sites(), [(&clip, 0.7)]).unwrap();
    let run = Run::with(&networks.cpu, &attached);
    let pooled: Vec<f32> = Golden::open("clip")
        .ids()
        .iter()
        .flat_map(|ids| networks.clip.encode(run, ids).unwrap().pooled)
        .collect();
    assert_equal(&pooled, "clip.pooler_output");

    let attached = Attached::new(networks.t5.sites(), [(&t5, 0.7)]).unwrap();
    let run = Run::with(&networks.cpu, &attached);
    let hidden = networks.t5.encode(run, &Golden::open("t5").ids()[0]).unwrap();
    assert_equal(&networks.cpu.download(&hidden).unwrap(), "t5.last_hidden_state");
}

/// Under every prefix that trainers give the modules of CLIP and T5, the text encoders' LoRA is the same.
#[test]
fn every_prefix_of_text_encoders_is_the_same_lora() {
    let networks = Networks::new();
    let encode = |file: &Checkpoint| {
        let ([_, clip, t5], info) = networks.load(file).unwrap();
        assert!(info.unused.is_empty(), "{:?}", info.unused);
        let attached = Attached::new(networks.clip.sites(), [(&clip, 0.7)]).unwrap();
        let ids = &Golden::open("clip").ids()[0];
        let pooled = networks.clip.encode(Run::with(&networks.cpu, &attached), ids).unwrap().pooled;
        let attached = Attached::new(networks.t5.sites(), [(&t5, 0.7)]).unwrap();
        let ids = &Golden::open("t5").ids()[0];
        let hidden = networks.t5.encode(Run::with(&networks.cpu, &attached), ids).unwrap();
        [bits(&pooled), bits(&networks.cpu.download(&hidden).unwrap())]
    };
    let first = encode(&Checkpoint::open(&path("text")).unwrap());
    for [clip, t5] in [
        ["lora_te_text_model_", "lora_te2_"],
        ["lora_te_", "lora_te3_"],
        ["lora_te1_", "base_model.model.text_encoder_2."],
        ["text_encoder.text_model.", "text_encoders.t5xxl."],
        ["text_encoders.clip_l.transformer.text_model.", "text_encoders.t5xxl.transformer."],
    ] {
        let mut file = files::File::open("text");
        file.rename(|name| match name.strip_prefix("lora_te1_text_model_") {
            Some(rest) => format!("{clip}{rest}"),
            None => name.replace("text_encoder_2.", t5),
        });
        assert!(encode(&file.checkpoint()) == first, "{clip} {t5}");
    }
}

#[test]
fn a_lora_leaves_no_trace() {
    let networks = Networks::new();
    let plain = bits(&networks.plain());
    let [all, control] = ["all.kohya", "control"].map(|name| networks.open(name));
    assert!(bits(&networks.velocity(&[(&all, 1.0), (&control, 1.0)])) != plain);
    assert!(bits(&networks.plain()) == plain, "detached");
    assert!(bits(&networks.velocity(&[])) == plain, "none");
    assert!(bits(&networks.velocity(&[(&all, 0.0), (&control, 0.0)])) == plain, "strength 0");
}

/// Sums in another order: f32 rounding.
#[test]
fn the_order_has_no_meaning() {
    let networks = Networks::new();
    let [one, two] = ["all.kohya", "split"].map(|name| networks.open(name));
    let error = relative_error(
        &networks.velocity(&[(&one, 0.8), (&two, 0.5)]),
        &networks.velocity(&[(&two, 0.5), (&one, 0.8)]),
    );
    assert!(error < 1e-5, "{error}");
}

#[test]
fn two_loras_cannot_replace_the_same_norms() {
    let networks = Networks::new();
    let [one, two] = ["control", "control"].map(|name| networks.open(name));
    let attach = |s| Attached::new(networks.flux.sites(), [(&one[0], 1.0), (&two[0], s)]).map(|_| ());
    let error = attach(0.5).unwrap_err();
    assert!(error.to_string().contains("norm"), "{error}");
    attach(0.0).unwrap();
}

#[test]
fn q_k_and_v_share_their_projection_where_it_is_the_same() {
    let networks = Networks::new();
    // Four linears of every stream, and one of q, k, v and the MLP of every single block in two sites.
    let joined = networks.open("all.diffusers")[0].updates.len();
    assert_eq!(joined, networks.open("all.bfl")[0].updates.len());
    assert_eq!(joined, 10 + 2 * 2 * 5 + 2 * 5);
    // of split.safetensors no two q, k, v are the same
    let sites: BTreeSet<usize> = networks.open("split")[0].updates.iter().map(|u| u.0).collect();
    assert!(networks.open("split")[0].updates.len() > sites.len());
}

/// FLUX.1's real sizes: a LoRA of every linear, in kohya's names, has a place for each of its tensors.
#[test]
fn a_lora_of_flux_1_dev_fits() {
    let (_folder, weights) = crate::weights::flux::tests::sparse_flux_1(true);
    let flux = Flux::load(&Shapes, &weights).unwrap();
    let mut file = files::File::empty();
    let mut add = |name: String, n: usize, k: usize| {
        file.ones(&format!("lora_unet_{name}.lora_down.weight"), &[1, k]);
        file.ones(&format!("lora_unet_{name}.lora_up.weight"), &[n, 1]);
    };
    let d = 3072;
    for i in 0..19 {
        for stream in ["img", "txt"] {
            for (part, n, k) in [
                ("mod_lin", 6 * d, d),
                ("attn_qkv", 3 * d, d),
                ("attn_proj", d, d),
                ("mlp_0", 4 * d, d),
                ("mlp_2", d, 4 * d),
            ] {
                add(format!("double_blocks_{i}_{stream}_{part}"), n, k);
            }
        }
    }
    for i in 0..38 {
        for (part, n, k) in [("modulation_lin", 3 * d, d), ("linear1", 7 * d, d), ("linear2", d, 5 * d)] {
            add(format!("single_blocks_{i}_{part}"), n, k);
        }
    }
    for (name, n, k) in [
        ("img_in", d, 64),
        ("txt_in", d, 4096),
        ("time_in_in_layer", d, 256),
        ("guidance_in_out_layer", d, d),
        ("vector_in_in_layer", d, 768),
        ("final_layer_adaLN_modulation_1", 2 * d, d),
        ("final_layer_linear", 64, d),
    ] {
        add(name.into(), n, k);
    }
    let nothing = Sites::default();
    let (patches, info) = load(&Shapes, &file.checkpoint(), [flux.sites(), &nothing, &nothing]).unwrap();
    assert_eq!((info.modules, info.unused), (19 * 10 + 38 * 3 + 7, vec![]));
    // One update of each site: five a stream or single block.
    assert_eq!(patches[0].updates.len(), (19 * 2 + 38) * 5 + 7);
    let attached = Attached::new(flux.sites(), [(&patches[0], 1.0)]).unwrap();
    let run = Run::with(&Shapes, &attached);
    let mut conditioning = flux.condition(run, &[500.0], 3.5, &[0.0; 768]).unwrap();
    let sequence = flux.sequence(run, &Shapes.zeros(512, 4096).unwrap(), 512, [64, 64]).unwrap();
    let (latents, mut velocity) = (Shapes.zeros(4096, 64).unwrap(), Shapes.zeros(4096, 64).unwrap());
    flux.velocity(run, &latents, &sequence, &mut conditioning, 0, &mut velocity).unwrap();
}
