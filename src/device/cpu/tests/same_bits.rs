//! What has to be the same to the last bit.

use super::linear::Layer;
use super::*;
use crate::ops::{
    Activation, Attention, Chunk, ConvSource, DenseSource, LinearSource, Mask, Norm, QkNormRope, Storage,
};

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// A bit of everything, with the activations of one operation going into the next.
fn everything(cpu: &Cpu, rows: usize) -> Vec<Vec<u32>> {
    let (heads, d) = (2, 64);
    let width = heads * d;
    let mut r = Random(9);
    let mut results = Vec::new();
    let mut keep = |t: &Tensor| results.push(bits(&cpu.download(t).unwrap()));

    let mut x = upload(cpu, &r.activations(rows, width), width);
    let table = upload(cpu, &r.normals(6 * width, 1.0), 6 * width);
    let part = |i: usize| Chunk { table: &table, row: 0, start: i * width };
    let modulate = || Norm::Modulate { scale: part(0), shift: part(1) };
    let mut linear = |n, k, unsigned| Layer::random(&mut r, n, k, 32, unsigned).load(cpu);
    let (qkv, out, fc1, fc2) = (
        linear(3 * width, width, false),
        linear(width, width, false),
        linear(4 * width, width, false),
        linear(width, 4 * width, true),
    );
    let heads_norm = upload(cpu, &r.normals(d, 1.0), d);
    let rope = upload(cpu, &r.normals(rows * d, 1.0), d);
    let norm = QkNormRope { q: &heads_norm, k: &heads_norm, rope: &rope };

    let input = cpu.prepare(&x, 0..rows, modulate(), plain(&qkv)).unwrap();
    let mut into = cpu.zeros(rows, 3 * width).unwrap();
    cpu.linear_qkv(&input, plain(&qkv), norm, &mut into, 0).unwrap();
    keep(&into);
    let y = cpu.attention(&into, Attention { heads, scale: 0.1, mask: Mask::None }).unwrap();
    keep(&y);
    let input = cpu.prepare(&y, 0..rows, Norm::None, plain(&out)).unwrap();
    cpu.linear_add(&input, plain(&out), Some(part(2)), &mut x, 0).unwrap();
    keep(&x);
    let input = cpu.prepare(&x, 0..rows, modulate(), plain(&fc1)).unwrap();
    let hidden = cpu.linear_gelu(&input, plain(&fc1), plain(&fc2)).unwrap();
    cpu.linear_add(&hidden, plain(&fc2), Some(part(3)), &mut x, 0).unwrap();
    keep(&x);

    let weight = r.normals(80 * width, 0.1).into();
    let source = DenseSource { n: 80, k: width, weight, bias: Vec::new(), storage: Storage::F32 };
    let dense = cpu.load_linear(&LinearSource::Dense(source)).unwrap();
    let input = cpu.prepare(&x, 0..rows, Norm::Silu, plain(&dense)).unwrap();
    let y = cpu.linear(&input, plain(&dense), Activation::GeluTanh).unwrap();
    keep(&y);
    let ones = upload(cpu, &[1.0; 80], 80);
    let y = cpu.group_norm(&y, 8, &ones, &ones, true).unwrap();
    keep(&y);
    let (weight, bias) = (r.normals(40 * 80 * 9, 0.1), r.normals(40, 1.0));
    let source =
        ConvSource { n: 40, c: 80, kernel: 3, stride: 1, upsample: true, weight: weight.into(), bias };
    let conv = cpu.load_conv(&source).unwrap();
    keep(&cpu.conv(&y, [rows / 5, 5], &conv, None).unwrap());
    results
}

pub(super) fn whatever_the_number_of_threads(level: Level) {
    for profile in [Profile::W4A4, Profile::W4A8, Profile::W4A16] {
        for rows in [5, 50, 305] {
            let with = |threads| everything(&Cpu::with_level(threads, profile, level).unwrap(), rows);
            let one = with(1);
            for threads in [2, 3] {
                assert!(with(threads) == one, "{threads} threads, {level:?}, {profile:?}, {rows} rows");
            }
        }
    }
}

/// With one block, no low-rank branch and no bias the result is one product of an integer sum and
/// two scales: instruction sets differ only where codes or sums do.
#[test]
fn integers_whatever_the_instruction_set() {
    for (profile, k) in [(Profile::W4A4, 64), (Profile::W4A8, 64), (Profile::W4A8, 1088)] {
        let mut r = Random(k as u64);
        let mut layer = Layer::random(&mut r, 128, k, 0, false);
        layer.bias.fill(0.0);
        let x = r.activations(25, k);
        let results: Vec<_> = Level::all()
            .into_iter()
            .map(|level| {
                let cpu = cpu(level, profile);
                let w = layer.load(&cpu);
                let input = cpu.prepare(&upload(&cpu, &x, k), 0..25, Norm::None, plain(&w)).unwrap();
                bits(&cpu.download(&cpu.linear(&input, plain(&w), Activation::None).unwrap()).unwrap())
            })
            .collect();
        assert!(results.iter().all(|result| *result == results[0]), "{profile:?}, {k} channels");
    }
}
