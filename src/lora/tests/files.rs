//! Files that are damaged, hostile, or LoRAs of something else.

use std::collections::{BTreeMap, HashMap};

use safetensors::tensor::TensorView;

use super::*;
use crate::Error;
use crate::weights::Dtype;

/// A file about to be written: type, shape and bytes of every tensor, and metadata.
pub(super) struct File {
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
    metadata: Option<HashMap<String, String>>,
}

impl File {
    pub(super) fn open(name: &str) -> Self {
        let file = Checkpoint::open(&path(name)).unwrap();
        let tensors = file.tensors();
        let tensors =
            tensors.map(|t| (t.name.to_owned(), (t.dtype, t.shape.to_vec(), t.bytes().unwrap().to_vec())));
        File { tensors: tensors.collect(), metadata: None }
    }

    pub(super) fn empty() -> Self {
        File { tensors: BTreeMap::new(), metadata: None }
    }

    pub(super) fn rename(&mut self, new: impl Fn(&str) -> String) {
        self.tensors = std::mem::take(&mut self.tensors)
            .into_iter()
            .map(|(name, tensor)| (new(&name), tensor))
            .collect();
    }

    fn remove(&mut self, name: &str) {
        self.tensors.remove(name).unwrap();
    }

    /// A bfloat16 tensor of ones.
    pub(super) fn ones(&mut self, name: &str, shape: &[usize]) {
        let bytes = [0x80, 0x3f].repeat(shape.iter().product());
        self.tensors.insert(name.into(), (Dtype::BF16, shape.to_vec(), bytes));
    }

    fn metadata(&mut self, config: &str) {
        self.metadata = Some(HashMap::from([("lora_adapter_metadata".into(), config.into())]));
    }

    pub(super) fn checkpoint(&self) -> Checkpoint {
        let views = self.tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let bytes = safetensors::serialize(views, self.metadata.clone()).unwrap();
        Checkpoint::from_bytes(Path::new("style.safetensors"), bytes).unwrap()
    }
}

const Q_A: &str = "transformer_blocks.0.attn.to_q.lora_A.weight";
const Q_B: &str = "transformer_blocks.0.attn.to_q.lora_B.weight";

/// The last two bytes of a tensor.
fn set_last(file: &mut File, name: &str, value: [u8; 2]) {
    let bytes = &mut file.tensors.get_mut(name).unwrap().2;
    let len = bytes.len();
    bytes[len - 2..].copy_from_slice(&value);
}

fn sdxl(file: &mut File, text_encoder: bool) {
    *file = File::empty();
    for factor in ["down", "up"] {
        file.ones(&format!("lora_unet_input_blocks_4_1_proj_in.lora_{factor}.weight"), &[8, 8]);
        if text_encoder {
            let name = format!("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_{factor}.weight");
            file.ones(&name, if factor == "down" { &[4, 64] } else { &[128, 4] });
        }
    }
}

enum Kind {
    Format,
    Model,
    Unsupported,
}
use Kind::{Format, Model, Unsupported};

type Case = (&'static str, fn(&mut File), Kind, &'static [&'static str]);

const CASES: &[Case] = &[
    ("no B", |f| f.remove(Q_B), Format, &[Q_A, "no up (B) factor"]),
    ("no A", |f| f.remove(Q_A), Format, &[Q_B, "no down (A) factor"]),
    ("alpha alone", |f| f.ones("transformer_blocks.0.attn.to_q.alpha", &[]), Format, &[]),
    ("NaN", |f| set_last(f, Q_A, [0xc0, 0x7f]), Format, &[Q_A, "holds NaN at element 127"]),
    ("infinity", |f| set_last(f, Q_B, [0x80, 0xff]), Format, &[Q_B, "holds -inf"]),
    ("ranks that differ", |f| f.ones(Q_B, &[64, 3]), Format, &[Q_B, "3 columns", Q_A, "rank 2"]),
    ("rank 0", |f| (f.ones(Q_A, &[0, 64]), f.ones(Q_B, &[64, 0])).0, Format, &[Q_A, "rank 0"]),
    ("rank 1025", |f| (f.ones(Q_A, &[1025, 64]), f.ones(Q_B, &[64, 1025])).0, Format, &[Q_A, "rank 1025"]),
    ("a vector", |f| f.ones(Q_A, &[128]), Format, &[Q_A, "[128]"]),
    ("a convolution", |f| f.ones(Q_B, &[64, 2, 1, 1]), Format, &[Q_B, "[64, 2, 1, 1]"]),
    ("other inputs", |f| f.ones(Q_A, &[2, 65]), Model, &[Q_A, "65 columns, 64 are expected"]),
    ("other outputs", |f| f.ones(Q_B, &[63, 2]), Model, &[Q_B, "63 rows, 64 are expected"]),
    ("an integer type", |f| f.tensors.get_mut(Q_A).unwrap().0 = Dtype::I16, Format, &[Q_A, "dtype I16"]),
    (
        "a bias of another length",
        |f| f.ones("transformer_blocks.0.attn.to_q.lora_B.bias", &[65]),
        Format,
        &["bias", "[65]"],
    ),
    (
        "two alphas",
        |f| f.ones("transformer_blocks.0.attn.to_q.alpha", &[2]),
        Format,
        &["to_q.alpha", "one number"],
    ),
    (
        "alpha that is no number",
        |f| {
            f.ones("transformer_blocks.0.attn.to_q.alpha", &[1]);
            set_last(f, "transformer_blocks.0.attn.to_q.alpha", [0xc0, 0x7f]);
        },
        Format,
        &["to_q.alpha", "NaN"],
    ),
    (
        "A twice",
        |f| f.ones("transformer_blocks.0.attn.to_q.lora_A.default.weight", &[2, 64]),
        Format,
        &[Q_A, "the same as"],
    ),
    (
        "a layer under two names",
        |f| {
            (
                f.ones("double_blocks.0.img_attn.qkv.lora_A.weight", &[2, 64]),
                f.ones("double_blocks.0.img_attn.qkv.lora_B.weight", &[192, 2]),
            )
                .0
        },
        Format,
        &["changes the same layer", "double_blocks.0.img_attn.qkv"],
    ),
    (
        "half an image more",
        |f| f.ones("x_embedder.lora_A.weight", &[2, 24]),
        Model,
        &["x_embedder.lora_A.weight", "24 columns, 16 are expected"],
    ),
    (
        "an image beside the text",
        |f| f.ones("context_embedder.lora_A.weight", &[2, 96]),
        Model,
        &["context_embedder.lora_A.weight", "96 columns, 48 are expected"],
    ),
    (
        "LoKr",
        |f| f.ones("lora_unet_double_blocks_0_img_mlp_0.lokr_w1", &[4, 4]),
        Unsupported,
        &["lokr_w1", "LoKr"],
    ),
    (
        "LoHa",
        |f| f.ones("lora_unet_double_blocks_0_img_mlp_0.hada_w1_a", &[4, 4]),
        Unsupported,
        &["hada_w1_a", "LoHa"],
    ),
    (
        "DoRA",
        |f| f.ones("transformer_blocks.0.attn.to_q.dora_scale", &[64, 1]),
        Unsupported,
        &["dora_scale", "DoRA"],
    ),
    ("whole weights", |f| f.ones("diffusion_model.img_in.diff", &[64, 16]), Unsupported, &["img_in.diff"]),
    (
        "norms of another length",
        |f| f.ones("transformer_blocks.0.attn.norm_q.weight", &[31]),
        Model,
        &["norm_q.weight", "[31]"],
    ),
    (
        "a norm under two names",
        |f| {
            f.ones("transformer_blocks.0.attn.norm_q.weight", &[32]);
            f.ones("double_blocks.0.img_attn.norm.query_norm.scale", &[32]);
        },
        Format,
        &["transformer_blocks.0.attn.norm_q.weight", "double_blocks.0.img_attn.norm.query_norm.scale"],
    ),
    (
        "another model",
        |f| sdxl(f, false),
        Model,
        &["no place for `lora_unet_input_blocks_4_1_proj_in.lora_down.weight`"],
    ),
    ("another model's text encoder", |f| sdxl(f, true), Model, &["lora_unet_input_blocks_4_1_proj_in"]),
    ("nothing", |f| *f = File::empty(), Model, &["nothing"]),
    ("metadata that are no JSON", |f| f.metadata("{"), Format, &["lora_adapter_metadata"]),
    (
        "alpha in words",
        |f| f.metadata(r#"{"lora_alpha": "much"}"#),
        Format,
        &["lora_adapter_metadata", "lora_alpha"],
    ),
    ("infinite alpha", |f| f.metadata(r#"{"lora_alpha": 1e39}"#), Format, &["lora_adapter_metadata"]),
    (
        "patterns",
        |f| f.metadata(r#"{"lora_alpha": 1, "alpha_pattern": {"^to_q$": 2}}"#),
        Unsupported,
        &["alpha_pattern", "^to_q$"],
    ),
];

#[test]
fn what_is_wrong_is_named_and_the_model_works_on() {
    let networks = Networks::new();
    for (wrong, edit, kind, parts) in CASES {
        let mut file = File::open("all.bare");
        edit(&mut file);
        if *wrong == "alpha alone" {
            file.remove(Q_A);
            file.remove(Q_B);
        }
        let error = match networks.load(&file.checkpoint()) {
            Ok(_) => panic!("{wrong}: loaded"),
            Err(error) => error,
        };
        let as_expected = match kind {
            Format => matches!(error, Error::BadFormat { .. }),
            Model => matches!(error, Error::WrongModel { .. }),
            Unsupported => matches!(error, Error::Unsupported(_)),
        };
        let text = error.to_string();
        assert!(as_expected && text.contains("style.safetensors"), "{wrong}: {error:?}");
        for part in *parts {
            assert!(text.contains(part), "{wrong}: {text:?} without {part:?}");
        }
    }
    let error = relative_error(&networks.plain(), &networks.golden.values("out"));
    assert!(error < 1e-4, "{error}");
}

/// `img_in` of Black Forest Labs' control LoRAs takes a control image too: its columns of A have no effect, all else has.
#[test]
fn channels_of_a_control_image_are_left_out() {
    let networks = Networks::new();
    let (patches, info) = networks.load(&File::open("control").checkpoint()).unwrap();
    assert_eq!(info.control_channels, 0);
    let want = bits(&networks.velocity(&[(&patches, 0.7)]));
    let mut file = File::open("control");
    let (_, shape, bytes) = file.tensors.get_mut("img_in.lora_A.weight").unwrap();
    let row = 2 * std::mem::replace(shape, vec![2, 32])[1];
    *bytes = bytes.chunks(row).flat_map(|row| [row, &[0x80, 0x42].repeat(16)].concat()).collect();
    let (wide, wide_info) = networks.load(&file.checkpoint()).unwrap();
    assert_eq!(wide_info, LoraInfo { control_channels: 16, ..info });
    assert!(bits(&networks.velocity(&[(&wide, 0.7)])) == want);
}

#[test]
fn a_truncated_file_is_an_error() {
    let bytes = std::fs::read(path("all.kohya")).unwrap();
    for len in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        let cut = bytes[..len].to_vec();
        assert!(Checkpoint::from_bytes(Path::new("style.safetensors"), cut).is_err(), "{len} bytes");
    }
}

#[test]
fn what_the_model_has_no_place_for_is_listed() {
    let networks = Networks::new();
    let mut file = File::open("all.bare");
    let names = [
        "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
        "position_embedding",
        "transformer_blocks.7.attn.to_q.alpha",
    ];
    names.iter().for_each(|name| file.ones(name, &[1]));
    let (patches, info) = networks.load(&file.checkpoint()).unwrap();
    assert_eq!(info.unused, names);
    assert_eq!((info.modules, info.ranks), (50, BTreeSet::from([2])));
    assert_equal(&networks.velocity(&[(&patches, 0.7)]), "all@0.7");
}

/// Ranks of every size, on a layer of which q, k and v have different ones.
#[test]
fn any_rank_adds_its_product() {
    let networks = Networks::new();
    let plain = networks.plain();
    for rank in [1, 2, 7, 16, 17, 33, 128, 1024] {
        let mut file = File::empty();
        file.ones("transformer_blocks.1.attn.to_k.lora_A.weight", &[rank, 64]);
        file.ones("transformer_blocks.1.attn.to_k.lora_B.weight", &[64, rank]);
        file.ones("transformer_blocks.1.attn.to_v.lora_A.weight", &[2 * rank.min(512), 64]);
        file.ones("transformer_blocks.1.attn.to_v.lora_B.weight", &[64, 2 * rank.min(512)]);
        let (patches, _) = networks.load(&file.checkpoint()).unwrap();
        // Of ones, rank r at strength 1/r is rank 1 at strength 1, up to the rounding of the sum.
        let got = networks.velocity(&[(&patches, 1.0 / rank as f32)]);
        assert!(relative_error(&got, &plain) > 1e-4, "rank {rank} has no effect");
        let mut one = File::empty();
        one.ones("transformer_blocks.1.attn.to_k.lora_A.weight", &[1, 64]);
        one.ones("transformer_blocks.1.attn.to_k.lora_B.weight", &[64, 1]);
        let twice = 2 * rank.min(512) / rank;
        one.ones("transformer_blocks.1.attn.to_v.lora_A.weight", &[twice, 64]);
        one.ones("transformer_blocks.1.attn.to_v.lora_B.weight", &[64, twice]);
        let (patches, _) = networks.load(&one.checkpoint()).unwrap();
        let error = relative_error(&got, &networks.velocity(&[(&patches, 1.0)]));
        assert!(error < 1e-4, "rank {rank}: {error}");
    }
}
