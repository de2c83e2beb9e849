//! Pictures in every form that a caller can ask for.

use std::ffi::CStr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread;

use svdq::capi::*;

use crate::support::{c, last_error, load, model, ok, repository, scratch, sized};

/// What the buffers hold before the library writes to them.
const POISON: u8 = 0xa5;
const SIZE: usize = 64;

/// Pixels in memory, and how they lie there.
struct Buffer {
    bytes: Vec<u8>,
    image: svdq_image,
}

impl Buffer {
    /// A buffer of exactly `svdq_image_bytes`, and 100 bytes more that are not the library's.
    fn new(format: u32, row_stride: usize, flags: u32) -> Buffer {
        let (size, row_stride) = (SIZE as u32, row_stride as u64);
        let mut image = svdq_image { format, width: size, height: size, row_stride, flags, ..sized() };
        ok(unsafe { svdq_image_bytes(&image, &mut image.capacity) });
        let mut bytes = vec![POISON; image.capacity as usize + 100];
        image.pixels = bytes.as_mut_ptr().cast();
        Buffer { bytes, image }
    }

    /// The picture as rows of red, green and blue from the top, and all bytes that are not pixels.
    fn unpack(&self) -> (Vec<u8>, Vec<u8>) {
        let order: &[usize] = match self.image.format {
            SVDQ_FORMAT_RGBA8 => &[0, 1, 2, 3],
            SVDQ_FORMAT_BGRA8 => &[2, 1, 0, 3],
            _ => &[0, 1, 2],
        };
        let row_bytes = SIZE * order.len();
        let stride = if self.image.row_stride == 0 { row_bytes } else { self.image.row_stride as usize };
        let (mut rows, mut rest) = (Vec::new(), Vec::new());
        for row in self.bytes.chunks(stride) {
            let (pixels, gap) = row.split_at(row_bytes.min(row.len()));
            let is_picture = rows.len() < SIZE;
            rest.extend_from_slice(if is_picture { gap } else { row });
            if is_picture {
                rows.push(pixels);
            }
        }
        if self.image.flags & SVDQ_IMAGE_BOTTOM_UP != 0 {
            rows.reverse();
        }
        let pixels = rows.concat();
        let pixels = pixels.chunks_exact(order.len());
        assert!(order.len() == 3 || pixels.clone().all(|pixel| pixel[3] == 255), "alpha");
        (pixels.flat_map(|pixel| [pixel[order[0]], pixel[order[1]], pixel[order[2]]]).collect(), rest)
    }
}

fn params(prompt: &CStr, seed: u64) -> svdq_generate_params {
    let size = SIZE as u32;
    svdq_generate_params { width: size, height: size, steps: 2, seed, prompt: prompt.as_ptr(), ..sized() }
}

fn generate(model: *mut svdq_model, prompt: &CStr, seed: u64) -> Vec<u8> {
    let buffer = Buffer::new(SVDQ_FORMAT_RGB8, 0, 0);
    ok(unsafe { svdq_generate(model, &params(prompt, seed), &buffer.image) });
    let (picture, rest) = buffer.unpack();
    assert!(rest.iter().all(|&byte| byte == POISON));
    picture
}

#[test]
fn every_form_holds_the_same_picture_and_nothing_beside_it_is_written() {
    let expected = generate(model(), c"pixel art blue potion", 7);
    assert!(expected.iter().any(|&byte| byte != expected[0]), "an empty picture");
    for (format, pixel_bytes) in [(SVDQ_FORMAT_RGBA8, 4), (SVDQ_FORMAT_BGRA8, 4), (SVDQ_FORMAT_RGB8, 3)] {
        let tight = SIZE * pixel_bytes;
        for (stride, flags) in
            [(0, 0), (tight, SVDQ_IMAGE_BOTTOM_UP), (tight + 13, 0), (1024, SVDQ_IMAGE_BOTTOM_UP)]
        {
            let buffer = Buffer::new(format, stride, flags);
            ok(unsafe { svdq_generate(model(), &params(c"pixel art blue potion", 7), &buffer.image) });
            let (picture, rest) = buffer.unpack();
            assert!(picture == expected, "format {format}, stride {stride}, flags {flags}");
            assert!(
                rest.iter().all(|&byte| byte == POISON),
                "format {format}, stride {stride}: wrote outside"
            );
        }
    }
}

#[test]
fn image_bytes_end_with_the_last_row() {
    for (format, stride, bytes) in [
        (SVDQ_FORMAT_RGBA8, 0, SIZE * SIZE * 4),
        (SVDQ_FORMAT_RGB8, 0, SIZE * SIZE * 3),
        (SVDQ_FORMAT_BGRA8, 1000, 1000 * (SIZE - 1) + SIZE * 4),
    ] {
        assert_eq!(Buffer::new(format, stride, 0).image.capacity, bytes as u64);
    }
}

#[test]
fn a_buffer_that_is_a_byte_too_small_stays_as_it_is() {
    for (format, stride) in [(SVDQ_FORMAT_RGBA8, 0), (SVDQ_FORMAT_BGRA8, 300), (SVDQ_FORMAT_RGB8, 200)] {
        let mut buffer = Buffer::new(format, stride, 0);
        let need = buffer.image.capacity;
        buffer.image.capacity -= 1;
        let result = unsafe { svdq_generate(model(), &params(c"a", 1), &buffer.image) };
        assert_eq!(result, SVDQ_ERR_BUFFER_TOO_SMALL);
        assert!(last_error().contains(&need.to_string()), "{}", last_error());
        assert!(buffer.bytes.iter().all(|&byte| byte == POISON));
    }
}

#[test]
fn the_picture_follows_prompt_and_seed() {
    let first = generate(model(), c"a red mushroom", 1);
    assert!(first == generate(model(), c"a red mushroom", 1));
    assert!(first != generate(model(), c"a red mushroom", 2));
    assert!(first != generate(model(), c"a blue sword", 1));
    assert!(first != generate(model(), c"", 1));
}

#[test]
fn threads_share_a_model() {
    let alone: Vec<_> = (0..4).map(|seed| generate(model(), c"a torch", seed)).collect();
    let together: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|seed| scope.spawn(move || generate(model(), c"a torch", seed))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(alone == together);
}

#[test]
fn a_path_may_hold_any_character() {
    let path = scratch("path").join("modèle 模型 🎨");
    symlink(repository("assets/demo"), &path).unwrap();
    let other = load(&c(Path::to_str(&path).unwrap()));
    assert!(generate(other, c"a key", 3) == generate(model(), c"a key", 3));
    unsafe { svdq_model_release(other) };
}
