//! The host's memory for all that grows with files and pictures: the system's, or the caller's.
//!
//! Matrices and tables come from here: weights, what they are decoded and unpacked to on their way to a device, activations,
//! pixels. Always the system's are headers, tokenizers and configs; vectors, such as biases; and while a checkpoint is
//! loaded that splits q, k and v, or the outputs of a single block, in 4 bits, the packed bytes of the linears that they
//! become; and scales and zeros of a 4-bit T5.

#![allow(unsafe_code, reason = "allocates")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ffi::c_void;
use std::fmt::{self, Display};
use std::marker::PhantomData;
use std::num::NonZero;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// Where every [`Buf`] begins: at a multiple of this many bytes, which is the widest vector and a line of the cache.
pub const ALIGNMENT: usize = 64;

/// `size` bytes at a multiple of `alignment`, or null.
pub type AllocFn = unsafe extern "C" fn(user: *mut c_void, size: usize, alignment: usize) -> *mut c_void;
/// Takes back what an [`AllocFn`] gave for this `size` and `alignment`.
pub type FreeFn = unsafe extern "C" fn(user: *mut c_void, memory: *mut c_void, size: usize, alignment: usize);

/// Functions of the caller's that give memory.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    /// Gives memory.
    pub alloc: AllocFn,
    /// Takes it back.
    pub free: FreeFn,
    /// Their first argument.
    pub user: *mut c_void,
}

// SAFETY: `HostMemory::from_hook`, the only way to use one, demands functions that any thread may call.
unsafe impl Send for Hook {}
// SAFETY: as above.
unsafe impl Sync for Hook {}

/// Memory, and how much of it is taken. Clones share both.
#[derive(Clone, Debug, Default)]
pub struct HostMemory {
    source: Source,
    count: Arc<Count>,
}

#[derive(Clone, Copy, Debug, Default)]
enum Source {
    #[default]
    System,
    Hook(Hook),
    /// None: only counts.
    Nowhere,
}

#[derive(Debug, Default)]
struct Count {
    used: AtomicU64,
    peak: AtomicU64,
    /// What this is a part of.
    whole: Option<Arc<Count>>,
}

impl Count {
    fn add(&self, bytes: u64) {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(used, Ordering::Relaxed);
        self.whole.iter().for_each(|whole| whole.add(bytes));
    }

    fn subtract(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        self.whole.iter().for_each(|whole| whole.subtract(bytes));
    }
}

impl HostMemory {
    /// Memory of the caller's.
    ///
    /// # Safety
    /// Until the last clone and the last [`Buf`] are gone, any thread may call both functions at any time. `alloc` gives
    /// null or memory that is nobody else's until it is given to `free`. Neither unwinds.
    pub unsafe fn from_hook(hook: Hook) -> Self {
        HostMemory { source: Source::Hook(hook), count: Arc::default() }
    }

    /// Counts in the same counters, but gives no memory: whatever length a buffer is asked for, it is empty.
    pub fn hollow(&self) -> Self {
        HostMemory { source: Source::Nowhere, count: self.count.clone() }
    }

    /// The same memory with counters of its own: what is taken from it counts in both.
    pub fn part(&self) -> Self {
        let count = Count { whole: Some(self.count.clone()), ..Count::default() };
        HostMemory { source: self.source, count: Arc::new(count) }
    }

    /// Bytes that are taken now.
    pub fn used(&self) -> u64 {
        self.count.used.load(Ordering::Relaxed)
    }

    /// The most bytes that were ever taken at a time.
    pub fn peak(&self) -> u64 {
        self.count.peak.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> Option<NonNull<u8>> {
        let memory = self.source.take(bytes)?;
        self.count.add(bytes as u64);
        Some(memory)
    }

    /// # Safety
    /// `memory` is what [`Self::take`] gave for so many bytes, and is not used any more.
    unsafe fn give_back(&self, memory: NonNull<u8>, bytes: usize) {
        // SAFETY: the caller's.
        unsafe { self.source.give_back(memory, bytes) };
        self.count.subtract(bytes as u64);
    }
}

impl Source {
    /// `bytes` zeros, at least one, at a multiple of [`ALIGNMENT`].
    fn take(&self, bytes: usize) -> Option<NonNull<u8>> {
        match self {
            Source::System => {
                // SAFETY: the size is not 0.
                let start = NonNull::new(unsafe { alloc_zeroed(system_layout(bytes)?) })?;
                // SAFETY: `system_layout` has room for the way to the next multiple, and for where it began behind it.
                unsafe {
                    let memory = start.add(start.align_offset(ALIGNMENT));
                    memory.add(bytes).cast::<NonNull<u8>>().write_unaligned(start);
                    Some(memory)
                }
            }
            Source::Hook(hook) => {
                // SAFETY: by the contract of `from_hook`.
                let memory = NonNull::new(unsafe { (hook.alloc)(hook.user, bytes, ALIGNMENT) })?;
                let memory = memory.cast::<u8>();
                if !memory.addr().get().is_multiple_of(ALIGNMENT) {
                    // SAFETY: as above, with the same size and alignment.
                    unsafe { (hook.free)(hook.user, memory.as_ptr().cast(), bytes, ALIGNMENT) };
                    return None;
                }
                // SAFETY: so many bytes were asked for.
                unsafe { memory.write_bytes(0, bytes) };
                Some(memory)
            }
            Source::Nowhere => NonZero::new(ALIGNMENT).map(NonNull::without_provenance),
        }
    }

    /// # Safety
    /// As [`HostMemory::give_back`].
    unsafe fn give_back(&self, memory: NonNull<u8>, bytes: usize) {
        match self {
            Source::System => {
                // SAFETY: `take` has written where the allocation begins, and succeeded with this layout.
                unsafe {
                    let start = memory.add(bytes).cast::<NonNull<u8>>().read_unaligned();
                    if let Some(layout) = system_layout(bytes) {
                        dealloc(start.as_ptr(), layout);
                    }
                }
            }
            // SAFETY: by the contract of `from_hook`; `take` asked for this size and alignment.
            Source::Hook(hook) => unsafe {
                (hook.free)(hook.user, memory.as_ptr().cast(), bytes, ALIGNMENT);
            },
            Source::Nowhere => {}
        }
    }
}

/// `bytes` and what it takes to align them. Of an alignment that every allocation has, since for more than that
/// [`alloc_zeroed`] writes the zeros, and touches pages that nobody may ever need.
fn system_layout(bytes: usize) -> Option<Layout> {
    const LEAST: usize = align_of::<usize>();
    let bytes = bytes.checked_add(ALIGNMENT - LEAST + size_of::<NonNull<u8>>())?;
    Layout::from_size_align(bytes, LEAST).ok()
}

/// Numbers whose bits may be anything, zeros among them.
///
/// # Safety
/// Every bit pattern is a value, and there is nothing to drop.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}

macro_rules! plain {
    ($($number:ty)*) => { $(
        // SAFETY: a number.
        unsafe impl Plain for $number {}
    )* };
}
plain!(u8 i8 u16 i16 u32 i32 u64 i64 f32 f64);

/// Numbers in a [`HostMemory`], which begin at a multiple of [`ALIGNMENT`].
pub struct Buf<T> {
    memory: HostMemory,
    at: NonNull<T>,
    /// Elements that it holds: none where the memory is hollow.
    len: usize,
    /// Bytes that were taken.
    bytes: usize,
    owns: PhantomData<T>,
}

// SAFETY: it owns its numbers, and `HostMemory` may be used from any thread.
unsafe impl<T: Plain> Send for Buf<T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Buf<T> {}

impl<T: Plain> Buf<T> {
    /// `len` zeros. `what` is what the error says that they are for.
    ///
    /// # Errors
    /// [`Error::OutOfHostMemory`]
    pub fn zeroed(memory: &HostMemory, len: usize, what: impl Display) -> Result<Self> {
        let full = |bytes: Option<usize>| Error::OutOfHostMemory {
            what: what.to_string(),
            bytes: bytes.map_or(u64::MAX, |bytes| bytes as u64),
        };
        let bytes = len.checked_mul(size_of::<T>());
        let Some(bytes) = bytes.filter(|&bytes| isize::try_from(bytes).is_ok()) else {
            return Err(full(bytes));
        };
        let at = match bytes {
            0 => NonNull::dangling(),
            bytes => memory.take(bytes).ok_or_else(|| full(Some(bytes)))?.cast(),
        };
        let len = if matches!(memory.source, Source::Nowhere) { 0 } else { len };
        Ok(Buf { memory: memory.clone(), at, len, bytes, owns: PhantomData })
    }

    /// A copy of `data`.
    ///
    /// # Errors
    /// [`Error::OutOfHostMemory`]
    pub fn copy_of(memory: &HostMemory, data: &[T], what: impl Display) -> Result<Self> {
        Self::concat(memory, &[data], what)
    }

    /// `parts`, one after the other.
    ///
    /// # Errors
    /// [`Error::OutOfHostMemory`]
    pub fn concat(memory: &HostMemory, parts: &[&[T]], what: impl Display) -> Result<Self> {
        let mut all = Self::zeroed(memory, parts.iter().map(|part| part.len()).sum(), what)?;
        let mut rest = &mut all[..];
        for part in parts {
            // Hollow memory has no room, and needs none.
            let Some((to, after)) = rest.split_at_mut_checked(part.len()) else { break };
            to.copy_from_slice(part);
            rest = after;
        }
        Ok(all)
    }
}

/// A copy in the system's memory. Aborts as `Vec` does if there is none.
impl<T: Plain> From<Vec<T>> for Buf<T> {
    fn from(values: Vec<T>) -> Self {
        match Buf::copy_of(&HostMemory::default(), &values, "a copy") {
            Ok(copy) => copy,
            Err(_) => handle_alloc_error(Layout::for_value(&values[..])),
        }
    }
}

/// No numbers, and no memory.
impl<T> Default for Buf<T> {
    fn default() -> Self {
        Buf { memory: HostMemory::default(), at: NonNull::dangling(), len: 0, bytes: 0, owns: PhantomData }
    }
}

impl<T> Deref for Buf<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: so many numbers are there, and they are ours.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Buf<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl<T> Drop for Buf<T> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: `zeroed` has taken them, and this was the last use.
            unsafe { self.memory.give_back(self.at.cast(), self.bytes) };
        }
    }
}

impl<T> AsRef<[T]> for Buf<T> {
    fn as_ref(&self) -> &[T] {
        self
    }
}

impl<'a, T> IntoIterator for &'a Buf<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<T: PartialEq, O: AsRef<[T]>> PartialEq<O> for Buf<T> {
    fn eq(&self, other: &O) -> bool {
        **self == *other.as_ref()
    }
}

impl<T: fmt::Debug> fmt::Debug for Buf<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
pub(crate) mod tests;
