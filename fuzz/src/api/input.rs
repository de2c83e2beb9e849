//! From the characters of a line to arguments.

use std::ffi::CString;
use std::ptr;

/// The rest of a line. '0' stands for the usual argument, and is what every line ends in.
pub(super) struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    /// How far the next character is from '0'.
    pub fn digit(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first.wrapping_sub(b'0')
    }

    /// One of `usual`, or any number.
    pub fn number(&mut self, usual: &[u32]) -> u32 {
        self.wide(usual) as u32
    }

    /// As [`Self::number`], of twice the width.
    pub fn wide(&mut self, usual: &[u32]) -> u64 {
        match usual.get(usize::from(self.digit())) {
            Some(&number) => number.into(),
            None => u64::from_le_bytes(std::array::from_fn(|_| self.digit())),
        }
    }

    /// As [`Self::number`], of any bits.
    pub fn float(&mut self, usual: &[f32]) -> f32 {
        let usual: Vec<u32> = usual.iter().map(|value| value.to_bits()).collect();
        f32::from_bits(self.number(&usual))
    }

    /// The handle that was made last, or the one before it, and so on; NULL where there is none, and for '-'.
    pub fn handle<T>(&mut self, handles: &[*mut T]) -> *mut T {
        match self.digit() {
            253 => ptr::null_mut(),
            back => handles.iter().rev().cycle().nth(back.into()).copied().unwrap_or(ptr::null_mut()),
        }
    }

    /// As [`Self::handle`], and takes it off the list.
    pub fn take<T>(&mut self, handles: &mut Vec<*mut T>) -> *mut T {
        let handle = self.handle(handles);
        handles.retain(|&other| other != handle);
        handle
    }

    /// A string, or no pointer.
    pub fn text(&mut self) -> Option<CString> {
        match self.digit() {
            0 => Some(c"a sunflower".into()),
            1 => None,
            2 => Some(c"".into()),
            3 => Some(c"not UTF-8: \xff".into()),
            length => CString::new((0..length).map(|_| self.digit().max(1)).collect::<Vec<_>>()).ok(),
        }
    }

    /// `value` as an argument, or something that is none.
    pub fn give<T: Copy>(&mut self, value: T) -> Given<T> {
        let size = size_of::<T>();
        let newer = size.next_multiple_of(8) + 8;
        let mut given = Given::new(&[value], size, size as u32);
        match self.digit() {
            1 => given.at = Where::Nowhere,
            2 => given.at = Where::Crooked,
            3 => given.say(self.number(&[0])),
            4 => given.say(u32::from(self.digit()) * 4),
            5 => given.say(newer as u32),
            6 => {
                given.say(newer as u32);
                given.room[newer / 8 - 1] = 1 << 40;
            }
            _ => {}
        }
        given
    }

    /// `values`, likewise.
    pub fn give_array<T: Copy>(&mut self, values: &[T]) -> Given<T> {
        let size = size_of::<T>();
        let (at, stride) = match self.digit() {
            1 => (Where::Nowhere, size),
            2 => (Where::Crooked, size),
            3 => (Where::Here, size + 8),
            4 => (Where::Here, size - 8),
            _ => (Where::Here, size),
        };
        let says = match self.digit() {
            0 => stride as u32,
            _ => self.number(&[0]),
        };
        Given { at, ..Given::new(values, stride, says) }
    }
}

/// Structs in memory that has room for whatever size they say to have.
pub(super) struct Given<T> {
    room: Vec<u64>,
    at: Where,
    of: std::marker::PhantomData<T>,
}

enum Where {
    Here,
    Nowhere,
    /// Not aligned.
    Crooked,
}

impl<T: Copy> Given<T> {
    /// `values`, `stride` bytes apart, all but the last of which say that size; the last `says` its own.
    fn new(values: &[T], stride: usize, says: u32) -> Self {
        let mut room = vec![0u64; (values.len() * (stride + 8) + 4096 + size_of::<T>()) / 8];
        for (i, value) in values.iter().enumerate() {
            let says = if i + 1 == values.len() { says } else { stride as u32 };
            // SAFETY: there is room, and what is beyond the stride is written over, or zeroed.
            unsafe {
                let at = room.as_mut_ptr().cast::<u8>().add(i * stride);
                ptr::copy_nonoverlapping(ptr::from_ref(value).cast(), at, stride.min(size_of::<T>()));
                at.cast::<u32>().write(says);
            }
        }
        Given { room, at: Where::Here, of: std::marker::PhantomData }
    }

    fn say(&mut self, size: u32) {
        // SAFETY: a struct begins with its size.
        unsafe { self.room.as_mut_ptr().cast::<u32>().write(size) };
    }

    pub fn ptr(&mut self) -> *mut T {
        let at: *mut T = self.room.as_mut_ptr().cast();
        match self.at {
            Where::Here => at,
            Where::Nowhere => ptr::null_mut(),
            Where::Crooked => at.wrapping_byte_add(1),
        }
    }

    /// What a call has written, and zeros where the struct says to end.
    pub fn value(&self) -> T {
        // SAFETY: there is room for one, and any bits make one.
        unsafe { self.room.as_ptr().cast::<T>().read() }
    }
}
