//! GPU memory: large chunks from the driver, handed out in ranges.

#![allow(unsafe_code, reason = "calls the driver")]

use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use super::api::{CUdeviceptr, Code};
use super::driver::Context;
use super::profile::Task;
use crate::Result;
use crate::memory::Plain;

/// Ranges begin at multiples of this many bytes: more than any kernel asks for.
pub(super) const ALIGNMENT: usize = 256;

/// Memory from which ranges are taken and to which they come back.
///
/// Work on the GPU runs in the order in which it is asked for, so a range may be taken again as soon as
/// nobody on the host holds it. The first gap that is large enough serves a request, so that who takes and
/// gives back the same ranges in the same order gets the same addresses.
pub(super) struct Pool {
    context: Arc<Context>,
    /// Chunks that no [`Pool::reserve`] asked for have at least this many bytes.
    chunk_bytes: usize,
    /// What the error says that memory was for.
    purpose: &'static str,
    state: Mutex<Chunks>,
}

/// What a pool has.
#[derive(Default)]
struct Chunks {
    chunks: Vec<Chunk>,
    /// Ranges that were taken or given back.
    changes: u64,
    /// The thread that watches, if any, and whether another one took or gave back ranges since it began.
    watch: Option<(ThreadId, bool)>,
}

impl Chunks {
    fn gaps(&self) -> impl Iterator<Item = &Gap> {
        self.chunks.iter().flat_map(|chunk| &chunk.gaps)
    }

    fn change(&mut self) {
        self.changes += 1;
        if let Some((thread, disturbed)) = &mut self.watch {
            *disturbed |= *thread != std::thread::current().id();
        }
    }
}

/// Where the memory of an idle context begins, and how much of it there is: more than any GPU has.
const IDLE: (CUdeviceptr, usize) = (1 << 40, 1 << 46);

impl Pool {
    pub(super) fn new(context: Arc<Context>, chunk_bytes: usize, purpose: &'static str) -> Arc<Self> {
        Arc::new(Pool { context, chunk_bytes, purpose, state: Mutex::default() })
    }

    /// A pool of addresses behind which there is no memory, on an idle context. It finds out what
    /// [`Pool::reserve`] has to be asked for.
    pub(super) fn idle(context: Arc<Context>) -> Arc<Self> {
        let pool = Pool::new(context, 0, "");
        pool.lock().chunks.push(Chunk::new(&pool.context, IDLE.0, IDLE.1));
        pool
    }

    /// The bytes from the beginning of the first chunk up to the end of the last range that was ever taken from it:
    /// a chunk of this size has room for all of them.
    pub(super) fn used(&self) -> usize {
        self.lock().chunks.first().map_or(0, |chunk| chunk.used)
    }

    /// Bytes of all chunks.
    pub(super) fn bytes(&self) -> usize {
        self.lock().chunks.iter().map(|chunk| chunk.len).sum()
    }

    /// Makes sure that the first chunk has `bytes` in one piece. If it has not, chunks that nobody uses are given back
    /// and one of this size comes before the others.
    ///
    /// # Errors
    /// [`crate::Error::OutOfDeviceMemory`], [`crate::Error::MemoryBudget`].
    pub(super) fn reserve(&self, bytes: usize) -> Result<()> {
        let chunks = &mut self.lock().chunks;
        let enough = |chunk: &Chunk| chunk.gaps.iter().any(|gap| gap.len >= bytes);
        if bytes == 0 || chunks.first().is_some_and(enough) {
            return Ok(());
        }
        chunks.retain(|chunk| !chunk.is_free());
        chunks.insert(0, Chunk::allocate(&self.context, bytes, self.purpose)?);
        Ok(())
    }

    /// Gives back the chunks of which nobody uses anything.
    pub(super) fn trim(&self) {
        self.lock().chunks.retain(|chunk| !chunk.is_free());
    }

    /// Gives everything back if nobody uses any of it.
    pub(super) fn empty(&self) {
        let chunks = &mut self.lock().chunks;
        if chunks.iter().all(Chunk::is_free) {
            chunks.clear();
        }
    }

    /// A range of `bytes`, with whatever it held before.
    ///
    /// # Errors
    /// [`crate::Error::OutOfDeviceMemory`], [`crate::Error::MemoryBudget`]; the pool stays as it is.
    pub(super) fn take(self: &Arc<Self>, bytes: usize) -> Result<Range> {
        let len = bytes.max(1).next_multiple_of(ALIGNMENT);
        let mut state = self.lock();
        let chunks = &mut state.chunks;
        let at = match chunks.iter_mut().find_map(|chunk| chunk.take(len)) {
            Some(at) => at,
            None => {
                let mut chunk = Chunk::allocate(&self.context, len.max(self.chunk_bytes), self.purpose)?;
                let at = chunk.take(len).unwrap_or(chunk.base);
                chunks.push(chunk);
                at
            }
        };
        state.change();
        Ok(Range { pool: self.clone(), at, len, bytes })
    }

    /// How many ranges were ever taken or given back: as long as it is the same, all ranges are what they were.
    pub(super) fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// All that is free: who finds the same gaps and asks for the same ranges gets the same addresses.
    pub(super) fn gaps(&self) -> Vec<Gap> {
        self.lock().gaps().copied().collect()
    }

    /// Calls `launch` if exactly these gaps are free. What it asks of the GPU comes before the work of whoever takes
    /// a range afterwards. Returns whether it was called.
    pub(super) fn while_free(&self, gaps: &[Gap], launch: impl FnOnce() -> Result<()>) -> Result<bool> {
        let state = self.lock();
        let same = state.gaps().eq(gaps);
        if same {
            launch()?;
        }
        Ok(same)
    }

    /// From now on notes whether other threads take ranges or give them back. One thread watches at a time.
    pub(super) fn watch(&self) {
        self.lock().watch = Some((std::thread::current().id(), false));
    }

    /// Whether no other thread did.
    pub(super) fn end_watch(&self) -> bool {
        self.lock().watch.take().is_some_and(|(_, disturbed)| !disturbed)
    }

    fn lock(&self) -> MutexGuard<'_, Chunks> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An allocation of the driver's.
struct Chunk {
    context: Arc<Context>,
    base: CUdeviceptr,
    len: usize,
    /// The end of the last range that was ever taken.
    used: usize,
    /// What is free, in order; no gap touches the next.
    gaps: Vec<Gap>,
}

/// Free bytes in a row.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Gap {
    at: CUdeviceptr,
    len: usize,
}

impl Chunk {
    fn allocate(context: &Arc<Context>, len: usize, purpose: &str) -> Result<Self> {
        let full = || Err(context.full(purpose, len as u64));
        if !context.taken.add(len as u64) {
            return full();
        }
        let mut chunk = Chunk::new(context, 0, len);
        let current = context.enter()?;
        // SAFETY: `base` lives; `drop` gives the memory back.
        match unsafe { context.api.cuMemAlloc_v2(&mut chunk.base, len) } {
            Err(Code::OUT_OF_MEMORY) => {
                drop((current, chunk));
                full()
            }
            result => {
                context.check("cuMemAlloc", result)?;
                chunk.gaps[0].at = chunk.base;
                Ok(chunk)
            }
        }
    }

    /// `len` bytes at `base`, of which the context has taken note.
    fn new(context: &Arc<Context>, base: CUdeviceptr, len: usize) -> Self {
        Chunk { context: context.clone(), base, len, used: 0, gaps: vec![Gap { at: base, len }] }
    }

    fn is_free(&self) -> bool {
        self.gaps.first().is_some_and(|gap| gap.len == self.len)
    }

    fn take(&mut self, len: usize) -> Option<CUdeviceptr> {
        let i = self.gaps.iter().position(|gap| gap.len >= len)?;
        let gap = &mut self.gaps[i];
        let at = gap.at;
        *gap = Gap { at: at + len as u64, len: gap.len - len };
        if gap.len == 0 {
            self.gaps.remove(i);
        }
        self.used = self.used.max((at - self.base) as usize + len);
        Some(at)
    }

    fn give_back(&mut self, at: CUdeviceptr, len: usize) {
        let i = self.gaps.partition_point(|gap| gap.at < at);
        self.gaps.insert(i, Gap { at, len });
        if i + 1 < self.gaps.len() && self.gaps[i + 1].at == at + len as u64 {
            self.gaps[i].len += self.gaps.remove(i + 1).len;
        }
        if i > 0 && self.gaps[i - 1].at + self.gaps[i - 1].len as u64 == at {
            self.gaps[i - 1].len += self.gaps.remove(i).len;
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.context.taken.subtract(self.len as u64);
        if self.base == 0 {
            return;
        }
        let _current = self.context.enter();
        // SAFETY: no range of it is left; the driver waits for work that still uses it. On a context that
        // is lost the memory is, too.
        let _ = unsafe { self.context.api.cuMemFree_v2(self.base) };
    }
}

/// Bytes on the GPU, given back to their pool when dropped.
pub(super) struct Range {
    pool: Arc<Pool>,
    at: CUdeviceptr,
    len: usize,
    bytes: usize,
}

impl Range {
    pub(super) fn at(&self) -> CUdeviceptr {
        self.at
    }

    /// Copies `data` to the start of the range.
    pub(super) fn write<T: Copy>(&self, data: &[T]) -> Result<()> {
        self.write_at(0, data)
    }

    /// Copies `data` to the bytes from `start` on.
    pub(super) fn write_at<T: Copy>(&self, start: usize, data: &[T]) -> Result<()> {
        let bytes = size_of_val(data);
        let fits = start.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        assert!(fits, "{bytes} bytes from {start} on into a range of {}", self.bytes);
        let context = &self.pool.context;
        // SAFETY: the bytes of plain numbers.
        let data = unsafe { std::slice::from_raw_parts(data.as_ptr().cast::<u8>(), bytes) };
        context.staging.upload(context, self.at + start as u64, data)?;
        context.mark(Some(Task::bytes(c"upload", bytes)))
    }

    /// Fills the range with zeros.
    pub(super) fn clear(&self) -> Result<()> {
        let context = &self.pool.context;
        let _current = context.enter()?;
        // SAFETY: the range is ours.
        let code = unsafe { context.api.cuMemsetD8Async(self.at, 0, self.bytes, context.stream()) };
        context.check("cuMemsetD8", code)?;
        context.mark(Some(Task::bytes(c"clear", self.bytes)))
    }

    /// Reads the elements at the start of the range into `data`, once everything asked of the GPU before is done.
    pub(super) fn read<T: Plain>(&self, data: &mut [T]) -> Result<()> {
        let bytes = size_of_val(data);
        assert!(bytes <= self.bytes, "{bytes} bytes out of a range of {}", self.bytes);
        let context = &self.pool.context;
        {
            let _current = context.enter()?;
            let to = data.as_mut_ptr().cast::<c_void>();
            // SAFETY: both sides have as many bytes, and any bits are a number; `data` outlives the copy.
            let code = unsafe { context.api.cuMemcpyDtoHAsync_v2(to, self.at, bytes, context.stream()) };
            context.check("cuMemcpyDtoH", code)?;
            context.mark(Some(Task::bytes(c"download", bytes)))?;
        }
        context.synchronize()
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        state.change();
        let chunks = &mut state.chunks;
        let holds = |chunk: &&mut Chunk| (chunk.base..chunk.base + chunk.len as u64).contains(&self.at);
        if let Some(chunk) = chunks.iter_mut().find(holds) {
            chunk.give_back(self.at, self.len);
        }
    }
}
