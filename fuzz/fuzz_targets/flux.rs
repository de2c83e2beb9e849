//! A sound 4-bit FLUX file with any config and any faults in its tensors: every layer gives weights of the right
//! size, or an error.
//!
//! An input is the text of `config` up to the first newline, and then faults of four bytes: which tensor (two), what
//! to change, and the new value.

#![no_main]

use std::fmt::Write;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use svdq::ops::LinearSource;
use svdq::weights::flux::{FluxConfig, FluxWeights, Part, Stream, inventory};
use svdq::weights::{Checkpoint, Dtype, pack};

const SOUND: FluxConfig = FluxConfig {
    num_layers: 1,
    num_single_layers: 1,
    num_attention_heads: 1,
    attention_head_dim: 128,
    in_channels: 16,
    out_channels: 16,
    joint_attention_dim: 32,
    pooled_projection_dim: 24,
    guidance_embeds: true,
    axes_dims_rope: [16, 56, 56],
};
const DTYPES: [Dtype; 8] =
    [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::I8, Dtype::U8, Dtype::I32, Dtype::F8_E4M3, Dtype::F4];
/// Larger files are not made.
const MAX_DATA: usize = 1 << 22;

type Tensors = Vec<(String, Dtype, Vec<usize>)>;

fuzz_target!(|input: &[u8]| {
    let (config, faults) = match input.iter().position(|&b| b == b'\n') {
        Some(end) => (&input[..end], &input[end + 1..]),
        None => (input, &[][..]),
    };
    let mut tensors = inventory(&SOUND, 16);
    for fault in faults.as_chunks().0 {
        apply(&mut tensors, fault);
    }
    let Some(file) = file(&tensors, &String::from_utf8_lossy(config)) else { return };
    let Ok(checkpoint) = Checkpoint::from_bytes(Path::new("fuzz.safetensors"), file) else { return };
    let Ok(weights) = FluxWeights::from_checkpoint(checkpoint) else { return };
    for part in Part::ALL {
        for stream in [Stream::Image, Stream::Text] {
            let _ = weights.double(0, stream, part).map(|linear| check(&linear));
            let _ = weights.double_norms(0, stream);
        }
        let _ = weights.single(0, part).map(|linear| check(&linear));
    }
    let _ = weights.single_norms(0);
    let _ = weights.norm_out().map(|linear| check(&linear));
});

/// The functions that unpack panic on slices of the wrong size.
fn check(linear: &LinearSource<'_>) {
    match linear {
        LinearSource::Dense(d) => assert_eq!(d.weight.len(), d.n * d.k),
        LinearSource::Awq(a) => assert_eq!(pack::unpack_awq(a).weight.len(), a.n * a.k),
        LinearSource::Svdq(s) => {
            let unpacked = pack::Unpacked::of(s);
            assert_eq!(unpacked.codes.len(), s.n * s.k);
            assert_eq!(unpacked.scales.len(), s.n * s.k / unpacked.group);
            assert_eq!([pack::unpack_vector(&s.bias).len(), pack::unpack_vector(&s.smooth).len()], [s.n, s.k]);
            assert_eq!(pack::unpack_lora_down(&s.lora_down, s.k, s.rank).len(), s.k * s.rank);
            assert_eq!(pack::unpack_lora_up(&s.lora_up, s.n, s.rank).len(), s.n * s.rank);
        }
    }
}

fn apply(tensors: &mut Tensors, &[low, high, what, value]: &[u8; 4]) {
    if tensors.is_empty() {
        return;
    }
    let at = usize::from(u16::from_le_bytes([low, high])) % tensors.len();
    let (_, dtype, shape) = &mut tensors[at];
    let dim = usize::from(what >> 3) % shape.len().max(1);
    match (what & 7, shape.get_mut(dim)) {
        (0, _) => drop(tensors.remove(at)),
        (1, _) => *dtype = DTYPES[usize::from(value) % DTYPES.len()],
        (2, Some(size)) => *size = value.into(),
        (3, Some(size)) => *size = 1usize.checked_shl(value.into()).unwrap_or(usize::MAX),
        (4, Some(size)) => *size = size.saturating_mul(value.into()),
        (5, Some(size)) => *size = size.wrapping_add_signed((value as i8).into()),
        (6, _) => shape.push(value.into()),
        _ => drop(shape.pop()),
    }
}

/// A file with these tensors, all zeros, unless it is large.
fn file(tensors: &Tensors, config: &str) -> Option<Vec<u8>> {
    let mut header = format!("{{\"__metadata__\":{}", serde_json::json!({ "config": config }));
    let mut at = 0usize;
    for (name, dtype, shape) in tensors {
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        let end =
            at.checked_add(elements.checked_mul(dtype.bitsize())? / 8).filter(|&end| end <= MAX_DATA)?;
        write!(
            header,
            ",\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{at},{end}]}}"
        )
        .ok()?;
        at = end;
    }
    header.push('}');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + at, 0);
    Some(file)
}
