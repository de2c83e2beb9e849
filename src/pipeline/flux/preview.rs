//! What latents look like, without a decoder: each colour of a pixel is a linear function of the latent under it.

use crate::Result;
use crate::memory::{Buf, HostMemory};
use crate::models::vae::Vae;
use crate::ops::Device;
use crate::pipeline::noise::randn;

/// Height and width of the latents from which the function is found, and of the patches in which they are constant.
const SIDE: usize = 32;
const PATCH: usize = 2;

/// `[channels + 1]` times red, green and blue around -1 to 1; the last row is what is added.
pub(super) struct LinearMap(Vec<[f32; 3]>);

impl LinearMap {
    /// The function that is nearest to what `vae` makes of random latents, by least squares: the latents are standard
    /// normal, as those of images are about, and constant in patches; a pixel is the mean of those that its latent becomes.
    pub(super) fn fit<D: Device>(dev: &D, vae: &Vae<D>) -> Result<Self> {
        let (channels, factor) = (vae.latent_channels(), vae.factor());
        let patches = SIDE / PATCH;
        let mut values = Buf::zeroed(dev.memory(), patches * patches * channels, "random latents")?;
        randn(0, &mut values);
        let patch = |y: usize, x: usize| &values[(y / PATCH * patches + x / PATCH) * channels..][..channels];
        let mut latents = Buf::zeroed(dev.memory(), SIDE * SIDE * channels, "random latents")?;
        for (i, latent) in latents.chunks_exact_mut(channels).enumerate() {
            latent.copy_from_slice(patch(i / SIDE, i % SIDE));
        }
        let image = dev.download(&vae.decode(dev, &latents, [SIDE, SIDE])?)?;
        let pixel = |y: usize, x: usize| -> [f64; 3] {
            let mut mean = [0.0; 3];
            for row in y * factor..(y + 1) * factor {
                let start = (row * SIDE + x) * factor;
                for rgb in image[3 * start..3 * (start + factor)].as_chunks::<3>().0 {
                    mean.iter_mut().zip(rgb).for_each(|(mean, &v)| *mean += f64::from(v));
                }
            }
            mean.map(|sum| sum / (factor * factor) as f64)
        };
        let mut equations = Equations::new(channels + 1);
        let mut input = vec![1.0; channels + 1];
        for (i, latent) in latents.chunks_exact(channels).enumerate() {
            input.iter_mut().zip(latent).for_each(|(input, &v)| *input = f64::from(v));
            equations.add(&input, pixel(i / SIDE, i % SIDE));
        }
        Ok(LinearMap(equations.solve()))
    }

    /// 8-bit RGB of latents, `[pixels, channels]`.
    pub(super) fn colours(&self, memory: &HostMemory, latents: &[f32]) -> Result<Buf<u8>> {
        let Some((shift, rows)) = self.0.split_last() else { return Ok(Buf::default()) };
        let mut rgb = Buf::zeroed(memory, latents.len() / rows.len() * 3, "a preview")?;
        for (pixel, latent) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(latents.chunks_exact(rows.len())) {
            let mut colour = *shift;
            for (&v, row) in latent.iter().zip(rows) {
                colour.iter_mut().zip(row).for_each(|(colour, weight)| *colour += v * weight);
            }
            *pixel = colour.map(|v| (255.0 * (v / 2.0 + 0.5).clamp(0.0, 1.0)).round() as u8);
        }
        Ok(rgb)
    }
}

/// The normal equations of a least-squares fit of three functions.
struct Equations {
    /// `Σ input inputᵀ | Σ input outputᵀ`
    rows: Vec<Vec<f64>>,
}

impl Equations {
    fn new(inputs: usize) -> Self {
        Equations { rows: vec![vec![0.0; inputs + 3]; inputs] }
    }

    fn add(&mut self, input: &[f64], output: [f64; 3]) {
        for (row, &a) in self.rows.iter_mut().zip(input) {
            row.iter_mut().zip(input.iter().chain(&output)).for_each(|(sum, &b)| *sum += a * b);
        }
    }

    /// By elimination; the matrix is positive definite, so that no rows need to be swapped.
    fn solve(mut self) -> Vec<[f32; 3]> {
        let count = self.rows.len();
        for i in 0..count {
            let pivot = self.rows[i].clone();
            for (_, row) in self.rows.iter_mut().enumerate().filter(|(j, _)| *j != i) {
                let times = row[i] / pivot[i];
                row.iter_mut().zip(&pivot).for_each(|(v, p)| *v -= times * p);
            }
        }
        let solved = self.rows.iter().enumerate().map(|(i, row)| {
            let of = |colour: usize| {
                let v = (row[count + colour] / row[i]) as f32;
                if v.is_finite() { v } else { 0.0 }
            };
            [of(0), of(1), of(2)]
        });
        solved.collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_linear_function_is_found() {
        let function = [[0.5, -1.0, 0.0], [0.25, 0.0, 2.0], [-0.5, 0.125, 1.0]];
        let mut equations = Equations::new(3);
        for i in 0..20 {
            let input = [f64::from(i % 5), f64::from(i * i % 7), 1.0];
            let output = [0, 1, 2].map(|c| input.iter().zip(&function).map(|(v, row)| v * row[c]).sum());
            equations.add(&input, output);
        }
        for (row, wanted) in equations.solve().iter().zip(function) {
            row.iter().zip(wanted).for_each(|(&got, wanted)| assert!((f64::from(got) - wanted).abs() < 1e-6));
        }
    }

    #[test]
    fn colours_are_rounded_and_clamped() {
        let map = LinearMap(vec![[1.0, -1.0, 0.0], [0.0, 0.0, 0.5]]);
        let rgb = map.colours(&HostMemory::default(), &[0.0, 1.0, -3.0]).unwrap();
        assert_eq!(rgb[..], [128, 128, 191, 255, 0, 191, 0, 255, 191]);
    }
}
