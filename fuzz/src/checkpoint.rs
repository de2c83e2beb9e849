//! Any bytes as a safetensors file: they give tensors that can be read, or an error.
//!
//! An input with a newline is a header, up to there, and then the tensors' bytes, so that the fuzzer need not guess
//! the header's length; without one it is a whole file.

use std::path::Path;

use svdq::weights::Checkpoint;
use svdq::weights::flux::FluxWeights;

pub fn run(input: &[u8]) {
    let Ok(checkpoint) = Checkpoint::from_bytes(Path::new("fuzz.safetensors"), file(input)) else { return };
    for tensor in checkpoint.tensors() {
        let elements: usize = tensor.shape.iter().product();
        assert_eq!(elements * tensor.dtype.bitsize(), tensor.len() * 8, "{}", tensor.name);
        if let Ok(values) = checkpoint.f32(tensor.name, tensor.shape) {
            assert_eq!(values.len(), elements, "{}", tensor.name);
        }
    }
    let _ = FluxWeights::from_checkpoint(checkpoint);
}

fn file(input: &[u8]) -> Vec<u8> {
    let Some(end) = input.iter().position(|&b| b == b'\n') else { return input.to_vec() };
    let mut file = (end as u64).to_le_bytes().to_vec();
    file.extend(&input[..end]);
    file.extend(&input[end + 1..]);
    file
}
