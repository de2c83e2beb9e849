//! The boundary between C and the engine: what every exported function does on its way in and out.
//!
//! The helpers turn C's pointers into Rust values and check all that can be checked. What cannot be
//! is the caller's promise, made by the header: a pointer that is not NULL points to as much memory
//! as its type, its `struct_size` or the capacity beside it says.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char};
use std::mem::{MaybeUninit, size_of};
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::ptr::{self, NonNull};
use std::sync::Once;
use std::thread;

use super::result::code;
use super::{SVDQ_OK, svdq_result};
use crate::{Error, Result, threads};

/// No struct of this API ever grows beyond this many bytes: a larger `struct_size` is garbage.
const MAX_STRUCT_SIZE: usize = 4096;

thread_local! {
    /// Whether this thread is in a function of the library.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    static LAST_ERROR: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs the body of an exported function: errors and panics become a result, and their text is kept
/// for `svdq_last_error`.
pub(super) fn guard(body: impl FnOnce() -> Result<()>) -> svdq_result {
    guard_code(|| body().map(|()| SVDQ_OK))
}

/// As [`guard`], for a body that may come to a result which is no error either, such as
/// [`super::SVDQ_PENDING`].
pub(super) fn guard_code(body: impl FnOnce() -> Result<svdq_result>) -> svdq_result {
    catch(body).unwrap_or_else(|error| {
        // The text is dropped when the thread is so far gone that it has no locals.
        let _ = LAST_ERROR.try_with(|text| text.replace(error.to_string()));
        code(&error)
    })
}

/// `body`'s outcome; a panic is [`Error::Internal`].
pub(super) fn catch<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    hush();
    let before = INSIDE.try_with(|inside| inside.replace(true)).unwrap_or(true);
    // A body that panics leaves nothing half done at this level: it owns what it makes, and writes to
    // the caller's structs last. What it shares with other calls lies behind locks of the engine.
    let body = || {
        #[cfg(test)]
        super::tests::bomb();
        body()
    };
    let result = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(Error::panic(&*panic)));
    let _ = INSIDE.try_with(|inside| inside.set(before));
    result
}

/// From now on panics in the library print nothing: they become errors. Those of other code, which there is where the
/// program is written in Rust, are reported as before.
fn hush() {
    static ONCE: Once = Once::new();
    // The hook cannot be changed while the thread panics.
    if ONCE.is_completed() || thread::panicking() {
        return;
    }
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !INSIDE.try_with(Cell::get).unwrap_or(false) && !threads::is_one() {
                before(panic);
            }
        }));
    });
}

/// The text of the last error in this thread.
pub(super) fn last_error() -> String {
    LAST_ERROR.try_with(|text| text.borrow().clone()).unwrap_or_default()
}

/// A pointer that must not be NULL and must be aligned, called `what` in the error text.
pub(super) fn pointer<T>(pointer: *const T, what: &str) -> Result<NonNull<T>> {
    let Some(pointer) = NonNull::new(pointer.cast_mut()) else {
        return Err(Error::InvalidArgument(format!("{what} is NULL")));
    };
    if !pointer.is_aligned() {
        return Err(Error::InvalidArgument(format!("{what} is not an aligned pointer: {pointer:?}")));
    }
    Ok(pointer)
}

/// A handle as a reference.
///
/// # Safety
/// `handle` is NULL or a handle that is not released while `'a` lasts.
pub(super) unsafe fn handle<'a, T>(handle: *const T, what: &str) -> Result<&'a T> {
    // SAFETY: a handle that is not NULL comes from `make_handle`.
    Ok(unsafe { pointer(handle, what)?.as_ref() })
}

/// Runs `make` and writes its handle to `out`; on failure, NULL.
///
/// # Safety
/// `out` is NULL or writable.
pub(super) unsafe fn make_handle<T>(out: *mut *mut T, make: impl FnOnce() -> Result<T>) -> Result<()> {
    let out = pointer(out, "out")?;
    // SAFETY: `out` is writable by the caller's promise.
    unsafe { out.write(ptr::null_mut()) };
    let made = Box::into_raw(Box::new(make()?));
    // SAFETY: as above.
    unsafe { out.write(made) };
    Ok(())
}

/// Releases a handle; NULL is nothing to release.
///
/// # Safety
/// `handle` is NULL or a handle of [`make_handle`] that nothing uses any more.
pub(super) unsafe fn release<T>(handle: *mut T) {
    if !handle.is_null() {
        guard(|| {
            // SAFETY: the handle is a box that was leaked by `make_handle`.
            drop(unsafe { Box::from_raw(handle) });
            Ok(())
        });
    }
}

/// A string as a `&str`.
///
/// # Safety
/// `text` is NULL or ends in a NUL, and does not change while `'a` lasts.
pub(super) unsafe fn text<'a>(text: *const c_char, what: &str) -> Result<&'a str> {
    // SAFETY: the string ends in a NUL by the caller's promise.
    let text = unsafe { CStr::from_ptr(pointer(text, what)?.as_ptr()) };
    text.to_str().map_err(|error| Error::InvalidArgument(format!("{what} is not UTF-8: {error}")))
}

/// Copies `text` and a NUL to a caller's buffer by the rules of the header for strings out.
///
/// # Safety
/// `buf` is NULL or `cap` bytes are writable there; `needed` is NULL or writable.
pub(super) unsafe fn write_text(text: &str, buf: *mut c_char, cap: usize, needed: *mut usize) -> Result<()> {
    let need = text.len() + 1;
    if !needed.is_null() {
        // SAFETY: writable by the caller's promise.
        unsafe { pointer(needed, "needed")?.write(need) };
    }
    if buf.is_null() && cap == 0 && !needed.is_null() {
        return Ok(());
    }
    let buf = pointer(buf, "buf")?.cast::<u8>();
    if let Some(room) = cap.checked_sub(1) {
        let mut length = room.min(text.len());
        while !text.is_char_boundary(length) {
            length -= 1;
        }
        // SAFETY: `length <= room < cap`, so that the text and its NUL stay inside the buffer.
        unsafe {
            buf.copy_from_nonoverlapping(NonNull::from(text.as_bytes()).cast(), length);
            buf.add(length).write(0);
        }
    }
    if cap < need {
        return Err(Error::BufferTooSmall { what: "buf", got: cap as u64, need: need as u64 });
    }
    Ok(())
}

/// A struct of the API that begins with `struct_size`.
///
/// # Safety
/// The struct is `repr(C)`, has no padding, begins with `struct_size: u32`, and holds any bytes,
/// zeros among them: integers, floats and raw pointers only.
pub(super) unsafe trait Sized32: Copy {
    /// Its name in C.
    const NAME: &'static str;
}

/// Reads a caller's struct, whose header may be older or newer than this library. What an older
/// header does not have reads as zero; what a newer one has beyond this library has to be zero.
///
/// # Safety
/// `from` is NULL or points to a `struct_size` and as many bytes as it says.
pub(super) unsafe fn read_struct<T: Sized32>(from: *const T) -> Result<T> {
    // SAFETY: the caller's promise.
    let size = unsafe { struct_size(from)? };
    let from = from.cast::<u8>();
    let known = size.min(size_of::<T>());
    // SAFETY: `size` bytes are readable by the caller's promise.
    let tail = unsafe { std::slice::from_raw_parts(from.add(known), size - known) };
    if let Some(at) = tail.iter().position(|&byte| byte != 0) {
        let name = T::NAME;
        let what =
            format!("{name} asks at byte {} for something that this version does not know", known + at);
        return Err(Error::VersionMismatch(what));
    }
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: `known` bytes fit on both sides, and `T` holds any bytes.
    unsafe {
        ptr::copy_nonoverlapping(from, value.as_mut_ptr().cast(), known);
        Ok(value.assume_init())
    }
}

/// Element `index` of an array called `what`, whose elements all have the first one's `struct_size`.
///
/// # Safety
/// As [`read_struct`], for all elements up to this one, which have been read before.
pub(super) unsafe fn read_element<T: Sized32>(array: *const T, index: usize, what: &str) -> Result<T> {
    let first = pointer(array, what)?.cast::<u32>();
    // SAFETY: `read_struct` has accepted the size of every element before this one.
    let (element, size, first) = unsafe {
        let first = first.read();
        let element = array.byte_add(index * first as usize);
        (element, element.cast::<u32>().read(), first)
    };
    if size != first {
        let what = format!("{what}: element {index} has struct_size {size}, the first one {first}");
        return Err(Error::InvalidArgument(what));
    }
    // SAFETY: the caller's promise.
    unsafe { read_struct(element) }
}

/// Fills a caller's struct, whose header may be older or newer than this library: as much of `value`
/// as there is room for, and zeros in what this library does not know. `struct_size` stays.
///
/// # Safety
/// `to` is NULL or points to a `struct_size` and as many writable bytes as it says.
pub(super) unsafe fn write_struct<T: Sized32>(to: *mut T, value: &T) -> Result<()> {
    // SAFETY: the caller's promise.
    let size = unsafe { struct_size(to)? };
    let known = size.min(size_of::<T>()) - size_of::<u32>();
    let (to, value) = (to.cast::<u8>(), ptr::from_ref(value).cast::<u8>());
    // SAFETY: `size` bytes are writable by the caller's promise, `known` of them past `struct_size`
    // fit on both sides, and `T` has no padding.
    unsafe {
        ptr::write_bytes(to.add(size_of::<u32>()), 0, size - size_of::<u32>());
        ptr::copy_nonoverlapping(value.add(size_of::<u32>()), to.add(size_of::<u32>()), known);
    }
    Ok(())
}

/// The `struct_size` of a caller's struct, checked: at least its own field, at most
/// [`MAX_STRUCT_SIZE`], and like every size in C a multiple of the alignment, so that no field is cut.
unsafe fn struct_size<T: Sized32>(of: *const T) -> Result<usize> {
    // SAFETY: the struct begins with its `struct_size` by the caller's promise.
    let size = unsafe { pointer(of, T::NAME)?.cast::<u32>().read() } as usize;
    if size == 0 || size > MAX_STRUCT_SIZE || !size.is_multiple_of(align_of::<T>()) {
        let name = T::NAME;
        return Err(Error::InvalidArgument(format!("struct_size is {size}: set it to sizeof({name})")));
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::*;
    use super::*;

    #[test]
    fn a_panic_becomes_a_result_and_a_text() {
        assert_eq!(guard(|| panic!("tile {}", 7)), SVDQ_ERR_INTERNAL);
        assert_eq!(last_error(), "internal error: tile 7");
        assert_eq!(guard(|| panic!("plain")), SVDQ_ERR_INTERNAL);
        assert_eq!(last_error(), "internal error: plain");
        assert_eq!(guard(|| Ok(())), SVDQ_OK);
        assert_eq!(last_error(), "internal error: plain");
    }

    #[test]
    fn a_released_value_that_panics_does_not_unwind() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        // SAFETY: a box, used once.
        unsafe { release(Box::into_raw(Box::new(Bomb))) };
        assert_eq!(last_error(), "internal error: dropped");
    }
}
