//! LoRAs: what they say about themselves, and pictures with and without them.

use std::ptr;

use svdq::capi::*;

use crate::support::{demo, load, lora, lora_file, model, ok, sized};

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
    assert_eq!((info.rank, info.modules, info.unused_tensors), (4, 2, 1));
    unsafe { svdq_lora_release(lora) };
}

/// The model goes first; the LoRA keeps what it needs of it.
#[test]
fn a_lora_may_outlive_its_model() {
    let model = load(&demo());
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
