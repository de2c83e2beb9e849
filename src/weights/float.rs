//! Floating point numbers as files store them, to f32. Every conversion is exact.

use half::f16;
use safetensors::Dtype;

use super::pack::bf16_to_f32;

/// The values of little-endian numbers; `None` for a type that is not F32, F16, BF16, F8_E4M3 or F8_E5M2.
pub(crate) fn decode(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    Some(match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
        Dtype::BF16 => bf16_to_f32(bytes).collect(),
        Dtype::F8_E4M3 => bytes.iter().map(|&code| E4M3[usize::from(code)]).collect(),
        Dtype::F8_E5M2 => bytes.iter().map(|&code| E5M2[usize::from(code)]).collect(),
        _ => return None,
    })
}

/// What [`decode`] reads, for errors.
pub(crate) const READABLE: &str = "F32, F16, BF16, F8_E4M3 and F8_E5M2 can be read";

/// Whether [`decode`] reads a type, and whether every value of it is exact in bf16.
pub(crate) fn is_exact_in_bf16(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::BF16 | Dtype::F8_E4M3 | Dtype::F8_E5M2)
}

/// Whether the type has 8 bits: such tensors may have a scale beside them.
pub(crate) fn is_fp8(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2)
}

/// The numbers of all e4m3fn codes: `± 1.mmm · 2^(e - 7)`, no infinities, NaN for `S.1111.111`.
pub(crate) const E4M3: [f32; 256] = table(4, 3);
/// The numbers of all e5m2 codes, IEEE's `± 1.mm · 2^(e - 15)`.
pub(crate) const E5M2: [f32; 256] = table(5, 2);

const fn table(exponent_bits: u32, mantissa_bits: u32) -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = value(code as u32, exponent_bits, mantissa_bits);
        code += 1;
    }
    table
}

const fn value(code: u32, exponent_bits: u32, mantissa_bits: u32) -> f32 {
    let top = (1 << exponent_bits) - 1;
    let (exponent, mantissa) = (code >> mantissa_bits & top, code & ((1 << mantissa_bits) - 1));
    let sign = if code >= 128 { -1.0 } else { 1.0 };
    let last = if mantissa_bits == 2 { 0 } else { 7 };
    if exponent == top && mantissa >= last {
        return if mantissa_bits == 2 && mantissa == 0 { sign * f32::INFINITY } else { f32::NAN };
    }
    // 2^(exponent - bias - mantissa_bits), of numbers that begin with 0 the one of exponent 1.
    let (steps, exponent) =
        if exponent == 0 { (mantissa, 1) } else { (mantissa + (1 << mantissa_bits), exponent) };
    let bias = top / 2;
    sign * steps as f32 * f32::from_bits((127 + exponent - bias - mantissa_bits) << 23)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use super::*;
    use crate::weights::Checkpoint;

    /// Bit for bit what torch makes of all codes; NaN is NaN.
    #[test]
    fn all_fp8_codes_are_torchs() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fp8.safetensors");
        let golden = Checkpoint::open(&path).unwrap();
        for (name, dtype) in [("e4m3fn", Dtype::F8_E4M3), ("e5m2", Dtype::F8_E5M2)] {
            let want = golden.f32(name, &[256]).unwrap();
            let codes: Vec<u8> = (0..=255).collect();
            let got = decode(dtype, &codes).unwrap();
            for (code, (got, want)) in got.iter().zip(&want).enumerate() {
                let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                assert!(same, "{name} {code:#04x}: {got}, torch has {want}");
            }
        }
    }

    #[test]
    fn integers_are_not_decoded() {
        assert!(decode(Dtype::I8, &[0]).is_none() && decode(Dtype::F64, &[0; 8]).is_none());
    }
}
