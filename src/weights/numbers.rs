//! Numbers as a file stores them, decoded by whoever asks for their values.

use std::ops::Deref;
use std::sync::OnceLock;

use half::bf16;
use safetensors::Dtype;

use super::float::{decode, is_exact_in_bf16, is_readable};
use crate::Result;
use crate::memory::{Buf, HostMemory};

/// A row of numbers. Those of a file are decoded the first time that their values are asked for.
#[derive(Default)]
pub struct Numbers<'a> {
    /// What the file has, if these are a file's, one part after the other.
    stored: Vec<Stored<'a>>,
    /// Of what is decoded.
    memory: HostMemory,
    values: OnceLock<Buf<f32>>,
}

/// Little-endian numbers of a type that [`decode`] reads, and what they are to be multiplied by.
#[derive(Clone, Copy)]
struct Stored<'a> {
    dtype: Dtype,
    bytes: &'a [u8],
    scale: f32,
}

impl Stored<'_> {
    fn len(&self) -> usize {
        self.bytes.len() * 8 / self.dtype.bitsize()
    }

    fn decode(&self, to: &mut [f32]) {
        decode(self.dtype, self.bytes, to);
        if self.scale != 1.0 {
            to.iter_mut().for_each(|value| *value *= self.scale);
        }
    }
}

/// Bytes of a file, or of its own.
pub enum Bytes<'a> {
    /// The file's.
    File(&'a [u8]),
    /// Its own.
    Own(Buf<u8>),
}

impl Deref for Bytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::File(bytes) => bytes,
            Bytes::Own(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for Bytes<'_> {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl<'a> Numbers<'a> {
    /// A file's numbers, each times `scale`, to be decoded in `memory`; `None` for a type that cannot be read.
    pub(crate) fn stored(memory: &HostMemory, dtype: Dtype, bytes: &'a [u8], scale: f32) -> Option<Self> {
        let stored = vec![Stored { dtype, bytes, scale }];
        is_readable(dtype).then(|| Numbers { stored, memory: memory.clone(), values: OnceLock::new() })
    }

    /// How many they are.
    pub fn count(&self) -> usize {
        self.values.get().map_or_else(|| self.stored.iter().map(Stored::len).sum(), |values| values.len())
    }

    /// Puts `other` behind these.
    ///
    /// # Errors
    /// [`crate::Error::OutOfHostMemory`]
    pub fn append(&mut self, other: Numbers<'a>) -> Result<()> {
        if self.count() == 0 {
            *self = other;
        } else if !self.stored.is_empty() && !other.stored.is_empty() {
            // Of many parts each would be copied as often as there are parts behind it: all are decoded anew when asked for.
            self.stored.extend(other.stored);
            self.values = OnceLock::new();
        } else {
            let all = Buf::concat(&self.memory, &[self.values()?, other.values()?], WHAT)?;
            *self = Numbers { memory: self.memory.clone(), ..all.into() };
        }
        Ok(())
    }

    /// Where the first number is that is infinite or none.
    ///
    /// # Errors
    /// As [`Self::values`].
    pub(crate) fn first_not_finite(&self) -> Result<Option<usize>> {
        // Of 16-bit types the exponents alone tell, so that nothing has to be decoded.
        let (codes, exponent) = match self.stored[..] {
            [Stored { dtype: Dtype::BF16, bytes, .. }] => (bytes.as_chunks().0, 0x7f80),
            [Stored { dtype: Dtype::F16, bytes, .. }] => (bytes.as_chunks().0, 0x7c00),
            _ => return Ok(self.values()?.iter().position(|v| !v.is_finite())),
        };
        let is_bad = |code: &[u8; 2]| u16::from_le_bytes(*code) & exponent == exponent;
        // Without a way out of the inner loop it is vectorised.
        let bad = |block: &[[u8; 2]]| block.iter().fold(false, |bad, code| bad | is_bad(code));
        let block = codes.chunks(4096).position(bad);
        let within = |block| codes[block * 4096..].iter().position(is_bad).map(|at| block * 4096 + at);
        Ok(block.and_then(within))
    }

    /// Whether every value is exact in bf16 because of its type.
    pub(crate) fn is_bf16(&self) -> bool {
        let exact = |part: &Stored<'_>| is_exact_in_bf16(part.dtype) && part.scale == 1.0;
        !self.stored.is_empty() && self.stored.iter().all(exact)
    }

    /// The values as little-endian bf16, one part after the other. Those that a file has as bf16 are the file's bytes.
    ///
    /// # Errors
    /// As [`Self::values`].
    pub fn bf16(&self) -> Result<Vec<Bytes<'_>>> {
        let is_bf16 = |part: &Stored<'_>| part.dtype == Dtype::BF16 && part.scale == 1.0;
        if !self.stored.is_empty() && self.stored.iter().all(is_bf16) {
            return Ok(self.stored.iter().map(|part| Bytes::File(part.bytes)).collect());
        }
        let values = self.values()?;
        let mut rounded = Buf::zeroed(&self.memory, 2 * values.len(), "weights in bf16")?;
        for (to, &value) in rounded.as_chunks_mut().0.iter_mut().zip(values) {
            *to = bf16::from_f32(value).to_le_bytes();
        }
        Ok(vec![Bytes::Own(rounded)])
    }

    /// The values.
    ///
    /// # Errors
    /// [`crate::Error::OutOfHostMemory`]
    pub fn values(&self) -> Result<&[f32]> {
        if let Some(values) = self.values.get() {
            return Ok(values);
        }
        let mut values = Buf::zeroed(&self.memory, self.count(), WHAT)?;
        let mut rest = &mut values[..];
        for part in &self.stored {
            // Hollow memory has no room, and needs none.
            let Some((to, after)) = rest.split_at_mut_checked(part.len()) else { break };
            part.decode(to);
            rest = after;
        }
        Ok(self.values.get_or_init(|| values))
    }

    /// The values, on their own.
    ///
    /// # Errors
    /// As [`Self::values`].
    pub fn into_values(mut self) -> Result<Buf<f32>> {
        self.values()?;
        Ok(self.values.take().unwrap_or_default())
    }
}

/// What a failed allocation was for.
const WHAT: &str = "decoded weights";

impl From<Buf<f32>> for Numbers<'_> {
    fn from(values: Buf<f32>) -> Self {
        Numbers { stored: vec![], memory: HostMemory::default(), values: values.into() }
    }
}

/// In the system's memory, which aborts if there is none.
impl From<Vec<f32>> for Numbers<'_> {
    fn from(values: Vec<f32>) -> Self {
        Buf::from(values).into()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::pack::f32_to_bf16;
    use super::*;

    const BF16: [u8; 4] = [0x80, 0x3f, 0x00, 0xc0];

    fn stored(dtype: Dtype, bytes: &[u8], scale: f32) -> Numbers<'_> {
        Numbers::stored(&HostMemory::default(), dtype, bytes, scale).unwrap()
    }

    fn bf16(numbers: &Numbers<'_>) -> Vec<u8> {
        numbers.bf16().unwrap().iter().flat_map(|part| part.to_vec()).collect()
    }

    #[test]
    fn bf16_of_a_file_are_its_bytes() {
        let mut numbers = Numbers::default();
        numbers.append(stored(Dtype::BF16, &BF16, 1.0)).unwrap();
        numbers.append(stored(Dtype::BF16, &BF16[2..], 1.0)).unwrap();
        assert!(numbers.bf16().unwrap().iter().all(|part| matches!(part, Bytes::File(_))));
        assert_eq!(bf16(&numbers), [&BF16[..], &BF16[2..]].concat());
        assert_eq!(numbers.values().unwrap(), [1.0, -2.0, -2.0]);
    }

    #[test]
    fn parts_that_were_decoded_are_not_copied_for_each_one_behind_them() {
        let mut numbers = Numbers::default();
        for value in 0..3 {
            let part = stored(Dtype::F8_E4M3, &[0x38, 0x40, 0xb8][value..], 2.0);
            part.values().unwrap();
            numbers.append(part).unwrap();
            assert!(numbers.values.get().is_none() || value == 0);
        }
        assert_eq!(numbers.count(), 6);
        assert_eq!(numbers.values().unwrap(), [2.0, 4.0, -2.0, 4.0, -2.0, -2.0]);
        numbers.append(vec![7.0].into()).unwrap();
        assert_eq!(numbers.values().unwrap()[5..], [-2.0, 7.0]);
    }

    #[test]
    fn what_is_not_finite_is_found() {
        let bytes = |values: [u16; 5000]| values.map(u16::to_le_bytes).concat();
        for (dtype, bad) in
            [(Dtype::BF16, 0xff80u16), (Dtype::BF16, 0x7f81), (Dtype::F16, 0x7c00), (Dtype::F16, 0xfe00)]
        {
            let mut values = [0x3c00; 5000];
            let find = |values| stored(dtype, &bytes(values), 1.0).first_not_finite().unwrap();
            assert_eq!(find(values), None);
            values[4321] = bad;
            assert_eq!(find(values), Some(4321));
        }
        assert_eq!(Numbers::from(vec![0.0, f32::NAN]).first_not_finite().unwrap(), Some(1));
        assert_eq!(stored(Dtype::F8_E4M3, &[0x38, 0x7f], 1.0).first_not_finite().unwrap(), Some(1));
    }

    #[test]
    fn numbers_of_all_kinds_follow_one_another() {
        let e4m3 = || stored(Dtype::F8_E4M3, &[0x38, 0xb8], 0.5);
        let mut numbers = e4m3();
        numbers.append(stored(Dtype::BF16, &BF16, 1.0)).unwrap();
        assert_eq!(numbers.values().unwrap(), [0.5, -0.5, 1.0, -2.0]);
        assert_eq!(bf16(&numbers), f32_to_bf16(&[0.5, -0.5, 1.0, -2.0]));
        numbers.append(vec![3.0].into()).unwrap();
        numbers.append(e4m3()).unwrap();
        assert_eq!(numbers.count(), 7);
        assert_eq!(numbers.into_values().unwrap(), [0.5, -0.5, 1.0, -2.0, 3.0, 0.5, -0.5]);
        assert!(Numbers::stored(&HostMemory::default(), Dtype::I8, &[0], 1.0).is_none());
    }
}
