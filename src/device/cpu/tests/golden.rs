//! 4-bit linears against `tests/golden/quant.safetensors`, which numpy made in f64.

use safetensors::SafeTensors;

use super::*;
use crate::memory::HostMemory;
use crate::ops::{Activation, AwqSource, Codes, LinearSource, Norm, SvdqSource};
use crate::weights::pack;

struct Layer<'a>(&'a SafeTensors<'a>, &'a str);

impl Layer<'_> {
    fn bytes(&self, tensor: &str) -> &[u8] {
        self.0.tensor(&format!("{}.{tensor}", self.1)).unwrap().data()
    }

    fn floats(&self, tensor: &str) -> Vec<f32> {
        self.bytes(tensor).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    fn svdq(&self, n: usize, k: usize, rank: usize) -> SvdqSource<'_> {
        SvdqSource {
            n,
            k,
            rank,
            unsigned: self.1 == "unsigned",
            codes: match self.1 {
                "fp4" => Codes::Fp4 { channel_scales: self.floats("wc") },
                _ => Codes::Int4,
            },
            qweight: self.bytes("qweight").into(),
            wscales: self.bytes("wscales").into(),
            bias: self.bytes("bias").into(),
            smooth: self.bytes("smooth").into(),
            lora_down: self.bytes("lora_down").into(),
            lora_up: self.bytes("lora_up").into(),
        }
    }

    /// `linear(x)` is `y`, which the file holds in f32.
    fn check(&self, cpu: &Cpu, source: LinearSource<'_>) {
        let [_, k] = source.shape();
        let w = cpu.load_linear(&source).unwrap();
        let x = upload(cpu, &self.floats("x"), k);
        let input = cpu.prepare(&x, 0..x.rows, Norm::None, plain(&w)).unwrap();
        let y = cpu.download(&cpu.linear(&input, plain(&w), Activation::None).unwrap()).unwrap();
        assert_close(&y, &wide(&self.floats("y")), 2e-6);
    }
}

pub(super) fn quantised_linears(level: Level) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/quant.safetensors");
    let file = std::fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let cpu = cpu(level, Profile::W4A4);
    for (name, n, k, rank) in [("signed", 256, 192, 32), ("unsigned", 128, 256, 16), ("fp4", 256, 192, 16)] {
        let layer = Layer(&tensors, name);
        layer.check(&cpu, LinearSource::Svdq(layer.svdq(n, k, rank)));
    }
    for (name, chunks) in [("awq3", 3), ("awq6", 6)] {
        let layer = Layer(&tensors, name);
        let source = AwqSource {
            n: 48,
            k: 128,
            group: 64,
            chunks,
            qweight: layer.bytes("qweight").into(),
            wscales: layer.bytes("wscales").into(),
            wzeros: layer.bytes("wzeros").into(),
            bias: layer.bytes("bias").into(),
        };
        layer.check(&cpu, LinearSource::Awq(source));
    }
}

/// NVFP4 in the other profiles: w4a16 is the dequantised linear, w4a8 within 2 % (RMS) of it.
#[test]
fn nvfp4_without_4_bit_activations() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/quant.safetensors");
    let file = std::fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let layer = Layer(&tensors, "fp4");
    let run = |profile, source: LinearSource<'_>| {
        let cpu = Cpu::new(2, profile).unwrap();
        let w = cpu.load_linear(&source).unwrap();
        let x = upload(&cpu, &layer.floats("x"), 192);
        let input = cpu.prepare(&x, 0..x.rows, Norm::None, plain(&w)).unwrap();
        cpu.download(&cpu.linear(&input, plain(&w), Activation::None).unwrap()).unwrap()
    };
    let source = || layer.svdq(256, 192, 16);
    let dense = run(
        Profile::W4A16,
        LinearSource::Dense(pack::unpack_svdq(&HostMemory::default(), &source()).unwrap()),
    );
    let rms = |profile| {
        let got = run(profile, LinearSource::Svdq(source()));
        let square = |v: &mut dyn Iterator<Item = f32>| v.map(|v| f64::from(v).powi(2)).sum::<f64>();
        let error = square(&mut got.iter().zip(&dense).map(|(a, b)| a - b));
        (error / square(&mut dense.iter().copied())).sqrt()
    };
    let (w4a16, w4a8, w4a4) = (rms(Profile::W4A16), rms(Profile::W4A8), rms(Profile::W4A4));
    assert!(w4a16 < 1e-6 && w4a8 < 0.02 && w4a4 > w4a8, "{w4a16} {w4a8} {w4a4}");
}
