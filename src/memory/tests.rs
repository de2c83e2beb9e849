//! A hook that keeps books, and what [`HostMemory`] makes of it.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use super::*;

/// Memory whose every allocation is written down, and can be made to fail.
#[derive(Default)]
pub(crate) struct Ledger(Mutex<Books>);

#[derive(Default)]
pub(crate) struct Books {
    /// Size and alignment of what is taken.
    taken: HashMap<usize, (usize, usize)>,
    pub(crate) used: u64,
    pub(crate) peak: u64,
    /// Allocations that were asked for.
    pub(crate) calls: u64,
    /// The call that fails; counts from 1, 0 for none.
    pub(crate) fail: u64,
    /// What is given is this many bytes off.
    shift: usize,
    /// What was given back as something else than it was taken for.
    pub(crate) wrong: u64,
}

impl Ledger {
    pub(crate) fn memory(&'static self) -> HostMemory {
        let user = std::ptr::from_ref(self).cast_mut().cast();
        // SAFETY: the functions lock their books, which live as long as the process.
        unsafe { HostMemory::from_hook(Hook { alloc, free, user }) }
    }

    pub(crate) fn leaked() -> &'static Self {
        Box::leak(Box::default())
    }

    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap()
    }
}

unsafe extern "C" fn alloc(user: *mut c_void, size: usize, alignment: usize) -> *mut c_void {
    // SAFETY: `memory` gives a ledger that lives.
    let mut books = unsafe { &*user.cast::<Ledger>() }.books();
    books.calls += 1;
    if books.calls == books.fail {
        return std::ptr::null_mut();
    }
    let layout = Layout::from_size_align(size + ALIGNMENT, alignment).unwrap();
    // SAFETY: the size is not 0; what is moved by less than an alignment is in it.
    let at = unsafe { std::alloc::alloc(layout).add(books.shift) };
    assert!(!at.is_null());
    // SAFETY: `size` bytes that may hold anything.
    unsafe { at.write_bytes(0xab, size) };
    books.taken.insert(at.addr(), (size, alignment));
    books.used += size as u64;
    books.peak = books.peak.max(books.used);
    at.cast()
}

unsafe extern "C" fn free(user: *mut c_void, memory: *mut c_void, size: usize, alignment: usize) {
    // SAFETY: as above.
    let mut books = unsafe { &*user.cast::<Ledger>() }.books();
    if books.taken.remove(&memory.addr()) != Some((size, alignment)) {
        books.wrong += 1;
        return;
    }
    books.used -= size as u64;
    let layout = Layout::from_size_align(size + ALIGNMENT, alignment).unwrap();
    // SAFETY: allocated above.
    unsafe { std::alloc::dealloc(memory.cast::<u8>().sub(books.shift), layout) };
}

#[test]
fn buffers_are_zeroed_aligned_and_counted() {
    let ledger = Ledger::leaked();
    for memory in [HostMemory::default(), ledger.memory()] {
        let mut buffers = Vec::new();
        for len in [0, 1, 63, 64, 1000, 3 << 20] {
            let mut buffer = Buf::<u16>::zeroed(&memory, len, "tests").unwrap();
            assert_eq!(
                (buffer.len(), buffer.as_ptr().addr() % if len > 0 { ALIGNMENT } else { 2 }),
                (len, 0)
            );
            assert!(buffer.iter().all(|&v| v == 0), "{len} numbers");
            buffer.fill(0xffff);
            buffers.push(buffer);
        }
        let all = 2 * buffers.iter().map(|b| b.len() as u64).sum::<u64>();
        assert_eq!((memory.used(), memory.peak()), (all, all));
        let copy = Buf::concat(&memory, &[&[1u16, 2][..], &[], &[3]], "tests").unwrap();
        assert_eq!((&copy[..], memory.clone().used()), (&[1, 2, 3][..], all + 6));
        std::thread::spawn(move || drop((buffers, copy))).join().unwrap();
        assert_eq!((memory.used(), memory.peak()), (0, all + 6));
    }
    let books = ledger.books();
    assert_eq!((books.used, books.wrong, books.calls), (0, 0, 6));
}

#[test]
fn memory_that_is_not_to_be_had_is_an_error() {
    let ledger = Ledger::leaked();
    let memory = ledger.memory();
    let check = |memory: &HostMemory, len: usize, need: u64| {
        match Buf::<f32>::zeroed(memory, len, format_args!("{} tests", 7)).err().unwrap() {
            Error::OutOfHostMemory { what, bytes } => assert_eq!((&what[..], bytes), ("7 tests", need)),
            error => panic!("{error}"),
        }
        assert_eq!((memory.used(), memory.peak()), (0, 0));
    };
    ledger.books().fail = 1;
    check(&memory, 10, 40);
    ledger.books().shift = 16;
    check(&memory, 10, 40);
    let most = isize::MAX as usize;
    for memory in [memory, HostMemory::default()] {
        check(&memory, usize::MAX, u64::MAX);
        check(&memory, most / 4 + 1, most as u64 + 1);
    }
    check(&HostMemory::default(), most / 4, most as u64 - 3);
    let books = ledger.books();
    assert_eq!((books.used, books.wrong, books.calls), (0, 0, 2));
}

#[test]
fn a_part_counts_for_itself_and_for_the_whole() {
    let whole = HostMemory::default();
    let part = whole.part();
    let take = |memory, len| Buf::<u8>::zeroed(memory, len, "tests").unwrap();
    let (one, other) = (take(&whole, 10), take(&part, 5));
    assert_eq!((whole.used(), part.used()), (15, 5));
    drop(one);
    assert_eq!((whole.used(), part.used(), whole.peak(), part.peak()), (5, 5, 15, 5));
    drop((part, other));
    assert_eq!(whole.used(), 0);
}

#[test]
fn hollow_memory_only_counts() {
    let memory = HostMemory::default();
    let full = Buf::<u8>::zeroed(&memory, 5, "").unwrap();
    let hollow = Buf::<f32>::zeroed(&memory.hollow(), 1 << 50, "").unwrap();
    assert_eq!((full.len(), hollow.len(), memory.used()), (5, 0, 5 + (4 << 50)));
    let copy = Buf::copy_of(&memory.hollow(), &[1u8, 2], "").unwrap();
    assert_eq!((copy.len(), memory.peak()), (0, 7 + (4 << 50)));
    drop((full, hollow, copy));
    assert_eq!(memory.used(), 0);
}
