//! Images in the caller's memory.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::slice;

use super::boundary::{Sized32, guard, pointer, read_struct};
use super::svdq_result;
use crate::engine::{ImageMut, ImageRef, PixelFormat};
use crate::{Error, Result};

/// Bytes in memory: red, green, blue, 255.
pub const SVDQ_FORMAT_RGBA8: u32 = 1;
/// Bytes in memory: blue, green, red, 255.
pub const SVDQ_FORMAT_BGRA8: u32 = 2;
/// Bytes in memory: red, green, blue.
pub const SVDQ_FORMAT_RGB8: u32 = 3;

/// The first row in memory is the bottom row of the picture.
pub const SVDQ_IMAGE_BOTTOM_UP: u32 = 1;

/// An image in the caller's memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct svdq_image {
    /// sizeof(svdq_image).
    pub struct_size: u32,
    /// SVDQ_FORMAT_*.
    pub format: u32,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Bytes from the start of a row to the start of the next. 0: rows follow each other at once.
    pub row_stride: u64,
    /// SVDQ_IMAGE_*, added up.
    pub flags: u32,
    /// 0.
    pub reserved: u32,
    /// Where the first row in memory starts. Bytes between rows are not written.
    pub pixels: *mut c_void,
    /// Bytes at pixels that may be written; that may be read, of an image that goes in.
    pub capacity: u64,
}

// SAFETY: integers and a pointer, no padding.
unsafe impl Sized32 for svdq_image {
    const NAME: &'static str = "svdq_image";
}

/// The smallest capacity that holds an image: from its first byte to the last byte of its last row.
///
/// image: pixels and capacity are not looked at.
/// bytes: receives the capacity. Not written on failure.
///
/// Errors: SVDQ_ERR_INVALID_ARGUMENT, SVDQ_ERR_VERSION_MISMATCH.
/// Threads: any.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_image_bytes(image: *const svdq_image, bytes: *mut u64) -> svdq_result {
    guard(|| {
        // SAFETY: `image` and `bytes` are as the header demands.
        let image = unsafe { read_struct(image)? };
        let bytes = pointer(bytes, "bytes")?;
        let need = needed(&image)?;
        // SAFETY: as above.
        unsafe { bytes.write(need) };
        Ok(())
    })
}

/// The pixels of `image` as the engine writes them.
///
/// # Safety
/// `image.pixels` is NULL or `image.capacity` bytes are writable there while `'a` lasts.
pub(super) unsafe fn image_mut<'a>(image: &svdq_image) -> Result<ImageMut<'a>> {
    let (pixels, length) = span(image)?;
    // SAFETY: `length` is at most `capacity`, which is writable by the caller's promise.
    let pixels = unsafe { slice::from_raw_parts_mut(pixels.as_ptr(), length) };
    let bottom_up = image.flags & SVDQ_IMAGE_BOTTOM_UP != 0;
    ImageMut::new(pixels, format(image)?, image.width, image.height, image.row_stride, bottom_up)
}

/// The pixels of `image` as the engine reads them.
///
/// # Safety
/// `image.pixels` is NULL or `image.capacity` bytes are readable there and do not change while `'a` lasts.
pub(super) unsafe fn image_ref<'a>(image: &svdq_image) -> Result<ImageRef<'a>> {
    let (pixels, length) = span(image)?;
    // SAFETY: `length` is at most `capacity`, which is readable by the caller's promise.
    let pixels = unsafe { slice::from_raw_parts(pixels.as_ptr(), length) };
    let bottom_up = image.flags & SVDQ_IMAGE_BOTTOM_UP != 0;
    ImageRef::new(pixels, format(image)?, image.width, image.height, image.row_stride, bottom_up)
}

/// Where an image's pixels are, and how many bytes of them, which the capacity holds.
fn span(image: &svdq_image) -> Result<(NonNull<u8>, usize)> {
    let need = needed(image)?;
    let pixels = pointer(image.pixels.cast::<u8>(), "pixels")?;
    if image.capacity < need {
        return Err(Error::BufferTooSmall { what: "pixels", got: image.capacity, need });
    }
    match isize::try_from(need) {
        Ok(length) => Ok((pixels, length as usize)),
        Err(_) => Err(Error::InvalidArgument(format!("an image of {need} bytes does not fit in memory"))),
    }
}

fn needed(image: &svdq_image) -> Result<u64> {
    if image.reserved != 0 || image.flags & !SVDQ_IMAGE_BOTTOM_UP != 0 {
        let text = format!("an image with flags {:#x} and reserved {}", image.flags, image.reserved);
        return Err(Error::InvalidArgument(text));
    }
    ImageMut::bytes_needed(format(image)?, image.width, image.height, image.row_stride)
}

fn format(image: &svdq_image) -> Result<PixelFormat> {
    match image.format {
        SVDQ_FORMAT_RGBA8 => Ok(PixelFormat::Rgba8),
        SVDQ_FORMAT_BGRA8 => Ok(PixelFormat::Bgra8),
        SVDQ_FORMAT_RGB8 => Ok(PixelFormat::Rgb8),
        other => Err(Error::InvalidArgument(format!("the image's format is {other}, which is none"))),
    }
}
