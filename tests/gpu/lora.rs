//! Low-rank updates of linears of every kind, and LoRAs of the demo model.

use std::ops::Range;

use svdq::device::cuda::LowRank;
use svdq::engine::{Lora, Model};
use svdq::ops::{Activation, Chunk, Device, Layer, LowRankSource, Norm, Profile, QkNormRope};

use crate::linear::{Awq, Dense, Load, Svdq};
use crate::model::{PROMPTS, generate_with, load, psnr};
use crate::support::{Case, Devices, Random, computed};

/// An update of some outputs of a linear `[n, k]`, and its strength.
struct Update {
    n: usize,
    k: usize,
    rows: Range<usize>,
    rank: usize,
    down: Vec<f32>,
    up: Vec<f32>,
    bias: Vec<f32>,
    strength: f32,
}

impl Update {
    fn new(random: &mut Random, [n, k]: [usize; 2], rows: Range<usize>, rank: usize, strength: f32) -> Self {
        let down = random.normals(rank * k, 0.0, 1.0 / (k as f32).sqrt());
        let up = random.normals(rows.len() * rank, 0.0, 0.3 / (rank as f32).max(1.0).sqrt());
        Update { n, k, rows, rank, down, up, bias: vec![], strength }
    }

    fn with_bias(self, random: &mut Random) -> Self {
        Update { bias: random.normals(self.rows.len(), 0.0, 1.0), ..self }
    }

    /// Of all outputs, of some that begin and end anywhere, of the bias alone, and of a large rank.
    fn set(random: &mut Random, n: usize, k: usize) -> Vec<Update> {
        [(0..n, 1, 1.0), (n / 3..n - 5, 16, -0.6), (0..n / 3, 5, 2.0), (3..4, 0, 0.7), (0..n, 128, 0.3)]
            .into_iter()
            .enumerate()
            .map(|(i, (rows, rank, strength))| {
                let update = Update::new(random, [n, k], rows, rank, strength);
                if i % 2 == 1 { update.with_bias(random) } else { update }
            })
            .collect()
    }
}

/// The updates on a device, and their strengths.
fn on<D: Device>(dev: &D, updates: &[Update]) -> Vec<(D::LowRank, f32)> {
    let source = |update: &Update| LowRankSource {
        n: update.n,
        k: update.k,
        rows: update.rows.clone(),
        rank: update.rank,
        down: update.down.clone().into(),
        up: update.up.clone().into(),
        bias: update.bias.clone(),
    };
    let sources: Vec<_> = updates.iter().map(source).collect();
    let loaded = dev.load_low_ranks(&sources).unwrap();
    loaded.into_iter().zip(updates).map(|(loaded, update)| (loaded, update.strength)).collect()
}

fn attach<L>(updates: &[(L, f32)]) -> Vec<(&L, f32)> {
    updates.iter().map(|(update, strength)| (update, *strength)).collect()
}

/// `linear_add` through a gate, then, for kinds that have them, `linear` with an activation.
struct LinearCase<W> {
    w: W,
    updates: Vec<Update>,
    x: Vec<f32>,
    gate: Vec<f32>,
    act: Activation,
}

impl<W: Load> Case for LinearCase<W> {
    fn run<D: Device>(&self, dev: &D) -> Vec<f32> {
        let (w, updates) = (self.w.on(dev), on(dev, &self.updates));
        let updates = attach(&updates);
        let layer = Layer { weights: &w, updates: &updates };
        let (n, k) = (self.w.columns(), self.updates[0].k);
        let rows = self.x.len() / k;
        let input = dev.prepare(&computed(dev, &self.x, k), 0..rows, Norm::None, layer).unwrap();
        let mut into = computed(dev, &vec![1.0; rows * n], n);
        let table = computed(dev, &self.gate, n);
        dev.linear_add(&input, layer, Some(Chunk { table: &table, row: 0, start: 0 }), &mut into, 0).unwrap();
        let mut all = dev.download(&into).unwrap().to_vec();
        all.extend(&dev.download(&dev.linear(&input, layer, self.act).unwrap()).unwrap());
        let mut wide = dev.empty(rows, n + 8).unwrap();
        if self.act == Activation::Silu {
            dev.linear_into(&input, layer, &mut wide, 8).unwrap();
            let wide = dev.download(&wide).unwrap();
            all.extend(wide.chunks(n + 8).flat_map(|row| &row[8..]));
        }
        all
    }
}

pub(crate) fn linears(devices: &Devices) {
    let mut random = Random(20);
    for (m, n, k) in [(1, 64, 64), (37, 130, 72), (300, 256, 320), (5, 33, 35)] {
        let (w, updates) = (Dense::new(&mut random, n, k), Update::set(&mut random, n, k));
        let (x, gate) = (random.activations(m, k), random.normals(n, 1.0, 0.2));
        // bf16 projections and results.
        let case = LinearCase { w, updates, x, gate, act: Activation::Silu };
        devices.compare(&format!("dense, {m} x {n} x {k}"), 5e-3, &case);
    }
    for (m, n, k, group, chunks) in [(1, 384, 128, 64, 6), (20, 768, 384, 128, 1)] {
        let (w, updates) = (Awq::new(&mut random, n, k, group, chunks), Update::set(&mut random, n, k));
        let (x, gate) = (random.normals(m * k, 0.0, 1.0), random.normals(n, 1.0, 0.2));
        let case = LinearCase { w, updates, x, gate, act: Activation::Silu };
        devices.compare(&format!("awq, {m} x {n} x {k}"), 5e-3, &case);
    }
}

pub(crate) fn svdq(devices: &Devices) {
    let mut random = Random(24);
    for (m, n, k, rank) in [(1, 256, 128, 16), (37, 384, 256, 32), (300, 768, 832, 0), (513, 256, 1024, 80)] {
        let w = Svdq::new(&mut random, devices.nvfp4, [n, k], rank);
        let updates = Update::set(&mut random, n, k);
        let (x, gate) = (random.activations(m, k), random.normals(n, 1.0, 0.2));
        let case = LinearCase { w, updates, x, gate, act: Activation::None };
        // As without updates.
        devices.compare(&format!("{m} x {n} x {k}, rank {rank}"), 8e-3, &case);
    }
}

/// q, k and v with updates of their own.
struct QkvCase {
    w: Svdq,
    updates: Vec<Update>,
    x: Vec<f32>,
    norms: [Vec<f32>; 2],
    rope: Vec<f32>,
}

impl Case for QkvCase {
    fn run<D: Device>(&self, dev: &D) -> Vec<f32> {
        let (w, updates) = (self.w.on(dev), on(dev, &self.updates));
        let updates = attach(&updates);
        let layer = Layer { weights: &w, updates: &updates };
        let k = self.updates[0].k;
        let rows = self.x.len() / k;
        let input = dev.prepare(&computed(dev, &self.x, k), 0..rows, Norm::None, layer).unwrap();
        let [q, k] = self.norms.each_ref().map(|norm| dev.load_tensor(norm, 128).unwrap());
        let rope = dev.upload_rope(&self.rope, 128).unwrap();
        let mut into = dev.zeros(rows, self.w.columns()).unwrap();
        dev.linear_qkv(&input, layer, QkNormRope { q: &q, k: &k, rope: &rope }, &mut into, 0).unwrap();
        dev.download(&into).unwrap().to_vec()
    }
}

pub(crate) fn qkv(devices: &Devices) {
    let mut random = Random(21);
    for (m, heads, k, rank) in [(1, 1, 128, 16), (37, 2, 256, 32), (300, 3, 832, 128)] {
        let n = 3 * heads * 128;
        let w = Svdq::new(&mut random, devices.nvfp4, [n, k], rank);
        let part = |i: usize, rank, strength, random: &mut Random| {
            Update::new(random, [n, k], i * n / 3..(i + 1) * n / 3, rank, strength)
        };
        let updates = vec![
            part(0, 16, 1.0, &mut random),
            part(1, 64, -0.5, &mut random),
            part(2, 4, 2.0, &mut random).with_bias(&mut random),
            Update::new(&mut random, [n, k], 0..n, 32, 0.7),
        ];
        let angles = random.normals(m * 64, 0.0, 3.0);
        let case = QkvCase {
            w,
            updates,
            x: random.activations(m, k),
            norms: [1.0, 0.8].map(|mean| random.normals(128, mean, 0.2)),
            rope: angles.iter().flat_map(|a| [a.cos(), a.sin()]).collect(),
        };
        devices.compare(&format!("{m} rows, {heads} heads"), 8e-3, &case);
    }
}

/// An update of fc2 sees the GELU's output, neither shifted nor smoothed.
struct MlpCase {
    layers: [Svdq; 2],
    updates: [Vec<Update>; 2],
    x: Vec<f32>,
}

impl Case for MlpCase {
    fn run<D: Device>(&self, dev: &D) -> Vec<f32> {
        let [fc1, fc2] = self.layers.each_ref().map(|w| w.on(dev));
        let updates = self.updates.each_ref().map(|updates| on(dev, updates));
        let [first, second] = updates.each_ref().map(|updates| attach(updates));
        let (fc1, fc2) =
            (Layer { weights: &fc1, updates: &first }, Layer { weights: &fc2, updates: &second });
        let k = self.updates[0][0].k;
        let rows = self.x.len() / k;
        let input = dev.prepare(&computed(dev, &self.x, k), 0..rows, Norm::None, fc1).unwrap();
        let hidden = dev.linear_gelu(&input, fc1, fc2).unwrap();
        let n = self.layers[1].columns();
        let mut into = dev.zeros(rows, n).unwrap();
        let table = computed(dev, &vec![1.0; n], n);
        dev.linear_add(&hidden, fc2, Some(Chunk { table: &table, row: 0, start: 0 }), &mut into, 0).unwrap();
        dev.download(&into).unwrap().to_vec()
    }
}

pub(crate) fn mlp(devices: &Devices) {
    let mut random = Random(22);
    for (m, k, hidden, n) in [(1, 128, 256, 128), (37, 128, 384, 256), (300, 256, 1024, 384)] {
        let case = MlpCase {
            layers: [
                Svdq::new(&mut random, devices.nvfp4, [hidden, k], 32),
                Svdq::new(&mut random, devices.nvfp4, [n, hidden], 16).after_gelu(),
            ],
            updates: [Update::set(&mut random, hidden, k), Update::set(&mut random, n, hidden)],
            x: random.activations(m, k),
        };
        // Two quantisations, as without updates.
        let tolerance = if devices.profile == Profile::W4A4 { 2.5e-2 } else { 1.2e-2 };
        devices.compare(&format!("{m} x {k} x {hidden} x {n}"), tolerance, &case);
    }
}

/// More updates of a layer than the kernels take are an error, and the device goes on.
pub(crate) fn too_many(devices: &Devices) {
    let mut random = Random(23);
    let (n, k) = (256, 128);
    let w = Svdq::new(&mut random, devices.nvfp4, [n, k], 16).on(&devices.cuda);
    let updates: Vec<_> = (0..16).map(|_| Update::new(&mut random, [n, k], 0..n, 16, 0.5)).collect();
    let updates: Vec<(LowRank, f32)> = on(&devices.cuda, &updates);
    let x = computed(&devices.cuda, &random.activations(3, k), k);
    let prepare = |updates: &[(&LowRank, f32)]| {
        devices.cuda.prepare(&x, 0..3, Norm::None, Layer { weights: &w, updates }).map(drop)
    };
    let updates = attach(&updates);
    let error = prepare(&updates).unwrap_err().to_string();
    assert!(error.contains("16") && error.contains("15"), "{error}");
    prepare(&updates[1..]).unwrap();
}

const LORA: &str = "assets/demo/lora/pocket-green.safetensors";

/// The demo model with its LoRA: as on the CPU; without it, or at strength 0, the bytes of before; two LoRAs in either
/// order.
pub(crate) fn images(devices: &Devices) {
    let [cpu, cuda] = [None, Some(&devices.gpu)].map(|gpu| load(gpu, None, devices.profile));
    let open = |model: &Model| Lora::load(model, LORA).unwrap();
    let ([one, other], on_cpu): ([Lora; 2], Lora) = ([open(&cuda), open(&cuda)], open(&cpu));
    for (seed, prompt) in PROMPTS.into_iter().enumerate().take(4) {
        let draw = |model: &Model, steps, loras: &[(Lora, f32)]| {
            generate_with(model, prompt, steps, seed as u64, loras)
        };
        let plain = draw(&cuda, 20, &[]);
        let green = draw(&cuda, 20, &[(one.clone(), 1.0)]);
        assert!(psnr(&plain, &green) < 30.0, "the LoRA hardly has an effect");
        assert!(draw(&cuda, 20, &[(one.clone(), 1.0)]) == green, "the second image differs");
        assert!(draw(&cuda, 20, &[(one.clone(), 0.0)]) == plain, "strength 0 has an effect");
        assert!(draw(&cuda, 20, &[]) == plain, "the LoRA leaves a trace");
        let two = [(one.clone(), 0.3), (other.clone(), 0.5)];
        let [ab, ba] = [[0, 1], [1, 0]].map(|order| draw(&cuda, 1, &order.map(|i: usize| two[i].clone())));
        let order = psnr(&ab, &ba);
        let same = psnr(&draw(&cpu, 1, &[(on_cpu.clone(), 1.0)]), &draw(&cuda, 1, &[(one.clone(), 1.0)]));
        println!("     {prompt}: {same:.1} dB from the CPU's, {order:.1} dB from the other order");
        // As without LoRAs, see model::images; sums in another order differ by f32's rounding. Either makes some codes the
        // next ones, in W4A4 a step of a fifteenth.
        let least = if devices.profile == Profile::W4A4 { 28.0 } else { 44.0 };
        assert!(same > least && order > least);
    }
}
