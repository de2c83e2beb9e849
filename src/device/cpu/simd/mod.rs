//! Vectors of the processor's own width: every kernel is written once against [`Simd`], and
//! compiled for each instruction set.

#![allow(unsafe_code, reason = "instructions that a build cannot assume, behind run-time detection")]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(super) use avx512::Avx512;
pub(super) use portable::Portable;

/// The widest vector of any instruction set, in f32.
pub(super) const MAX_LANES: usize = 16;
/// The most rows of any register tile.
pub(super) const MAX_ROWS: usize = 12;

/// An instruction set. A value is the proof that the processor has it.
///
/// Slices shorter than a vector are read as if zeros followed, and only their length is written.
pub(super) trait Simd: Copy + Send + Sync + 'static {
    /// f32 or i32 values in a vector.
    const LANES: usize;
    /// Rows of the register tile of the f32 kernel; its columns are two vectors.
    const ROWS: usize;
    /// Rows of the register tile of the integer kernel; its columns are two vectors.
    const INT_ROWS: usize;
    /// f32 values.
    type F: Copy;
    /// i32 values.
    type I: Copy;
    /// Four signed bytes in each lane.
    type W: Copy;
    /// Four unsigned bytes, the same in each lane.
    type X: Copy;

    fn splat(self, v: f32) -> Self::F;
    fn load(self, x: &[f32]) -> Self::F;
    fn store(self, v: Self::F, x: &mut [f32]);
    /// # Safety
    /// A vector can be read at `x`.
    unsafe fn load_at(self, x: *const f32) -> Self::F;
    /// # Safety
    /// A vector can be written at `x`.
    unsafe fn store_at(self, v: Self::F, x: *mut f32);
    /// bfloat16 values.
    /// # Safety
    /// `LANES` values can be read at `x`.
    unsafe fn widen_at(self, x: *const u16) -> Self::F;
    /// The lower and the upper four bits of every byte, as numbers from 0 to 15.
    /// # Safety
    /// `LANES` bytes can be read at `x`.
    unsafe fn nibbles_at(self, x: *const u8) -> [Self::F; 2];

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once where the instruction set can.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// To the nearest integer, half to even.
    fn round(self, a: Self::F) -> Self::F;
    /// To the nearest bfloat16, half to even.
    fn round_bf16(self, a: Self::F) -> Self::F;
    /// `2^n` for integers from -126 to 127.
    fn exp2(self, n: Self::F) -> Self::F;
    /// The sum of all lanes.
    fn sum(self, a: Self::F) -> f32;
    /// The largest lane.
    fn largest(self, a: Self::F) -> f32;
    /// Writes integers from 0 to 255 as bytes.
    fn store_bytes(self, v: Self::F, x: &mut [u8]);

    /// # Safety
    /// A vector can be read at `x`.
    unsafe fn load_ints_at(self, x: *const i32) -> Self::I;
    fn to_float(self, a: Self::I) -> Self::F;
    /// # Safety
    /// `4 · LANES` bytes can be read at `x`.
    unsafe fn weights_at(self, x: *const i8) -> Self::W;
    /// Four bytes, the first in the lowest bits.
    fn codes(self, four: u32) -> Self::X;
    /// `a + Σ of the four products`, exactly.
    fn dot(self, a: Self::I, x: Self::X, w: Self::W) -> Self::I;
}

/// A computation that [`Level::run`] compiles for each instruction set. `run` has to be
/// `#[inline(always)]`, and so has everything in it that touches vectors.
pub(super) trait Kernel {
    fn run<S: Simd>(self, s: S);
}

/// The instruction set in use.
#[derive(Clone, Copy, Debug)]
pub(super) enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    Portable,
}

impl Level {
    /// What this processor has, the fastest first.
    pub(super) fn all() -> Vec<Level> {
        let mut levels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend(Avx512::detect().map(Level::Avx512));
            levels.extend(Avx2::detect().map(Level::Avx2));
        }
        levels.push(Level::Portable);
        levels
    }

    /// f32 values in a vector.
    pub(super) fn lanes(self) -> usize {
        self.shape()[0]
    }

    /// Rows of the register tile of the f32 kernel.
    pub(super) fn rows(self) -> usize {
        self.shape()[1]
    }

    /// Rows of the register tile of the integer kernel.
    pub(super) fn int_rows(self) -> usize {
        self.shape()[2]
    }

    fn shape(self) -> [usize; 3] {
        fn of<S: Simd>(_: S) -> [usize; 3] {
            [S::LANES, S::ROWS, S::INT_ROWS]
        }
        match self {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(s) => of(s),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(s) => of(s),
            Level::Portable => of(Portable),
        }
    }

    /// Runs `kernel` with this instruction set.
    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) {
        match self {
            // SAFETY: the value proves that the processor has the features.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(s) => unsafe { avx512::run(s, kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(s) => unsafe { avx2::run(s, kernel) },
            Level::Portable => kernel.run(Portable),
        }
    }
}
