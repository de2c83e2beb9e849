//! Rotary positions of text and image tokens.

use crate::Result;
use crate::memory::{Buf, HostMemory};

/// Base of the geometric series of frequencies.
const THETA: f64 = 10_000.0;

/// The rotary table of `text_rows` text tokens and then a `grid = [rows, columns]` of image patches:
/// `[tokens, Σ axes]`, `cos, sin` of each pair of channels.
///
/// Pair `j` of an axis with `dim` channels turns by `position · θ^(-2j/dim)`. The positions of a patch
/// are (0, row, column); those of text are all zero. Angles are computed in f64, as diffusers does.
pub(super) fn table(
    memory: &HostMemory,
    axes: &[usize],
    text_rows: usize,
    grid: [usize; 2],
) -> Result<Buf<f32>> {
    let tokens = text_rows + grid[0] * grid[1];
    let what = format_args!("the positions of {tokens} tokens");
    let mut table = Buf::zeroed(memory, tokens * axes.iter().sum::<usize>(), what)?;
    // Tokens share few positions on an axis.
    let turns: Vec<Vec<f32>> = axes.iter().zip([1, grid[0].max(1), grid[1].max(1)]).map(turns).collect();
    let text = std::iter::repeat_n([0, 0, 0], text_rows);
    let image = (0..grid[0]).flat_map(|row| (0..grid[1]).map(move |column| [0, row, column]));
    let mut rest = &mut table[..];
    for positions in text.chain(image) {
        for ((&dim, position), turns) in axes.iter().zip(positions).zip(&turns) {
            let (pairs, others) = rest.split_at_mut(dim);
            pairs.copy_from_slice(&turns[position * dim..][..dim]);
            rest = others;
        }
    }
    Ok(table)
}

/// `[positions, dim]`: `cos, sin` of each pair of channels of an axis.
fn turns((&dim, positions): (&usize, usize)) -> Vec<f32> {
    let frequencies: Vec<f64> = (0..dim / 2).map(|j| THETA.powf(-2.0 * j as f64 / dim as f64)).collect();
    let angles = (0..positions).flat_map(|at| frequencies.iter().map(move |frequency| at as f64 * frequency));
    angles.flat_map(|angle| [angle.cos() as f32, angle.sin() as f32]).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn text_is_not_rotated_and_patches_turn_by_row_and_column() {
        let table = table(&HostMemory::default(), &[2, 4, 2], 1, [2, 3]).unwrap();
        assert_eq!(table.len(), 7 * 8);
        assert_eq!(table[..8], [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]);
        let last = &table[6 * 8..]; // row 1, column 2
        let turn = |angle: f64| [angle.cos() as f32, angle.sin() as f32];
        assert_eq!(last[..2], [1.0, 0.0]);
        assert_eq!(last[2..4], turn(1.0));
        assert_eq!(last[4..6], turn(0.01));
        assert_eq!(last[6..], turn(2.0));
    }
}
