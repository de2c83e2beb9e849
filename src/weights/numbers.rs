//! Numbers as a file stores them, decoded by whoever asks for their values.

use std::borrow::Cow;
use std::ops::{Deref, DerefMut};
use std::sync::OnceLock;

use safetensors::Dtype;

use super::float::{decode, is_exact_in_bf16};
use super::pack::f32_to_bf16;

/// A row of numbers. As a slice they are f32; those of a file are decoded the first time that they are asked for.
#[derive(Default)]
pub struct Numbers<'a> {
    /// What the file has, if these are a file's, one part after the other.
    stored: Vec<Stored<'a>>,
    values: OnceLock<Vec<f32>>,
}

/// Little-endian numbers of a type that [`decode`] reads, and what they are to be multiplied by.
#[derive(Clone, Copy)]
struct Stored<'a> {
    dtype: Dtype,
    bytes: &'a [u8],
    scale: f32,
}

impl Stored<'_> {
    fn decode(&self) -> Vec<f32> {
        let mut values = decode(self.dtype, self.bytes).unwrap_or_default();
        if self.scale != 1.0 {
            values.iter_mut().for_each(|value| *value *= self.scale);
        }
        values
    }
}

impl<'a> Numbers<'a> {
    /// A file's numbers, each times `scale`; `None` for a type that cannot be read.
    pub(crate) fn stored(dtype: Dtype, bytes: &'a [u8], scale: f32) -> Option<Self> {
        decode(dtype, &[])?;
        Some(Numbers { stored: vec![Stored { dtype, bytes, scale }], values: OnceLock::new() })
    }

    /// Puts `other` behind these.
    pub fn append(&mut self, other: Numbers<'a>) {
        if self.values.get().is_none() && other.values.get().is_none() {
            self.stored.extend(other.stored);
        } else {
            self.values_mut().extend_from_slice(&other);
        }
    }

    /// Where the first number is that is infinite or none.
    pub(crate) fn first_not_finite(&self) -> Option<usize> {
        // Of 16-bit types the exponents alone tell, so that nothing has to be decoded.
        let [part] = &self.stored[..] else { return self.iter().position(|v| !v.is_finite()) };
        let exponent = match part.dtype {
            Dtype::BF16 => 0x7f80,
            Dtype::F16 => 0x7c00,
            _ => return self.iter().position(|v| !v.is_finite()),
        };
        let is_bad = |code: &[u8; 2]| u16::from_le_bytes(*code) & exponent == exponent;
        let codes = part.bytes.as_chunks().0;
        // Without a way out of the inner loop it is vectorised.
        let bad = |block: &[[u8; 2]]| block.iter().fold(false, |bad, code| bad | is_bad(code));
        let block = codes.chunks(4096).position(bad)?;
        codes[block * 4096..].iter().position(is_bad).map(|at| block * 4096 + at)
    }

    /// Whether every value is exact in bf16 because of its type.
    pub(crate) fn is_bf16(&self) -> bool {
        let exact = |part: &Stored<'_>| is_exact_in_bf16(part.dtype) && part.scale == 1.0;
        !self.stored.is_empty() && self.stored.iter().all(exact)
    }

    /// The values as little-endian bf16, one part after the other. Those that a file has as bf16 are the file's bytes.
    pub fn bf16(&self) -> Vec<Cow<'_, [u8]>> {
        let is_bf16 = |part: &Stored<'_>| part.dtype == Dtype::BF16 && part.scale == 1.0;
        match !self.stored.is_empty() && self.stored.iter().all(is_bf16) {
            true => self.stored.iter().map(|part| Cow::Borrowed(part.bytes)).collect(),
            false => vec![Cow::Owned(f32_to_bf16(self))],
        }
    }

    /// The values.
    pub fn into_values(mut self) -> Vec<f32> {
        std::mem::take(self.values_mut())
    }

    fn values(&self) -> &Vec<f32> {
        self.values.get_or_init(|| match &self.stored[..] {
            [part] => part.decode(),
            parts => parts.iter().flat_map(Stored::decode).collect(),
        })
    }

    fn values_mut(&mut self) -> &mut Vec<f32> {
        self.values();
        self.stored.clear();
        self.values.get_mut().expect("decoded above")
    }
}

impl From<Vec<f32>> for Numbers<'_> {
    fn from(values: Vec<f32>) -> Self {
        Numbers { stored: vec![], values: values.into() }
    }
}

impl Deref for Numbers<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.values()
    }
}

impl DerefMut for Numbers<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        self.values_mut()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const BF16: [u8; 4] = [0x80, 0x3f, 0x00, 0xc0];

    #[test]
    fn bf16_of_a_file_are_its_bytes() {
        let mut numbers = Numbers::default();
        numbers.append(Numbers::stored(Dtype::BF16, &BF16, 1.0).unwrap());
        numbers.append(Numbers::stored(Dtype::BF16, &BF16[2..], 1.0).unwrap());
        assert!(numbers.bf16().iter().all(|part| matches!(part, Cow::Borrowed(_))));
        assert_eq!(numbers.bf16().concat(), [&BF16[..], &BF16[2..]].concat());
        assert_eq!(*numbers, [1.0, -2.0, -2.0]);
    }

    #[test]
    fn what_is_not_finite_is_found() {
        let bytes = |values: [u16; 5000]| values.map(u16::to_le_bytes).concat();
        for (dtype, bad) in
            [(Dtype::BF16, 0xff80u16), (Dtype::BF16, 0x7f81), (Dtype::F16, 0x7c00), (Dtype::F16, 0xfe00)]
        {
            let mut values = [0x3c00; 5000];
            let find = |values| Numbers::stored(dtype, &bytes(values), 1.0).unwrap().first_not_finite();
            assert_eq!(find(values), None);
            values[4321] = bad;
            assert_eq!(find(values), Some(4321));
        }
        assert_eq!(Numbers::from(vec![0.0, f32::NAN]).first_not_finite(), Some(1));
        assert_eq!(Numbers::stored(Dtype::F8_E4M3, &[0x38, 0x7f], 1.0).unwrap().first_not_finite(), Some(1));
    }

    #[test]
    fn numbers_of_all_kinds_follow_one_another() {
        let e4m3 = || Numbers::stored(Dtype::F8_E4M3, &[0x38, 0xb8], 0.5).unwrap();
        let mut numbers = e4m3();
        numbers.append(Numbers::stored(Dtype::BF16, &BF16, 1.0).unwrap());
        assert_eq!(*numbers, [0.5, -0.5, 1.0, -2.0]);
        assert_eq!(numbers.bf16().concat(), f32_to_bf16(&[0.5, -0.5, 1.0, -2.0]));
        numbers.append(vec![3.0].into());
        numbers.append(e4m3());
        numbers[0] = 7.0;
        assert_eq!(numbers.into_values(), [7.0, -0.5, 1.0, -2.0, 3.0, 0.5, -0.5]);
        assert!(Numbers::stored(Dtype::I8, &[0], 1.0).is_none());
    }
}
