//! The best low-rank approximation of a matrix, by randomised subspace iteration
//! (Halko, Martinsson, Tropp, "Finding structure with randomness", 2011).

use super::matrix::{Left, Matrix, product};
use super::random::Random;

/// Columns of the sketch beyond the rank, before rounding up to whole tiles.
const OVERSAMPLING: usize = 8;

/// `up · down`, nearly the closest matrix of the given rank.
pub(super) struct LowRank {
    /// `[n, rank]`, columns orthogonal, in descending order of their norms (the singular values).
    pub(super) up: Matrix,
    /// `[rank, k]`, rows orthonormal.
    pub(super) down: Matrix,
}

/// A subspace of the rows of a matrix, kept from one search to the next: after a small change of the matrix
/// it is nearly right, and few iterations are enough.
pub(super) struct Subspace {
    rank: usize,
    /// `[k, l]`
    basis: Matrix,
}

impl Subspace {
    /// A random subspace of the rows of a matrix with `k` columns, for approximations of rank `rank`.
    pub(super) fn random(k: usize, rank: usize) -> Self {
        Subspace { rank, basis: Random::new(0x5eed).matrix(k, (rank + OVERSAMPLING).next_multiple_of(16)) }
    }

    /// Turns the subspace towards the leading singular vectors of `m`, `[n, k]`, by `iterations` power
    /// iterations, and gives the best approximation of `m` inside it.
    pub(super) fn approximate(&mut self, m: &Matrix, iterations: usize, threads: usize) -> LowRank {
        let mut z = orthonormal(&self.basis, threads);
        for _ in 0..iterations {
            let y = orthonormal(&product(Left::Plain(m), &z, threads), threads);
            z = orthonormal(&product(Left::Transposed(m), &y, threads), threads);
        }
        let y = product(Left::Plain(m), &z, threads);
        // m ≈ y zᵀ with zᵀz = 1: the singular vectors of y, from its Gram matrix, are those of the approximation.
        let (_, vectors) = eigen(gram(&y), y.cols);
        let rotation = Matrix::new(y.cols, y.cols, vectors.iter().map(|&v| v as f32).collect());
        self.basis = product(Left::Plain(&z), &rotation, threads);
        let up = product(Left::Plain(&y), &rotation, threads);
        LowRank { up: leading_columns(&up, self.rank), down: transposed_columns(&self.basis, self.rank) }
    }
}

/// The first `count` columns.
fn leading_columns(m: &Matrix, count: usize) -> Matrix {
    Matrix::new(m.rows, count, (0..m.rows).flat_map(|r| &m.row(r)[..count]).copied().collect())
}

/// The first `count` columns as rows.
fn transposed_columns(m: &Matrix, count: usize) -> Matrix {
    let mut out = Matrix::zeros(count, m.rows);
    for r in 0..m.rows {
        for (c, &value) in m.row(r)[..count].iter().enumerate() {
            out.data[c * m.rows + r] = value;
        }
    }
    out
}

/// A matrix with orthonormal columns that spans the columns of `y`; columns that depend on those before them
/// become zero.
fn orthonormal(y: &Matrix, threads: usize) -> Matrix {
    let once = orthogonalised(y, threads);
    orthogonalised(&once, threads) // the second time removes what rounding left in the first
}

/// `y R⁻¹`, where `yᵀy = RᵀR` with an upper triangular `R` (Cholesky).
fn orthogonalised(y: &Matrix, threads: usize) -> Matrix {
    let l = y.cols;
    let inverse = inverse_factor(gram(y), l);
    product(Left::Plain(y), &Matrix::new(l, l, inverse.iter().map(|&v| v as f32).collect()), threads)
}

/// The inverse of the upper triangular `R` with `RᵀR = g`; rows and columns that have no pivot are zero.
fn inverse_factor(g: Vec<f64>, l: usize) -> Vec<f64> {
    let (mut r, mut inverse) = (g.clone(), vec![0.0; l * l]);
    for j in 0..l {
        // a column whose part of its own is below f32's resolution holds rounding errors
        let pivot = r[j * l + j];
        if pivot <= g[j * l + j] * 1e-12 {
            r[j * l + j..(j + 1) * l].fill(0.0);
            continue;
        }
        let root = pivot.sqrt();
        r[j * l + j..(j + 1) * l].iter_mut().for_each(|v| *v /= root);
        for i in j + 1..l {
            let factor = r[j * l + i];
            for c in i..l {
                r[i * l + c] -= factor * r[j * l + c];
            }
        }
        for i in 0..j {
            let sum: f64 = (i..j).map(|m| inverse[i * l + m] * r[m * l + j]).sum();
            inverse[i * l + j] = -sum / root;
        }
        inverse[j * l + j] = 1.0 / root;
    }
    inverse
}

/// `yᵀy`, `[l, l]`, in f64.
fn gram(y: &Matrix) -> Vec<f64> {
    let l = y.cols;
    super::matrix::vectorized(|| {
        let mut sums = vec![0.0f64; l * l];
        let mut wide = vec![0.0f64; l];
        for r in 0..y.rows {
            for (w, &v) in wide.iter_mut().zip(y.row(r)) {
                *w = v as f64;
            }
            for (sums, &a) in sums.chunks_exact_mut(l).zip(&wide) {
                for (sum, &b) in sums.iter_mut().zip(&wide) {
                    *sum += a * b;
                }
            }
        }
        sums
    })
}

/// Eigenvalues, descending, and eigenvectors (column `i` belongs to value `i`; `[l, l]` row-major) of the
/// symmetric `a`, by cyclic Jacobi rotations.
fn eigen(mut a: Vec<f64>, l: usize) -> (Vec<f64>, Vec<f64>) {
    // rows of `v` are the eigenvectors until the end
    let mut v = vec![0.0; l * l];
    for i in 0..l {
        v[i * l + i] = 1.0;
    }
    let size: f64 = a.iter().map(|x| x * x).sum();
    for _sweep in 0..30 {
        let off: f64 =
            (0..l).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i * l + j].powi(2)).sum();
        if off <= size * 1e-32 {
            break;
        }
        for p in 0..l {
            for q in p + 1..l {
                rotate(&mut a, &mut v, l, p, q);
            }
        }
    }
    let mut order: Vec<usize> = (0..l).collect();
    order.sort_by(|&i, &j| a[j * l + j].total_cmp(&a[i * l + i]));
    let values = order.iter().map(|&i| a[i * l + i].max(0.0)).collect();
    let vectors =
        (0..l).flat_map(|r| order.iter().map(move |&i| (i, r))).map(|(i, r)| v[i * l + r]).collect();
    (values, vectors)
}

/// One Jacobi rotation: makes `a[p][q]` zero.
fn rotate(a: &mut [f64], v: &mut [f64], l: usize, p: usize, q: usize) {
    let apq = a[p * l + q];
    if apq == 0.0 {
        return;
    }
    let theta = (a[q * l + q] - a[p * l + p]) / (2.0 * apq);
    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let c = 1.0 / (t * t + 1.0).sqrt();
    let s = t * c;
    for i in 0..l {
        let (x, y) = (a[i * l + p], a[i * l + q]);
        a[i * l + p] = c * x - s * y;
        a[i * l + q] = s * x + c * y;
    }
    for m in [a, v] {
        for i in 0..l {
            let (x, y) = (m[p * l + i], m[q * l + i]);
            m[p * l + i] = c * x - s * y;
            m[q * l + i] = s * x + c * y;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn norm(m: &[f32]) -> f64 {
        m.iter().map(|&v| (v as f64).powi(2)).sum::<f64>().sqrt()
    }

    fn error(m: &Matrix, low: &LowRank) -> f64 {
        let mut sum = 0.0;
        for i in 0..m.rows {
            for j in 0..m.cols {
                let l: f64 =
                    (0..low.up.cols).map(|r| low.up.row(i)[r] as f64 * low.down.row(r)[j] as f64).sum();
                sum += (m.row(i)[j] as f64 - l).powi(2);
            }
        }
        sum.sqrt()
    }

    /// Orthonormal columns times known singular values times orthonormal rows.
    fn with_singular_values(n: usize, k: usize, sigma: &[f32]) -> Matrix {
        let mut random = Random::new(9);
        let l = sigma.len().next_multiple_of(16);
        let mut u = orthonormal(&random.matrix(n, l), 1);
        let v = orthonormal(&random.matrix(k, l), 1);
        for row in u.data.chunks_exact_mut(l) {
            for (i, value) in row.iter_mut().enumerate() {
                *value *= sigma.get(i).copied().unwrap_or(0.0);
            }
        }
        product(Left::Plain(&u), &transposed_columns(&v, l), 1)
    }

    #[test]
    fn a_matrix_of_low_rank_is_found_exactly() {
        let sigma: Vec<f32> = (0..16).map(|i| 0.7f32.powi(i)).collect();
        let m = with_singular_values(96, 160, &sigma);
        let low = Subspace::random(160, 16).approximate(&m, 2, 2);
        // f32 rounding of sums of 160 terms
        assert!(error(&m, &low) < 1e-5 * norm(&m.data), "{}", error(&m, &low));
    }

    #[test]
    fn the_error_is_that_of_the_remaining_singular_values() {
        let sigma: Vec<f32> = (0..64).map(|i| 1.0 / (1 + i) as f32).collect();
        let m = with_singular_values(128, 192, &sigma);
        let best = norm(&sigma[16..]);
        let mut subspace = Subspace::random(192, 16);
        let low = subspace.approximate(&m, 4, 1);
        assert!(error(&m, &low) < 1.001 * best, "{} against {best}", error(&m, &low));
        for (r, &value) in sigma.iter().take(16).enumerate() {
            let column: Vec<f32> = (0..128).map(|i| low.up.row(i)[r]).collect();
            assert!((norm(&column) - value as f64).abs() < 1e-3 * value as f64);
            assert!((norm(low.down.row(r)) - 1.0).abs() < 1e-5);
        }
        // the kept subspace needs no iteration to be as good again
        assert!(error(&m, &subspace.approximate(&m, 0, 1)) < 1.001 * best);
    }

    #[test]
    fn a_matrix_of_zeros_has_an_approximation_of_zeros() {
        let low = Subspace::random(64, 16).approximate(&Matrix::zeros(32, 64), 2, 1);
        assert!(low.up.data.iter().chain(&low.down.data).all(|&v| v == 0.0));
    }
}
