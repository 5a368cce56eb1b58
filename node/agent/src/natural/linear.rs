//! Small symmetric matrices: the covariances of a few dozen features.

/// A square matrix, by rows.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Matrix {
    size: usize,
    cells: Vec<f64>,
}

impl Matrix {
    fn filled(size: usize, cell: impl Fn(usize, usize) -> f64) -> Self {
        Self { size, cells: (0..size * size).map(|place| cell(place / size, place % size)).collect() }
    }

    /// The sum of every vector's product with itself, divided by `by`.
    pub(super) fn scatter(vectors: &[Vec<f64>], by: f64) -> Self {
        let size = vectors.first().map_or(0, Vec::len);
        Self::filled(size, |row, column| vectors.iter().map(|vector| vector[row] * vector[column]).sum::<f64>() / by)
    }

    pub(super) fn at(&self, row: usize, column: usize) -> f64 {
        self.cells[row * self.size + column]
    }

    /// What is beside the diagonal, so much less of it.
    pub(super) fn shrunken(&self, by: f64) -> Self {
        Self::filled(self.size, |row, column| self.at(row, column) * if row == column { 1.0 } else { 1.0 - by })
    }

    pub(super) fn plus(&self, other: &Self) -> Self {
        Self::filled(self.size, |row, column| self.at(row, column) + other.at(row, column))
    }

    /// This without so much of another.
    pub(super) fn less(&self, other: &Self, times: f64) -> Self {
        Self::filled(self.size, |row, column| self.at(row, column) - times * other.at(row, column))
    }

    pub(super) fn times(&self, factor: f64) -> Self {
        Self::filled(self.size, |row, column| self.at(row, column) * factor)
    }

    pub(super) fn product(&self, other: &Self) -> Self {
        Self::filled(self.size, |row, column| (0..self.size).map(|k| self.at(row, k) * other.at(k, column)).sum())
    }

    pub(super) fn apply(&self, vector: &[f64]) -> Vec<f64> {
        self.cells.chunks_exact(self.size).map(|row| row.iter().zip(vector).map(|(cell, value)| cell * value).sum()).collect()
    }

    /// The same but for rounding: the mean of it and its transpose.
    pub(super) fn symmetric(&self) -> Self {
        Self::filled(self.size, |row, column| (self.at(row, column) + self.at(column, row)) / 2.0)
    }

    /// Makes a cell of the diagonal no less than this.
    pub(super) fn raise_diagonal(&mut self, at: usize, least: f64) {
        let cell = &mut self.cells[at * self.size + at];
        *cell = cell.max(least);
    }

    /// Drawn to its diagonal until it is positive definite. The diagonal is positive.
    pub(super) fn made_definite(&self) -> Self {
        let mut by = 0.0;
        loop {
            let one = self.shrunken(by);
            if by >= 1.0 || Cholesky::of(&one).is_some() {
                return one;
            }
            by += 0.05;
        }
    }
}

/// The lower triangle `L` of a positive definite matrix `L L'`.
#[derive(Clone, Debug)]
pub(super) struct Cholesky(Matrix);

impl Cholesky {
    /// Nothing if the matrix is not positive definite, as far as rounding lets that be seen.
    pub(super) fn of(matrix: &Matrix) -> Option<Self> {
        let size = matrix.size;
        let mut lower = Matrix::filled(size, |_, _| 0.0);
        for row in 0..size {
            for column in 0..=row {
                let done: f64 = (0..column).map(|k| lower.at(row, k) * lower.at(column, k)).sum();
                let left = matrix.at(row, column) - done;
                lower.cells[row * size + column] = if row == column {
                    if left.is_nan() || left <= matrix.at(row, row) * 1e-12 {
                        return None;
                    }
                    left.sqrt()
                } else {
                    left / lower.at(column, column)
                };
            }
        }
        Some(Self(lower))
    }

    fn forward(&self, vector: &[f64]) -> Vec<f64> {
        let mut solved = Vec::with_capacity(vector.len());
        for (row, value) in vector.iter().enumerate() {
            let done: f64 = solved.iter().enumerate().map(|(k, solved)| self.0.at(row, k) * solved).sum();
            solved.push((value - done) / self.0.at(row, row));
        }
        solved
    }

    /// `x` in `A x = vector`.
    pub(super) fn solve(&self, vector: &[f64]) -> Vec<f64> {
        let mut solved = self.forward(vector);
        for row in (0..solved.len()).rev() {
            let done: f64 = (row + 1..solved.len()).map(|k| self.0.at(k, row) * solved[k]).sum();
            solved[row] = (solved[row] - done) / self.0.at(row, row);
        }
        solved
    }

    /// `X` in `A X = matrix`.
    pub(super) fn solve_matrix(&self, matrix: &Matrix) -> Matrix {
        let columns: Vec<Vec<f64>> =
            (0..matrix.size).map(|column| self.solve(&(0..matrix.size).map(|row| matrix.at(row, column)).collect::<Vec<_>>())).collect();
        Matrix::filled(matrix.size, |row, column| columns[column][row])
    }

    /// `vector' A^-1 vector`: the squared Mahalanobis distance.
    pub(super) fn distance(&self, vector: &[f64]) -> f64 {
        self.forward(vector).iter().map(|value| value * value).sum()
    }

    /// The roots of the diagonal of `A`: standard deviations, of a covariance.
    pub(super) fn sd(&self) -> Vec<f64> {
        self.0.cells.chunks_exact(self.0.size).map(|row| row.iter().map(|cell| cell * cell).sum::<f64>().sqrt()).collect()
    }

    /// `ln det A`.
    pub(super) fn log_determinant(&self) -> f64 {
        (0..self.0.size).map(|at| 2.0 * self.0.at(at, at).ln()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_factor_solves_measures_and_refuses_what_is_not_definite() {
        let matrix = Matrix { size: 3, cells: vec![4.0, 2.0, 0.6, 2.0, 5.0, 1.0, 0.6, 1.0, 3.0] };
        let factor = Cholesky::of(&matrix).expect("definite");
        let vector = [1.0, -2.0, 0.5];
        let back = matrix.apply(&factor.solve(&vector));
        assert!(back.iter().zip(vector).all(|(back, value)| (back - value).abs() < 1e-12), "{back:?}");
        let distance: f64 = factor.solve(&vector).iter().zip(vector).map(|(solved, value)| solved * value).sum();
        assert!((factor.distance(&vector) - distance).abs() < 1e-12);
        assert!(factor.sd().iter().zip([4.0, 5.0, 3.0]).all(|(sd, variance)| (sd * sd - variance).abs() < 1e-12));
        // By Sarrus.
        let determinant = 4.0 * (5.0 * 3.0 - 1.0) - 2.0 * (2.0 * 3.0 - 0.6) + 0.6 * (2.0 - 5.0 * 0.6);
        assert!((factor.log_determinant() - f64::ln(determinant)).abs() < 1e-12);
        let same = matrix.product(&factor.solve_matrix(&Matrix::filled(3, |row, column| f64::from(u8::from(row == column)))));
        assert!((0..9).all(|at| (same.cells[at] - f64::from(u8::from(at % 4 == 0))).abs() < 1e-12));
        let flat = Matrix { size: 2, cells: vec![1.0, 1.0, 1.0, 1.0] };
        assert!(Cholesky::of(&flat).is_none());
        assert!(Cholesky::of(&flat.made_definite()).is_some());
    }
}
