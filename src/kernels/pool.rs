//! Pooling on the CPU: every loop's innermost part runs along the channels, which are contiguous.

use super::elementwise::blocks;
use crate::ops::pool::Pool;

/// Elements of a block, about.
const BLOCK: usize = 8 * 1024;

/// Channels that are taken together where each needs a place of its own for its maximum.
const GROUP: usize = 32;

/// `y` = the maximum of each window of `x`.
pub(crate) fn max(pool: &Pool, x: &[f32], y: &mut [f32]) {
    windows(pool, x, y, |pixels, x, y| {
        for (tap, &pixel) in pixels.iter().enumerate() {
            let pixel = &x[pixel..pixel + y.len()];
            if tap == 0 {
                y.copy_from_slice(pixel);
            } else {
                y.iter_mut().zip(pixel).for_each(|(best, &v)| *best = if beats(v, *best) { v } else { *best });
            }
        }
    });
}

/// `y` = the mean of each window of `x`.
pub(crate) fn avg(pool: &Pool, x: &[f32], y: &mut [f32]) {
    windows(pool, x, y, |pixels, x, y| {
        y.fill(0.0);
        for &pixel in pixels {
            y.iter_mut().zip(&x[pixel..]).for_each(|(sum, v)| *sum += v);
        }
        let count = pixels.len() as f32;
        y.iter_mut().for_each(|sum| *sum /= count);
    });
}

/// `dx` = each window's gradient at its first maximum.
pub(crate) fn max_grad(pool: &Pool, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    images(pool, dy, dx, |n, pixels, dy, dx| {
        let x = &x[n * pool.input_len()..];
        for first in (0..dy.len()).step_by(GROUP) {
            let dy = &dy[first..dy.len().min(first + GROUP)];
            let mut best = [0.0f32; GROUP];
            let mut winner = [0u32; GROUP];
            for (tap, &pixel) in pixels.iter().enumerate() {
                let pixel = &x[pixel + first..][..dy.len()];
                for ((best, winner), &v) in best.iter_mut().zip(&mut winner).zip(pixel) {
                    let better = tap == 0 || beats(v, *best);
                    *best = if better { v } else { *best };
                    *winner = if better { tap as u32 } else { *winner };
                }
            }
            for (tap, &pixel) in pixels.iter().enumerate() {
                let pixel = &mut dx[pixel + first..][..dy.len()];
                for ((dx, &winner), &dy) in pixel.iter_mut().zip(&winner).zip(dy) {
                    *dx += if winner == tap as u32 { dy } else { 0.0 };
                }
            }
        }
    });
}

/// `dx` = each window's gradient shared by its pixels.
pub(crate) fn avg_grad(pool: &Pool, dy: &[f32], dx: &mut [f32]) {
    images(pool, dy, dx, |_, pixels, dy, dx| {
        let count = pixels.len() as f32;
        for &pixel in pixels {
            dx[pixel..].iter_mut().zip(dy).for_each(|(dx, dy)| *dx += dy / count);
        }
    });
}

/// Whether `v` is larger than `best`, a NaN being larger than any number. No branch, so it vectorises.
#[allow(clippy::neg_cmp_op_on_partial_ord, reason = "the negation is what lets a NaN through")]
fn beats(v: f32, best: f32) -> bool {
    !(v <= best) & !best.is_nan()
}

/// Calls `kernel(pixels, image, y)` for each window: where in the image its pixels' channels begin, in row-major order, and the
/// channels of the output. Blocks are rows of the output.
fn windows(pool: &Pool, x: &[f32], y: &mut [f32], kernel: impl Fn(&[usize], &[f32], &mut [f32]) + Sync) {
    let row_len = pool.output[1] * pool.channels;
    blocks(y, (BLOCK / row_len).max(1) * row_len, |first, y| {
        let mut pixels = Vec::new();
        for (i, row) in y.chunks_exact_mut(row_len).enumerate() {
            let (n, oy) = ((first / row_len + i) / pool.output[0], (first / row_len + i) % pool.output[0]);
            let image = &x[n * pool.input_len()..][..pool.input_len()];
            for (ox, y) in row.chunks_exact_mut(pool.channels).enumerate() {
                collect(pool, oy, ox, &mut pixels);
                kernel(&pixels, image, y);
            }
        }
    });
}

/// Zeroes `dx`, then calls `kernel(image's number, pixels, dy, dx of the image)` for each window. Blocks are whole images, since
/// windows may overlap.
fn images(pool: &Pool, dy: &[f32], dx: &mut [f32], kernel: impl Fn(usize, &[usize], &[f32], &mut [f32]) + Sync) {
    let len = pool.input_len();
    let dy_len = pool.output[0] * pool.output[1] * pool.channels;
    blocks(dx, (BLOCK / len).max(1) * len, |first, dx| {
        let mut pixels = Vec::new();
        for (i, image) in dx.chunks_exact_mut(len).enumerate() {
            let n = first / len + i;
            image.fill(0.0);
            for (o, dy) in dy[n * dy_len..][..dy_len].chunks_exact(pool.channels).enumerate() {
                collect(pool, o / pool.output[1], o % pool.output[1], &mut pixels);
                kernel(n, &pixels, dy, image);
            }
        }
    });
}

/// Where the channels of the window's pixels begin, in row-major order.
fn collect(pool: &Pool, oy: usize, ox: usize, pixels: &mut Vec<usize>) {
    pixels.clear();
    for iy in pool.taps(0, oy) {
        pixels.extend(pool.taps(1, ox).map(|ix| (iy * pool.input[1] + ix) * pool.channels));
    }
}
