//! A sound 4-bit FLUX file with any config and any faults in its tensors: every layer gives weights of the right
//! size, or an error.
//!
//! An input is the text of `config` up to the first newline, and then faults of four bytes: which tensor (two), what
//! to change, and the new value.

use std::path::Path;

use svdq::ops::{Codes, LinearSource};
use svdq::weights::Checkpoint;
use svdq::weights::flux::{FluxConfig, FluxWeights, Part, Stream, inventory};

use super::tensors::{apply, file};

pub(super) const SOUND: FluxConfig = FluxConfig {
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

pub fn run(input: &[u8]) {
    let (config, faults) = match input.iter().position(|&b| b == b'\n') {
        Some(end) => (&input[..end], &input[end + 1..]),
        None => (input, &[][..]),
    };
    let mut tensors = inventory(&SOUND, 16);
    for fault in faults.as_chunks().0 {
        apply(&mut tensors, fault);
    }
    let metadata = serde_json::json!({ "config": String::from_utf8_lossy(config) });
    let Some(file) = file(&tensors, metadata) else { return };
    let Ok(checkpoint) = Checkpoint::from_bytes(Path::new("fuzz.safetensors"), file) else { return };
    let Ok(weights) = FluxWeights::from_checkpoint(checkpoint) else { return };
    layers(&weights, check);
}

/// Every layer that there is, to `check`.
pub(super) fn layers(weights: &FluxWeights, check: impl Fn(&LinearSource<'_>)) {
    for part in Part::ALL {
        for stream in [Stream::Image, Stream::Text] {
            let _ = weights.double(0, stream, part).map(|linear| check(&linear));
            let _ = weights.double_norms(0, stream);
        }
        let _ = weights.single(0, part).map(|linear| check(&linear));
    }
    let _ = weights.single_norms(0);
    let _ = weights.norm_out().map(|linear| check(&linear));
}

/// Sizes are what the functions that unpack demand: on others they panic.
fn check(linear: &LinearSource<'_>) {
    match linear {
        LinearSource::Dense(d) => assert_eq!(d.weight.values().expect("memory").len(), d.n * d.k),
        LinearSource::Awq(a) => {
            let (weights, vectors) = (a.n * a.k, 2 * a.n * a.k / a.group);
            assert!(a.n % (4 * a.chunks) == 0 && a.k % a.group == 0);
            assert_eq!([a.qweight.len(), a.wscales.len(), a.wzeros.len()], [weights / 2, vectors, vectors]);
            assert_eq!(a.bias.len(), 2 * a.n);
        }
        LinearSource::Svdq(s) => {
            let (n, k, rank) = (s.n, s.k, s.rank);
            assert!(n % 128 == 0 && k % 64 == 0 && rank % 16 == 0);
            let scales = match &s.codes {
                Codes::Int4 => 2 * n * k / 64,
                Codes::Fp4 { channel_scales } => n * k / 16 + channel_scales.len() - n,
            };
            assert_eq!([s.qweight.len(), s.wscales.len()], [n * k / 2, scales]);
            assert_eq!([s.bias.len(), s.smooth.len()], [2 * n, 2 * k]);
            assert_eq!([s.lora_down.len(), s.lora_up.len()], [2 * k * rank, 2 * n * rank]);
        }
    }
}
