//! Rotary positions of text and image tokens.

/// Base of the geometric series of frequencies.
const THETA: f64 = 10_000.0;

/// The rotary table of `text_rows` text tokens and then a `grid = [rows, columns]` of image patches:
/// `[tokens, Σ axes]`, `cos, sin` of each pair of channels.
///
/// Pair `j` of an axis with `dim` channels turns by `position · θ^(-2j/dim)`. The positions of a patch
/// are (0, row, column); those of text are all zero. Angles are computed in f64, as diffusers does.
pub(super) fn table(axes: &[usize], text_rows: usize, grid: [usize; 2]) -> Vec<f32> {
    let text = std::iter::repeat_n([0, 0, 0], text_rows);
    let image = (0..grid[0]).flat_map(|row| (0..grid[1]).map(move |column| [0, row, column]));
    let mut table = Vec::with_capacity((text_rows + grid[0] * grid[1]) * axes.iter().sum::<usize>());
    for positions in text.chain(image) {
        for (&dim, position) in axes.iter().zip(positions) {
            for j in 0..dim / 2 {
                let angle = position as f64 * THETA.powf(-2.0 * j as f64 / dim as f64);
                table.extend([angle.cos() as f32, angle.sin() as f32]);
            }
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_not_rotated_and_patches_turn_by_row_and_column() {
        let table = table(&[2, 4, 2], 1, [2, 3]);
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
