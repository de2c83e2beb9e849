//! Pinned host memory through which large data reach the GPU: the copy engine reads it at full speed, while the next
//! piece is being filled.

#![allow(unsafe_code, reason = "calls the driver")]

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::api::{CUdeviceptr, CUevent};
use super::driver::Context;
use crate::memory::{Buf, HostMemory};
use crate::{Error, Result, threads};

/// Bytes of a piece, and how many there are.
const PIECE: usize = 16 << 20;
const PIECES: usize = 3;
/// From so many bytes on a piece is worth its while: the driver itself stages less.
const LEAST: usize = 64 << 10;
/// A thread copies at least this many bytes.
const SHARE: usize = 1 << 20;
/// More threads than this gain nothing.
const THREADS: usize = 8;

/// The pieces of one context, made when they are first needed.
#[derive(Default)]
pub(super) struct Staging(Mutex<Ring>);

#[derive(Default)]
struct Ring {
    pieces: Vec<Piece>,
    next: usize,
}

struct Piece {
    memory: *mut u8,
    /// Reached when the GPU has read the piece.
    read: CUevent,
}

// SAFETY: memory and an event of the driver's, which may be used from any thread.
unsafe impl Send for Piece {}

impl Staging {
    /// Copies `from` to `to`, in the order of the stream. `from` has been read when this returns.
    ///
    /// # Errors
    /// [`Error::OutOfHostMemory`] if there is no memory to be pinned, and the driver's.
    pub(super) fn upload(&self, context: &Context, to: CUdeviceptr, from: &[u8]) -> Result<()> {
        if from.len() < LEAST {
            let _current = context.enter()?;
            // SAFETY: the caller's range; the driver has read ordinary memory when the call returns.
            return unsafe { copy_async(context, to, from.as_ptr(), from.len()) };
        }
        self.fill(context, to, from.len(), |start, part| part.copy_from_slice(&from[start..][..part.len()]))
    }

    /// Makes `bytes` bytes at `to`, in the order of the stream. `fill(start, part)` writes those from `start` on; it is
    /// called for all of them, by several threads, before this returns. On an idle context there is nothing to make.
    ///
    /// # Errors
    /// As [`Self::upload`].
    pub(super) fn fill(
        &self,
        context: &Context,
        to: CUdeviceptr,
        bytes: usize,
        fill: impl Fn(usize, &mut [u8]) + Sync,
    ) -> Result<()> {
        if context.is_idle() {
            return Ok(());
        }
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for start in (0..bytes).step_by(PIECE) {
            let _current = context.enter()?;
            let piece = ring.next(context)?;
            let len = PIECE.min(bytes - start);
            // SAFETY: `Ring::next` has initialised the piece, and nobody else has it now.
            let part = unsafe { std::slice::from_raw_parts_mut(piece.memory, len) };
            in_shares(part, |offset, share| fill(start + offset, share))?;
            // SAFETY: the piece stays as it is until its event is reached.
            unsafe {
                copy_async(context, to + start as u64, piece.memory, len)?;
                let code = context.api.cuEventRecord(piece.read, context.stream());
                context.check("cuEventRecord", code)?;
            }
        }
        Ok(())
    }

    /// Gives everything back. The context is current, and nothing uses the pieces any more.
    pub(super) fn free(&mut self, context: &Context) {
        let ring = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        for piece in ring.pieces.drain(..) {
            // SAFETY: made by `Ring::next`.
            unsafe {
                let _ = context.api.cuEventDestroy_v2(piece.read);
                let _ = context.api.cuMemFreeHost(piece.memory.cast());
            }
        }
    }
}

impl Ring {
    /// A piece that may be overwritten. The context is current.
    fn next(&mut self, context: &Context) -> Result<&Piece> {
        let api = &context.api;
        let i = self.next;
        if i == self.pieces.len() {
            let (mut memory, mut read) = (null_mut(), null_mut());
            /// CU_EVENT_DISABLE_TIMING
            const NO_TIMING: u32 = 2;
            // SAFETY: both pointers live; `free` gives back what is made here.
            unsafe {
                if api.cuMemHostAlloc(&mut memory, PIECE, 0).is_err() {
                    let what = "copies to the GPU".into();
                    return Err(Error::OutOfHostMemory { what, bytes: PIECE as u64 });
                }
                let made = context.check("cuEventCreate", api.cuEventCreate(&mut read, NO_TIMING));
                if made.is_err() {
                    let _ = api.cuMemFreeHost(memory);
                }
                made?;
            }
            let memory = memory.cast::<u8>();
            // SAFETY: so many bytes were allocated.
            unsafe { memory.write_bytes(0, PIECE) };
            self.pieces.push(Piece { memory, read });
        } else {
            // SAFETY: the event was made above.
            context.check("cuEventSynchronize", unsafe { api.cuEventSynchronize(self.pieces[i].read) })?;
        }
        self.next = (i + 1) % PIECES;
        Ok(&self.pieces[i])
    }
}

/// # Safety
/// `bytes` bytes can be read at `from` and written at `to`; what is pinned stays as it is until they are copied.
unsafe fn copy_async(context: &Context, to: CUdeviceptr, from: *const u8, bytes: usize) -> Result<()> {
    // SAFETY: the caller's.
    let code =
        unsafe { context.api.cuMemcpyHtoDAsync_v2(to, from.cast::<c_void>(), bytes, context.stream()) };
    context.check("cuMemcpyHtoD", code)
}

/// Calls `fill` with all shares of `to` and where they begin, in several threads.
fn in_shares(to: &mut [u8], fill: impl Fn(usize, &mut [u8]) + Sync) -> Result<()> {
    let count = thread::available_parallelism().map_or(1, usize::from).min(THREADS);
    let share = to.len().div_ceil(count).max(SHARE);
    thread::scope(|scope| {
        let fill = &fill;
        let mut shares = to.chunks_mut(share).enumerate();
        let own = shares.next();
        for (i, to) in shares {
            let work = move || fill(i * share, to);
            threads::builder("-copy").spawn_scoped(scope, work).map_err(threads::refused)?;
        }
        if let Some((_, to)) = own {
            fill(0, to);
        }
        Ok(())
    })
}

/// Copies `from` to `to`, of the same size, with several threads: one alone is slower than the bus, above all
/// where `from` is a file that has to be mapped page by page.
fn copy(from: &[u8], to: &mut [u8]) -> Result<()> {
    in_shares(to, |start, share| share.copy_from_slice(&from[start..][..share.len()]))
}

/// `parts` one after the other.
///
/// # Errors
/// [`Error::OutOfHostMemory`]
pub(super) fn concat<T: AsRef<[u8]>>(memory: &HostMemory, parts: &[T]) -> Result<Buf<u8>> {
    let bytes = parts.iter().map(|part| part.as_ref().len()).sum();
    let mut all = Buf::zeroed(memory, bytes, "weights that do not fit into the GPU's memory")?;
    let mut rest = &mut all[..];
    for part in parts {
        let part = part.as_ref();
        let (to, after) = rest.split_at_mut(part.len());
        copy(part, to)?;
        rest = after;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::concat;
    use crate::memory::HostMemory;

    #[test]
    fn parts_are_joined() {
        let parts: Vec<Vec<u8>> =
            [3, 0, 5 << 20].map(|len| (0..len).map(|i| (i * 7 % 251) as u8).collect()).into();
        assert!(*concat(&HostMemory::default(), &parts).unwrap() == parts.concat());
    }
}
