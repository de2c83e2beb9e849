//! The caller's pixels.

use std::fmt;
use std::ops::Range;

use crate::memory::{Buf, HostMemory};
use crate::{Error, Result};

/// Order of the bytes of a pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PixelFormat {
    /// Red, green, blue, 255.
    Rgba8,
    /// Blue, green, red, 255.
    Bgra8,
    /// Red, green, blue.
    Rgb8,
}

impl PixelFormat {
    /// Bytes of a pixel.
    pub const fn bytes(self) -> usize {
        match self {
            PixelFormat::Rgba8 | PixelFormat::Bgra8 => 4,
            PixelFormat::Rgb8 => 3,
        }
    }

    fn read(self, pixel: &[u8]) -> [u8; 3] {
        match (self, pixel) {
            (PixelFormat::Bgra8, &[blue, green, red, ..]) => [red, green, blue],
            (_, &[red, green, blue, ..]) => [red, green, blue],
            _ => [0; 3],
        }
    }

    fn write(self, [red, green, blue]: [u8; 3], pixel: &mut [u8]) {
        match self {
            PixelFormat::Rgba8 => pixel.copy_from_slice(&[red, green, blue, 255]),
            PixelFormat::Bgra8 => pixel.copy_from_slice(&[blue, green, red, 255]),
            PixelFormat::Rgb8 => pixel.copy_from_slice(&[red, green, blue]),
        }
    }
}

/// An image in the caller's memory. Bytes between the end of a row and the next are never written.
pub struct ImageMut<'a> {
    pixels: &'a mut [u8],
    layout: Layout,
}

impl<'a> ImageMut<'a> {
    /// Describes `width` x `height` pixels of `format` in `pixels`. `row_stride` is the distance of two
    /// rows in bytes, 0 for tightly packed rows. `bottom_up` puts the last row first, as textures of
    /// Unity and OpenGL have it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a zero size or a stride shorter than a row,
    /// [`Error::BufferTooSmall`] when the image does not fit in `pixels`.
    pub fn new(
        pixels: &'a mut [u8],
        format: PixelFormat,
        width: u32,
        height: u32,
        row_stride: u64,
        bottom_up: bool,
    ) -> Result<Self> {
        let layout = Layout::new(pixels.len(), format, [width, height], row_stride, bottom_up)?;
        Ok(ImageMut { pixels, layout })
    }

    /// Bytes that such an image spans: all rows at `row_stride`, the last one without its padding.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a zero size, a stride shorter than a row, or a span of more than 2^63 bytes.
    pub fn bytes_needed(format: PixelFormat, width: u32, height: u32, row_stride: u64) -> Result<u64> {
        let invalid = |what: String| Err(Error::InvalidArgument(what));
        if width == 0 || height == 0 {
            return invalid(format!("the image is {width}x{height} pixels: neither side may be 0"));
        }
        let row = u64::from(width) * format.bytes() as u64;
        let stride = if row_stride == 0 { row } else { row_stride };
        if stride < row {
            return invalid(format!("row_stride is {stride} bytes, but a row of {width} pixels has {row}"));
        }
        match stride.checked_mul(u64::from(height) - 1).and_then(|rows| rows.checked_add(row)) {
            Some(bytes) if i64::try_from(bytes).is_ok() => Ok(bytes),
            _ => invalid(format!("an image of {height} rows at a row_stride of {stride} bytes is too large")),
        }
    }

    /// Width in pixels.
    pub fn width(&self) -> u32 {
        self.layout.width
    }

    /// Height in pixels.
    pub fn height(&self) -> u32 {
        self.layout.height
    }

    /// # Errors
    /// [`Error::InvalidArgument`] unless the image is as large as a picture of `width` x `height` pixels.
    pub(super) fn check_size(&self, width: u32, height: u32) -> Result<()> {
        let Layout { width: own_width, height: own_height, .. } = self.layout;
        if (own_width, own_height) == (width, height) {
            return Ok(());
        }
        Err(Error::InvalidArgument(format!(
            "the output image is {own_width}x{own_height} pixels, but the picture has {width}x{height}"
        )))
    }

    /// Writes tightly packed RGB rows, the top one first.
    pub(super) fn write_rgb8(&mut self, rgb: &[u8]) {
        let Layout { format, width, .. } = self.layout;
        for (y, source) in rgb.chunks_exact(3 * width as usize).enumerate() {
            let target = self.pixels[self.layout.row(y)].chunks_exact_mut(format.bytes());
            for (pixel, &rgb) in target.zip(source.as_chunks().0) {
                format.write(rgb, pixel);
            }
        }
    }
}

/// An image in the caller's memory that is only read.
#[derive(Clone, Copy)]
pub struct ImageRef<'a> {
    pixels: &'a [u8],
    layout: Layout,
}

impl<'a> ImageRef<'a> {
    /// As [`ImageMut::new`].
    ///
    /// # Errors
    /// As [`ImageMut::new`].
    pub fn new(
        pixels: &'a [u8],
        format: PixelFormat,
        width: u32,
        height: u32,
        row_stride: u64,
        bottom_up: bool,
    ) -> Result<Self> {
        let layout = Layout::new(pixels.len(), format, [width, height], row_stride, bottom_up)?;
        Ok(ImageRef { pixels, layout })
    }

    /// Width in pixels.
    pub fn width(&self) -> u32 {
        self.layout.width
    }

    /// Height in pixels.
    pub fn height(&self) -> u32 {
        self.layout.height
    }

    /// Tightly packed RGB rows, the top one first, in `memory`.
    pub(super) fn rgb8(&self, memory: &HostMemory) -> Result<Buf<u8>> {
        let Layout { format, width, height, .. } = self.layout;
        let row = 3 * width as usize;
        let mut rgb = Buf::zeroed(memory, row * height as usize, "the image to start from")?;
        for (y, target) in rgb.chunks_exact_mut(row).enumerate() {
            let source = self.pixels[self.layout.row(y)].chunks_exact(format.bytes());
            for (rgb, pixel) in target.as_chunks_mut().0.iter_mut().zip(source) {
                *rgb = format.read(pixel);
            }
        }
        Ok(rgb)
    }
}

impl fmt::Debug for ImageRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Layout { format, width, height, .. } = self.layout;
        write!(f, "{width}x{height} {format:?}")
    }
}

/// Where the pixels of an image lie.
#[derive(Clone, Copy)]
struct Layout {
    format: PixelFormat,
    width: u32,
    height: u32,
    row_stride: usize,
    bottom_up: bool,
}

impl Layout {
    /// That of an image in `got` bytes.
    fn new(
        got: usize,
        format: PixelFormat,
        [width, height]: [u32; 2],
        row_stride: u64,
        bottom_up: bool,
    ) -> Result<Self> {
        let (got, need) = (got as u64, ImageMut::bytes_needed(format, width, height, row_stride)?);
        if got < need {
            return Err(Error::BufferTooSmall { what: "the image's pixel buffer", got, need });
        }
        let row_stride = if row_stride == 0 { width as usize * format.bytes() } else { row_stride as usize };
        Ok(Layout { format, width, height, row_stride, bottom_up })
    }

    /// The bytes of row `y`, counted from the top.
    fn row(&self, y: usize) -> Range<usize> {
        let row = if self.bottom_up { self.height as usize - 1 - y } else { y };
        let start = row * self.row_stride;
        start..start + self.width as usize * self.format.bytes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const RGB: [u8; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

    #[test]
    fn formats_strides_and_row_order() {
        let mut tight = [0; 16];
        ImageMut::new(&mut tight, PixelFormat::Bgra8, 2, 2, 0, false).unwrap().write_rgb8(&RGB);
        assert_eq!(tight, [3, 2, 1, 255, 6, 5, 4, 255, 9, 8, 7, 255, 12, 11, 10, 255]);

        let mut padded = [0xAA; 14];
        ImageMut::new(&mut padded, PixelFormat::Rgb8, 2, 2, 8, true).unwrap().write_rgb8(&RGB);
        assert_eq!(padded, [7, 8, 9, 10, 11, 12, 0xAA, 0xAA, 1, 2, 3, 4, 5, 6]);

        let memory = HostMemory::default();
        let read = |image: ImageRef<'_>| image.rgb8(&memory).unwrap()[..] == RGB;
        assert!(read(ImageRef::new(&tight, PixelFormat::Bgra8, 2, 2, 0, false).unwrap()));
        assert!(read(ImageRef::new(&padded, PixelFormat::Rgb8, 2, 2, 8, true).unwrap()));
        assert!(!read(ImageRef::new(&padded, PixelFormat::Rgb8, 2, 2, 8, false).unwrap()));
    }

    #[test]
    fn images_that_do_not_fit_are_refused() {
        let error = |bytes: usize, width, height, stride| {
            ImageMut::new(&mut vec![0; bytes], PixelFormat::Rgba8, width, height, stride, false)
                .err()
                .unwrap()
        };
        assert!(matches!(error(15, 2, 2, 0), Error::BufferTooSmall { got: 15, need: 16, .. }));
        assert!(matches!(error(16, 2, 2, 9), Error::BufferTooSmall { need: 17, .. }));
        assert!(matches!(error(16, 0, 2, 0), Error::InvalidArgument(_)));
        assert!(matches!(error(16, 2, 2, 7), Error::InvalidArgument(_)));
        assert!(matches!(error(16, 2, u32::MAX, u64::MAX), Error::InvalidArgument(_)));
        assert!(matches!(error(16, 2, u32::MAX, 1 << 32), Error::InvalidArgument(_)));
    }
}
