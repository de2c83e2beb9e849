//! The two devices, random data, comparisons.

use svdq::device::cpu::Cpu;
use svdq::device::cuda::{Cuda, Gpu};
use svdq::ops::{Device, Profile};

/// Both devices, with the same profile, and what 4-bit weights they are given.
pub(crate) struct Devices {
    pub(crate) gpu: Gpu,
    pub(crate) cpu: Cpu,
    pub(crate) cuda: Cuda,
    pub(crate) profile: Profile,
    pub(crate) nvfp4: bool,
}

impl Devices {
    pub(crate) fn new(gpu: &Gpu, profile: Profile, nvfp4: bool) -> Self {
        let cuda = Cuda::new(gpu.clone(), profile);
        Devices { gpu: gpu.clone(), cpu: Cpu::new(0, profile).unwrap(), cuda, profile, nvfp4 }
    }
}

/// Something that runs on any device and gives numbers.
pub(crate) trait Case {
    fn run<D: Device>(&self, dev: &D) -> Vec<f32>;
}

impl Devices {
    /// Runs a case on both devices. The GPU's result differs from the CPU's by at most `tolerance` of the whole in
    /// the mean (root mean square), and by at most 20 times that for one element; a second run gives the same bits.
    #[track_caller]
    pub(crate) fn compare(&self, name: &str, tolerance: f64, case: &impl Case) {
        let (want, got) = (case.run(&self.cpu), case.run(&self.cuda));
        assert_eq!(got.len(), want.len(), "{name}");
        let rms = |values: &mut dyn Iterator<Item = f64>| {
            (values.map(|v| v * v).sum::<f64>() / want.len() as f64).sqrt()
        };
        let whole = rms(&mut want.iter().map(|&v| f64::from(v))).max(1e-30);
        let differences = || got.iter().zip(&want).map(|(&g, &w)| f64::from(g) - f64::from(w));
        let mean = rms(&mut differences()) / whole;
        let local = |(d, w): (f64, &f32)| d.abs() / (whole + f64::from(w.abs()));
        let worst = differences()
            .zip(&want)
            .map(local)
            .fold(0.0, |a: f64, b| if b > a || b.is_nan() { b } else { a });
        println!("     {name}: error {mean:.1e}, largest {worst:.1e}");
        assert!(mean <= tolerance && worst <= 20.0 * tolerance, "{name}");
        let again = case.run(&self.cuda);
        assert!(
            got.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits()),
            "{name}: the second run differs"
        );
    }
}

/// SplitMix64, as normally distributed as the sum of four uniform numbers is; every number is exact in bfloat16.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn normals(&mut self, len: usize, mean: f32, deviation: f32) -> Vec<f32> {
        let mut one = || {
            let sum: f32 = (0..4).map(|_| (self.bits() >> 40) as f32 / (1u64 << 24) as f32).sum();
            mean + (sum - 2.0) * 1.732 * deviation
        };
        (0..len).map(|_| bf16(one())).collect()
    }

    /// `[rows, cols]` with every 29th channel 20 times as large.
    pub(crate) fn activations(&mut self, rows: usize, cols: usize) -> Vec<f32> {
        let mut x = self.normals(rows * cols, 0.2, 1.0);
        x.iter_mut().enumerate().filter(|(i, _)| i % cols % 29 == 3).for_each(|(_, v)| *v = bf16(*v * 20.0));
        x
    }
}

/// Rounded to bfloat16, half to even.
pub(crate) fn bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

/// A tensor whose elements are bf16 on the GPU: `x + 0`.
pub(crate) fn computed<D: Device>(dev: &D, data: &[f32], cols: usize) -> D::Tensor {
    let x = dev.upload(data, cols).unwrap();
    dev.norm(&x, svdq::ops::Norm::None).unwrap()
}
