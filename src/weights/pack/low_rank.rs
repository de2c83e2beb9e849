//! The low-rank branch: 16 x 16 fragments of `mma.m16n8k16`, 256 bf16 each.
//!
//! Element `(row, col)` of a fragment is at `(row%8 · 4 + col%8/2) · 8 + row/8 · 4 + col/8 · 2 + col%2`.
//! A fragment of `lora_down` has ranks as rows and `k` as columns, one of `lora_up` has `n` as rows and ranks as
//! columns. In both the rank fragments of the same 16 channels lie side by side.

use half::bf16;

use crate::Result;
use crate::memory::{Buf, HostMemory, Plain};

/// `A`, row-major `[rank][k]`, in `memory`. `k` and `rank` are multiples of 16.
///
/// # Errors
/// [`crate::Error::OutOfHostMemory`]
pub fn unpack_lora_down(memory: &HostMemory, bytes: &[u8], k: usize, rank: usize) -> Result<Buf<f32>> {
    unpack(memory, bytes, Places::down(k, rank), bf16::to_f32)
}

/// [`unpack_lora_down`] as the bf16 that are stored.
///
/// # Errors
/// As [`unpack_lora_down`].
pub fn unpack_lora_down_bf16(memory: &HostMemory, bytes: &[u8], k: usize, rank: usize) -> Result<Buf<u16>> {
    unpack(memory, bytes, Places::down(k, rank), bf16::to_bits)
}

/// The inverse of [`unpack_lora_down`].
pub fn pack_lora_down(a: &[f32], k: usize, rank: usize) -> Vec<u8> {
    pack(a, Places::down(k, rank))
}

/// `B`, row-major `[n][rank]`, in `memory`. `n` and `rank` are multiples of 16.
///
/// # Errors
/// As [`unpack_lora_down`].
pub fn unpack_lora_up(memory: &HostMemory, bytes: &[u8], n: usize, rank: usize) -> Result<Buf<f32>> {
    unpack(memory, bytes, Places::up(n, rank), bf16::to_f32)
}

/// [`unpack_lora_up`] as the bf16 that are stored.
///
/// # Errors
/// As [`unpack_lora_down`].
pub fn unpack_lora_up_bf16(memory: &HostMemory, bytes: &[u8], n: usize, rank: usize) -> Result<Buf<u16>> {
    unpack(memory, bytes, Places::up(n, rank), bf16::to_bits)
}

/// The inverse of [`unpack_lora_up`].
pub fn pack_lora_up(b: &[f32], n: usize, rank: usize) -> Vec<u8> {
    pack(b, Places::up(n, rank))
}

/// Where the stored elements lie in the matrix.
struct Places {
    channels: usize,
    rank: usize,
    /// Between the first elements of fragments that are neighbours by channels, and by ranks.
    steps: [usize; 2],
    /// From the first element of a fragment to each that is stored.
    within: [usize; 256],
}

impl Places {
    fn down(k: usize, rank: usize) -> Self {
        Self::new(k, rank, [1, k], k)
    }

    fn up(n: usize, rank: usize) -> Self {
        Self::new(n, rank, [rank, 1], rank)
    }

    /// For rows of `pitch` elements.
    fn new(channels: usize, rank: usize, [by_channel, by_rank]: [usize; 2], pitch: usize) -> Self {
        assert!(channels.is_multiple_of(16) && rank.is_multiple_of(16), "[{channels}, {rank}] is not in 16s");
        let within = std::array::from_fn(|i| {
            let (lane, slot) = (i / 8, i % 8);
            let row = lane / 4 + slot / 4 * 8;
            let col = lane % 4 * 2 + slot / 2 % 2 * 8 + slot % 2;
            row * pitch + col
        });
        Places { channels, rank, steps: [16 * by_channel, 16 * by_rank], within }
    }

    fn count(&self) -> usize {
        self.channels * self.rank
    }

    /// The first element of each fragment, in the order in which they are stored.
    fn fragments(&self) -> impl Iterator<Item = usize> {
        let [by_channel, by_rank] = self.steps;
        let ranks = self.rank / 16;
        (0..self.channels / 16).flat_map(move |c| (0..ranks).map(move |r| c * by_channel + r * by_rank))
    }
}

fn unpack<T: Plain>(
    memory: &HostMemory,
    bytes: &[u8],
    places: Places,
    value: impl Fn(bf16) -> T,
) -> Result<Buf<T>> {
    assert_eq!(bytes.len(), places.count() * 2);
    let mut matrix = Buf::zeroed(memory, places.count(), "an unpacked low-rank branch")?;
    for (first, stored) in places.fragments().zip(bytes.as_chunks::<512>().0) {
        for (within, &element) in places.within.iter().zip(stored.as_chunks::<2>().0) {
            matrix[first + within] = value(bf16::from_le_bytes(element));
        }
    }
    Ok(matrix)
}

fn pack(matrix: &[f32], places: Places) -> Vec<u8> {
    assert_eq!(matrix.len(), places.count());
    let mut bytes = vec![0; places.count() * 2];
    for (first, stored) in places.fragments().zip(bytes.as_chunks_mut::<512>().0) {
        for (within, element) in places.within.iter().zip(stored.as_chunks_mut::<2>().0) {
            *element = bf16::from_f32(matrix[first + within]).to_le_bytes();
        }
    }
    bytes
}
