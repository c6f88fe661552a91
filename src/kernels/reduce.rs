//! Sums on the CPU.

use rayon::prelude::*;

use super::tasks::in_pool;

/// Rows summed by one task; their sums are added in order.
const ROWS: usize = 2048;

/// `y[c] = Σ x[r, c]` over all rows of `columns` elements, in blocks of rows whose sums are added in order.
pub(crate) fn sum_rows(x: &[f32], columns: usize, y: &mut [f32]) {
    let y = &mut y[..columns];
    let partial = |block: &[f32]| {
        // Runs of 64 rows are added one to the other, which keeps the error of long sums small.
        let mut total = vec![0.0f32; columns];
        let mut run = vec![0.0f32; columns];
        for rows in block.chunks(64 * columns) {
            run.fill(0.0);
            for row in rows.chunks_exact(columns) {
                run.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
            total.iter_mut().zip(&run).for_each(|(sum, run)| *sum += run);
        }
        total
    };
    let partials: Vec<Vec<f32>> = match in_pool() {
        true => x.par_chunks(ROWS * columns).map(partial).collect(),
        false => x.chunks(ROWS * columns).map(partial).collect(),
    };
    y.fill(0.0);
    for partial in partials {
        y.iter_mut().zip(&partial).for_each(|(sum, part)| *sum += part);
    }
}
