//! The kernels that every GPU can run, compiled for the CPU and run there thread by thread, against the CPU device: the files in
//! `kernels/` as they are, inline PTX included, which `ptx.h` interprets. A block's threads are fibres that run until
//! they wait for others.
//!
//! This finds, without a GPU: wrong indices and packings, wrong operands of instructions, accesses out of bounds (the
//! sanitizers' build, in global and shared memory), reads of what was never written, barriers and warp operations that
//! not all threads reach, copies that are not waited for, and many missing barriers, as every kernel runs with its
//! threads in both orders. It does not find: races that need another interleaving, bank conflicts, anything about
//! speed, and where a GPU's approximate functions and fused multiply-adds round differently.
//!
//! Needs a C++ compiler ($CXX or c++).

#![allow(clippy::unwrap_used, reason = "tests")]

mod generic;
mod layer;
mod program;

use half::f16;
use std::ops::Range;

use layer::{Layer, bf16s, code_word, f32s, floats, golden, random};
use program::{Arg, Launch, Program};
use svdq::device::cpu::Cpu;
use svdq::memory::HostMemory;
use svdq::ops::{
    self, Activation, Chunk, Codes, Device, LinearSource, LowRankSource, Norm, Profile, QkNormRope,
    SvdqSource,
};
use svdq::weights::pack;

/// `MAX_PARTS` of kernels/common/low_rank.cuh.
const MAX_PARTS: usize = 16;

/// A low-rank update of a layer `[n, k]` of outputs `rows`.
struct Update {
    rows: Range<usize>,
    rank: usize,
    down: Vec<f32>,
    up: Vec<f32>,
    strength: f32,
}

/// Ranks of a layer and its updates.
fn rank(layer: &Layer, updates: &[Update]) -> usize {
    layer.rank + updates.iter().map(|update| update.rank).sum::<usize>()
}

/// `parts` of a kernel: the layer's own, as `own` has its `down`, and those of `updates`.
fn down_parts(layer: &Layer, own: Vec<u8>, updates: &[Update]) -> Vec<Arg> {
    let mut end = layer.rank;
    let mut parts = vec![Arg::Buffer(own), float(1.0), Arg::Int(end)];
    for update in updates {
        end += update.rank;
        parts.extend([Arg::Buffer(bf16s(&update.down)), float(update.strength), Arg::Int(end)]);
    }
    (updates.len() + 1..MAX_PARTS).for_each(|_| parts.extend([Arg::Null, Arg::Int(0), Arg::Int(0)]));
    parts
}

/// The same of `up`.
fn up_parts(layer: &Layer, updates: &[Update]) -> Vec<Arg> {
    let mut end = layer.rank;
    let up = Arg::Buffer(layer.lora_up.clone());
    let mut parts = vec![up, Arg::Int(end), Arg::Int(0), Arg::Int(layer.n)];
    for Update { rows, rank, up, .. } in updates {
        end += rank;
        let [first, last] = [rows.start, rows.end].map(Arg::Int);
        parts.extend([Arg::Buffer(bf16s(up)), Arg::Int(end), first, last]);
    }
    let none = || [Arg::Null, Arg::Int(0), Arg::Int(0), Arg::Int(0)];
    (updates.len() + 1..MAX_PARTS).for_each(|_| parts.extend(none()));
    parts
}

fn float(value: f32) -> Arg {
    Arg::Int(value.to_bits() as usize)
}

/// Codes, scales and low-rank projection of a row block, as the kernels exchange them.
struct Input {
    codes: Vec<u8>,
    scales: Vec<u8>,
    lora: Vec<u8>,
}

/// The input of `layer` that `kernel` makes of `x` with `rows` rows a block, normalised with scale and shift if given.
fn quantise(
    program: &Program,
    kernel: &'static str,
    x: &[f32],
    layer: &Layer,
    norm: Option<[&[f32]; 2]>,
    rows: usize,
) -> Input {
    quantise_for(program, kernel, x, (layer, &[]), norm, rows)
}

/// The same for a layer with updates.
fn quantise_for(
    program: &Program,
    kernel: &'static str,
    x: &[f32],
    (layer, updates): (&Layer, &[Update]),
    norm: Option<[&[f32]; 2]>,
    rows: usize,
) -> Input {
    let (k, rank) = (layer.k, rank(layer, updates));
    let m = x.len() / k;
    let four = kernel == "quantize_w4a4";
    let shared = if four { rows * (k + 32) * 2 + rows / 2 * rows * 32 * 4 } else { rows * (2 * k + 32) };
    let launch = Launch { kernel, grid: [m.div_ceil(rows), 1], threads: 32 * rows, shared };
    let vector = |i: usize| norm.map_or(Arg::Null, |norm| Arg::Buffer(bf16s(norm[i])));
    let (codes, scales) =
        if four { (m.next_multiple_of(16) * k / 2, m.next_multiple_of(16) * k / 64) } else { (m * k, m) };
    let mut args = vec![
        Arg::Buffer(bf16s(x)),
        vector(0),
        vector(1),
        Arg::Buffer(f32s(&layer.reciprocals())),
        poison(codes),
        poison(4 * scales),
        if four { poison(2 * m * rank) } else { Arg::Null },
        if four { Arg::Null } else { poison(2 * m * k) },
        Arg::Int(m),
        Arg::Int(k),
        Arg::Int(rank),
    ];
    args.extend(down_parts(
        layer,
        bf16s(&pack::unpack_lora_down(&HostMemory::default(), &layer.lora_down, k, layer.rank).unwrap()),
        updates,
    ));
    let mut buffers = program.run(&launch, &args);
    // x, scale and shift if there are any, and reciprocals come first.
    let mut results = buffers.drain(if norm.is_some() { 4.. } else { 2.. });
    let mut take = || results.next().unwrap();
    // 8-bit codes come with h in place of its projection.
    Input { codes: take(), scales: take(), lora: take() }
}

/// What a kernel is to write: NaN as floats.
fn poison(bytes: usize) -> Arg {
    Arg::Buffer(vec![0xff; bytes])
}

/// What only some of the epilogues need.
#[derive(Default)]
struct Extra<'a> {
    out: Vec<f32>,
    columns: Vec<f32>,
    rope: Vec<u8>,
    updates: &'a [Update],
    next: Option<(&'a Layer, &'a [Update])>,
}

fn gemm_launch(program: &Program, kernel: &'static str, layer: &Layer, m: usize) -> Launch {
    let steps = if program.arch >= 800 { 4 } else { 2 };
    Launch { kernel, grid: [m.div_ceil(128), layer.n / 128], threads: 256, shared: steps * 8960 }
}

fn gemm_args(layer: &Layer, m: usize, x: Input, extra: Extra<'_>) -> Vec<Arg> {
    let Layer { n, k, .. } = *layer;
    let rows = m.next_multiple_of(16);
    let next_rank = extra.next.map_or(0, |(next, updates)| rank(next, updates));
    let reciprocals = extra.next.map_or(vec![], |(next, _)| next.reciprocals());
    let next = |bytes: usize| extra.next.map_or(Arg::Null, |_| poison(bytes));
    let mut args = vec![
        Arg::Buffer(x.codes),
        Arg::Buffer(x.scales),
        Arg::Buffer(layer.qweight.clone()),
        Arg::Buffer(layer.wscales.clone()),
        Arg::Buffer(x.lora),
        Arg::Buffer(bf16s(&pack::unpack_vector(&layer.bias))),
        Arg::Buffer(if extra.next.is_some() { vec![] } else { bf16s(&extra.out) }),
        Arg::Buffer(bf16s(&extra.columns)),
        Arg::Buffer(extra.rope),
        Arg::Buffer(f32s(&reciprocals)),
        next(rows * n / 2),
        next(4 * rows * n / 64),
        next(4 * (n / 128) * m * next_rank),
    ];
    args.extend(up_parts(layer, extra.updates));
    args.extend(match extra.next {
        Some((next, updates)) => down_parts(next, next.lora_down.clone(), updates),
        None => (0..MAX_PARTS).flat_map(|_| [Arg::Null, Arg::Int(0), Arg::Int(0)]).collect(),
    });
    args.extend([m, n, k, rank(layer, extra.updates), next_rank].map(Arg::Int));
    args
}

/// Where `out` is among the buffers of [`gemm_args`].
const OUT: usize = 6;

/// What a kernel leaves in `out`, which begins as NaN if `extra` has none.
fn gemm(
    program: &Program,
    kernel: &'static str,
    layer: &Layer,
    m: usize,
    x: Input,
    mut extra: Extra<'_>,
) -> Vec<f32> {
    if extra.out.is_empty() {
        extra.out = vec![f32::NAN; m * layer.n];
    }
    let out =
        program.run(&gemm_launch(program, kernel, layer, m), &gemm_args(layer, m, x, extra)).swap_remove(OUT);
    pack::bf16_to_f32(&out).collect()
}

/// GELU, and the input of the next linear.
fn gemm_gelu(
    program: &Program,
    layer: &Layer,
    m: usize,
    x: Input,
    next: &Layer,
    updates: &[Update],
) -> Input {
    let extra = Extra { next: Some((next, updates)), ..Extra::default() };
    let mut buffers =
        program.run(&gemm_launch(program, "gemm_w4a4_gelu", layer, m), &gemm_args(layer, m, x, extra));
    let mut results = buffers.drain(10..13);
    let mut take = || results.next().unwrap();
    let (codes, scales, partials) = (take(), take(), take());
    let count = m * rank(next, updates);
    let launch = Launch { kernel: "sum_low_rank", grid: [count.div_ceil(1024), 1], threads: 256, shared: 0 };
    let args = [Arg::Buffer(partials), poison(2 * count), Arg::Int(layer.n / 128), Arg::Int(count)];
    Input { codes, scales, lora: program.run(&launch, &args).swap_remove(1) }
}

/// Rows of `x`, over and over.
fn repeat(x: &[f32], k: usize, m: usize) -> Vec<f32> {
    x.iter().copied().cycle().take(m * k).collect()
}

fn rounded(values: &[f32]) -> Vec<f32> {
    pack::bf16_to_f32(&bf16s(values)).collect()
}

/// The CPU device, `layer` on it, and `x` made ready for it.
fn prepare(layer: &Layer, x: &[f32]) -> (Cpu, <Cpu as Device>::Linear, <Cpu as Device>::Input) {
    let cpu = Cpu::new(1, Profile::W4A4).unwrap();
    let linear = cpu.load_linear(&LinearSource::Svdq(layer.source())).unwrap();
    let x = cpu.upload(x, layer.k).unwrap();
    let rows = cpu.download(&x).unwrap().len() / layer.k;
    let input = cpu.prepare(&x, 0..rows, Norm::None, ops::Layer::plain(&linear)).unwrap();
    (cpu, linear, input)
}

/// `‖a - b‖ / ‖b‖`
#[track_caller]
fn assert_close(what: &str, a: &[f32], b: &[f32], limit: f64) {
    assert_eq!(a.len(), b.len(), "{what}");
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let error = square(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let relative = (error / square(&mut b.iter().map(|b| f64::from(*b)))).sqrt();
    println!("{what}: {relative:.1e}");
    assert!(relative < limit, "{what}: {relative:e}");
}

const ROWS: [usize; 3] = [1, 37, 130];

/// Codes and scales are the golden ones, and the low-rank projection is to the rounding of bf16.
#[test]
#[ignore = "needs a C++ compiler"]
fn inputs_have_the_golden_codes() {
    let (layer, x) = golden("signed");
    let (k, rank) = (layer.k, layer.rank);
    let xq = layer::golden_codes("signed.xq");
    let [xs, lora] = ["signed.xs", "signed.lora"].map(layer::golden_floats);
    for program in Program::all() {
        for (m, rows) in [(1, 16), (37, 16), (37, 8)] {
            let input = quantise(program, "quantize_w4a4", &repeat(&x, k, m), &layer, None, rows);
            let scales = floats(&input.scales);
            for i in 0..m {
                for j in 0..k {
                    let (byte, shift) = code_word(i, j, k);
                    let code = (input.codes[byte] >> shift << 4) as i8 >> 4;
                    assert_eq!(code, xq[i % 5 * k + j], "code {i}, {j} of {m} rows");
                }
                for g in 0..k / 64 {
                    assert_eq!(
                        scales[g * m.next_multiple_of(16) + i],
                        xs[i % 5 * k / 64 + g],
                        "scale {i}, {g} of {m} rows"
                    );
                }
            }
            let projected: Vec<_> = pack::bf16_to_f32(&input.lora).collect();
            for (a, b) in projected.iter().zip(repeat(&lora, rank, m)) {
                assert!((a - b).abs() <= b.abs() / 256.0 + 1e-6, "{a} is not {b}");
            }
        }
    }
}

/// adaLN before 8-bit codes, by the formula.
#[test]
#[ignore = "needs a C++ compiler"]
fn eight_bit_inputs_are_normalised() {
    let layer = Layer::random(128, 192, 48, false, 1);
    let (k, m) = (layer.k, 19);
    let x = rounded(&random(m * k, 2, -2.0, 3.0));
    let (scale, shift) = (rounded(&random(k, 3, 0.5, 1.5)), rounded(&random(k, 4, -1.0, 1.0)));
    let reciprocals = layer.reciprocals();
    for program in Program::all() {
        let input = quantise(program, "quantize_w4a8", &x, &layer, Some([&scale, &shift]), 4);
        let scales = floats(&input.scales);
        let left: Vec<_> = pack::bf16_to_f32(&input.lora).collect();
        let mut differ = 0;
        for (i, row) in x.chunks(k).enumerate() {
            let mean = row.iter().sum::<f32>() / k as f32;
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / k as f32;
            let h: Vec<_> =
                (0..k).map(|j| (row[j] - mean) / (variance + 1e-6).sqrt() * scale[j] + shift[j]).collect();
            for (h, left) in h.iter().zip(&left[i * k..]) {
                assert!((h - left).abs() <= h.abs() / 256.0 + 1e-5, "{left} is not {h}");
            }
            let smoothed: Vec<_> = h.iter().zip(&reciprocals).map(|(h, r)| h * r).collect();
            let expected = smoothed.iter().fold(0.0f32, |top, v| top.max(v.abs())) / 127.0;
            assert!((scales[i] / expected - 1.0).abs() < 1e-4, "row {i}: {} is not {expected}", scales[i]);
            for (j, (code, smoothed)) in input.codes[i * k..].iter().zip(&smoothed).enumerate() {
                // h is rounded to bf16.
                let delta = f32::from(*code as i8) - smoothed / expected;
                assert!(delta.abs() < 1.0, "code {i}, {j}");
                differ += usize::from(delta.abs() > 0.5);
            }
        }
        assert!(differ < m * k / 20, "{differ} codes differ");
    }
}

/// With weights, inputs and scales that are small integers and powers of two, every sum is exact: the bits are the CPU's.
#[test]
#[ignore = "needs a C++ compiler"]
fn integer_linears_are_the_cpus_to_the_bit() {
    for program in Program::all() {
        for (m, rank) in ROWS.into_iter().zip([16, 48, 32]).chain([(37, 0)]) {
            let layer = Layer::integers(128, 192, rank, false, m as u32);
            let mut x: Vec<_> = random(m * layer.k, 5, -7.5, 7.5).iter().map(|v| v.round()).collect();
            x.chunks_mut(64).for_each(|group| group[m % 64] = 7.0);
            let input = || quantise(program, "quantize_w4a4", &x, &layer, None, 16);
            let (cpu, linear, prepared) = prepare(&layer, &x);
            let plain = ops::Layer::plain(&linear);
            let y = cpu.linear(&prepared, plain, Activation::None).unwrap();
            let got = gemm(program, "gemm_w4a4_store", &layer, m, input(), Extra::default());
            assert_eq!(got, rounded(&cpu.download(&y).unwrap()), "{m} rows, rank {rank}");

            let before: Vec<_> = random(m * layer.n, 6, -9.0, 9.0).iter().map(|v| v.round()).collect();
            let gate: Vec<_> = random(layer.n, 7, -4.0, 4.0).iter().map(|v| v.round()).collect();
            let (mut into, table) =
                (cpu.upload(&before, layer.n).unwrap(), cpu.upload(&gate, layer.n).unwrap());
            cpu.linear_add(&prepared, plain, Some(Chunk { table: &table, row: 0, start: 0 }), &mut into, 0)
                .unwrap();
            let extra = Extra { out: before, columns: gate, ..Extra::default() };
            let got = gemm(program, "gemm_w4a4_add", &layer, m, input(), extra);
            assert_eq!(got, rounded(&cpu.download(&into).unwrap()), "{m} rows, rank {rank}, added");
        }
    }
}

/// Updates of a layer, of all outputs and of some, after its own branch and without one.
#[test]
#[ignore = "needs a C++ compiler"]
fn integer_updates_are_the_cpus_to_the_bit() {
    for program in Program::all() {
        for (m, rank) in [(1, 32), (37, 0), (130, 16)] {
            let layer = Layer::integers(256, 192, rank, false, m as u32);
            let (n, k) = (layer.n, layer.k);
            let whole = |count, seed, top: f32| -> Vec<f32> {
                random(count, seed, -top, top).iter().map(|v| v.round()).collect()
            };
            let updates = [(0..n, 16, 0.5), (n / 3..n - 5, 32, -2.0), (200..201, 16, 1.0)];
            let updates = updates.map(|(rows, rank, strength)| Update {
                down: whole(k * rank, 20 + rank as u32, 0.55),
                up: whole(rows.len() * rank, 21 + rank as u32, 2.0),
                rows,
                rank,
                strength,
            });
            let mut x = whole(m * k, 5, 7.5);
            x.chunks_mut(64).for_each(|group| group[m % 64] = 7.0);

            let cpu = Cpu::new(1, Profile::W4A4).unwrap();
            let linear = cpu.load_linear(&LinearSource::Svdq(layer.source())).unwrap();
            let source = |update: &Update| LowRankSource {
                n,
                k,
                rows: update.rows.clone(),
                rank: update.rank,
                down: update.down.clone().into(),
                up: update.up.clone().into(),
                bias: vec![],
            };
            let loaded = cpu.load_low_ranks(&updates.each_ref().map(source)).unwrap();
            let attached: Vec<_> = loaded.iter().zip(&updates).map(|(l, u)| (l, u.strength)).collect();
            let attached = ops::Layer { weights: &linear, updates: &attached };
            let uploaded = cpu.upload(&x, k).unwrap();
            let input = cpu.prepare(&uploaded, 0..m, Norm::None, attached).unwrap();
            let y = cpu.linear(&input, attached, Activation::None).unwrap();

            let input = quantise_for(program, "quantize_w4a4", &x, (&layer, &updates), None, 16);
            let extra = Extra { updates: &updates, ..Extra::default() };
            let got = gemm(program, "gemm_w4a4_store", &layer, m, input, extra);
            assert_eq!(got, rounded(&cpu.download(&y).unwrap()), "{m} rows, rank {rank}");
        }
    }
}

/// The same for codes 0..15, and no low-rank branch.
#[test]
#[ignore = "needs a C++ compiler"]
fn unsigned_integer_linears_are_the_cpus_to_the_bit() {
    for program in Program::all() {
        for m in ROWS {
            let layer = Layer::integers(128, 256, 0, true, m as u32);
            let (n, k, rows) = (layer.n, layer.k, m.next_multiple_of(16));
            let mut codes: Vec<_> =
                random(m * k, 8, -0.5, 15.5).iter().map(|v| v.round().clamp(0.0, 15.0)).collect();
            codes.chunks_mut(64).for_each(|group| group[m % 64] = 15.0);
            let mut words = vec![0; rows * k / 2];
            for (at, code) in codes.iter().enumerate() {
                let (byte, shift) = code_word(at / k, at % k, k);
                words[byte] |= (*code as u8) << shift;
            }
            let input = Input { codes: words, scales: f32s(&vec![1.0; rows * k / 64]), lora: vec![] };
            let shifted: Vec<_> = codes.iter().map(|code| code - 0.171875).collect();
            let (cpu, linear, prepared) = prepare(&layer, &shifted);
            let mut into = cpu.zeros(m, n).unwrap();
            cpu.linear_add(&prepared, ops::Layer::plain(&linear), None, &mut into, 0).unwrap();
            let extra = Extra { out: vec![0.0; m * n], columns: vec![1.0; n], ..Extra::default() };
            let got = gemm(program, "gemm_w4a4_add_u4", &layer, m, input, extra);
            assert_eq!(got, rounded(&cpu.download(&into).unwrap()), "{m} rows");
        }
    }
}

/// Golden layers: a linear, and two with GELU between them. Low-rank projections are rounded to bf16, which the CPU does
/// not do, and so are the output and what GELU's codes are made of: some of them are the next ones.
#[test]
#[ignore = "needs a C++ compiler"]
fn golden_linears_are_the_cpus() {
    let ((layer, x), (next, _)) = (golden("signed"), golden("unsigned"));
    for program in Program::all() {
        for m in [1, 37] {
            let x = repeat(&x, layer.k, m);
            let input = || quantise(program, "quantize_w4a4", &x, &layer, None, 8);
            let (cpu, linear, prepared) = prepare(&layer, &x);
            let plain = ops::Layer::plain(&linear);
            let y = cpu.linear(&prepared, plain, Activation::None).unwrap();
            let got = gemm(program, "gemm_w4a4_store", &layer, m, input(), Extra::default());
            assert_close("store", &got, &cpu.download(&y).unwrap(), 3e-3);

            let after = cpu.load_linear(&LinearSource::Svdq(next.source())).unwrap();
            let after = ops::Layer::plain(&after);
            let hidden = cpu.linear_gelu(&prepared, plain, after).unwrap();
            let y = cpu.linear(&hidden, after, Activation::None).unwrap();
            let hidden = gemm_gelu(program, &layer, m, input(), &next, &[]);
            let extra = Extra { out: vec![0.0; m * next.n], columns: vec![1.0; next.n], ..Extra::default() };
            let got = gemm(program, "gemm_w4a4_add_u4", &next, m, hidden, extra);
            assert_close("gelu", &got, &cpu.download(&y).unwrap(), 1e-2);
        }
    }
}

/// Heads of q and k are normalised and rotated, and v is not. The input is the golden one, whose codes do not hang on how
/// it is rounded.
#[test]
#[ignore = "needs a C++ compiler"]
fn heads_are_the_cpus() {
    let (signed, x) = golden("signed");
    let layer = Layer { smooth: signed.smooth, ..Layer::random(384, 192, 16, false, 9) };
    for program in Program::all() {
        for m in [1, 37] {
            let x = repeat(&x, layer.k, m);
            let weights = rounded(&random(256, 11, 0.5, 1.5));
            let rope: Vec<_> = random(m * 128, 12, -1.0, 1.0).into_iter().map(f16::from_f32).collect();
            let (cpu, linear, prepared) = prepare(&layer, &x);
            let [q, k] = [0, 128].map(|at| cpu.upload(&weights[at..at + 128], 128).unwrap());
            let table = cpu.upload(&rope.iter().map(|v| v.to_f32()).collect::<Vec<_>>(), 128).unwrap();
            let norm = QkNormRope { q: &q, k: &k, rope: &table };
            let mut into = cpu.zeros(m, layer.n).unwrap();
            cpu.linear_qkv(&prepared, ops::Layer::plain(&linear), norm, &mut into, 0).unwrap();
            let rope = rope.iter().flat_map(|v| v.to_le_bytes()).collect();
            let extra = Extra { columns: weights, rope, ..Extra::default() };
            let input = quantise(program, "quantize_w4a4", &x, &layer, None, 16);
            let got = gemm(program, "gemm_w4a4_qkv", &layer, m, input, extra);
            assert_close("qkv", &got, &cpu.download(&into).unwrap(), 4e-3);
        }
    }
}

/// int8 weights and their scales, exactly.
#[test]
#[ignore = "needs a C++ compiler"]
fn weights_are_unpacked_exactly() {
    let layer = Layer::random(256, 192, 0, false, 13);
    let (n, k) = (layer.n, layer.k);
    let codes = pack::unpack_codes(&layer.qweight, n, k);
    let scales = pack::unpack_wscales(&layer.wscales, n, k);
    let packed = || [Arg::Buffer(layer.qweight.clone()), Arg::Buffer(layer.wscales.clone())];
    for program in Program::all() {
        let launch = Launch { kernel: "unpack_w4a8_scales", grid: [n / 128, 1], threads: 128, shared: 0 };
        let mut args = Vec::from(packed());
        args.extend([poison(4 * n), Arg::Int(k)]);
        let row_scales = program.run(&launch, &args).swap_remove(2);
        let launch = Launch { kernel: "unpack_w4a8", grid: [k / 64, n / 128], threads: 256, shared: 0 };
        let mut args = Vec::from(packed());
        args.extend([Arg::Buffer(row_scales.clone()), poison(n * k), Arg::Int(k)]);
        let unpacked = program.run(&launch, &args).swap_remove(3);
        let row_scales = floats(&row_scales);
        for i in 0..n {
            let value = |j: usize| f32::from(codes[i * k + j]) * scales[j / 64 * n + i];
            let scale = (0..k).fold(0.0f32, |top, j| top.max(value(j).abs())) / 127.0;
            assert_eq!(row_scales[i], scale, "scale of row {i}");
            for j in 0..k {
                assert_eq!(
                    f32::from(unpacked[i * k + j] as i8),
                    (value(j) / scale).round_ties_even(),
                    "{i}, {j}"
                );
            }
        }
    }
}

/// A layer as NVFP4: its codes with other scales.
fn nvfp4(layer: &Layer, seed: u32) -> SvdqSource<'_> {
    let Layer { n, k, .. } = *layer;
    // Every finite e4m3 number that is not negative.
    let scales: Vec<u8> = random(n * k / 16, seed, 0.0, 126.9).iter().map(|&v| v as u8).collect();
    let channel_scales = random(n, seed + 1, 0.001, 0.01);
    SvdqSource {
        codes: Codes::Fp4 { channel_scales },
        wscales: pack::pack_fp4_scales(&scales, n, k).into(),
        ..layer.source()
    }
}

/// The first arguments of what unpacks a layer: codes, scales and, for NVFP4, those of the channels.
fn packed(source: &SvdqSource<'_>) -> Vec<Arg> {
    let mut args = vec![Arg::Buffer(source.qweight.to_vec()), Arg::Buffer(source.wscales.to_vec())];
    if let Codes::Fp4 { channel_scales } = &source.codes {
        args.push(Arg::Buffer(f32s(channel_scales)));
    }
    args
}

/// bf16 weights, exactly.
#[test]
#[ignore = "needs a C++ compiler"]
fn weights_become_bf16_exactly() {
    let layer = Layer::random(256, 192, 0, false, 14);
    let (n, k, reciprocals) = (layer.n, layer.k, layer.reciprocals());
    for (kernel, source) in [("unpack_int4_bf16", layer.source()), ("unpack_nvfp4_bf16", nvfp4(&layer, 15))] {
        let (unpacked, mut row) =
            (pack::Unpacked::of(&svdq::memory::HostMemory::default(), &source).unwrap(), vec![0.0; k]);
        let mut expected = Vec::new();
        for i in 0..n {
            unpacked.row(i, &mut row);
            expected.extend(rounded(&row.iter().zip(&reciprocals).map(|(w, r)| w * r).collect::<Vec<_>>()));
        }
        for program in Program::all() {
            let mut args = packed(&source);
            args.extend([Arg::Buffer(f32s(&reciprocals)), poison(2 * n * k), Arg::Int(k)]);
            let launch = Launch { kernel, grid: [k / 64, n / 128], threads: 256, shared: 0 };
            // As numbers: NVFP4 has a -0, which becomes 0.
            let got: Vec<_> = pack::bf16_to_f32(&program.run(&launch, &args).pop().unwrap()).collect();
            assert!(got.iter().eq(&expected), "{kernel}");
        }
    }
}

/// int8 weights of an NVFP4 layer and their scales, exactly.
#[test]
#[ignore = "needs a C++ compiler"]
fn nvfp4_weights_are_folded_exactly() {
    let layer = Layer::random(256, 192, 0, false, 16);
    let (n, k, source) = (layer.n, layer.k, nvfp4(&layer, 17));
    let (unpacked, mut row) =
        (pack::Unpacked::of(&svdq::memory::HostMemory::default(), &source).unwrap(), vec![0.0; k]);
    for program in Program::all() {
        let mut args = packed(&source);
        args.extend([poison(4 * n), Arg::Int(k)]);
        let launch =
            Launch { kernel: "unpack_nvfp4_w4a8_scales", grid: [n / 128, 1], threads: 128, shared: 0 };
        let row_scales = program.run(&launch, &args).swap_remove(3);
        let mut args = packed(&source);
        args.extend([Arg::Buffer(row_scales.clone()), poison(n * k), Arg::Int(k)]);
        let launch = Launch { kernel: "unpack_nvfp4_w4a8", grid: [k / 64, n / 128], threads: 256, shared: 0 };
        let codes = program.run(&launch, &args).swap_remove(4);
        for (i, scale) in floats(&row_scales).into_iter().enumerate() {
            unpacked.row(i, &mut row);
            assert_eq!(scale, row.iter().fold(0.0f32, |top, w| top.max(w.abs())) / 127.0, "scale of row {i}");
            for (j, w) in row.iter().enumerate() {
                assert_eq!(f32::from(codes[i * k + j] as i8), (w / scale).round_ties_even(), "{i}, {j}");
            }
        }
    }
}

/// Kernels with mistakes in them do not pass.
#[test]
#[ignore = "needs a C++ compiler"]
fn mistakes_are_found() {
    let layer = Layer::integers(128, 256, 16, false, 1);
    let x = vec![7.0; 37 * layer.k];
    let right = &Program::all()[1];
    let input = quantise(right, "quantize_w4a4", &x, &layer, None, 16);
    let expected = gemm(right, "gemm_w4a4_store", &layer, 37, input, Extra::default());
    for (name, from, to) in [
        (
            "no_barrier",
            "mma::copy_wait<STEPS - 2>();\n        __syncthreads();",
            "mma::copy_wait<STEPS - 2>();",
        ),
        ("late_wait", "mma::copy_wait<STEPS - 2>();", "mma::copy_wait<STEPS - 1>();"),
        ("not_all_come", "mma::quad_transpose(r);", "if (row0 < p.m) mma::quad_transpose(r);"),
    ] {
        let program = Program::build(name, 800, &["-O0"], &[(from, to)]);
        let input = quantise(&program, "quantize_w4a4", &x, &layer, None, 16);
        let extra = Extra { out: vec![0.0; 37 * layer.n], ..Extra::default() };
        let result = program.try_run(
            &gemm_launch(&program, "gemm_w4a4_store", &layer, 37),
            &gemm_args(&layer, 37, input, extra),
        );
        let wrong = result.map(|buffers| pack::bf16_to_f32(&buffers[OUT]).collect::<Vec<_>>() != expected);
        println!("{name}: {wrong:?}");
        assert!(wrong.unwrap_or(true), "{name} is not found");
    }
}
