//! Linears of every kind.

use svdq::ops::{
    Activation, AwqSource, Chunk, Codes, DenseSource, Device, Layer, LinearSource, Norm, Profile, QkNormRope,
    Storage, SvdqSource,
};
use svdq::weights::pack;

use crate::support::{Case, Devices, Random, computed};

/// A dense linear's numbers.
pub(crate) struct Dense {
    n: usize,
    k: usize,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Dense {
    pub(crate) fn new(random: &mut Random, n: usize, k: usize) -> Self {
        let weight = random.normals(n * k, 0.0, 1.0 / (k as f32).sqrt());
        Dense { n, k, weight, bias: random.normals(n, 0.0, 0.5) }
    }

    fn load<D: Device>(&self, dev: &D) -> D::Linear {
        dev.load_linear(&LinearSource::Dense(DenseSource {
            n: self.n,
            k: self.k,
            weight: self.weight.clone().into(),
            bias: self.bias.clone(),
            storage: Storage::Bf16,
        }))
        .unwrap()
    }
}

struct DenseCase {
    w: Dense,
    x: Vec<f32>,
    act: Activation,
    /// A tensor to multiply with, or to add to, and a gate.
    mul: Option<Vec<f32>>,
    add: Option<(Vec<f32>, Vec<f32>)>,
}

impl Case for DenseCase {
    fn run<D: Device>(&self, dev: &D) -> Vec<f32> {
        let w = self.w.load(dev);
        let rows = self.x.len() / self.w.k;
        let input =
            dev.prepare(&computed(dev, &self.x, self.w.k), 0..rows, Norm::None, Layer::plain(&w)).unwrap();
        let y = match (&self.mul, &self.add) {
            (Some(by), _) => dev.linear_mul(&input, Layer::plain(&w), self.act, &computed(dev, by, self.w.n)),
            (_, Some((into, gate))) => {
                let mut into = computed(dev, into, self.w.n);
                let table = computed(dev, gate, gate.len());
                let gate = Some(Chunk { table: &table, row: 0, start: self.w.n });
                dev.linear_add(&input, Layer::plain(&w), gate, &mut into, 1).unwrap();
                dev.linear_add(&input, Layer::plain(&w), None, &mut into, 0).unwrap();
                Ok(into)
            }
            _ => dev.linear(&input, Layer::plain(&w), self.act),
        };
        dev.download(&y.unwrap()).unwrap().to_vec()
    }
}

pub(crate) fn dense(devices: &Devices) {
    let mut random = Random(6);
    let acts = [Activation::None, Activation::Silu, Activation::GeluTanh, Activation::QuickGelu];
    for (i, (m, n, k)) in [(1, 64, 64), (37, 130, 72), (300, 256, 320), (5, 33, 35)].into_iter().enumerate() {
        let (w, x) = (Dense::new(&mut random, n, k), random.activations(m, k));
        let case = DenseCase { w, x, act: acts[i], mul: None, add: None };
        // bf16 results.
        devices.compare(&format!("{m} x {n} x {k} {:?}", acts[i]), 4e-3, &case);
        let by = random.normals(m * n, 0.0, 1.0);
        devices.compare("times a tensor", 4e-3, &DenseCase { mul: Some(by), ..case });
        let (w, x) = (Dense::new(&mut random, n, k), random.activations(m, k));
        let add = (random.normals((m + 1) * n, 0.0, 1.0), random.normals(2 * n, 1.0, 0.3));
        let case = DenseCase { w, x, act: Activation::None, mul: None, add: Some(add) };
        devices.compare("added to a tensor", 6e-3, &case);
    }
}

/// A linear in AWQ's layout.
pub(crate) struct Awq {
    n: usize,
    k: usize,
    group: usize,
    chunks: usize,
    qweight: Vec<u8>,
    wscales: Vec<u8>,
    wzeros: Vec<u8>,
    bias: Vec<u8>,
}

impl Awq {
    pub(crate) fn new(random: &mut Random, n: usize, k: usize, group: usize, chunks: usize) -> Self {
        let codes: Vec<u8> = (0..n * k).map(|_| (random.bits() % 16) as u8).collect();
        let scales = random.normals(n * k / group, 0.02, 0.004);
        let zeros: Vec<f32> = scales.iter().map(|s| -7.5 * s).collect();
        let bias = if group == 64 { random.normals(n, 0.0, 0.5) } else { vec![] };
        Awq {
            n,
            k,
            group,
            chunks,
            qweight: pack::pack_awq_codes(&codes, n, k),
            wscales: pack::f32_to_bf16(&scales),
            wzeros: pack::f32_to_bf16(&zeros),
            bias: pack::f32_to_bf16(&bias),
        }
    }
}

impl Load for Awq {
    fn columns(&self) -> usize {
        self.n
    }

    fn on<D: Device>(&self, dev: &D) -> D::Linear {
        let source = AwqSource {
            n: self.n,
            k: self.k,
            group: self.group,
            chunks: self.chunks,
            qweight: self.qweight.as_slice().into(),
            wscales: self.wscales.as_slice().into(),
            wzeros: self.wzeros.as_slice().into(),
            bias: self.bias.as_slice().into(),
        };
        dev.load_linear(&LinearSource::Awq(source)).unwrap()
    }
}

struct AwqCase {
    w: Awq,
    x: Vec<f32>,
}

impl Case for AwqCase {
    fn run<D: Device>(&self, dev: &D) -> Vec<f32> {
        let w = self.w.on(dev);
        let x = computed(dev, &self.x, self.w.k);
        let input = dev.prepare(&x, 0..self.x.len() / self.w.k, Norm::Silu, Layer::plain(&w)).unwrap();
        dev.download(&dev.linear(&input, Layer::plain(&w), Activation::None).unwrap()).unwrap().to_vec()
    }
}

pub(crate) fn awq(devices: &Devices) {
    let mut random = Random(7);
    // The last is T5's kind: no bias, many rows.
    for (m, n, k, group, chunks) in [
        (1, 384, 128, 64, 6),
        (4, 192, 256, 64, 3),
        (20, 768, 320, 64, 6),
        (70, 96, 64, 64, 3),
        (130, 320, 384, 128, 1),
    ] {
        let w = Awq::new(&mut random, n, k, group, chunks);
        let case = AwqCase { w, x: random.normals(m * k, 0.0, 1.0) };
        // bf16 inputs after the SiLU, bf16 results.
        devices.compare(&format!("{m} x {n} x {k}, groups of {group}, {chunks} chunks"), 4e-3, &case);
    }
}

/// Several linears side by side in one tensor.
struct ColumnsCase {
    linears: [Dense; 3],
    x: Vec<f32>,
}

impl Case for ColumnsCase {
    fn run<D: Device>(&self, dev: &D) -> Vec<f32> {
        let cols: usize = self.linears.iter().map(|linear| linear.n).sum();
        let rows = self.x.len() / self.linears[0].k;
        let (mut into, mut column) = (dev.zeros(rows, cols + 3).unwrap(), 1);
        for linear in &self.linears {
            let w = linear.load(dev);
            let x = computed(dev, &self.x, linear.k);
            let input = dev.prepare(&x, 0..rows, Norm::None, Layer::plain(&w)).unwrap();
            dev.linear_into(&input, Layer::plain(&w), &mut into, column).unwrap();
            column += linear.n;
        }
        dev.download(&into).unwrap().to_vec()
    }
}

pub(crate) fn columns(devices: &Devices) {
    let mut random = Random(14);
    for (m, k) in [(1, 64), (37, 72)] {
        let linears = [64, 130, 7].map(|n| Dense::new(&mut random, n, k));
        let case = ColumnsCase { linears, x: random.activations(m, k) };
        // bf16 results.
        devices.compare(&format!("columns of {m} x {k}"), 4e-3, &case);
    }
}

/// A 4-bit linear in Nunchaku's packing.
pub(crate) struct Svdq {
    n: usize,
    k: usize,
    rank: usize,
    unsigned: bool,
    codes: Codes,
    qweight: Vec<u8>,
    wscales: Vec<u8>,
    bias: Vec<u8>,
    smooth: Vec<u8>,
    lora_down: Vec<u8>,
    lora_up: Vec<u8>,
}

impl Svdq {
    pub(crate) fn new(random: &mut Random, nvfp4: bool, [n, k]: [usize; 2], rank: usize) -> Self {
        let codes: Vec<i8> = (0..n * k).map(|_| (random.bits() % 16) as i8 - 8).collect();
        let size = 1.0 / (k as f32).sqrt();
        let (codes_of, wscales) = match nvfp4 {
            false => {
                let scales = random.normals(n * k / 64, 0.25 * size, 0.05 * size);
                (Codes::Int4, pack::pack_wscales(&scales, n, k))
            }
            true => {
                // e4m3: 0.22 to 0.94, and now and then 0 or a subnormal number.
                let mut one = || match random.bits() {
                    bits if bits % 50 == 0 => (bits >> 32) as u8 % 8,
                    bits => 0x27 + (bits >> 32) as u8 % 16,
                };
                let scales: Vec<u8> = (0..n * k / 16).map(|_| one()).collect();
                let channel_scales = random.normals(n, 0.6 * size, 0.1 * size);
                (Codes::Fp4 { channel_scales }, pack::pack_fp4_scales(&scales, n, k))
            }
        };
        Svdq {
            n,
            k,
            rank,
            unsigned: false,
            codes: codes_of,
            qweight: pack::pack_codes(&codes, n, k),
            wscales,
            bias: pack::pack_vector(&random.normals(n, 0.0, 0.5)),
            smooth: pack::pack_vector(&random.normals(k, 1.0, 0.2)),
            lora_down: pack::pack_lora_down(&random.normals(rank * k, 0.0, size), k, rank),
            lora_up: pack::pack_lora_up(&random.normals(n * rank, 0.0, 0.3), n, rank),
        }
    }

    /// As the second linear of an MLP, whose input is shifted if it is INT4.
    pub(crate) fn after_gelu(self) -> Self {
        Svdq { unsigned: self.codes == Codes::Int4, ..self }
    }

    fn load<D: Device>(&self, dev: &D) -> D::Linear {
        dev.load_linear(&LinearSource::Svdq(SvdqSource {
            n: self.n,
            k: self.k,
            rank: self.rank,
            unsigned: self.unsigned,
            codes: self.codes.clone(),
            qweight: self.qweight.as_slice().into(),
            wscales: self.wscales.as_slice().into(),
            bias: self.bias.as_slice().into(),
            smooth: self.smooth.as_slice().into(),
            lora_down: self.lora_down.as_slice().into(),
            lora_up: self.lora_up.as_slice().into(),
        }))
        .unwrap()
    }
}

/// Unit vectors as inputs show the int8 weights: both devices have the same.
pub(crate) fn folded_codes(devices: &Devices) {
    let mut random = Random(8);
    let (n, k) = (256, 320);
    let mut w = Svdq::new(&mut random, devices.nvfp4, [n, k], 16);
    w.bias = pack::pack_vector(&vec![0.0; n]);
    w.smooth = pack::pack_vector(&vec![1.0; k]);
    w.lora_up = pack::pack_lora_up(&vec![0.0; n * 16], n, 16);
    let mut x = vec![0.0; k * k];
    (0..k).for_each(|i| x[i * k + i] = 1.0);
    fn run<D: Device>(dev: &D, w: &Svdq, x: &[f32]) -> Vec<f32> {
        let w = w.load(dev);
        let k = (x.len() as f64).sqrt() as usize;
        let input = dev.prepare(&computed(dev, x, k), 0..k, Norm::None, Layer::plain(&w)).unwrap();
        dev.download(&dev.linear(&input, Layer::plain(&w), Activation::None).unwrap()).unwrap().to_vec()
    }
    let (want, got) = (run(&devices.cpu, &w, &x), run(&devices.cuda, &w, &x));
    for row in 0..n {
        let column = |y: &[f32]| (0..k).map(|m| y[m * n + row]).collect::<Vec<_>>();
        let (want, got) = (column(&want), column(&got));
        let scale = want.iter().fold(0.0f32, |max, v| max.max(v.abs())) / 127.0;
        for (want, got) in want.iter().zip(&got) {
            // A code is off by less than a half: bf16 adds 127/512.
            assert!((want - got).abs() < 0.45 * scale, "channel {row}: {got} instead of {want}");
        }
    }
}

struct SvdqCase {
    w: Svdq,
    x: Vec<f32>,
    /// Scale, shift and gate, twice.
    table: Option<Vec<f32>>,
}

impl Case for SvdqCase {
    /// The last two thirds of the rows; or, with a table, all of them modulated and added through a gate to row 1 .. of
    /// a tensor of ones.
    fn run<D: Device>(&self, dev: &D) -> Vec<f32> {
        let (n, k) = (self.w.n, self.w.k);
        let w = self.w.load(dev);
        let x = computed(dev, &self.x, k);
        let rows = self.x.len() / k;
        let Some(table) = &self.table else {
            let input = dev.prepare(&x, rows / 3..rows, Norm::None, Layer::plain(&w)).unwrap();
            return dev
                .download(&dev.linear(&input, Layer::plain(&w), Activation::None).unwrap())
                .unwrap()
                .to_vec();
        };
        let table = computed(dev, table, 2 * k + n);
        let chunk = |start| Chunk { table: &table, row: 1, start };
        let norm = Norm::Modulate { scale: chunk(0), shift: chunk(k) };
        let mut into = computed(dev, &vec![1.0; (rows + 1) * n], n);
        let input = dev.prepare(&x, 0..rows, norm, Layer::plain(&w)).unwrap();
        dev.linear_add(&input, Layer::plain(&w), Some(chunk(2 * k)), &mut into, 1).unwrap();
        dev.download(&into).unwrap().to_vec()
    }
}

const SIZES: [(usize, usize, usize, usize); 5] =
    [(1, 256, 128, 16), (37, 384, 256, 32), (300, 768, 832, 48), (130, 1024, 320, 128), (513, 256, 1024, 80)];

pub(crate) fn svdq(devices: &Devices) {
    let mut random = Random(9);
    // bf16 results. Both devices quantise the same numbers to the same codes, but a norm before that gives bf16 on the
    // GPU: some codes are the next ones.
    let (plain, modulated) = match devices.profile {
        Profile::W4A4 => (4e-3, 2.5e-2),
        Profile::W4A8 => (4e-3, 8e-3),
        // bf16 weights.
        Profile::W4A16 => (5e-3, 5e-3),
    };
    for (m, n, k, rank) in SIZES {
        let w = Svdq::new(&mut random, devices.nvfp4, [n, k], rank);
        let (x, table) = (random.activations(m, k), random.normals(2 * (2 * k + n), 0.8, 0.2));
        let name = format!("{m} x {n} x {k}, rank {rank}");
        let case = SvdqCase { w, x, table: None };
        devices.compare(&name, plain, &case);
        let case = SvdqCase { table: Some(table), ..case };
        devices.compare(&format!("{name}, modulated"), modulated, &case);
    }
}

struct QkvCase<W> {
    w: W,
    k: usize,
    dim: usize,
    x: Vec<f32>,
    norms: [Vec<f32>; 2],
    rope: Vec<f32>,
}

/// What can be loaded on any device.
pub(crate) trait Load {
    fn columns(&self) -> usize;
    fn on<D: Device>(&self, dev: &D) -> D::Linear;
}

impl Load for Svdq {
    fn columns(&self) -> usize {
        self.n
    }
    fn on<D: Device>(&self, dev: &D) -> D::Linear {
        self.load(dev)
    }
}

impl Load for Dense {
    fn columns(&self) -> usize {
        self.n
    }
    fn on<D: Device>(&self, dev: &D) -> D::Linear {
        self.load(dev)
    }
}

impl<W: Load> Case for QkvCase<W> {
    fn run<D: Device>(&self, dev: &D) -> Vec<f32> {
        let w = self.w.on(dev);
        let rows = self.x.len() / self.k;
        let input =
            dev.prepare(&computed(dev, &self.x, self.k), 0..rows, Norm::None, Layer::plain(&w)).unwrap();
        let [q, k] = self.norms.each_ref().map(|norm| dev.upload(norm, self.dim).unwrap());
        let rope = dev.upload_rope(&self.rope, self.dim).unwrap();
        let mut into = dev.zeros(rows + 3, self.w.columns()).unwrap();
        dev.linear_qkv(&input, Layer::plain(&w), QkNormRope { q: &q, k: &k, rope: &rope }, &mut into, 3)
            .unwrap();
        dev.download(&into).unwrap().to_vec()
    }
}

impl<W> QkvCase<W> {
    fn new(random: &mut Random, w: W, m: usize, k: usize, dim: usize) -> Self {
        let angles = random.normals((m + 3) * dim / 2, 0.0, 3.0);
        let x = random.activations(m, k);
        let norms = [1.0, 0.8].map(|mean| random.normals(dim, mean, 0.2));
        QkvCase { w, k, dim, x, norms, rope: angles.iter().flat_map(|a| [a.cos(), a.sin()]).collect() }
    }
}

pub(crate) fn svdq_qkv(devices: &Devices) {
    let mut random = Random(10);
    for (m, heads, k, rank) in [(1, 1, 128, 16), (37, 2, 256, 32), (300, 3, 832, 48)] {
        let w = Svdq::new(&mut random, devices.nvfp4, [3 * heads * 128, k], rank);
        // As svdq_linears, and a rotary table in fp16.
        devices.compare(&format!("{m} rows, {heads} heads"), 8e-3, &QkvCase::new(&mut random, w, m, k, 128));
    }
}

pub(crate) fn dense_qkv(devices: &Devices) {
    let mut random = Random(11);
    for (m, heads, k, dim) in [(1, 1, 64, 128), (37, 3, 256, 64), (130, 2, 256, 128)] {
        let w = Dense::new(&mut random, 3 * heads * dim, k);
        // bf16 before the norm and after it.
        devices.compare(
            &format!("{m} rows, {heads} heads of {dim}"),
            6e-3,
            &QkvCase::new(&mut random, w, m, k, dim),
        );
    }
}

struct MlpCase<W> {
    fc1: W,
    fc2: W,
    k: usize,
    x: Vec<f32>,
    gate: Vec<f32>,
}

impl<W: Load> Case for MlpCase<W> {
    fn run<D: Device>(&self, dev: &D) -> Vec<f32> {
        let (fc1, fc2) = (self.fc1.on(dev), self.fc2.on(dev));
        let rows = self.x.len() / self.k;
        let input =
            dev.prepare(&computed(dev, &self.x, self.k), 0..rows, Norm::None, Layer::plain(&fc1)).unwrap();
        let hidden = dev.linear_gelu(&input, Layer::plain(&fc1), Layer::plain(&fc2)).unwrap();
        let mut into = dev.zeros(rows, self.fc2.columns()).unwrap();
        let table = computed(dev, &self.gate, self.gate.len());
        let gate = Some(Chunk { table: &table, row: 0, start: 0 });
        dev.linear_add(&hidden, Layer::plain(&fc2), gate, &mut into, 0).unwrap();
        dev.download(&into).unwrap().to_vec()
    }
}

pub(crate) fn svdq_mlp(devices: &Devices) {
    let mut random = Random(12);
    // Two quantisations, the second one of what differs already.
    let tolerance = match devices.profile {
        Profile::W4A4 => 2.5e-2,
        Profile::W4A8 => 1.2e-2,
        Profile::W4A16 => 8e-3,
    };
    for (m, wide, k, rank) in SIZES {
        let case = MlpCase {
            fc1: Svdq::new(&mut random, devices.nvfp4, [wide, k], rank),
            fc2: Svdq::new(&mut random, devices.nvfp4, [384, wide], rank).after_gelu(),
            k,
            x: random.activations(m, k),
            gate: random.normals(384, 1.0, 0.2),
        };
        devices.compare(&format!("{m} x {wide} x {k}, rank {rank}"), tolerance, &case);
    }
}

pub(crate) fn dense_mlp(devices: &Devices) {
    let mut random = Random(13);
    let case = MlpCase {
        fc1: Dense::new(&mut random, 320, 96),
        fc2: Dense::new(&mut random, 128, 320),
        k: 96,
        x: random.activations(45, 96),
        gate: random.normals(128, 1.0, 0.2),
    };
    // bf16 between the two.
    devices.compare("45 x 320 x 96", 5e-3, &case);
}
