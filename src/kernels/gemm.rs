//! Matrix products on the CPU: a safe face for the `gemm` crate's f32 kernels, and its blocks over the thread pool.

use super::tasks::share;

/// Rows of C in one block of [`parallel`].
const ROWS: usize = 64;

/// A matrix inside a slice: element `(i, j)` is `data[i · row_stride + j · column_stride]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows one after the other.
    pub(crate) fn row_major(data: &'a [f32], [rows, columns]: [usize; 2]) -> Self {
        Self::strided(data, [rows, columns], columns)
    }

    /// Rows `row_stride` elements apart.
    ///
    /// # Panics
    /// If the last element lies outside `data`.
    pub(crate) fn strided(data: &'a [f32], [rows, columns]: [usize; 2], row_stride: usize) -> Self {
        let end = if rows == 0 || columns == 0 { 0 } else { (rows - 1) * row_stride + columns };
        assert!(end <= data.len(), "a {rows}×{columns} matrix of row stride {row_stride} does not fit {} elements", data.len());
        Self { data, rows, columns, row_stride, column_stride: 1 }
    }

    /// The same elements with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self { rows: self.columns, columns: self.rows, row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }

    /// Some of its rows.
    fn slice_rows(self, first: usize, rows: usize) -> Self {
        assert!(first + rows <= self.rows, "rows {first}..{} of {}", first + rows, self.rows);
        Self { data: if rows == 0 { &[] } else { &self.data[first * self.row_stride..] }, rows, ..self }
    }
}

/// `C = A · B`, or `C += A · B` if `accumulate`; C has rows `stride` elements apart. On the calling thread.
///
/// # Panics
/// If the extents do not agree or C does not fit its slice.
pub(crate) fn product(a: Matrix<'_>, b: Matrix<'_>, c: &mut [f32], stride: usize, accumulate: bool) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert_eq!(k, b.rows, "columns of A and rows of B");
    if m == 0 || n == 0 {
        return;
    }
    assert!(stride >= n && (m - 1) * stride + n <= c.len(), "a {m}×{n} result of stride {stride} does not fit {} elements", c.len());
    if k == 0 {
        if !accumulate {
            c.chunks_mut(stride).take(m).for_each(|row| row[..n].fill(0.0));
        }
        return;
    }
    // SAFETY: `Matrix` and the assertions above keep every element the call touches, (m-1)·rs + (n-1)·cs at most, inside
    // its slice; `c` is borrowed mutably, so it overlaps neither factor; all extents fit `isize` because slices do.
    #[allow(unsafe_code, reason = "the gemm crate takes raw pointers")]
    unsafe {
        // Its kernels want the columns of the result in one piece: Cᵀ = Bᵀ · Aᵀ, whose column is a row of C.
        gemm_f32::gemm::f32::get_gemm_fn()(
            n,
            m,
            k,
            c.as_mut_ptr(),
            stride as isize,
            1,
            accumulate,
            b.data.as_ptr(),
            b.row_stride as isize,
            b.column_stride as isize,
            a.data.as_ptr(),
            a.row_stride as isize,
            a.column_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm_common::Parallelism::None,
        );
    }
}

/// `C = A · B` into a row-major C, its rows shared out in fixed blocks.
pub(crate) fn parallel(a: Matrix<'_>, b: Matrix<'_>, c: &mut [f32]) {
    let n = b.columns;
    if n == 0 {
        return;
    }
    share(&mut c[..a.rows * n], ROWS * n, |i, c| {
        let rows = c.len() / n;
        product(a.slice_rows(i * ROWS, rows), b, c, n, false);
    });
}
