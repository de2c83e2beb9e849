use super::*;
use crate::weights::Dtype;
use crate::weights::names::tests::file;
use crate::weights::testing::TempDir;

const A: &str = "transformer.transformer_blocks.0.attn.to_q.lora_A.weight";
const B: &str = "transformer.transformer_blocks.0.attn.to_q.lora_B.weight";

/// A LoRA of one layer of the demo model, whose values are bfloat16 of both signs up to 1/4.
pub(super) fn lora() -> Tensors {
    let tensor = |shape: [usize; 2]| {
        let bytes =
            (0..shape[0] * shape[1]).flat_map(|i| [i as u8 & 0x7f, [0x3e, 0xbe][i % 5 / 3]]).collect();
        (Dtype::BF16, shape.to_vec(), bytes)
    };
    Tensors::from([(A.into(), tensor([4, 256])), (B.into(), tensor([256, 4]))])
}

fn reshape(tensors: &mut Tensors, name: &str, shape: [usize; 2]) {
    let (_, old, bytes) = tensors.get_mut(name).unwrap();
    *bytes = bytes.iter().copied().cycle().take(2 * shape[0] * shape[1]).collect();
    *old = shape.to_vec();
}

type Case = (&'static str, fn(&mut Tensors), &'static [&'static str]);

const CASES: &[Case] = &[
    (
        "another architecture",
        |t| {
            *t = std::mem::take(t)
                .into_values()
                .map(|v| ("lora_unet_mid_block_x.lora_up.weight".into(), v))
                .collect()
        },
        &["no LoRA of this model", "lora_unet_mid_block_x.lora_up.weight"],
    ),
    ("inputs that do not fit", |t| reshape(t, A, [4, 255]), &[A, "255 columns, 256 are expected"]),
    ("outputs that do not fit", |t| reshape(t, B, [257, 4]), &[B, "257 rows, 256 are expected"]),
    ("NaN", |t| t.get_mut(B).unwrap().2[..2].copy_from_slice(&[0xc0, 0x7f]), &[B, "holds NaN at element 0"]),
    (
        "a rank above the limit",
        |t| (reshape(t, A, [1025, 256]), reshape(t, B, [256, 1025])).0,
        &[A, "rank 1025; 1 to 1024"],
    ),
    ("half a module", |t| drop(t.remove(B)), &[A, "no up (B) factor"]),
];

/// Whatever is wrong with a LoRA is said by the name of its tensor, and pictures with and without another stay the same.
#[test]
fn what_is_wrong_is_named_and_the_model_works_on() {
    let model = load(&[&demo()]).unwrap();
    let folder = TempDir::new();
    let good = folder.write("good.safetensors", &file(&lora()));
    let good = Lora::load(&model, &good).unwrap();
    let before = [picture(&model, &[]), picture(&model, &[(good.clone(), 1.0)])];
    assert!(before[0] != before[1]);
    let check = |wrong: &str, error: Error, parts: &[&str]| {
        let text = error.to_string();
        parts.iter().for_each(|part| assert!(text.contains(part), "{wrong}: {text:?} without {part:?}"));
        let after = [picture(&model, &[]), picture(&model, &[(good.clone(), 1.0)])];
        assert!(after == before, "{wrong}: the pictures have changed");
    };

    for (wrong, edit, parts) in CASES {
        let mut tensors = lora();
        edit(&mut tensors);
        let path = folder.write("style.safetensors", &file(&tensors));
        let error = Lora::load(&model, &path).err().unwrap();
        check(wrong, error, &[parts, &["style.safetensors"][..]].concat());
    }
    let whole = file(&lora());
    for (len, part) in
        [(5, "5 bytes are too few"), (100, "style.safetensors"), (whole.len() - 1, "style.safetensors")]
    {
        let path = folder.write("style.safetensors", &whole[..len]);
        check("truncated", Lora::load(&model, &path).err().unwrap(), &[part]);
    }

    let twice = [(good.clone(), 0.5), (good.clone(), 0.5)];
    check("twice", try_picture(&model, &twice).err().unwrap(), &["LoRA 1 is the same as LoRA 0"]);
    let other = load(&[&demo()]).unwrap();
    let error = try_picture(&other, &[(good.clone(), 1.0)]).err().unwrap();
    check("of another model", error, &["LoRA 0 is loaded for another model"]);
    assert!(picture(&other, &[]) == before[0]);
}
