//! Prompts that are encoded once.

use super::*;
use crate::weights::Dtype;
use crate::weights::names::tests::file;
use crate::weights::testing::TempDir;

fn of(model: &Model, prompt: Option<&Prompt>, text: &str, loras: &[(Lora, f32)]) -> Vec<u8> {
    let mut pixels = vec![0; (SIDE * SIDE * 3) as usize];
    let mut image = ImageMut::new(&mut pixels, PixelFormat::Rgb8, SIDE, SIDE, 0, false).unwrap();
    let params = GenerateParams {
        prompt: text,
        encoded: prompt,
        width: SIDE,
        height: SIDE,
        steps: 2,
        seed: 3,
        loras,
        ..Default::default()
    };
    model.generate(&params, &mut image, &mut |_| ControlFlow::Continue(())).unwrap();
    pixels
}

#[test]
fn an_encoded_prompt_makes_the_picture_of_its_text() {
    let model = load(&[&demo()]).unwrap();
    let expected = of(&model, None, "a red key", &[]);
    assert_ne!(of(&model, None, "a blue sword", &[]), expected);
    let prompt = Prompt::encode(&model, "a red key", &[]).unwrap();
    assert_ne!(of(&model, None, "", &[]), expected);
    for _ in 0..2 {
        assert_eq!(of(&model, Some(&prompt), "", &[]), expected);
    }
    // Now the model knows the encoding.
    assert_eq!(of(&model, None, "a red key", &[]), expected);
    assert_eq!(of(&model, None, "a red key", &[]), expected);

    let other = load(&[&demo()]).unwrap();
    let params = GenerateParams { encoded: Some(&prompt), ..Default::default() };
    let error = other.resolve(&params).unwrap_err().to_string();
    assert!(error.contains("encoded by another model"), "{error}");
    drop(model);
    drop(prompt);
}

/// A LoRA of one layer of CLIP.
fn text_lora() -> Tensors {
    let name = |factor: &str| {
        format!("text_encoder.text_model.encoder.layers.0.self_attn.v_proj.lora_{factor}.weight")
    };
    let tensor = |shape: [usize; 2]| {
        let bytes =
            (0..shape[0] * shape[1]).flat_map(|i| [i as u8 & 0x7f, [0x3e, 0xbe][i % 5 / 3]]).collect();
        (Dtype::BF16, shape.to_vec(), bytes)
    };
    Tensors::from([(name("A"), tensor([4, 128])), (name("B"), tensor([128, 4]))])
}

/// A LoRA that changes text encoders is part of the encoding, with its strength; one that does not is not.
#[test]
fn text_loras_are_encoded() {
    let folder = TempDir::new();
    let model = load(&[&demo()]).unwrap();
    let text = Lora::load(&model, folder.write("text.safetensors", &file(&text_lora()))).unwrap();
    let image = Lora::load(&model, folder.write("image.safetensors", &file(&loras::lora()))).unwrap();
    let plain = of(&model, None, "a key", &[]);
    let pictures: Vec<_> =
        [1.0, 2.0].iter().map(|&strength| of(&model, None, "a key", &[(text.clone(), strength)])).collect();
    assert!(plain != pictures[0] && pictures[0] != pictures[1]);
    for (strength, expected) in [1.0, 2.0].into_iter().zip(&pictures) {
        let loras = [(text.clone(), strength)];
        let prompt = Prompt::encode(&model, "a key", &loras).unwrap();
        assert_eq!(of(&model, Some(&prompt), "", &[]), *expected, "strength {strength}");
        assert_eq!(of(&model, None, "a key", &loras), *expected);
        let both = [(text.clone(), strength), (image.clone(), 1.0)];
        assert_eq!(of(&model, Some(&prompt), "", &[(image.clone(), 1.0)]), of(&model, None, "a key", &both));
    }
}
