//! Norms, dense linears and attention.

use super::*;
use crate::ops::{Activation, Attention, Chunk, DenseSource, LinearSource, Mask, Norm, QkNormRope, Storage};

fn dense(
    cpu: &Cpu,
    n: usize,
    k: usize,
    weight: &[f32],
    bias: &[f32],
    storage: Storage,
) -> super::super::Linear {
    let source = DenseSource { n, k, weight: weight.to_vec().into(), bias: bias.to_vec(), storage };
    cpu.load_linear(&LinearSource::Dense(source)).unwrap()
}

type F64 = fn(f64) -> f64;

/// Values that are exact in bfloat16.
fn bf16(mut x: Vec<f32>) -> Vec<f32> {
    x.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32());
    x
}

fn moments(x: &[f64]) -> (f64, f64) {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    (mean, x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64)
}

/// The formulas of [`Norm`], one row at a time.
fn normalized(x: &[f32], cols: usize, f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    wide(x).chunks(cols).flat_map(f).collect()
}

pub(super) fn norms(level: Level) {
    for (rows, cols) in [(1, 1), (3, 7), (5, 64), (17, 77), (4, 256)] {
        let mut r = Random(cols as u64);
        let cpu = cpu(level, Profile::W4A8);
        let x = r.activations(rows, cols);
        let (w, b) = (r.normals(cols, 1.0), r.normals(cols, 1.0));
        let table = r.normals(3 * 4 * cols, 1.0);
        let (tx, tw, tb) = (upload(&cpu, &x, cols), upload(&cpu, &w, cols), upload(&cpu, &b, cols));
        let tt = upload(&cpu, &table, 4 * cols);
        let check = |norm: Norm<'_, Cpu>, want: Vec<f64>| {
            let got = cpu.download(&cpu.norm(&tx, norm).unwrap()).unwrap();
            // f32 arithmetic on up to 256 terms
            assert_close(&got, &want, 1e-5);
        };
        check(Norm::None, wide(&x));
        check(Norm::Silu, normalized(&x, cols, |x| x.iter().map(|v| v * sigmoid(*v)).collect()));
        let (w, b) = (wide(&w), wide(&b));
        let affine = |x: &[f64], eps: f64, w: &[f64], b: &[f64]| -> Vec<f64> {
            let (mean, var) = moments(x);
            (0..cols).map(|i| (x[i] - mean) / (var + eps).sqrt() * w[i] + b[i]).collect()
        };
        check(
            Norm::Layer { weight: &tw, bias: &tb, eps: 1e-5 },
            normalized(&x, cols, |x| affine(x, 1e-5, &w, &b)),
        );
        check(
            Norm::Rms { weight: &tw, eps: 1e-6 },
            normalized(&x, cols, |x| {
                let mean = x.iter().map(|v| v * v).sum::<f64>() / cols as f64;
                x.iter().zip(&w).map(|(x, w)| x / (mean + 1e-6).sqrt() * w).collect()
            }),
        );
        let at = |row: usize, start: usize| wide(&table[row * 4 * cols + start..][..cols]);
        check(
            Norm::Modulate {
                scale: Chunk { table: &tt, row: 1, start: cols },
                shift: Chunk { table: &tt, row: 2, start: 3 * cols },
            },
            normalized(&x, cols, |x| affine(x, 1e-6, &at(1, cols), &at(2, 3 * cols))),
        );
    }
}

pub(super) fn dense_linears(level: Level) {
    for (m, n, k) in [(1, 1, 1), (2, 3, 5), (13, 33, 70), (49, 64, 256), (150, 40, 300)] {
        for storage in [Storage::Bf16, Storage::F32] {
            let mut r = Random((m * n * k) as u64);
            let cpu = cpu(level, Profile::W4A8);
            let x = r.activations(m + 3, k);
            let w = r.normals(n * k, (k as f32).powf(-0.5));
            let w = if storage == Storage::Bf16 { bf16(w) } else { w };
            let b = r.normals(n, 0.5);
            let tx = upload(&cpu, &x, k);
            let want = linear(&wide(&x[2 * k..][..m * k]), &wide(&w), &wide(&b), k);
            let dense = dense(&cpu, n, k, &w, &b, storage);
            let input = cpu.prepare(&tx, 2..2 + m, Norm::None, plain(&dense)).unwrap();
            let get = |t: Tensor| cpu.download(&t).unwrap();
            // f32 sums of up to 300 products, some of them 20 times the typical one
            let tolerance = 1e-5;

            let acts: [(Activation, F64); 4] = [
                (Activation::None, |v| v),
                (Activation::Silu, |v| v * sigmoid(v)),
                (Activation::GeluTanh, gelu),
                (Activation::QuickGelu, |v| v * sigmoid(1.702 * v)),
            ];
            for (act, f) in acts {
                let want: Vec<_> = want.iter().map(|v| f(*v)).collect();
                assert_close(&get(cpu.linear(&input, plain(&dense), act).unwrap()), &want, tolerance);
            }

            let start = r.normals(m * (n + 9), 1.0);
            let mut columns = upload(&cpu, &start, n + 9);
            cpu.linear_into(&input, plain(&dense), &mut columns, 4).unwrap();
            let mut placed = wide(&start);
            for (i, v) in want.iter().enumerate() {
                placed[i / n * (n + 9) + 4 + i % n] = *v;
            }
            assert_close(&get(columns), &placed, tolerance);

            let by = r.normals(m * n, 1.0);
            let product: Vec<_> = want.iter().zip(&by).map(|(v, b)| gelu(*v) * f64::from(*b)).collect();
            let y =
                cpu.linear_mul(&input, plain(&dense), Activation::GeluTanh, &upload(&cpu, &by, n)).unwrap();
            assert_close(&get(y), &product, tolerance);

            let table = r.normals(2 * (n + 5), 1.0);
            let gates = upload(&cpu, &table, n + 5);
            let start = r.normals((m + 2) * n, 1.0);
            for gated in [true, false] {
                let mut into = upload(&cpu, &start, n);
                let gate = gated.then_some(Chunk { table: &gates, row: 1, start: 4 });
                cpu.linear_add(&input, plain(&dense), gate, &mut into, 1).unwrap();
                let mut sum = wide(&start);
                for (i, v) in want.iter().enumerate() {
                    sum[n + i] += v * if gated { f64::from(table[n + 5 + 4 + i % n]) } else { 1.0 };
                }
                assert_close(&get(into), &sum, tolerance);
            }
        }
    }
}

pub(super) fn heads_are_normalised_and_rotated(level: Level) {
    for (m, heads, d) in [(1, 1, 8), (5, 2, 128), (7, 3, 24)] {
        let (mut r, k) = (Random(d as u64), 40);
        let cpu = cpu(level, Profile::W4A8);
        let (width, rows) = (heads * d, m + 3);
        let x = r.activations(m, k);
        let (w, b) = (r.normals(3 * width * k, 0.1), r.normals(3 * width, 0.1));
        let (q, kw) = (r.normals(d, 1.0), r.normals(d, 1.0));
        let rope: Vec<f32> = r.normals(rows * d / 2, 3.0).iter().flat_map(|a| [a.cos(), a.sin()]).collect();
        let start = r.normals(rows * 3 * width, 1.0);
        let mut want = wide(&start);
        let y = linear(&wide(&x), &wide(&w), &wide(&b), k);
        want[2 * 3 * width..][..m * 3 * width].copy_from_slice(&y);
        for (i, head) in want[2 * 3 * width..][..m * 3 * width].chunks_mut(d).enumerate() {
            let (row, part) = (2 + i / (3 * heads), i % (3 * heads) / heads);
            if part == 2 {
                continue;
            }
            let weight = if part == 0 { &q } else { &kw };
            let mean = head.iter().map(|v| v * v).sum::<f64>() / d as f64;
            let u: Vec<f64> =
                head.iter().zip(weight).map(|(v, w)| v / (mean + 1e-6).sqrt() * f64::from(*w)).collect();
            for p in 0..d / 2 {
                let (cos, sin) = (f64::from(rope[row * d + 2 * p]), f64::from(rope[row * d + 2 * p + 1]));
                head[2 * p] = u[2 * p] * cos - u[2 * p + 1] * sin;
                head[2 * p + 1] = u[2 * p] * sin + u[2 * p + 1] * cos;
            }
        }
        let dense = dense(&cpu, 3 * width, k, &w, &b, Storage::F32);
        let input = cpu.prepare(&upload(&cpu, &x, k), 0..m, Norm::None, plain(&dense)).unwrap();
        let mut into = upload(&cpu, &start, 3 * width);
        let (q, k, rope) = (upload(&cpu, &q, d), upload(&cpu, &kw, d), upload(&cpu, &rope, d));
        cpu.linear_qkv(&input, plain(&dense), QkNormRope { q: &q, k: &k, rope: &rope }, &mut into, 2)
            .unwrap();
        assert_close(&cpu.download(&into).unwrap(), &want, 2e-5);
    }
}

pub(super) fn attentions(level: Level) {
    for (rows, heads, d) in [(1, 1, 32), (5, 3, 40), (48, 2, 128), (77, 4, 64), (130, 1, 512)] {
        let mut r = Random(rows as u64);
        let cpu = cpu(level, Profile::W4A8);
        let width = heads * d;
        let qkv = r.normals(rows * 3 * width, 1.0);
        let bias = r.normals(heads * (2 * rows - 1), 1.0);
        let (x, tb, tx) = (wide(&qkv), upload(&cpu, &bias, 2 * rows - 1), upload(&cpu, &qkv, 3 * width));
        let scale = 2.0 / (d as f32).sqrt();
        for mask in [Mask::None, Mask::Causal, Mask::Bias(&tb)] {
            let mut want = vec![0.0; rows * width];
            for (h, m) in (0..heads).flat_map(|h| (0..rows).map(move |m| (h, m))) {
                let part = |row: usize, part: usize| &x[(row * 3 + part) * width + h * d..][..d];
                let keys = if matches!(mask, Mask::Causal) { m + 1 } else { rows };
                let p: Vec<f64> = (0..keys)
                    .map(|j| {
                        let s = part(m, 0).iter().zip(part(j, 1)).map(|(q, k)| q * k).sum::<f64>();
                        let bias = if matches!(mask, Mask::Bias(_)) {
                            bias[h * (2 * rows - 1) + j + rows - 1 - m]
                        } else {
                            0.0
                        };
                        (s * f64::from(scale) + f64::from(bias)).exp()
                    })
                    .collect();
                let sum: f64 = p.iter().sum();
                for (j, p) in p.iter().enumerate() {
                    for (o, v) in want[m * width + h * d..][..d].iter_mut().zip(part(j, 2)) {
                        *o += p / sum * v;
                    }
                }
            }
            let got = cpu.attention(&tx, Attention { heads, scale, mask }).unwrap();
            // scores of size 10 in f32 are off by 1e-6, and so are the weights
            assert_close(&cpu.download(&got).unwrap(), &want, 2e-5);
        }
    }
}
