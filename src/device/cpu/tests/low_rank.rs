//! Low-rank updates of every kind of linear: what they add is added to what the linear makes without them.

use std::ops::Range;

use super::linear::{Layer as Quantised, PROFILES};
use super::*;
use crate::device::cpu::LowRank;
use crate::ops::{Activation, AwqSource, Chunk, DenseSource, LinearSource, LowRankSource, Norm, Storage};
use crate::weights::pack;

/// An update of some rows of a linear `[n, k]`, and its strength.
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
    /// Updates of all rows, of rows that begin and end inside of a panel, of the bias alone, and of a large rank.
    fn set(r: &mut Random, n: usize, k: usize) -> Vec<Update> {
        [
            (0..n, 1, false, 1.0),
            (n / 3..n - 5, 16, true, -0.6),
            (0..n / 3, 5, false, 2.0),
            (3..4, 0, true, 0.7),
            (0..n, 128, true, 0.3),
        ]
        .map(|(rows, rank, bias, strength)| Update {
            n,
            k,
            rank,
            down: r.normals(rank * k, 0.1),
            up: r.normals(rows.len() * rank, 0.2),
            bias: if bias { r.normals(rows.len(), 1.0) } else { vec![] },
            rows,
            strength,
        })
        .into()
    }

    fn load(&self, cpu: &Cpu) -> LowRank {
        let Update { n, k, ref rows, rank, ref down, ref up, ref bias, .. } = *self;
        let (rows, bias) = (rows.clone(), bias.clone());
        let (down, up) = (down.clone().into(), up.clone().into());
        let source = LowRankSource { n, k, rows, rank, down, up, bias };
        cpu.load_low_ranks(&[source]).unwrap().remove(0)
    }

    /// `y[m, rows] += strength · (B A h + b)` in f64.
    fn add(&self, h: &[f32], y: &mut [f64]) {
        let bias = if self.bias.is_empty() { vec![0.0; self.rows.len()] } else { wide(&self.bias) };
        for (h, y) in h.chunks(self.k).zip(y.chunks_mut(self.n)) {
            let lora = match self.rank {
                0 => vec![],
                _ => linear(&wide(h), &wide(&self.down), &[], self.k),
            };
            for (i, y) in y[self.rows.clone()].iter_mut().enumerate() {
                let up = &self.up[i * self.rank..][..self.rank];
                let sum: f64 = up.iter().zip(&lora).map(|(u, l)| f64::from(*u) * l).sum();
                *y += f64::from(self.strength) * (sum + bias[i]);
            }
        }
    }
}

fn attach<'a>(weights: &'a Linear, updates: &'a [(&'a LowRank, f32)]) -> Layer<'a, Cpu> {
    Layer { weights, updates }
}

/// `linear` and `linear_add` with `updates` attached to `w`, which makes `y` of `x` without them.
fn check(cpu: &Cpu, w: &Linear, updates: &[Update], x: &[f32], y: Vec<f64>, r: &mut Random) {
    let (n, k) = (updates[0].n, updates[0].k);
    let loaded: Vec<LowRank> = updates.iter().map(|u| u.load(cpu)).collect();
    for count in [1, updates.len()] {
        let mut want = y.clone();
        updates[..count].iter().for_each(|u| u.add(x, &mut want));
        let used: Vec<_> = loaded.iter().zip(updates).map(|(l, u)| (l, u.strength)).take(count).collect();
        let layer = attach(w, &used);
        let rows = x.len() / k;
        let input = cpu.prepare(&upload(cpu, x, k), 0..rows, Norm::None, layer).unwrap();
        let got = cpu.download(&cpu.linear(&input, layer, Activation::None).unwrap()).unwrap();
        // f32 sums of up to 320 products, as without updates
        assert_close(&got, &want, 1e-5);

        let gate = r.normals(n, 1.0);
        let table = upload(cpu, &gate, n);
        let mut into = upload(cpu, &vec![0.5; rows * n], n);
        cpu.linear_add(&input, layer, Some(Chunk { table: &table, row: 0, start: 0 }), &mut into, 0).unwrap();
        let want: Vec<f64> =
            want.iter().zip(gate.iter().cycle()).map(|(y, g)| 0.5 + y * f64::from(*g)).collect();
        assert_close(&cpu.download(&into).unwrap(), &want, 1e-5);
    }
}

pub(super) fn of_dense_linears(level: Level) {
    for (m, n, k) in [(1, 24, 7), (30, 130, 96)] {
        let mut r = Random(m as u64);
        let cpu = cpu(level, Profile::W4A8);
        let (weight, bias, x) = (r.normals(n * k, 0.3), r.normals(n, 1.0), r.activations(m, k));
        let y = linear(&wide(&x), &wide(&weight), &wide(&bias), k);
        let source = DenseSource { n, k, weight: weight.into(), bias, storage: Storage::F32 };
        let w = cpu.load_linear(&LinearSource::Dense(source)).unwrap();
        let updates = Update::set(&mut r, n, k);
        check(&cpu, &w, &updates, &x, y, &mut r);
    }
}

pub(super) fn of_awq_linears(level: Level) {
    for (m, n, k, group, chunks) in [(20, 96, 192, 64, 6), (3, 132, 256, 128, 1)] {
        let mut r = Random(m as u64);
        let cpu = cpu(level, Profile::W4A8);
        let codes: Vec<u8> = (0..n * k).map(|_| r.below(16) as u8).collect();
        let scales = r.normals(n * k / group, 0.05);
        let zeros: Vec<f32> = scales.iter().map(|s| s * -7.5).collect();
        let source = AwqSource {
            n,
            k,
            group,
            chunks,
            qweight: pack::pack_awq_codes(&codes, n, k).into(),
            wscales: pack::f32_to_bf16(&scales).into(),
            wzeros: pack::f32_to_bf16(&zeros).into(),
            bias: pack::f32_to_bf16(&r.normals(n, 1.0)).into(),
        };
        let x = r.activations(m, k);
        let dense = pack::unpack_awq(&source);
        let y = linear(&wide(&x), &wide(dense.weight.values().unwrap()), &wide(&dense.bias), k);
        let w = cpu.load_linear(&LinearSource::Awq(source)).unwrap();
        let updates = Update::set(&mut r, n, k);
        check(&cpu, &w, &updates, &x, y, &mut r);
    }
}

pub(super) fn of_quantised_linears(level: Level) {
    for (m, n, k, rank) in [(7, 128, 192, 32), (26, 256, 320, 128), (3, 128, 128, 0)] {
        for profile in PROFILES {
            let mut r = Random((m + k) as u64);
            let cpu = cpu(level, profile);
            let layer = Quantised::random(&mut r, n, k, rank, false);
            let x = r.activations(m, k);
            let updates = Update::set(&mut r, n, k);
            check(&cpu, &layer.load(&cpu), &updates, &x, layer.apply(&x, profile), &mut r);
        }
    }
}

/// An update of fc2 sees the GELU's output, neither shifted nor smoothed.
pub(super) fn through_the_gelu(level: Level) {
    let (m, k, hidden, n) = (13, 128, 384, 256);
    for profile in PROFILES {
        let mut r = Random(5);
        let cpu = cpu(level, profile);
        let one = Quantised::random(&mut r, hidden, k, 32, false);
        let two = Quantised::random(&mut r, n, hidden, 16, true);
        let (fc1, fc2) = (one.load(&cpu), two.load(&cpu));
        let [first, second] = [Update::set(&mut r, hidden, k), Update::set(&mut r, n, hidden)];
        let loaded =
            |updates: &[Update]| updates.iter().map(|u| (u.load(&cpu), u.strength)).collect::<Vec<_>>();
        let [l1, l2] = [loaded(&first), loaded(&second)];
        let [l1, l2] = [&l1, &l2].map(|l| l.iter().map(|(l, s)| (l, *s)).collect::<Vec<_>>());
        let (fc1, fc2) = (attach(&fc1, &l1), attach(&fc2, &l2));

        let x = r.activations(m, k);
        let input = cpu.prepare(&upload(&cpu, &x, k), 0..m, Norm::None, fc1).unwrap();
        let g = cpu.download(&cpu.linear(&input, fc1, Activation::GeluTanh).unwrap()).unwrap();
        let hidden = cpu.linear_gelu(&input, fc1, fc2).unwrap();
        let got = cpu.download(&cpu.linear(&hidden, fc2, Activation::None).unwrap()).unwrap();
        let mut want = two.apply(&g, profile);
        second.iter().for_each(|u| u.add(&g, &mut want));
        assert_close(&got, &want, 1e-5);
    }
}
