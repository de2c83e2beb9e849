//! Operations on images.

use svdq::ops::{ConvSource, Device};

use crate::support::{Case, Devices, Random, computed};

struct ConvCase {
    size: [usize; 2],
    n: usize,
    c: usize,
    kernel: usize,
    stride: usize,
    upsample: bool,
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    add: Option<Vec<f32>>,
}

impl Case for ConvCase {
    fn run<D: Device>(&self, dev: &D) -> Vec<f32> {
        let &ConvCase { n, c, kernel, stride, upsample, .. } = self;
        let (weight, bias) = (self.weight.clone().into(), self.bias.clone());
        let w = dev.load_conv(&ConvSource { n, c, kernel, stride, upsample, weight, bias }).unwrap();
        let x = computed(dev, &self.x, c);
        let add = self.add.as_ref().map(|add| computed(dev, add, n));
        dev.download(&dev.conv(&x, self.size, &w, add.as_ref()).unwrap()).unwrap().to_vec()
    }
}

pub(crate) fn convolutions(devices: &Devices) {
    let mut random = Random(3);
    for (size, n, c, kernel, stride, upsample, add) in [
        ([1, 1], 8, 8, 3, 1, false, false),
        ([13, 7], 64, 32, 3, 1, false, true),
        ([9, 16], 3, 40, 3, 1, false, false),
        ([9, 16], 40, 3, 3, 1, false, false),
        ([11, 6], 128, 64, 3, 1, true, false),
        ([12, 10], 32, 48, 3, 2, false, false),
        ([10, 13], 96, 64, 1, 1, false, true),
        ([10, 13], 5, 7, 1, 1, false, false),
    ] {
        let side = |side: usize| (side << usize::from(upsample)) / stride;
        let case = ConvCase {
            size,
            n,
            c,
            kernel,
            stride,
            upsample,
            x: random.normals(size[0] * size[1] * c, 0.0, 1.0),
            weight: random.normals(n * c * kernel * kernel, 0.0, 0.1),
            bias: random.normals(n, 0.0, 1.0),
            add: add.then(|| random.normals(side(size[0]) * side(size[1]) * n, 0.0, 1.0)),
        };
        // bf16 results.
        devices.compare(&format!("{size:?} {c} to {n}, {kernel}x{kernel} / {stride}"), 3e-3, &case);
    }
}

struct GroupNormCase {
    groups: usize,
    channels: usize,
    x: Vec<f32>,
    vectors: Vec<f32>,
    silu: bool,
}

impl Case for GroupNormCase {
    fn run<D: Device>(&self, dev: &D) -> Vec<f32> {
        let x = computed(dev, &self.x, self.channels);
        let [weight, bias] = [0, self.channels]
            .map(|at| dev.upload(&self.vectors[at..][..self.channels], self.channels).unwrap());
        dev.download(&dev.group_norm(&x, self.groups, &weight, &bias, self.silu).unwrap()).unwrap().to_vec()
    }
}

pub(crate) fn group_norms(devices: &Devices) {
    let mut random = Random(4);
    for (pixels, channels, groups, silu) in [(1, 32, 8, false), (300, 96, 32, true), (1111, 12, 4, true)] {
        let (x, vectors) = (random.activations(pixels, channels), random.normals(2 * channels, 0.5, 1.0));
        // bf16 results.
        let name = format!("{pixels} x {channels} in {groups} groups");
        devices.compare(&name, 3e-3, &GroupNormCase { groups, channels, x, vectors, silu });
    }
}

pub(crate) fn pixels(devices: &Devices) {
    let mut random = Random(5);
    let (latents, velocity) = (random.normals(999, 0.0, 1.0), random.normals(999, 0.0, 1.0));
    struct Euler(Vec<f32>, Vec<f32>);
    impl Case for Euler {
        fn run<D: Device>(&self, dev: &D) -> Vec<f32> {
            let mut latents = dev.upload(&self.0, 27).unwrap();
            dev.euler_step(&mut latents, &computed(dev, &self.1, 27), -0.13).unwrap();
            dev.download(&latents).unwrap().to_vec()
        }
    }
    // f32 on both.
    devices.compare("euler", 1e-6, &Euler(latents, velocity));

    let mut image = random.normals(3 * 1000, 0.0, 0.8);
    image.extend([f32::INFINITY, f32::NEG_INFINITY, 0.0, -1.0, 1.0, 1e-30]);
    let bytes = |result: svdq::Result<svdq::memory::Buf<u8>>| result.unwrap();
    let want = bytes(devices.cpu.to_rgb8(&devices.cpu.upload(&image, 3).unwrap()));
    assert_eq!(bytes(devices.cuda.to_rgb8(&devices.cuda.upload(&image, 3).unwrap())), want);
}
