//! Softmax, cross-entropy and accuracy on the CPU, row by row.

use rayon::prelude::*;

use super::elementwise::blocks;

/// Elements of a block, about: exponentials are dear.
const BLOCK: usize = 2 * 1024;

/// Rows whose losses one task adds; the tasks' sums are added in order.
const ROWS: usize = 64;

/// `y` = softmax of each row of `x`.
pub(crate) fn softmax(x: &[f32], columns: usize, y: &mut [f32]) {
    by_row(y, columns, |row, y| {
        let x = &x[row * columns..][..columns];
        let most = largest(x);
        let mut sum = 0.0;
        for (y, x) in y.iter_mut().zip(x) {
            *y = (x - most).exp();
            sum += *y;
        }
        y.iter_mut().for_each(|y| *y /= sum);
    });
}

/// `dx = y · (dy - Σ y · dy)` in each row.
pub(crate) fn softmax_grad(y: &[f32], dy: &[f32], columns: usize, dx: &mut [f32]) {
    by_row(dx, columns, |row, dx| {
        let y = &y[row * columns..][..columns];
        let dy = &dy[row * columns..][..columns];
        let product: f32 = y.iter().zip(dy).map(|(y, dy)| y * dy).sum();
        for ((dx, y), dy) in dx.iter_mut().zip(y).zip(dy) {
            *dx = y * (dy - product);
        }
    });
}

/// The mean of the rows' losses; 0 of no rows, NaN if a label is no column.
pub(crate) fn cross_entropy(logits: &[f32], labels: &[u32], columns: usize) -> f32 {
    let loss = |(x, &label): (&[f32], &u32)| {
        let most = largest(x);
        let sum: f32 = x.iter().map(|x| (x - most).exp()).sum();
        x.get(label as usize).map_or(f32::NAN, |target| sum.ln() + (most - target))
    };
    let losses = |(x, labels): (&[f32], &[u32])| x.chunks_exact(columns).zip(labels).map(loss).sum::<f32>();
    let sums: Vec<f32> = logits.par_chunks(ROWS * columns).zip(labels.par_chunks(ROWS)).map(losses).collect();
    sums.iter().fold(0.0, |total, sum| total + sum) / labels.len().max(1) as f32
}

/// `dlogits = (softmax - one hot) · dloss / rows`; NaN in a row whose label is no column.
pub(crate) fn cross_entropy_grad(logits: &[f32], labels: &[u32], columns: usize, dloss: f32, dlogits: &mut [f32]) {
    let scale = dloss / labels.len() as f32;
    softmax(logits, columns, dlogits);
    by_row(dlogits, columns, |row, dlogits| {
        match dlogits.get_mut(labels[row] as usize) {
            Some(target) => *target -= 1.0,
            None => dlogits.fill(f32::NAN),
        }
        dlogits.iter_mut().for_each(|d| *d *= scale);
    });
}

/// How many rows have their first largest logit at the label, and no NaN.
pub(crate) fn correct(logits: &[f32], labels: &[u32], columns: usize) -> f32 {
    let right = |(x, &label): (&[f32], &u32)| {
        let label = label as usize;
        let claim = |&claimed: &f32| x[..label].iter().all(|&v| v < claimed) && x[label..].iter().all(|&v| v <= claimed);
        x.get(label).is_some_and(claim)
    };
    logits.chunks_exact(columns).zip(labels).filter(|&row| right(row)).count() as f32
}

/// The largest value, NaN passed over.
fn largest(x: &[f32]) -> f32 {
    x.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Calls `kernel(row, its elements)` for every row, in blocks of rows.
fn by_row(y: &mut [f32], columns: usize, kernel: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = (BLOCK / columns).max(1);
    blocks(y, rows * columns, |first, y| {
        for (i, row) in y.chunks_exact_mut(columns).enumerate() {
            kernel(first / columns + i, row);
        }
    });
}
