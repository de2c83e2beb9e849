//! SVDQuant and AWQ linears in the three profiles.

use half::bf16;

use super::*;
use crate::ops::{Activation, AwqSource, Codes, LinearSource, Norm, SvdqSource};
use crate::weights::pack;

fn bytes(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()
}

fn rounded(mut x: Vec<f32>) -> Vec<f32> {
    x.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32());
    x
}

/// An SVDQuant linear, unpacked.
pub(super) struct Layer {
    n: usize,
    k: usize,
    rank: usize,
    unsigned: bool,
    codes: Vec<i8>,
    /// `[k/64, n]`
    scales: Vec<f32>,
    pub(super) bias: Vec<f32>,
    smooth: Vec<f32>,
    down: Vec<f32>,
    up: Vec<f32>,
}

impl Layer {
    pub(super) fn random(r: &mut Random, n: usize, k: usize, rank: usize, unsigned: bool) -> Layer {
        let mut layer = Layer {
            n,
            k,
            rank,
            unsigned,
            codes: (0..n * k).map(|_| r.below(16) as i8 - 8).collect(),
            scales: rounded(r.normals(n * k / 64, 0.02)),
            bias: rounded(r.normals(n, 0.2)),
            smooth: rounded(r.normals(k, 0.3).iter().map(|v| v.exp()).collect()),
            down: rounded(r.normals(rank * k, 0.1)),
            up: rounded(r.normals(n * rank, 0.1)),
        };
        // a channel whose weights are all zero
        layer.codes[..k].fill(0);
        layer
    }

    pub(super) fn load(&self, cpu: &Cpu) -> super::super::Linear {
        let Layer { n, k, rank, unsigned, .. } = *self;
        let source = SvdqSource {
            n,
            k,
            rank,
            unsigned,
            codes: Codes::Int4,
            qweight: pack::pack_codes(&self.codes, n, k).into(),
            wscales: pack::pack_wscales(&self.scales, n, k).into(),
            bias: pack::pack_vector(&self.bias).into(),
            smooth: pack::pack_vector(&self.smooth).into(),
            lora_down: pack::pack_lora_down(&self.down, k, rank).into(),
            lora_up: pack::pack_lora_up(&self.up, n, rank).into(),
        };
        cpu.load_linear(&LinearSource::Svdq(source)).unwrap()
    }

    fn weight(&self) -> Vec<f64> {
        (0..self.n * self.k)
            .map(|i| {
                let scale = self.scales[i % self.k / 64 * self.n + i / self.k];
                f64::from(self.codes[i]) * f64::from(scale)
            })
            .collect()
    }

    /// The int8 codes and scales (one a channel) that the group scales are folded into.
    fn folded(&self) -> (Vec<f64>, Vec<f64>) {
        let k = self.k;
        let at = |i: usize| f32::from(self.codes[i]) * self.scales[i % k / 64 * self.n + i / k];
        let scales: Vec<f32> = (0..self.n)
            .map(|n| (n * k..(n + 1) * k).fold(0.0f32, |a, i| a.max(at(i).abs())) / 127.0)
            .collect();
        let codes =
            (0..self.n * k)
                .map(|i| {
                    if scales[i / k] > 0.0 {
                        f64::from((at(i) / scales[i / k]).round_ties_even())
                    } else {
                        0.0
                    }
                })
                .collect();
        (codes, wide(&scales))
    }

    /// The formula of [`Device::linear`] in f64; the quantiser's steps are those of the format.
    pub(super) fn apply(&self, h: &[f32], profile: Profile) -> Vec<f64> {
        let (n, k) = (self.n, self.k);
        let shift = if self.unsigned { 0.171875f32 } else { 0.0 };
        let mut y: Vec<f64> = h.chunks(k).flat_map(|_| wide(&self.bias)).collect();
        if self.rank > 0 {
            let lora = linear(&wide(h), &wide(&self.down), &[], k);
            y = linear(&lora, &wide(&self.up), &wide(&self.bias), self.rank);
        }
        let (folded, channel) = self.folded();
        for (m, row) in h.chunks(k).enumerate() {
            let v: Vec<f32> = row.iter().zip(&self.smooth).map(|(h, s)| (h + shift) / s).collect();
            let (block, main): (usize, Vec<f64>) = match profile {
                Profile::W4A16 => (k, linear(&wide(&v), &self.weight(), &[], k)),
                Profile::W4A4 => (64, vec![0.0; n]),
                Profile::W4A8 => (if self.unsigned { 256 } else { k }, vec![0.0; n]),
            };
            y[m * n..][..n].iter_mut().zip(main).for_each(|(y, v)| *y += v);
            if profile == Profile::W4A16 {
                continue;
            }
            for (b, v) in v.chunks(block).enumerate() {
                let (q, xs) =
                    if profile == Profile::W4A4 { four(v, self.unsigned) } else { eight(v, self.unsigned) };
                for o in 0..n {
                    let at = |i: usize| {
                        let i = o * k + b * block + i;
                        if profile == Profile::W4A4 { f64::from(self.codes[i]) } else { folded[i] }
                    };
                    let ws =
                        if profile == Profile::W4A4 { f64::from(self.scales[b * n + o]) } else { channel[o] };
                    let sum: f64 = q.iter().enumerate().map(|(i, q)| q * at(i)).sum();
                    y[m * n + o] += sum * f64::from(xs) * ws;
                }
            }
        }
        y
    }
}

fn four(v: &[f32], unsigned: bool) -> (Vec<f64>, f32) {
    let v = rounded(v.to_vec());
    let amax = v.iter().fold(0.0f32, |a, v| a.max(v.abs()));
    let (divisor, low, high) = if unsigned { (15.0f32, 0.0, 15.0) } else { (7.0, -8.0, 7.0) };
    let scale = amax * (1.0 / divisor);
    let q = |v: &f32| {
        if amax > 0.0 { f64::from((v * (1.0 / scale)).round_ties_even().clamp(low, high)) } else { 0.0 }
    };
    (v.iter().map(q).collect(), bf16::from_f32(scale).to_f32())
}

fn eight(v: &[f32], unsigned: bool) -> (Vec<f64>, f32) {
    let amax = v.iter().fold(0.0f32, |a, v| a.max(v.abs()));
    let high = if unsigned { 255.0 } else { 127.0 };
    let q = |v: &f32| if amax > 0.0 { f64::from((v * (high / amax)).round_ties_even()) } else { 0.0 };
    (v.iter().map(q).collect(), amax / high)
}

pub(super) const PROFILES: [Profile; 3] = [Profile::W4A4, Profile::W4A8, Profile::W4A16];

pub(super) fn svdq_linears(level: Level) {
    for (m, n, k, rank) in [(1, 128, 64, 16), (7, 128, 192, 32), (50, 256, 320, 48), (3, 128, 128, 0)] {
        for profile in PROFILES {
            let mut r = Random((m + k) as u64);
            let cpu = cpu(level, profile);
            let layer = Layer::random(&mut r, n, k, rank, false);
            let mut x = r.activations(m, k);
            x[..64].fill(0.0);
            let w = layer.load(&cpu);
            let input = cpu.prepare(&upload(&cpu, &x, k), 0..m, Norm::None, plain(&w)).unwrap();
            let y = cpu.linear(&input, plain(&w), Activation::None).unwrap();
            // exact integers and codes; f32 rounding of at most 5 block sums, or of 320 products in w4a16
            assert_close(&cpu.download(&y).unwrap(), &layer.apply(&x, profile), 1e-5);
        }
    }
}

pub(super) fn fc2_sees_the_shifted_gelu(level: Level) {
    for (m, k, hidden, n) in [(1, 64, 128, 128), (13, 128, 384, 256), (50, 192, 640, 128)] {
        for profile in PROFILES {
            let mut r = Random((m + k) as u64);
            let cpu = cpu(level, profile);
            let (one, two) =
                (Layer::random(&mut r, hidden, k, 32, false), Layer::random(&mut r, n, hidden, 32, true));
            let (fc1, fc2) = (one.load(&cpu), two.load(&cpu));
            let x = r.activations(m, k);
            let input = cpu.prepare(&upload(&cpu, &x, k), 0..m, Norm::None, plain(&fc1)).unwrap();
            let g = cpu.download(&cpu.linear(&input, plain(&fc1), Activation::GeluTanh).unwrap()).unwrap();
            let hidden = cpu.linear_gelu(&input, plain(&fc1), plain(&fc2)).unwrap();
            let y = cpu.linear(&hidden, plain(&fc2), Activation::None).unwrap();
            assert_close(&cpu.download(&y).unwrap(), &two.apply(&g, profile), 1e-5);
        }
    }
}

/// 4-bit weights agree with the formula, and to the last bit with the dense linear that they are unpacked to.
pub(super) fn awq_linears(level: Level) {
    for (m, n, k, group, chunks) in
        [(1, 24, 64, 64, 6), (20, 96, 128, 64, 3), (13, 40, 384, 128, 1), (150, 68, 320, 64, 1)]
    {
        let mut r = Random(k as u64);
        let cpu = cpu(level, Profile::W4A8);
        let codes: Vec<u8> = (0..n * k).map(|_| r.below(16) as u8).collect();
        let scales = rounded(r.normals(n * k / group, 0.1));
        let zeros: Vec<f32> = rounded(scales.iter().map(|s| s * -7.0).collect());
        let bias = if group == 64 { rounded(r.normals(n, 1.0)) } else { vec![] };
        let source = AwqSource {
            n,
            k,
            group,
            chunks,
            qweight: pack::pack_awq_codes(&codes, n, k).into(),
            wscales: bytes(&scales).into(),
            wzeros: bytes(&zeros).into(),
            bias: bytes(&bias).into(),
        };
        let x = r.activations(m, k);
        let mut want = vec![0.0; m * n];
        for (m, row) in x.chunks(k).enumerate() {
            for stored in 0..n {
                let at = |i: usize| {
                    let g = i / group * n + stored;
                    f64::from(codes[stored * k + i]) * f64::from(scales[g]) + f64::from(zeros[g])
                };
                let sum: f64 = row.iter().enumerate().map(|(i, x)| f64::from(*x) * at(i)).sum();
                want[m * n + stored % chunks * (n / chunks) + stored / chunks] =
                    sum + f64::from(bias.get(stored).copied().unwrap_or(0.0));
            }
        }
        let run = |source: &LinearSource<'_>| {
            let w = cpu.load_linear(source).unwrap();
            let input = cpu.prepare(&upload(&cpu, &x, k), 0..m, Norm::None, plain(&w)).unwrap();
            cpu.download(&cpu.linear(&input, plain(&w), Activation::None).unwrap()).unwrap()
        };
        let dense = run(&LinearSource::Dense(pack::unpack_awq(&source)));
        let y = run(&LinearSource::Awq(source));
        assert_close(&y, &want, 1e-5);
        // A code times a bf16 scale is exact in f32, so that packed weights are those of the dense linear.
        assert_eq!(y, dense, "{n} x {k} in groups of {group}");
    }
}
