//! Every operation against its formula in f64, on random inputs with outlier channels and odd sizes.

#![allow(clippy::unwrap_used)]

mod cancel;
mod golden;
mod image;
mod linear;
mod low_rank;
mod rows;
mod same_bits;

use super::simd::Level;
use super::{Cpu, Linear, Tensor};
use crate::ops::{Device, Layer, Profile};

/// Tests that run with every instruction set that this machine has.
macro_rules! on_every_level {
    ($($module:ident::$name:ident)*) => {
        $(#[test]
        fn $name() {
            Level::all().into_iter().for_each($module::$name);
        })*
    };
}

on_every_level! {
    golden::quantised_linears
    image::convolutions
    image::euler_steps_and_pixels
    image::group_norms
    linear::awq_linears
    linear::fc2_sees_the_shifted_gelu
    linear::svdq_linears
    low_rank::of_awq_linears
    low_rank::of_dense_linears
    low_rank::of_quantised_linears
    low_rank::through_the_gelu
    rows::attentions
    rows::dense_linears
    rows::heads_are_normalised_and_rotated
    rows::norms
    same_bits::whatever_the_number_of_threads
}

/// SplitMix64, as normally distributed as the sum of four uniform numbers is.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    fn normal(&mut self) -> f32 {
        let sum: f32 = (0..4).map(|_| (self.bits() >> 40) as f32 / (1u64 << 24) as f32).sum();
        (sum - 2.0) * 1.732
    }

    pub(crate) fn normals(&mut self, len: usize, scale: f32) -> Vec<f32> {
        (0..len).map(|_| self.normal() * scale).collect()
    }

    /// `[rows, cols]` with every 29th channel 20 times as large.
    pub(super) fn activations(&mut self, rows: usize, cols: usize) -> Vec<f32> {
        let mut x = self.normals(rows * cols, 1.0);
        x.iter_mut().enumerate().filter(|(i, _)| i % cols % 29 == 3).for_each(|(_, v)| *v *= 20.0);
        x
    }
}

fn plain(weights: &Linear) -> Layer<'_, Cpu> {
    Layer::plain(weights)
}

pub(super) fn cpu(level: Level, profile: Profile) -> Cpu {
    Cpu::with_level(2, profile, level).unwrap()
}

pub(super) fn upload(cpu: &Cpu, data: &[f32], cols: usize) -> Tensor {
    cpu.upload(data, cols).unwrap()
}

/// `|got - want|` relative to the root mean square of `want` stays below `tolerance`.
#[track_caller]
pub(super) fn assert_close(got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    let rms = (want.iter().map(|v| v * v).sum::<f64>() / want.len() as f64).sqrt();
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(g) - w).abs() / rms;
        assert!(error < tolerance, "element {i}: {g} instead of {w}, relative error {error:.2e}");
    }
}

pub(super) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(v)).collect()
}

/// `y[m,n] = Σ_k x[m,k] w[n,k] + b[n]`
pub(super) fn linear(x: &[f64], w: &[f64], b: &[f64], k: usize) -> Vec<f64> {
    x.chunks(k)
        .flat_map(|x| {
            w.chunks(k)
                .enumerate()
                .map(|(n, w)| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>() + b.get(n).unwrap_or(&0.0))
        })
        .collect()
}

pub(super) fn sigmoid(v: f64) -> f64 {
    1.0 / (1.0 + (-v).exp())
}

pub(super) fn gelu(v: f64) -> f64 {
    0.5 * v * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v * v * v)).tanh())
}
