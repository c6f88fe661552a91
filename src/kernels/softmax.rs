//! Softmax, cross-entropy and accuracy on the CPU, row by row.

use rayon::prelude::*;

use super::elementwise::blocks;
use super::tasks::in_pool;

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
    let sums: Vec<f32> = match in_pool() {
        true => logits.par_chunks(ROWS * columns).zip(labels.par_chunks(ROWS)).map(losses).collect(),
        false => logits.chunks(ROWS * columns).zip(labels.chunks(ROWS)).map(losses).collect(),
    };
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

/// The mean of the rows' losses and how many rows are right, as [`cross_entropy`] and [`correct`] give them, and
/// [`cross_entropy_grad`] in `dlogits`: each exponential taken once. Blocks of rows whose sums are added in order.
pub(crate) fn loss_head(logits: &[f32], labels: &[u32], columns: usize, dloss: f32, dlogits: &mut [f32]) -> [f32; 2] {
    let scale = dloss / labels.len() as f32;
    let row = |(x, (&label, dlogits)): (&[f32], (&u32, &mut [f32]))| {
        let most = largest(x);
        let mut sum = 0.0;
        for (d, x) in dlogits.iter_mut().zip(x) {
            *d = (x - most).exp();
            sum += *d;
        }
        dlogits.iter_mut().for_each(|d| *d = *d / sum * scale);
        let Some(target) = x.get(label as usize) else {
            dlogits.fill(f32::NAN);
            return f32::NAN;
        };
        let d = &mut dlogits[label as usize];
        *d = ((target - most).exp() / sum - 1.0) * scale;
        sum.ln() + (most - target)
    };
    let block = |(x, (labels, dlogits)): (&[f32], (&[u32], &mut [f32]))| {
        let rows = x.chunks_exact(columns).zip(labels.iter().zip(dlogits.chunks_exact_mut(columns)));
        [rows.map(row).sum::<f32>(), correct(x, labels, columns)]
    };
    let rows = (BLOCK / columns).max(1);
    let sums: Vec<[f32; 2]> = if labels.len() <= rows || !in_pool() {
        let rest = labels.chunks(rows).zip(dlogits.chunks_mut(rows * columns));
        logits.chunks(rows * columns).zip(rest).map(block).collect()
    } else {
        let rest = labels.par_chunks(rows).zip(dlogits.par_chunks_mut(rows * columns));
        logits.par_chunks(rows * columns).zip(rest).map(block).collect()
    };
    let [loss, correct] = sums.iter().fold([0.0, 0.0], |total, sum| [total[0] + sum[0], total[1] + sum[1]]);
    [loss / labels.len().max(1) as f32, correct]
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
