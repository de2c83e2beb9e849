//! Rounding with feedback: what rounding one column of a weight does to the outputs is made up for in the
//! columns to come (LDLQ of Chee et al., QuIP, 2023, which equals GPTQ).

use super::matrix::{Left, Matrix, product, transposed, vectorized};
use super::round::{GROUP, Group};

/// Added to the diagonal of the second moments, relative to its mean: how much the columns are taken to vary
/// on their own.
const DAMPING: f64 = 0.01;

/// The factor `V` of the inputs' second moments `H = V D Vᵀ`, unit upper triangular. If column `j` is rounded
/// from `w_j + Σ_{i<j} e_i V_ij`, where `e_i` are the errors of the columns before it, the outputs' errors
/// are least.
pub(super) struct Feedback {
    /// For each group of columns the rows of `V` before the group, `[64 g, 64]`.
    pub(super) before: Vec<Matrix>,
    /// For each group of columns its rows of `V` above the diagonal, and zeros.
    pub(super) within: Vec<[Group<f32>; GROUP]>,
}

impl Feedback {
    /// For inputs like `samples`, `[k, samples]`; `k` is a multiple of 64.
    pub(super) fn new(samples: &Matrix, threads: usize) -> Self {
        let k = samples.rows;
        let moments = product(Left::Plain(samples), &transposed(samples), threads);
        let mut h: Vec<f64> = moments.data.iter().map(|&v| v as f64).collect();
        let mean = (0..k).map(|i| h[i * k + i]).sum::<f64>() / k as f64;
        for i in 0..k {
            h[i * k + i] += if mean > 0.0 { DAMPING * mean } else { 1.0 };
        }
        vectorized(|| factorise(&mut h, k));
        let value = |i: usize, j: usize| if i < j { h[j * k + i] as f32 } else { 0.0 };
        let groups = (0..k).step_by(GROUP);
        let panel = |g: usize| (0..g).flat_map(|i| (g..g + GROUP).map(move |j| value(i, j))).collect();
        Feedback {
            before: groups.clone().map(|g| Matrix::new(g, GROUP, panel(g))).collect(),
            within: groups
                .map(|g| std::array::from_fn(|i| std::array::from_fn(|j| value(g + i, g + j))))
                .collect(),
        }
    }
}

/// Writes column `j` of `V` into row `j` of the symmetric, positive `h`, left of its diagonal.
#[inline(always)]
fn factorise(h: &mut [f64], k: usize) {
    for j in (0..k).rev() {
        let (above, row) = h.split_at_mut(j * k);
        let pivot = row[j];
        let column = &mut row[..j];
        column.iter_mut().for_each(|v| *v /= pivot);
        for (i, above) in above.chunks_exact_mut(k).enumerate() {
            let factor = pivot * column[i];
            above[..=i].iter_mut().zip(&*column).for_each(|(h, v)| *h -= factor * v);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::random::Random;

    #[test]
    fn the_factor_reproduces_the_second_moments() {
        let k = 128;
        let samples = Random::new(4).matrix(k, 32);
        let feedback = Feedback::new(&samples, 1);
        let v = |i: usize, j: usize| match (i / GROUP, j / GROUP) {
            _ if i == j => 1.0,
            (a, b) if a == b => feedback.within[b][i % GROUP][j % GROUP] as f64,
            (a, b) if a < b => feedback.before[b].row(i)[j % GROUP] as f64,
            _ => 0.0,
        };
        let moment = |i: usize, j: usize| -> f64 {
            samples.row(i).iter().zip(samples.row(j)).map(|(a, b)| (a * b) as f64).sum()
        };
        let damping = DAMPING * (0..k).map(|i| moment(i, i)).sum::<f64>() / k as f64;
        let h = |i: usize, j: usize| moment(i, j) + if i == j { damping } else { 0.0 };
        // D from the last row upwards: h_jj = Σ_m≥j v_jm² d_m
        let mut d = vec![0.0; k];
        for j in (0..k).rev() {
            d[j] = h(j, j) - (j + 1..k).map(|m| v(j, m).powi(2) * d[m]).sum::<f64>();
            assert!(d[j] > 0.0);
        }
        for (i, j) in [(0, 1), (3, 70), (64, 100), (126, 127), (0, 127)] {
            let product: f64 = (0..k).map(|m| v(i, m) * d[m] * v(j, m)).sum();
            // entries up to 11, sums of f32 products
            assert!((product - h(i, j)).abs() < 1e-4, "{product} is not {}", h(i, j));
        }
    }
}
