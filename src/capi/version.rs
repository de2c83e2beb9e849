//! Which library this is.

use std::env::consts::{ARCH, OS};
use std::ffi::{CStr, c_char};

use super::boundary::{guard, write_text};
use super::svdq_result;

/// Changes when programs have to be changed.
pub const SVDQ_VERSION_MAJOR: u32 = 0;
/// Changes when something is added.
pub const SVDQ_VERSION_MINOR: u32 = 1;
/// Changes when something is mended.
pub const SVDQ_VERSION_PATCH: u32 = 0;
/// The version of this header as one number that grows: 10203 is 1.2.3.
pub const SVDQ_VERSION_NUMBER: u32 =
    SVDQ_VERSION_MAJOR * 10000 + SVDQ_VERSION_MINOR * 100 + SVDQ_VERSION_PATCH;

const VERSION: &CStr = c"0.1.0";

/// The version of the library that is running, to be compared with SVDQ_VERSION_NUMBER.
///
/// Threads: any.
/// Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn svdq_version_number() -> u32 {
    SVDQ_VERSION_NUMBER
}

/// The version of the library that is running, as "0.1.0". The string is static.
///
/// Threads: any.
/// Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn svdq_version_string() -> *const c_char {
    VERSION.as_ptr()
}

/// Writes one line for bug reports about how the library was built: version, platform, GPU architectures.
///
/// buf, cap, needed: as for every string out, see the top of this file.
///
/// Errors: SVDQ_ERR_BUFFER_TOO_SMALL, SVDQ_ERR_INVALID_ARGUMENT.
/// Threads: any.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn svdq_build_info(buf: *mut c_char, cap: usize, needed: *mut usize) -> svdq_result {
    guard(|| {
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        let (version, kernels) = (env!("CARGO_PKG_VERSION"), env!("SVDQ_BUILT_FOR"));
        let text = format!("libsvdq {version} {ARCH}-{OS} {profile}, GPU kernels: {kernels}");
        // SAFETY: `buf` and `needed` are as the header demands.
        unsafe { write_text(&text, buf, cap, needed) }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_build_is_known() {
        let mut buf = [0; 200];
        // SAFETY: `buf` has so many bytes.
        let result = unsafe { svdq_build_info(buf.as_mut_ptr(), buf.len(), std::ptr::null_mut()) };
        assert_eq!(result, super::super::SVDQ_OK);
        // SAFETY: `svdq_build_info` has written a string.
        let text = unsafe { CStr::from_ptr(buf.as_ptr()) }.to_str().unwrap();
        assert!(text.starts_with("libsvdq 0.1.0 "), "{text}");
        let kernels = text.split_once("GPU kernels: ").unwrap().1;
        assert_eq!(kernels == "none", cfg!(not(svdq_kernels)), "{text}");
        assert!(!cfg!(svdq_all_archs) || kernels == "75,80,86,89,90a,120f", "{text}");
    }

    #[test]
    fn all_versions_are_the_crates() {
        assert_eq!(VERSION.to_str(), Ok(env!("CARGO_PKG_VERSION")));
        let parts: Vec<u32> =
            env!("CARGO_PKG_VERSION").split('.').map(|part| part.parse().unwrap()).collect();
        assert_eq!(parts, [SVDQ_VERSION_MAJOR, SVDQ_VERSION_MINOR, SVDQ_VERSION_PATCH]);
        assert_eq!(SVDQ_VERSION_NUMBER, parts[0] * 10000 + parts[1] * 100 + parts[2]);
    }
}
