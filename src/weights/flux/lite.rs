//! 4-bit layers under diffusers' own modules ("Nunchaku Lite"): q, k and v apart, the single blocks' `proj_out` in one,
//! modulation rows in diffusers' order, every input signed. A layer without codes is dense.

use std::borrow::Cow;

use super::svdq::{awq, svdq};
use super::{FluxWeights, Part, Result, Stream, dense, double_names, single_names};
use crate::memory::HostMemory;
use crate::ops::{AwqSource, Codes, DenseSource, LinearSource, Storage, SvdqSource};
use crate::weights::{Numbers, pack};

/// A linear of a double block.
pub(super) fn double<'a>(
    w: &'a FluxWeights,
    prefix: &str,
    stream: Stream,
    part: Part,
) -> Result<LinearSource<'a>> {
    let names = double_names(stream, part);
    if !is_packed(w, prefix, names)? {
        return dense::double(w, prefix, stream, part).map(LinearSource::Dense);
    }
    let d = w.config.hidden();
    let fc1 = double_names(stream, Part::Fc1)[0];
    match part {
        Part::Modulation => modulation(w, prefix, names[0], [6 * d, d], &[1, 4]),
        Part::Qkv => stack(w, prefix, names),
        Part::Out => one(w, prefix, names[0], [d, d]).map(LinearSource::Svdq),
        Part::Fc1 => one(w, prefix, fc1, [width(w, prefix, fc1)?, d]).map(LinearSource::Svdq),
        Part::Fc2 => one(w, prefix, names[0], [d, width(w, prefix, fc1)?]).map(LinearSource::Svdq),
    }
}

/// A linear of a single block.
pub(super) fn single<'a>(w: &'a FluxWeights, prefix: &str, part: Part) -> Result<LinearSource<'a>> {
    let names = single_names(part);
    if !is_packed(w, prefix, names)? {
        return dense::single(w, prefix, part).map(LinearSource::Dense);
    }
    let d = w.config.hidden();
    let fc1 = || width(w, prefix, single_names(Part::Fc1)[0]);
    match part {
        Part::Modulation => modulation(w, prefix, names[0], [3 * d, d], &[1]),
        Part::Qkv => stack(w, prefix, names),
        Part::Fc1 => one(w, prefix, names[0], [fc1()?, d]).map(LinearSource::Svdq),
        Part::Out | Part::Fc2 => {
            let mlp = fc1()?;
            let both = one(w, prefix, names[0], [d, d + mlp])?;
            let columns = if part == Part::Out { 0..d } else { d..d + mlp };
            if !d.is_multiple_of(64) {
                return Err(w.checkpoint.bad(&format!("{prefix}{}.qweight", names[0]), "cannot be parted"));
            }
            Ok(LinearSource::Svdq(select_columns(both, columns, part == Part::Fc2)))
        }
    }
}

/// Whether the layers that make up a part have 4-bit codes: all of them or none.
fn is_packed(w: &FluxWeights, prefix: &str, names: &[&str]) -> Result<bool> {
    let codes = |name: &&&str| w.checkpoint.get(&format!("{prefix}{name}.qweight")).is_some();
    let packed = names.iter().filter(codes).count();
    match names.iter().find(|name| !codes(name)) {
        Some(name) if packed > 0 => Err(w.checkpoint.missing(&format!("{prefix}{name}.qweight"))),
        missing => Ok(missing.is_none()),
    }
}

/// Rows of the MLP's first linear, whether it is packed or not.
fn width(w: &FluxWeights, prefix: &str, name: &str) -> Result<usize> {
    let [packed, dense] = ["qweight", "weight"].map(|suffix| format!("{prefix}{name}.{suffix}"));
    w.rows(if w.checkpoint.get(&packed).is_some() { &packed } else { &dense })
}

fn one<'a>(w: &'a FluxWeights, prefix: &str, name: &str, shape: [usize; 2]) -> Result<SvdqSource<'a>> {
    svdq(&w.checkpoint, &format!("{prefix}{name}"), shape)
}

/// Adds 1 to the bias of the chunks `scales`, as Nunchaku's own files have it.
fn modulation<'a>(
    w: &'a FluxWeights,
    prefix: &str,
    name: &str,
    shape: [usize; 2],
    scales: &[usize],
) -> Result<LinearSource<'a>> {
    let source = awq(&w.checkpoint, &format!("{prefix}{name}"), shape, 1)?;
    let mut bias: Vec<f32> = pack::bf16_to_f32(&source.bias).collect();
    let channels = w.config.hidden();
    for chunk in scales {
        bias[chunk * channels..][..channels].iter_mut().for_each(|b| *b += 1.0);
    }
    Ok(LinearSource::Awq(AwqSource { bias: pack::f32_to_bf16(&bias).into(), ..source }))
}

/// q, k and v on top of one another. Those that smooth their input alike make one 4-bit linear, whose low-rank branch is
/// `[A_q; A_k; A_v]` and the blocks `B_q, B_k, B_v` on a diagonal. A 4-bit linear has but one smoothed input, so that
/// others become a dense one.
fn stack<'a>(w: &'a FluxWeights, prefix: &str, names: &[&str]) -> Result<LinearSource<'a>> {
    let d = w.config.hidden();
    let parts =
        names.iter().map(|name| one(w, prefix, name, [d, d])).collect::<Result<Vec<SvdqSource<'a>>>>()?;
    let alike = |part: &SvdqSource<'_>| {
        part.smooth == parts[0].smooth && part.codes.group() == parts[0].codes.group()
    };
    if !parts.iter().all(alike) {
        return Ok(LinearSource::Dense(stack_dense(w.checkpoint.memory(), &parts)?));
    }
    Ok(LinearSource::Svdq(stack_svdq(&parts)))
}

fn stack_dense(memory: &HostMemory, parts: &[SvdqSource<'_>]) -> Result<DenseSource<'static>> {
    let (k, weight) = (parts[0].k, Numbers::default());
    let mut all = DenseSource { n: 0, k, weight, bias: vec![], storage: Storage::F32 };
    for part in parts {
        let DenseSource { n, weight, bias, .. } = pack::unpack_svdq(memory, part)?;
        all.n += n;
        all.weight.append(weight)?;
        all.bias.extend(bias);
    }
    Ok(all)
}

/// In every layout but those of the low-rank branch, tiles of rows follow one another.
fn stack_svdq<'a>(parts: &[SvdqSource<'a>]) -> SvdqSource<'a> {
    let concat = |bytes: fn(&SvdqSource<'_>) -> Vec<u8>| -> Cow<'a, [u8]> {
        parts.iter().flat_map(bytes).collect::<Vec<u8>>().into()
    };
    let (k, rank) = (parts[0].k, parts.iter().map(|part| part.rank).sum());
    let mut down = Vec::with_capacity(k * rank * 2);
    for block in 0..k / 16 {
        for part in parts {
            let size = part.rank * 32;
            down.extend(&part.lora_down[block * size..][..size]);
        }
    }
    let mut up = Vec::new();
    let mut before = 0;
    for part in parts {
        for block in 0..part.n / 16 {
            let (start, size) = (up.len(), part.rank * 32);
            up.resize(start + rank * 32, 0);
            up[start + before * 32..][..size].copy_from_slice(&part.lora_up[block * size..][..size]);
        }
        before += part.rank;
    }
    let channel_scales = |part: &SvdqSource<'_>| match &part.codes {
        Codes::Fp4 { channel_scales } => channel_scales.clone(),
        Codes::Int4 => vec![],
    };
    SvdqSource {
        n: parts.iter().map(|part| part.n).sum(),
        k,
        rank,
        unsigned: false,
        codes: match parts[0].codes {
            Codes::Int4 => Codes::Int4,
            Codes::Fp4 { .. } => {
                Codes::Fp4 { channel_scales: parts.iter().flat_map(channel_scales).collect() }
            }
        },
        qweight: concat(|part| part.qweight.to_vec()),
        wscales: concat(|part| part.wscales.to_vec()),
        bias: concat(|part| part.bias.to_vec()),
        smooth: parts[0].smooth.clone(),
        lora_down: down.into(),
        lora_up: up.into(),
    }
}

/// Some columns, multiples of 64, of a linear. Without `bias` it is zeros.
fn select_columns<'a>(source: SvdqSource<'a>, columns: std::ops::Range<usize>, bias: bool) -> SvdqSource<'a> {
    // Tiles of 128 rows and 64 columns, columns first, whose bytes follow one another.
    let tiles = |bytes: &[u8], size: usize| -> Cow<'a, [u8]> {
        let rows = bytes.chunks_exact(source.k / 64 * size);
        rows.flat_map(|row| &row[columns.start / 64 * size..columns.end / 64 * size])
            .copied()
            .collect::<Vec<u8>>()
            .into()
    };
    let channels = |bytes: &[u8], size: usize| -> Cow<'a, [u8]> {
        bytes[columns.start * size..columns.end * size].to_vec().into()
    };
    let scales = 128 * if source.codes == Codes::Int4 { 2 } else { 4 };
    SvdqSource {
        k: columns.len(),
        qweight: tiles(&source.qweight, 128 * 32),
        wscales: tiles(&source.wscales, scales),
        bias: if bias { source.bias } else { vec![0; source.n * 2].into() },
        smooth: channels(&source.smooth, 2),
        lora_down: channels(&source.lora_down, 2 * source.rank),
        ..source
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 + seed * 101) % 251) as f32 / 64.0 - 1.5).collect()
    }

    /// A linear whose every element depends on its place and on `seed`; `smooth` does not.
    fn linear(n: usize, k: usize, rank: usize, seed: usize, fp4: bool) -> SvdqSource<'static> {
        let codes: Vec<i8> = (0..n * k).map(|i| ((i * 7 + i / k * 3 + seed) % 16) as i8 - 8).collect();
        let e4m3: Vec<u8> = (0..n * k / 16).map(|i| 0x28 + ((i * 5 + seed) % 32) as u8).collect();
        let smooth: Vec<f32> = (0..k).map(|i| [0.5, 1.0, 2.0, 4.0][i % 7 % 4]).collect();
        SvdqSource {
            n,
            k,
            rank,
            unsigned: false,
            codes: if fp4 { Codes::Fp4 { channel_scales: values(n, seed) } } else { Codes::Int4 },
            qweight: pack::pack_codes(&codes, n, k).into(),
            wscales: if fp4 {
                pack::pack_fp4_scales(&e4m3, n, k).into()
            } else {
                pack::pack_wscales(&values(n * k / 64, seed + 1), n, k).into()
            },
            bias: pack::pack_vector(&values(n, seed + 2)).into(),
            smooth: pack::pack_vector(&smooth).into(),
            lora_down: pack::pack_lora_down(&values(k * rank, seed + 3), k, rank).into(),
            lora_up: pack::pack_lora_up(&values(n * rank, seed + 4), n, rank).into(),
        }
    }

    /// Ranks may differ, or be none.
    #[test]
    fn a_stack_is_its_parts_on_top_of_one_another() {
        let memory = &HostMemory::default();
        for fp4 in [false, true] {
            let parts =
                [linear(128, 192, 32, 0, fp4), linear(256, 192, 0, 5, fp4), linear(128, 192, 16, 9, fp4)];
            let stacked = pack::unpack_svdq(memory, &stack_svdq(&parts)).unwrap();
            let dense = stack_dense(memory, &parts).unwrap();
            assert_eq!((stacked.n, stacked.bias), (512, dense.bias));
            for (i, (a, b)) in
                stacked.weight.values().unwrap().iter().zip(dense.weight.values().unwrap()).enumerate()
            {
                assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{i}: {a} {b}");
            }
        }
    }

    #[test]
    fn columns_are_those_of_the_whole() {
        let memory = &HostMemory::default();
        for fp4 in [false, true] {
            let whole = pack::unpack_svdq(memory, &linear(256, 320, 16, 3, fp4)).unwrap();
            for (columns, bias) in [(0..128, false), (128..320, true)] {
                let part = pack::unpack_svdq(
                    memory,
                    &select_columns(linear(256, 320, 16, 3, fp4), columns.clone(), bias),
                )
                .unwrap();
                for row in 0..256 {
                    assert_eq!(
                        part.weight.values().unwrap()[row * columns.len()..][..columns.len()],
                        whole.weight.values().unwrap()[row * 320..][columns.clone()]
                    );
                }
                assert_eq!(part.bias, if bias { whole.bias.clone() } else { vec![0.0; 256] });
            }
        }
    }
}
