//! Low-rank branches of linears: their own, and the updates that LoRAs attach.
//!
//! Kernels of 4-bit linears take a branch in parts, the linear's own first; nothing is copied or composed when an update
//! is attached. Other linears get what their updates add from two dense products each.

use std::ops::Range as Rows;
use std::sync::Arc;

use super::Cuda;
use super::generic::{LinearParams, Output};
use super::memory::{ALIGNMENT, Range};
use super::tensor::Elements;
use crate::ops::{Activation, LowRankSource, SvdqSource};
use crate::weights::{Bytes, Numbers, pack};
use crate::{Error, Result};

/// `MAX_PARTS` of kernels/common/low_rank.cuh.
pub(super) const MAX_PARTS: usize = 16;

/// `A` of a linear's own branch, `[rank, k]` bf16.
pub(super) fn own_down(cuda: &Cuda, source: &SvdqSource<'_>) -> Result<Range> {
    let SvdqSource { k, rank, ref lora_down, .. } = *source;
    cuda.constant_of(rank * k, || pack::unpack_lora_down_bf16(&cuda.memory, lora_down, k, rank))
}

/// `B` of a linear's own branch, `[n, rank]` bf16.
pub(super) fn own_up(cuda: &Cuda, source: &SvdqSource<'_>) -> Result<Range> {
    let SvdqSource { n, rank, ref lora_up, .. } = *source;
    cuda.constant_of(n * rank, || pack::unpack_lora_up_bf16(&cuda.memory, lora_up, n, rank))
}

/// `B A` and a bias, for some outputs of a linear.
pub struct LowRank {
    pub(super) shape: [usize; 2],
    pub(super) rows: Rows<usize>,
    /// What the ranges below lie in.
    pub(super) _memory: Arc<Range>,
    /// Its matrices, at strength 1; of rank 0 if it has none.
    pub(super) part: Part,
    /// `[rows.len()]` f32
    pub(super) bias: Option<Range>,
}

/// Puts updates on the GPU, in one piece.
pub(super) fn load(cuda: &Cuda, sources: &[LowRankSource<'_>]) -> Result<Vec<LowRank>> {
    let mut bytes = 0;
    let mut take = |len: usize| {
        let start = bytes;
        bytes = (start + len).next_multiple_of(ALIGNMENT);
        start
    };
    let places: Vec<_> = sources.iter().map(|source| Place::of(source, &mut take)).collect();
    let memory = Arc::new(cuda.weights.take(bytes)?);
    let context = &cuda.gpu.context;
    let mut segments = Vec::new();
    for (source, place) in sources.iter().zip(&places).filter(|(source, _)| source.rank > 0) {
        segments.extend(Segment::rows(place.down, &source.down, source.k, source.k)?);
        let first_row = place.up + (source.rows.start - place.rows.start) * place.rank * 2;
        segments.extend(Segment::rows(first_row, &source.up, source.rank, place.rank)?);
    }
    context.staging.fill(context, memory.at(), bytes, |start, to| fill(&segments, start, to))?;
    let update = |(source, place): (&LowRankSource<'_>, Place)| {
        let [down, up] = [place.down, place.up].map(|start| memory.at() + start as u64);
        let Place { rank, rows: Rows { start, end }, .. } = place;
        Ok(LowRank {
            shape: [source.n, source.k],
            rows: source.rows.clone(),
            _memory: memory.clone(),
            part: Part { rank, strength: 1.0, rows: [start, end], down, up },
            bias: match source.bias.as_slice() {
                [] => None,
                bias => Some(cuda.constant(bias)?),
            },
        })
    };
    sources.iter().zip(places).map(update).collect()
}

/// Where the parts of an update lie, from the start of the memory of all.
struct Place {
    down: usize,
    up: usize,
    /// A multiple of 16.
    rank: usize,
    /// Of `up`: begins with a multiple of 8, and so it ends if there are as many outputs.
    rows: Rows<usize>,
}

impl Place {
    fn of(source: &LowRankSource<'_>, take: &mut impl FnMut(usize) -> usize) -> Self {
        let rank = source.rank.next_multiple_of(16);
        let rows = source.rows.start / 8 * 8..source.rows.end.next_multiple_of(8).min(source.n);
        let [down, up] = [rank * source.k, rows.len() * rank].map(|count| take(count * 2));
        Place { down, up, rank, rows }
    }
}

/// Rows of `width` bytes that go to memory from `start` on, a row every `pitch` bytes, with zeros between them.
struct Segment<'a> {
    start: usize,
    width: usize,
    pitch: usize,
    bytes: Bytes<'a>,
}

impl<'a> Segment<'a> {
    /// `values`, rows of `cols`, as rows of `pitch` bf16, one part of them after the other.
    fn rows(start: usize, values: &'a Numbers<'_>, cols: usize, pitch: usize) -> Result<Vec<Segment<'a>>> {
        let (mut start, width, pitch) = (start, cols * 2, pitch * 2);
        let segment = |bytes: Bytes<'a>| {
            // Rows without gaps are one long row.
            let [width, pitch] = if width == pitch { [bytes.len(); 2] } else { [width, pitch] };
            let segment = Segment { start, width, pitch, bytes };
            start = segment.end();
            segment
        };
        Ok(values.bf16()?.into_iter().map(segment).collect())
    }

    fn end(&self) -> usize {
        self.start + self.bytes.len() / self.width * self.pitch
    }

    /// Bytes `at ..` of what this writes.
    fn copy(&self, at: usize, to: &mut [u8]) {
        let (mut row, mut column) = (at / self.pitch, at % self.pitch);
        let mut left = to;
        while !left.is_empty() {
            let here = (self.pitch - column).min(left.len());
            let (to, rest) = left.split_at_mut(here);
            let used = self.width.saturating_sub(column).min(here);
            let from = row * self.width + column.min(self.width);
            to[..used].copy_from_slice(&self.bytes[from..from + used]);
            to[used..].fill(0);
            (row, column, left) = (row + 1, 0, rest);
        }
    }
}

/// Writes bytes `start ..` of the memory that `segments`, in order, describe. Between them are zeros.
fn fill(segments: &[Segment<'_>], start: usize, mut to: &mut [u8]) {
    let mut at = start;
    let first = segments.partition_point(|segment| segment.end() <= at);
    for segment in &segments[first..] {
        let (gap, rest) = to.split_at_mut(segment.start.saturating_sub(at).min(to.len()));
        gap.fill(0);
        at += gap.len();
        let (here, rest) = rest.split_at_mut((segment.end() - at.min(segment.end())).min(rest.len()));
        if !here.is_empty() {
            segment.copy(at - segment.start, here);
        }
        at += here.len();
        to = rest;
        if to.is_empty() {
            return;
        }
    }
    to.fill(0);
}

/// An update and its strength.
pub(super) type Update<'a> = (&'a LowRank, f32);

/// A part of a branch.
#[derive(Clone, Copy)]
pub(super) struct Part {
    /// A multiple of 16.
    pub(super) rank: usize,
    pub(super) strength: f32,
    /// The outputs that it covers.
    pub(super) rows: [usize; 2],
    /// `[rank, k]` bf16
    pub(super) down: u64,
    /// `[outputs, rank]` bf16
    pub(super) up: u64,
}

/// `DownPart`
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct DownPart {
    down: u64,
    strength: f32,
    end: i32,
}

/// `UpPart`
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct UpPart {
    up: u64,
    end: i32,
    first: i32,
    last: i32,
}

/// The linear's own part and those of `updates`.
///
/// # Errors
/// [`Error::Unsupported`] if these are more than [`MAX_PARTS`].
pub(super) fn parts(own: Part, updates: &[Update<'_>]) -> Result<Vec<Part>> {
    let updates = updates.iter().filter(|(update, _)| update.part.rank > 0);
    let of = |&(update, strength): &Update<'_>| Part { strength, ..update.part };
    let parts: Vec<Part> = std::iter::once(own).chain(updates.map(of)).collect();
    if parts.len() > MAX_PARTS {
        return Err(Error::Unsupported(format!(
            "{} low-rank updates of one layer at a time: the GPU's kernels take up to {}; a LoRA has up to three in a layer",
            parts.len() - 1,
            MAX_PARTS - 1
        )));
    }
    Ok(parts)
}

/// Ranks of all parts.
pub(super) fn rank(parts: &[Part]) -> usize {
    parts.iter().map(|part| part.rank).sum()
}

/// The parts as kernels that project down take them, with `at` for what they read `down` through.
pub(super) fn down_parts(parts: &[Part], at: impl Fn(&Part) -> u64) -> [DownPart; MAX_PARTS] {
    let mut out = [DownPart::default(); MAX_PARTS];
    let mut end = 0;
    for (to, part) in out.iter_mut().zip(parts) {
        end += part.rank as i32;
        *to = DownPart { down: at(part), strength: part.strength, end };
    }
    out
}

/// The parts as kernels that project up take them, with `at` for what they read `up` through.
pub(super) fn up_parts(parts: &[Part], at: impl Fn(&Part) -> u64) -> [UpPart; MAX_PARTS] {
    let mut out = [UpPart::default(); MAX_PARTS];
    let mut end = 0;
    for (to, part) in out.iter_mut().zip(parts) {
        end += part.rank as i32;
        let [first, last] = part.rows.map(|row| row as i32);
        *to = UpPart { up: at(part), end, first, last };
    }
    out
}

/// `bias`, of `n` elements or absent, and the updates' biases, in f32; `None` if these have none.
pub(super) fn bias(cuda: &Cuda, bias: Elements, n: usize, updates: &[Update<'_>]) -> Result<Option<Range>> {
    let mut sum: Option<Range> = None;
    for (update, strength) in updates {
        let Some(more) = &update.bias else { continue };
        let from = sum.as_ref().map_or(bias, |sum| Elements::f32(sum.at()));
        let to = match sum.take() {
            Some(sum) => sum,
            None => cuda.temporary(n * 4)?,
        };
        let ends = [from, Elements::f32(to.at())];
        cuda.gpu.generic.add_bias(ends, more.at(), n, &update.rows, *strength)?;
        sum = Some(to);
    }
    Ok(sum)
}

/// `bias`, `[n]` bf16, and the updates' biases, in bf16; `None` if these have none.
pub(super) fn bias_bf16(cuda: &Cuda, own: &Range, n: usize, updates: &[Update<'_>]) -> Result<Option<Range>> {
    let Some(sum) = bias(cuda, Elements::bf16(own.at()), n, updates)? else { return Ok(None) };
    let rounded = cuda.temporary(n * 2)?;
    let to = Elements::bf16(rounded.at());
    cuda.gpu.generic.convert(Elements::f32(sum.at()), to, n, Activation::None)?;
    Ok(Some(rounded))
}

/// What the matrices of `updates` add to the `n` outputs of `rows` rows of `h`, `[rows, k]` bf16: `[rows, n]` f32, or
/// `None` if there are none.
pub(super) fn products(
    cuda: &Cuda,
    h: u64,
    [rows, n, k]: [usize; 3],
    updates: &[Update<'_>],
) -> Result<Option<Range>> {
    let mut sum: Option<Range> = None;
    for (LowRank { part, .. }, strength) in updates {
        if part.rank == 0 {
            continue;
        }
        let outputs = part.rows[0]..part.rows[1];
        let linear = |x, w, [n, k]: [usize; 2], output| {
            let [m, n, k] = [rows, n, k].map(|size| size as i32);
            cuda.gpu.generic.linear(&LinearParams { x, w, m, n, k, output })
        };
        let lora = cuda.temporary(rows * part.rank * 2)?;
        let to = Elements::bf16(lora.at());
        linear(h, part.down, [part.rank, k], Output::store(to, part.rank, 0, Activation::None))?;
        let add = sum.is_some();
        let total = match sum.take() {
            Some(total) => total,
            None => cuda.temporary(rows * n * 4)?,
        };
        if !add && outputs.len() < n {
            total.clear()?;
        }
        let to = Elements::f32(total.at() + outputs.start as u64 * 4);
        let add = if add || outputs.len() < n { to } else { Elements::NONE };
        let output = Output { add, scale: *strength, ..Output::store(to, n, 0, Activation::None) };
        linear(lora.at(), part.up, [outputs.len(), part.rank], output)?;
        sum = Some(total);
    }
    Ok(sum)
}
