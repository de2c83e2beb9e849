//! LoRAs: what they say about themselves, and pictures with and without them.

use std::path::Path;
use std::{fs, ptr};

use svdq::capi::*;

use crate::support::{
    c, demo, last_error, load as load_model, lora, lora_file, model, ok, scratch, sized, source,
};

const SIZE: usize = 64;

fn picture(model: *mut svdq_model, loras: &[svdq_lora_ref]) -> Vec<u8> {
    let mut pixels = vec![0; SIZE * SIZE * 3];
    let (width, height) = (SIZE as u32, SIZE as u32);
    let (loras, lora_count) = (loras.as_ptr(), loras.len() as u32);
    let prompt = c"a torch".as_ptr();
    let params = svdq_generate_params { width, height, steps: 2, prompt, loras, lora_count, ..sized() };
    let image = svdq_image {
        format: SVDQ_FORMAT_RGB8,
        width,
        height,
        pixels: pixels.as_mut_ptr().cast(),
        capacity: pixels.len() as u64,
        ..sized()
    };
    ok(unsafe { svdq_generate(model, &params, &image) });
    pixels
}

fn with(lora: *const svdq_lora, strength: f32) -> svdq_lora_ref {
    svdq_lora_ref { strength, lora, ..sized() }
}

#[test]
fn a_picture_has_the_loras_that_it_asks_for() {
    let plain = picture(model(), &[]);
    let (one, two) = (lora(model(), &lora_file()), lora(model(), &lora_file()));
    assert!(picture(model(), &[]) == plain, "loading changed something");
    let half = picture(model(), &[with(one, 0.5)]);
    let whole = picture(model(), &[with(one, 1.0)]);
    assert!(half != plain && whole != plain && half != whole);
    assert!(picture(model(), &[with(one, 0.0)]) == plain, "strength 0");
    assert!(picture(model(), &[with(two, 1.0)]) == whole, "another handle of the same file");
    // Halves of two that are the same are one whole, but for rounding, which quantised activations enlarge.
    let distance = |a: &[u8]| a.iter().zip(&whole).map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>();
    let (halves, none) = (distance(&picture(model(), &[with(one, 0.5), with(two, 0.5)])), distance(&plain));
    assert!(halves * 4 < none, "two halves are {halves} away from a whole, none is {none} away");
    unsafe { svdq_lora_release(one) };
    assert!(picture(model(), &[with(two, 1.0)]) == whole, "after the other handle is gone");
    unsafe { svdq_lora_release(two) };
    assert!(picture(model(), &[]) == plain, "after all are gone");
}

#[test]
fn a_lora_says_what_it_brings() {
    let lora = lora(model(), &lora_file());
    let mut info = sized::<svdq_lora_info>();
    ok(unsafe { svdq_lora_get_info(lora, &mut info) });
    assert_eq!((info.rank, info.modules, info.unused_tensors, info.control_channels), (4, 2, 1, 0));
    unsafe { svdq_lora_release(lora) };
}

/// The model goes first; the LoRA keeps what it needs of it.
#[test]
fn a_lora_may_outlive_its_model() {
    let model = load_model(&demo());
    let lora = lora(model, &lora_file());
    assert!(picture(model, &[with(lora, 1.0)]) != picture(model, &[]));
    unsafe {
        svdq_model_release(model);
        let mut info = sized::<svdq_lora_info>();
        ok(svdq_lora_get_info(lora, &mut info));
        svdq_lora_release(lora);
        svdq_lora_release(ptr::null_mut());
    }
}

/// Damaged LoRAs, and LoRAs in the wrong place, are refused with a text that names what is wrong, and pictures stay the same.
#[test]
fn what_is_wrong_is_named_and_the_model_works_on() {
    let sound = lora(model(), &lora_file());
    let pictures = || [picture(model(), &[]), picture(model(), &[with(sound, 1.0)])];
    let before = pictures();
    let check = |wrong: &str, (result, text): (svdq_result, String), expected: svdq_result, part: &str| {
        assert!(result == expected && text.contains(part), "{wrong}: {result} {text}");
        assert!(pictures() == before, "{wrong}: the pictures have changed");
    };

    let file = fs::read(Path::new(lora_file().to_str().unwrap())).unwrap();
    let path = scratch("bad_lora").join("style.safetensors");
    let load = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let (path, mut out) = (c(path.to_str().unwrap()), ptr::dangling_mut());
        let result = unsafe { svdq_lora_load(model(), &source(&path), &mut out) };
        assert!(out.is_null());
        (result, last_error())
    };
    let header = usize::from_le_bytes(file[..8].try_into().unwrap());
    let renamed = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let header = String::from_utf8(file[8..8 + header].to_vec()).unwrap();
        assert!(header.contains(from));
        [&file[..8], header.replace(from, to).as_bytes(), &file[8 + header.len()..]].concat()
    };
    let mut nan = file.clone();
    nan.iter_mut().skip(8 + header).for_each(|byte| *byte = 0x7f);
    nan[8 + header..].iter_mut().step_by(2).for_each(|byte| *byte = 0xff);
    let cut = &file[..file.len() - 1];
    check("truncated", load(cut), SVDQ_ERR_BAD_FORMAT, "style.safetensors");
    check("NaN", load(&nan), SVDQ_ERR_BAD_FORMAT, "holds NaN");
    // The first factor of a module has no second.
    let half = renamed("attn.to_v.lora_B", "attn.to_x.lora_B");
    check("half", load(&half), SVDQ_ERR_BAD_FORMAT, "single_transformer_blocks.0.attn.to_v.lora_A.weight");
    let narrow = renamed("double_blocks_0_img_mlp_0", "double_blocks_0_img_mlp_2");
    check("shapes", load(&narrow), SVDQ_ERR_WRONG_MODEL, "lora_unet_double_blocks_0_img_mlp_2.lora_");
    let generate = |model: *mut svdq_model, loras: &[svdq_lora_ref]| {
        let mut pixels = vec![0u8; SIZE * SIZE * 3];
        let (width, height, lora_count) = (SIZE as u32, SIZE as u32, loras.len() as u32);
        let (prompt, loras) = (c"a torch".as_ptr(), loras.as_ptr());
        let params = svdq_generate_params { width, height, steps: 2, prompt, loras, lora_count, ..sized() };
        let (format, capacity) = (SVDQ_FORMAT_RGB8, pixels.len() as u64);
        let image =
            svdq_image { format, width, height, pixels: pixels.as_mut_ptr().cast(), capacity, ..sized() };
        let result = unsafe { svdq_generate(model, &params, &image) };
        assert!(pixels.iter().all(|&byte| byte == 0));
        (result, last_error())
    };
    let twice = generate(model(), &[with(sound, 0.5), with(sound, 0.5)]);
    check("twice", twice, SVDQ_ERR_INVALID_ARGUMENT, "LoRA 1 is the same as LoRA 0");
    let other = load_model(&demo());
    let of_another = generate(other, &[with(sound, 1.0)]);
    check("of another model", of_another, SVDQ_ERR_INVALID_ARGUMENT, "LoRA 0 is loaded for another model");
    unsafe { (svdq_model_release(other), svdq_lora_release(sound)) };
}
