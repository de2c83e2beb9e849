//! 4-bit linears against `tests/golden/quant.safetensors`, which numpy made in f64.

use safetensors::SafeTensors;

use super::*;
use crate::ops::{Activation, AwqSource, Codes, LinearSource, Norm, SvdqSource};

struct Layer<'a>(&'a SafeTensors<'a>, &'a str);

impl Layer<'_> {
    fn bytes(&self, tensor: &str) -> &[u8] {
        self.0.tensor(&format!("{}.{tensor}", self.1)).unwrap().data()
    }

    fn floats(&self, tensor: &str) -> Vec<f32> {
        self.bytes(tensor).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    /// `linear(x)` is `y`, which the file holds in f32.
    fn check(&self, cpu: &Cpu, source: LinearSource<'_>) {
        let [_, k] = source.shape();
        let w = cpu.load_linear(&source).unwrap();
        let x = upload(cpu, &self.floats("x"), k);
        let input = cpu.prepare(&x, 0..x.rows(), Norm::None, plain(&w)).unwrap();
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
        let source = SvdqSource {
            n,
            k,
            rank,
            unsigned: name == "unsigned",
            codes: match name {
                "fp4" => Codes::Fp4 { channel_scales: layer.floats("wc") },
                _ => Codes::Int4,
            },
            qweight: layer.bytes("qweight").into(),
            wscales: layer.bytes("wscales").into(),
            bias: layer.bytes("bias").into(),
            smooth: layer.bytes("smooth").into(),
            lora_down: layer.bytes("lora_down").into(),
            lora_up: layer.bytes("lora_up").into(),
        };
        layer.check(&cpu, LinearSource::Svdq(source));
    }
    for (name, chunks) in [("awq3", 3), ("awq6", 6)] {
        let layer = Layer(&tensors, name);
        let source = AwqSource {
            n: 48,
            k: 128,
            chunks,
            qweight: layer.bytes("qweight"),
            wscales: layer.bytes("wscales"),
            wzeros: layer.bytes("wzeros"),
            bias: layer.bytes("bias").into(),
        };
        layer.check(&cpu, LinearSource::Awq(source));
    }
}
