//! Tensors, norms and attention.

use svdq::ops::{Attention, Chunk, Device, Mask, Norm};

use crate::support::{Case, Devices, Random, computed};

pub(crate) fn tensors(devices: &Devices) {
    let data: Vec<f32> = (0..777).map(|i| (i as f32).sqrt() * 0.1).collect();
    let cuda = &devices.cuda;
    // Uploads lose nothing; results are bf16.
    assert_eq!(cuda.download(&cuda.upload(&data, 7).unwrap()).unwrap(), data);
    assert_eq!(cuda.download(&cuda.zeros(5, 9).unwrap()).unwrap(), [0.0; 45]);
    let mut copy = cuda.zeros(9, 7).unwrap();
    cuda.copy_rows(&computed(cuda, &[2.0; 35], 7), 1..4, &mut copy, 2).unwrap();
    let copied = |row| if (2..5).contains(&row) { 2.0 } else { 0.0 };
    assert_eq!(cuda.download(&copy).unwrap(), (0..63).map(|i| copied(i / 7)).collect::<Vec<f32>>());
    let rounded: Vec<f32> = data.iter().map(|&v| crate::support::bf16(v)).collect();
    assert_eq!(cuda.download(&computed(cuda, &data, 7)).unwrap(), rounded);
}

struct NormCase {
    kind: &'static str,
    cols: usize,
    x: Vec<f32>,
    table: Vec<f32>,
    computed: bool,
}

impl Case for NormCase {
    fn run<D: Device>(&self, dev: &D) -> Vec<f32> {
        let cols = self.cols;
        let x = match self.computed {
            true => computed(dev, &self.x, cols),
            false => dev.upload(&self.x, cols).unwrap(),
        };
        let [weight, bias] = [0, cols].map(|at| dev.upload(&self.table[at..][..cols], cols).unwrap());
        let table = computed(dev, &self.table, 2 * cols);
        let chunk = |start| Chunk { table: &table, row: 1, start };
        let norm = match self.kind {
            "none" => Norm::None,
            "silu" => Norm::Silu,
            "layer" => Norm::Layer { weight: &weight, bias: &bias, eps: 1e-5 },
            "rms" => Norm::Rms { weight: &weight, eps: 1e-6 },
            _ => Norm::Modulate { scale: chunk(cols), shift: chunk(0) },
        };
        dev.download(&dev.norm(&x, norm).unwrap()).unwrap().to_vec()
    }
}

pub(crate) fn norms(devices: &Devices) {
    let mut random = Random(1);
    for kind in ["none", "silu", "layer", "rms", "modulate"] {
        for (rows, cols, computed) in [(1, 64, true), (37, 257, false), (300, 768, true)] {
            let (x, table) = (random.activations(rows, cols), random.normals(4 * cols, 0.5, 1.0));
            // bf16 results.
            let name = format!("{kind} {rows} x {cols}");
            devices.compare(&name, 3e-3, &NormCase { kind, cols, x, table, computed });
        }
    }
}

struct AttentionCase {
    heads: usize,
    tokens: usize,
    dim: usize,
    qkv: Vec<f32>,
    mask: &'static str,
    bias: Vec<f32>,
}

impl Case for AttentionCase {
    fn run<D: Device>(&self, dev: &D) -> Vec<f32> {
        let qkv = computed(dev, &self.qkv, 3 * self.heads * self.dim);
        let bias = dev.upload(&self.bias, 2 * self.tokens - 1).unwrap();
        let mask = match self.mask {
            "bias" => Mask::Bias(&bias),
            "causal" => Mask::Causal,
            _ => Mask::None,
        };
        let scale = 1.0 / (self.dim as f32).sqrt();
        dev.download(&dev.attention(&qkv, Attention { heads: self.heads, scale, mask }).unwrap())
            .unwrap()
            .to_vec()
    }
}

pub(crate) fn attention(devices: &Devices) {
    let mut random = Random(2);
    for (mask, heads, dim, tokens) in [
        ("none", 2, 128, 1),
        ("none", 3, 128, 129),
        ("none", 2, 128, 333),
        ("causal", 2, 128, 77),
        ("causal", 4, 64, 77),
        ("bias", 3, 64, 130),
        ("bias", 2, 32, 48),
        ("none", 1, 512, 260),
        ("none", 1, 80, 100),
    ] {
        let qkv = random.normals(tokens * 3 * heads * dim, 0.0, 1.0);
        let bias = random.normals(heads * (2 * tokens - 1), 0.0, 2.0);
        // bf16 probabilities and results.
        let name = format!("{mask} {heads} heads of {dim}, {tokens} tokens");
        devices.compare(&name, 6e-3, &AttentionCase { heads, tokens, dim, qkv, mask, bias });
    }
}
