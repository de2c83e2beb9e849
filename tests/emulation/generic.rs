//! The kernels for every GPU against their formulas: dense linears, linears with AWQ's 4-bit weights, attention.

use crate::layer::{bf16s, f32s, floats, random};
use crate::program::{Arg, Launch, Program};
use crate::{assert_close, poison, rounded};
use svdq::weights::pack;

/// The fields of `product::Output` for `out`, f32 or bf16, and nothing else.
fn output(out: Arg, f32: bool, bias: Arg, pitch: usize) -> Vec<Arg> {
    let none = || [Arg::Null, Arg::Int(0)];
    let out = [out, Arg::Int(f32.into())];
    let one = Arg::Int(1.0f32.to_bits() as usize);
    let rest = [Arg::Null, Arg::Null, bias, Arg::Int(0), Arg::Int(pitch), Arg::Int(0), one];
    out.into_iter().chain(none()).chain(none()).chain(rest).collect()
}

/// `x · wᵀ` of `[m, k]` and `[n, k]`
fn product(x: &[f32], w: &[f32], k: usize) -> Vec<f32> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    x.chunks(k).flat_map(|x| w.chunks(k).map(move |w| dot(x, w) as f32)).collect()
}

/// The results' bytes, f32 or bf16.
fn dense(program: &Program, kernel: &'static str, x: &[f32], w: &[f32], k: usize, f32: bool) -> Vec<u8> {
    let (m, n) = (x.len() / k, w.len() / k);
    let shared = if program.arch >= 800 { 98304 } else { 65536 };
    let launch = Launch { kernel, grid: [m.div_ceil(128) * n.div_ceil(128), 1], threads: 128, shared };
    let sizes = [m, n, k].map(Arg::Int);
    let mut args: Vec<_> = [x, w].map(|v| Arg::Buffer(bf16s(v))).into_iter().chain(sizes).collect();
    args.extend(output(poison(if f32 { 4 } else { 2 } * m * n), f32, Arg::Null, n));
    program.run(&launch, &args).swap_remove(2)
}

#[test]
#[ignore = "needs a C++ compiler"]
fn dense_linears_are_the_formula() {
    for program in Program::all() {
        for (kernel, m, n, k) in [("gemm_bf16_k8", 130, 72, 200), ("gemm_bf16_any_k", 3, 130, 71)] {
            let (x, w) = (rounded(&random(m * k, 21, -3.0, 3.0)), rounded(&random(n * k, 22, -0.2, 0.2)));
            let expected = product(&x, &w, k);
            assert_close(kernel, &floats(&dense(program, kernel, &x, &w, k, true)), &expected, 1e-6);
            let y: Vec<_> = pack::bf16_to_f32(&dense(program, kernel, &x, &w, k, false)).collect();
            assert_close(kernel, &y, &rounded(&expected), 2e-4);
        }
    }
}

/// fp16 does not hold 1e6, and holds 1e-5 to few bits; see `mma::Role`.
#[test]
#[ignore = "needs a C++ compiler"]
fn activations_may_be_large_or_small() {
    let k = 64;
    let w = rounded(&random(8 * k, 24, -0.2, 0.2));
    for program in Program::all() {
        for (magnitude, limit) in [(1e6, 1e-6), (1e-3, 1e-3), (1e-4, 1e-2)] {
            let x = rounded(&random(8 * k, 23, -magnitude, magnitude));
            let limit = if program.arch >= 800 { 1e-6 } else { limit };
            let y = floats(&dense(program, "gemm_bf16_k8", &x, &w, k, true));
            assert_close(&format!("{magnitude:e}"), &y, &product(&x, &w, k), limit);
        }
    }
}

/// What is not a number stays so where results are rounded to bf16, and nothing else becomes it.
#[test]
#[ignore = "needs a C++ compiler"]
fn nan_is_not_lost() {
    let k = 64;
    let w = rounded(&random(8 * k, 32, -0.2, 0.2));
    let mut x = rounded(&random(8 * k, 33, -3.0, 3.0));
    x[3 * k + 5] = f32::NAN;
    for program in Program::all() {
        let y: Vec<_> = pack::bf16_to_f32(&dense(program, "gemm_bf16_k8", &x, &w, k, false)).collect();
        for (row, y) in y.chunks(8).enumerate() {
            assert!(y.iter().all(|v| v.is_nan() == (row == 3)), "row {row}: {y:?}");
        }
    }
}

#[test]
#[ignore = "needs a C++ compiler"]
fn awq_linears_are_the_formula() {
    let (n, k, group, chunks) = (96, 320, 64, 3);
    let codes: Vec<_> = random(n * k, 25, -0.5, 15.5).iter().map(|v| v.round().clamp(0.0, 15.0)).collect();
    let mut words = vec![0u16; n * k / 4];
    for (at, &code) in codes.iter().enumerate() {
        let (row, i) = (at / k, at % k);
        let word = row / 4 * k + i / 64 * 64 + row % 4 * 16 + i % 64 / 32 * 8 + i % 8;
        words[word] |= (code as u16) << (i % 32 / 8 * 4);
    }
    let scales = rounded(&random(n * k / group, 26, 0.005, 0.015));
    let zeros = rounded(&random(n * k / group, 27, -0.1, -0.05));
    let bias = random(n, 28, -1.0, 1.0);
    let mut w = vec![0.0; n * k];
    for (at, value) in w.iter_mut().enumerate() {
        let (column, i) = (at / k, at % k);
        let row = column % (n / chunks) * chunks + column / (n / chunks);
        let vector = i / group * n + row;
        *value = codes[row * k + i].mul_add(scales[vector], zeros[vector]);
    }
    let (words, [scales, zeros]) = (
        words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>(),
        [&scales, &zeros].map(|v| bf16s(v)),
    );
    for program in Program::all() {
        let launch =
            Launch { kernel: "unpack_awq_bf16", grid: [(n * k).div_ceil(8192), 1], threads: 256, shared: 0 };
        let mut args: Vec<_> = [&words, &scales, &zeros].map(|bytes| Arg::Buffer(bytes.clone())).into();
        args.extend([poison(2 * n * k), Arg::Int(n), Arg::Int(k), Arg::Int(6), Arg::Int(chunks)]);
        let unpacked: Vec<_> = pack::bf16_to_f32(&program.run(&launch, &args)[3]).collect();
        assert_eq!(unpacked, rounded(&w), "unpacked");
        for (kernel, m, rows) in [("gemm_w4a16_m8", 3, 8), ("gemm_w4a16_m16", 21, 16)] {
            let x = rounded(&random(m * k, 29, -3e4, 3e4));
            let launch = Launch { kernel, grid: [m.div_ceil(rows), n.div_ceil(64)], threads: 256, shared: 0 };
            let mut args = vec![Arg::Buffer(bf16s(&x))];
            args.extend([&words, &scales, &zeros].map(|bytes| Arg::Buffer(bytes.clone())));
            args.extend([m, n, k, group, chunks].map(Arg::Int));
            args.extend(output(poison(4 * m * n), true, Arg::Buffer(f32s(&bias)), n));
            let y = floats(&program.run(&launch, &args)[4]);
            let mut expected = product(&x, &w, k);
            expected.iter_mut().enumerate().for_each(|(at, v)| *v += bias[at % n]);
            assert_close(kernel, &y, &expected, 1e-5);
        }
    }
}

/// Attention by its formula.
fn attention(qkv: &[f32], [tokens, heads, dim]: [usize; 3], causal: bool, bias: &[f32]) -> Vec<f32> {
    let row = |which: usize, token: usize, head: usize| {
        let at = (token * 3 + which) * heads * dim + head * dim;
        &qkv[at..at + dim]
    };
    let mut out = vec![0.0; tokens * heads * dim];
    for (at, to) in out.chunks_mut(dim).enumerate() {
        let (query, head) = (at / heads, at % heads);
        let keys = if causal { query + 1 } else { tokens };
        let weights: Vec<_> = (0..keys)
            .map(|key| {
                let dot = product(row(0, query, head), row(1, key, head), dim)[0];
                let mask = if bias.is_empty() {
                    0.0
                } else {
                    bias[head * (2 * tokens - 1) + key + tokens - 1 - query]
                };
                f64::from(dot / (dim as f32).sqrt() + mask).exp()
            })
            .collect();
        let total: f64 = weights.iter().sum();
        for (i, to) in to.iter_mut().enumerate() {
            let sum: f64 =
                weights.iter().enumerate().map(|(key, w)| w * f64::from(row(2, key, head)[i])).sum();
            *to = (sum / total) as f32;
        }
    }
    out
}

#[test]
#[ignore = "needs a C++ compiler"]
fn attention_is_the_formula() {
    for program in Program::all() {
        let wide = if program.arch >= 800 { 86656 } else { 53888 };
        for (kernel, tokens, dim, queries, threads, shared) in [
            ("attention_d64", 70, 64, 64, 128, 40960),
            ("attention_d128", 40, 128, 128, 128, 65536),
            ("attention_wide", 70, 96, 32, 256, wide),
        ] {
            let heads = 2;
            let qkv = rounded(&random(3 * tokens * heads * dim, 30, -2.0, 2.0));
            let bias = random(heads * (2 * tokens - 1), 31, -2.0, 2.0);
            for (causal, bias) in [(false, &[][..]), (true, &[]), (false, &bias)] {
                let launch = Launch { kernel, grid: [tokens.div_ceil(queries), heads], threads, shared };
                let mask = if bias.is_empty() { Arg::Null } else { Arg::Buffer(f32s(bias)) };
                let scale = (dim as f32).sqrt().recip().to_bits() as usize;
                let mut args = vec![Arg::Buffer(bf16s(&qkv)), poison(2 * tokens * heads * dim), mask];
                args.extend([tokens, heads, dim, causal.into(), scale].map(Arg::Int));
                let out: Vec<_> = pack::bf16_to_f32(&program.run(&launch, &args)[1]).collect();
                let expected = attention(&qkv, [tokens, heads, dim], causal, bias);
                // Probabilities and results are rounded to bf16.
                assert_close(kernel, &out, &expected, 4e-3);
            }
        }
    }
}
