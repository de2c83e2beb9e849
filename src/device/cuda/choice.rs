//! What a GPU runs, by its compute capability: 90 stands for 9.0.

use super::driver::DeviceInfo;
use crate::ops::Profile::{self, W4A4, W4A8, W4A16};
use crate::{Error, Result};

/// The lowest compute capability that the kernels for every GPU are built for.
const LOWEST: u32 = 75;

/// How 4-bit weights are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// With the 8-bit tensor cores, by the kernels for compute capability 9.0: [`super::linear8`].
    Linear8,
    /// As they are, with the 4-bit tensor cores: [`super::linear4`].
    Linear4,
    /// Unpacked to bf16: [`super::w4a16`].
    W4A16,
}

/// The 4-bit numbers that a GPU's tensor cores multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Int4,
    Nvfp4,
}

/// # Errors
/// [`Error::DeviceUnsupported`] for GPUs that are too old.
pub(super) fn check(info: &DeviceInfo) -> Result<()> {
    let capability = info.compute_capability;
    if capability >= LOWEST {
        return Ok(());
    }
    let version = |capability: u32| format!("{}.{}", capability / 10, capability % 10);
    Err(Error::DeviceUnsupported(format!(
        "{} has compute capability {}: this version has kernels for {} and later",
        info.name,
        version(capability),
        version(LOWEST)
    )))
}

/// Whether the kernels for compute capability 9.0 run.
pub(super) fn is_hopper(capability: u32) -> bool {
    capability == 90
}

/// What its 4-bit tensor cores multiply, if it has any.
pub(super) fn native(capability: u32) -> Option<Format> {
    match capability {
        75..=89 => Some(Format::Int4),
        120..=129 => Some(Format::Nvfp4),
        _ => None,
    }
}

/// What multiplies weights of a kind in a profile.
///
/// # Errors
/// [`Error::Unsupported`] if nothing does.
pub(super) fn choose(info: &DeviceInfo, nvfp4: bool, profile: Profile) -> Result<Family> {
    let capability = info.compute_capability;
    family(capability, nvfp4, profile).ok_or_else(|| {
        let others: Vec<_> = profiles(capability, nvfp4).map(|profile| format!("{profile:?}")).collect();
        Error::Unsupported(format!(
            "profile {profile:?} with {} weights on {}, which runs them in {}",
            if nvfp4 { "NVFP4" } else { "INT4" },
            info.name,
            others.join(" and ")
        ))
    })
}

fn family(capability: u32, nvfp4: bool, profile: Profile) -> Option<Family> {
    let own = if nvfp4 { Format::Nvfp4 } else { Format::Int4 };
    match profile {
        W4A4 if is_hopper(capability) => (!nvfp4).then_some(Family::Linear8),
        W4A4 => (native(capability) == Some(own)).then_some(Family::Linear4),
        W4A8 => is_hopper(capability).then_some(Family::Linear8),
        W4A16 => Some(Family::W4A16),
    }
}

/// Profiles in which weights of a kind run, the best one first: 8-bit activations where they are the fastest that there
/// are, those that the checkpoint is made for where they are native, else 16 bits.
pub(super) fn profiles(capability: u32, nvfp4: bool) -> impl Iterator<Item = Profile> {
    [W4A8, W4A4, W4A16].into_iter().filter(move |&profile| family(capability, nvfp4, profile).is_some())
}

/// Bytes of shared memory that a block may have.
pub(super) fn shared_memory(capability: u32) -> u32 {
    match capability {
        75 => 64 << 10,
        80 | 87 => 163 << 10,
        90..=119 => 227 << 10,
        _ => 99 << 10,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_gpu_runs_every_checkpoint() {
        for (capability, int4, nvfp4) in [
            (75, W4A4, W4A16),
            (80, W4A4, W4A16),
            (86, W4A4, W4A16),
            (89, W4A4, W4A16),
            (90, W4A8, W4A8),
            (100, W4A16, W4A16),
            (120, W4A16, W4A4),
            (121, W4A16, W4A4),
            (130, W4A16, W4A16),
        ] {
            let defaults = [false, true].map(|nvfp4| profiles(capability, nvfp4).next().unwrap());
            assert_eq!(defaults, [int4, nvfp4], "{capability}");
            assert_eq!(family(capability, true, W4A16), Some(Family::W4A16));
        }
        assert_eq!(family(90, false, W4A4), Some(Family::Linear8));
        assert_eq!(family(90, true, W4A4), None);
        assert_eq!(family(89, true, W4A4), None);
        assert_eq!(family(120, false, W4A4), None);
        assert_eq!(family(89, false, W4A8), None);
    }
}
