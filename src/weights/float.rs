//! Floating point numbers as files store them, to f32. Every conversion is exact.

use half::f16;
use safetensors::Dtype;

use super::pack::bf16_to_f32;

/// Writes the values of little-endian numbers to `to`, as far as both go; nothing of a type that is not [`is_readable`].
pub(crate) fn decode(dtype: Dtype, bytes: &[u8], to: &mut [f32]) {
    fn write(to: &mut [f32], values: impl Iterator<Item = f32>) {
        to.iter_mut().zip(values).for_each(|(to, value)| *to = value);
    }
    match dtype {
        Dtype::F32 => write(to, bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b))),
        Dtype::F16 => write(to, bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32())),
        Dtype::BF16 => write(to, bf16_to_f32(bytes)),
        Dtype::F8_E4M3 => write(to, bytes.iter().map(|&code| E4M3[usize::from(code)])),
        Dtype::F8_E5M2 => write(to, bytes.iter().map(|&code| E5M2[usize::from(code)])),
        _ => {}
    }
}

/// The one value of `bytes`; `None` if there are more or fewer, or of a type that is not [`is_readable`].
pub(crate) fn decode_one(dtype: Dtype, bytes: &[u8]) -> Option<f32> {
    let mut value = 0.0;
    decode(dtype, bytes, std::slice::from_mut(&mut value));
    (is_readable(dtype) && bytes.len() * 8 == dtype.bitsize()).then_some(value)
}

/// Whether [`decode`] reads a type.
pub(crate) fn is_readable(dtype: Dtype) -> bool {
    use Dtype::{BF16, F8_E4M3, F8_E5M2, F16, F32};
    matches!(dtype, F32 | F16 | BF16 | F8_E4M3 | F8_E5M2)
}

/// What [`decode`] reads, for errors.
pub(crate) const READABLE: &str = "F32, F16, BF16, F8_E4M3 and F8_E5M2 can be read";

/// Whether [`decode`] reads a type, and every value of it is exact in bf16.
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
            let mut got = [0.0; 256];
            decode(dtype, &codes, &mut got);
            for (code, (got, want)) in got.iter().zip(&want).enumerate() {
                let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                assert!(same, "{name} {code:#04x}: {got}, torch has {want}");
            }
        }
    }

    #[test]
    fn integers_are_not_decoded() {
        assert!(!is_readable(Dtype::I8) && !is_readable(Dtype::F64));
        assert!(decode_one(Dtype::I8, &[0]).is_none() && decode_one(Dtype::F64, &[0; 8]).is_none());
    }

    #[test]
    fn one_number_is_no_more_and_no_fewer() {
        let bytes = [0x80, 0x3f, 0x80, 0x3f];
        assert_eq!([0, 2, 4].map(|len| decode_one(Dtype::BF16, &bytes[..len])), [None, Some(1.0), None]);
    }
}
