//! Latents as the VAE has them, a vector of channels a pixel, and as the transformer has them, 2x2
//! pixels a token.

use crate::Result;
use crate::memory::{Buf, HostMemory};

/// `[channels, height, width]` (the order in which noise is drawn) to patches `[height/2 · width/2, 4 · channels]`,
/// channel `4c + 2y + x` of a patch being channel `c` of its pixel `(y, x)`. Height and width are even.
pub(super) fn pack(
    memory: &HostMemory,
    planes: &[f32],
    channels: usize,
    [height, width]: [usize; 2],
) -> Result<Buf<f32>> {
    debug_assert_eq!(planes.len(), channels * height * width);
    let mut packed = Buf::zeroed(memory, planes.len(), "latents")?;
    let mut pairs = packed.as_chunks_mut::<2>().0.iter_mut();
    for (row, column) in patches(height, width) {
        for plane in planes.chunks_exact(height * width) {
            for (y, pair) in pairs.by_ref().take(2).enumerate() {
                let start = (2 * row + y) * width + 2 * column;
                pair.copy_from_slice(&plane[start..start + 2]);
            }
        }
    }
    Ok(packed)
}

/// Patches to pixels: `[height · width, channels]`.
pub(super) fn unpack(
    memory: &HostMemory,
    packed: &[f32],
    channels: usize,
    [height, width]: [usize; 2],
) -> Result<Buf<f32>> {
    debug_assert_eq!(packed.len(), channels * height * width);
    let mut pixels = Buf::zeroed(memory, packed.len(), "latents")?;
    for (patch, (row, column)) in packed.chunks_exact(4 * channels).zip(patches(height, width)) {
        for (y, x) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let pixel = (2 * row + y) * width + 2 * column + x;
            for channel in 0..channels {
                pixels[pixel * channels + channel] = patch[4 * channel + 2 * y + x];
            }
        }
    }
    Ok(pixels)
}

fn patches(height: usize, width: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..height / 2).flat_map(move |row| (0..width / 2).map(move |column| (row, column)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_patch_holds_its_four_pixels_channel_by_channel() {
        // Two channels of a 2x4 image: values are 100 channel + 10 row + column.
        let planes: Vec<f32> = (0..2)
            .flat_map(|c| (0..2).flat_map(move |y| (0..4).map(move |x| (100 * c + 10 * y + x) as f32)))
            .collect();
        let memory = HostMemory::default();
        let packed = pack(&memory, &planes, 2, [2, 4]).unwrap();
        assert_eq!(packed[8..], [2.0, 3.0, 12.0, 13.0, 102.0, 103.0, 112.0, 113.0]);
        let pixels = unpack(&memory, &packed, 2, [2, 4]).unwrap();
        assert_eq!(pixels[..4], [0.0, 100.0, 1.0, 101.0]);
        assert_eq!(pixels[14..], [13.0, 113.0]);
    }
}
