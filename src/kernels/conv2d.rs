//! Convolutions on the CPU: matrix products over blocks of gathered windows.
//!
//! A *patch* is what one output pixel sees: `KH·KW·C` elements of x in the order of the weight, padding as zeros. Patches are
//! gathered for a block of pixels at a time, few enough to stay in the second-level cache, into memory that each thread
//! keeps. A 1×1 window over every pixel needs none: there x is its own matrix of patches.

use std::cell::RefCell;
use std::ops::Range;

use super::gemm::{Matrix, product};
use super::tasks::share;
use crate::ops::conv2d::Geometry;

/// Elements of a block of patches (256 KiB), as far as the bounds on its rows allow.
const BLOCK: usize = 64 * 1024;

thread_local! {
    /// Patches, kept from step to step.
    static PATCHES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `y = conv(x, w)`, y `[N, OH, OW, O]`, in blocks of pixels.
pub(crate) fn forward(g: &Geometry, x: &[f32], w: &[f32], y: &mut [f32]) {
    let (depth, outputs) = (g.depth(), g.outputs());
    let block = rows_of(depth);
    share(y, block * outputs, |i, y| {
        let rows = i * block..i * block + y.len() / outputs;
        for group in 0..g.groups {
            with_patches(g, x, group, All(g), rows.clone(), |patches| {
                product(patches, weight(g, w, group), &mut y[group * g.filters..], outputs, false);
            });
        }
    });
}

/// dx of dy `[N, OH, OW, O]` and w, in blocks of images: the gradient of the patches, added where they came from.
pub(crate) fn input_grad(g: &Geometry, dy: &[f32], w: &[f32], dx: &mut [f32]) {
    let (depth, pixels, inputs, outputs) = (g.depth(), g.pixels(), g.inputs(), g.outputs());
    let block = rows_of(depth);
    let image = g.input[0] * g.input[1] * inputs;
    // Small images go together, so that the weight is read seldom enough.
    let images = block.div_ceil(pixels);
    share(dx, images * image, |i, dx| {
        let rows = dx.len() / image * pixels;
        let dy = &dy[i * images * pixels * outputs..][..rows * outputs];
        if !is_pointwise(g) {
            dx.fill(0.0);
        }
        for first in (0..rows).step_by(block) {
            let rows = first..rows.min(first + block);
            for group in 0..g.groups {
                let dy = Matrix::strided(&dy[rows.start * outputs + group * g.filters..], [rows.len(), g.filters], outputs);
                let w = weight(g, w, group).transposed();
                if is_pointwise(g) {
                    product(dy, w, &mut dx[rows.start * inputs + group * g.channels..], inputs, false);
                    continue;
                }
                scratch(rows.len() * depth, |patches| {
                    product(dy, w, patches, depth, false);
                    runs(g, group, All(g), rows.clone(), |patch, pixel, len| {
                        dx[pixel..pixel + len].iter_mut().zip(&patches[patch..patch + len]).for_each(|(dx, dp)| *dx += dp);
                    });
                });
            }
        }
    });
}

/// dw `[slices, KH, KW, C, O]` of x and dy: each slice the sum over its run of output pixels, block after block.
pub(crate) fn weight_grad(g: &Geometry, slices: usize, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let outputs = g.outputs();
    let pixels = dy.len() / outputs;
    let run = pixels.div_ceil(slices);
    // Few slices are few tasks; then each tap is one of its own.
    let taps = g.kernel[0] * g.kernel[1];
    let tasks = if slices < 16 { taps } else { 1 };
    let len = taps / tasks * g.channels * outputs;
    share(dw, len, |task, dw| {
        let slice = task / tasks;
        let window = if tasks == 1 { All(g) } else { One(g, task % tasks) };
        let rows = (slice * run).min(pixels)..((slice + 1) * run).min(pixels);
        if rows.is_empty() {
            dw.fill(0.0);
        }
        let block = rows_of(window.len() * g.channels);
        for first in rows.clone().step_by(block) {
            let block = first..rows.end.min(first + block);
            for group in 0..g.groups {
                let dy = Matrix::strided(&dy[first * outputs + group * g.filters..], [block.len(), g.filters], outputs);
                with_patches(g, x, group, window.clone(), block.clone(), |patches| {
                    product(patches.transposed(), dy, &mut dw[group * g.filters..], outputs, first > rows.start);
                });
            }
        }
    });
}

/// Rows of a block of patches: a function of the shape alone.
fn rows_of(depth: usize) -> usize {
    (BLOCK / depth).clamp(64, 512)
}

/// The taps a patch holds: a range of rows and one of columns of the window.
#[derive(Clone, Debug)]
struct Taps {
    h: Range<usize>,
    w: Range<usize>,
}

impl Taps {
    fn len(&self) -> usize {
        self.h.len() * self.w.len()
    }
}

/// All taps of the window.
#[allow(non_snake_case, reason = "reads as the case of an enum")]
fn All(g: &Geometry) -> Taps {
    Taps { h: 0..g.kernel[0], w: 0..g.kernel[1] }
}

/// One tap of the window.
#[allow(non_snake_case, reason = "reads as the case of an enum")]
fn One(g: &Geometry, tap: usize) -> Taps {
    let [h, w] = [tap / g.kernel[1], tap % g.kernel[1]];
    Taps { h: h..h + 1, w: w..w + 1 }
}

/// Whether output pixel `i` sees exactly input pixel `i`.
fn is_pointwise(g: &Geometry) -> bool {
    g.kernel == [1, 1] && g.stride == [1, 1] && g.pads == [0, 0] && g.input == g.output
}

/// The columns of w, as a matrix `[KH·KW·C, O]`, that belong to a group.
fn weight<'a>(g: &Geometry, w: &'a [f32], group: usize) -> Matrix<'a> {
    Matrix::strided(&w[group * g.filters..], [g.depth(), g.filters], g.outputs())
}

/// Calls `f` with memory of at least this thread's own; its content is what was left there.
fn scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    PATCHES.with_borrow_mut(|memory| {
        if memory.len() < len {
            memory.resize(len, 0.0);
        }
        f(&mut memory[..len])
    })
}

/// Calls `f` with the patches of a group for the output pixels `rows`, a matrix `[rows, taps·C]`.
fn with_patches(g: &Geometry, x: &[f32], group: usize, taps: Taps, rows: Range<usize>, f: impl FnOnce(Matrix<'_>)) {
    if is_pointwise(g) {
        let inputs = g.inputs();
        return f(Matrix::strided(&x[rows.start * inputs + group * g.channels..], [rows.len(), g.channels], inputs));
    }
    let extents = [rows.len(), taps.len() * g.channels];
    scratch(extents[0] * extents[1], |patches| {
        patches.fill(0.0);
        runs(g, group, taps, rows, |patch, pixel, len| patches[patch..patch + len].copy_from_slice(&x[pixel..pixel + len]));
        f(Matrix::row_major(patches, extents));
    });
}

/// Calls `each(place in the patches, place in x, length)` for every run of elements that lie together in both; padding is in
/// none of them.
fn runs(g: &Geometry, group: usize, taps: Taps, rows: Range<usize>, mut each: impl FnMut(usize, usize, usize)) {
    let inputs = g.inputs();
    let ([in_h, in_w], [pad_h, pad_w]) = (g.input, g.pads);
    let together = if g.groups == 1 && g.dilation[1] == 1 { taps.w.len() } else { 1 };
    let mut patch = 0;
    for pixel in rows {
        let [n, oh, ow] = [pixel / g.pixels(), pixel / g.output[1] % g.output[0], pixel % g.output[1]];
        for kh in taps.h.clone() {
            let h = (oh * g.stride[0] + kh * g.dilation[0]).wrapping_sub(pad_h);
            for kw in taps.w.clone().step_by(together) {
                let place = ow * g.stride[1] + kw * g.dilation[1];
                let first = pad_w.saturating_sub(place).min(together);
                let end = (in_w + pad_w).saturating_sub(place).min(together);
                if h < in_h && first < end {
                    let at = ((n * in_h + h) * in_w + place + first - pad_w) * inputs + group * g.channels;
                    each(patch + first * g.channels, at, (end - first) * g.channels);
                }
                patch += together * g.channels;
            }
        }
    }
}
