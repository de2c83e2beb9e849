//! Where weights are kept.

use super::Cuda;
use super::memory::Range;
use super::staging;
use crate::Result;
use crate::memory::Buf;
use crate::ops::Usage;

/// Where weights are kept, from what is fastest to what takes the least of the GPU's memory. Each does what those before
/// it do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Residency {
    /// On the GPU, in the form in which they are multiplied.
    Ready,
    /// 4-bit weights stay packed and are unpacked for each product.
    Packed,
    /// Text encoders stay in the host's memory and come for each product.
    EncodersOnHost,
    /// So does modulation.
    ModulationOnHost,
}

impl Residency {
    pub(super) const ALL: [Residency; 4] =
        [Residency::Ready, Residency::Packed, Residency::EncodersOnHost, Residency::ModulationOnHost];

    pub(super) fn describe(self) -> &'static str {
        match self {
            Residency::Ready => "ready to be multiplied",
            Residency::Packed => "packed",
            Residency::EncodersOnHost => "packed, text encoders in the host's memory",
            Residency::ModulationOnHost => "packed, text encoders and modulation in the host's memory",
        }
    }

    fn is_on_host(self, usage: Usage) -> bool {
        match usage {
            Usage::Step => false,
            Usage::Encoder => self >= Residency::EncodersOnHost,
            Usage::Modulation => self >= Residency::ModulationOnHost,
        }
    }
}

/// Weights on the GPU, or in the host's memory until they are needed.
pub(super) enum Stored {
    Gpu(Range),
    Host {
        /// Empty on an idle device.
        bytes: Buf<u8>,
        len: usize,
    },
}

/// Stored weights while they are used.
pub(super) enum Fetched<'a> {
    Stored(&'a Range),
    Copy(Range),
}

impl Fetched<'_> {
    pub(super) fn at(&self) -> u64 {
        match self {
            Fetched::Stored(range) => range.at(),
            Fetched::Copy(range) => range.at(),
        }
    }
}

impl Cuda {
    /// Keeps `parts`, one after the other, where weights of this usage are kept.
    pub(super) fn store(&self, parts: &[impl AsRef<[u8]>], usage: Usage) -> Result<Stored> {
        let len = parts.iter().map(|part| part.as_ref().len()).sum();
        if self.residency.is_on_host(usage) {
            let bytes = if self.gpu.context.is_idle() {
                Buf::default()
            } else {
                staging::concat(&self.memory, parts)?
            };
            return Ok(Stored::Host { bytes, len });
        }
        let range = self.weights.take(len)?;
        let mut start = 0;
        for part in parts {
            range.write_at(start, part.as_ref())?;
            start += part.as_ref().len();
        }
        Ok(Stored::Gpu(range))
    }

    /// The weights on the GPU, from now on in the order of its work.
    pub(super) fn fetch<'a>(&self, stored: &'a Stored) -> Result<Fetched<'a>> {
        match stored {
            Stored::Gpu(range) => Ok(Fetched::Stored(range)),
            Stored::Host { bytes, len } => {
                let range = self.temporary(*len)?;
                range.write(bytes)?;
                Ok(Fetched::Copy(range))
            }
        }
    }
}
