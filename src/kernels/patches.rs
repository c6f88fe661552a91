//! Patches: what each output pixel of a convolution sees, gathered from the images and added back to them.
//!
//! A patch is `KH·KW·C` elements in the order of the weight, padding as zeros. Patches stand in the order of a
//! [`Block`]'s rows: output pixel · 4 + place in its pooling window.

use std::ops::Range;

use pulp::{Arch, NullaryFnOnce};

use crate::ops::conv2d::{Block, EDGE, Geometry, PLACES};

/// Elements that must be there behind the last patch: short runs are copied in whole vectors, over the next run's place.
pub(crate) const SLACK: usize = 16;

/// Gathers the patches for a range of the block's output pixels.
pub(crate) fn gather(block: &Block, pixels: Range<usize>, x: &[f32], patches: &mut [f32]) {
    let g = &block.conv;
    if !is_inside(g) {
        patches.fill(0.0);
        let rows = rows(block, pixels);
        clipped_runs(g, rows, |patch, at, len| patches[patch..patch + len].copy_from_slice(&x[at..at + len]));
        return;
    }
    let (len, line) = (g.kernel[1] * g.channels, g.dilation[0] * g.input[1] * g.channels);
    let mut patch = 0;
    for [n, h, w] in rows(block, pixels) {
        let mut at = ((n * g.input[0] + h * g.stride[0]) * g.input[1] + w * g.stride[1]) * g.channels;
        for _ in 0..g.kernel[0] {
            if len <= SLACK
                && let Some(run) = x.get(at..at + SLACK)
            {
                patches[patch..patch + SLACK].copy_from_slice(run);
            } else {
                patches[patch..patch + len].copy_from_slice(&x[at..at + len]);
            }
            patch += len;
            at += line;
        }
    }
}

/// Adds the patches for a range of the block's output pixels to the images they came from, of which `images` holds those from
/// `first_image` on.
pub(crate) fn add_patches(block: &Block, pixels: Range<usize>, first_image: usize, patches: &[f32], images: &mut [f32]) {
    Arch::new().dispatch(Add { block, pixels, first_image, patches, images });
}

struct Add<'a> {
    block: &'a Block,
    pixels: Range<usize>,
    first_image: usize,
    patches: &'a [f32],
    images: &'a mut [f32],
}

impl NullaryFnOnce for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { block, pixels, first_image, patches, images } = self;
        let g = &block.conv;
        let offset = first_image * g.input[0] * g.input[1] * g.channels;
        if !is_inside(g) {
            clipped_runs(g, rows(block, pixels), |patch, at, len| add(&mut images[at - offset..][..len], &patches[patch..][..len]));
            return;
        }
        let (len, line) = (g.kernel[1] * g.channels, g.dilation[0] * g.input[1] * g.channels);
        let mut patches = patches.chunks_exact(len);
        for [n, h, w] in rows(block, pixels) {
            let at = ((n * g.input[0] + h * g.stride[0]) * g.input[1] + w * g.stride[1]) * g.channels - offset;
            for (kh, patch) in (0..g.kernel[0]).zip(&mut patches) {
                add(&mut images[at + kh * line..][..len], patch);
            }
        }
    }
}

#[inline(always)]
fn add(sums: &mut [f32], values: &[f32]) {
    sums.iter_mut().zip(values).for_each(|(sum, v)| *sum += v);
}

/// Whether every patch lies inside its image, a row of taps in one piece.
fn is_inside(g: &Geometry) -> bool {
    let reach = |axis: usize| (g.output[axis] - 1) * g.stride[axis] + (g.kernel[axis] - 1) * g.dilation[axis];
    g.dilation[1] == 1 && g.pads == [0, 0] && reach(0) < g.input[0] && reach(1) < g.input[1]
}

/// Image, row and column of the convolution's output for each row of patches.
#[inline(always)]
fn rows(block: &Block, pixels: Range<usize>) -> impl Iterator<Item = [usize; 3]> {
    let [height, width] = block.output();
    let [mut n, mut h, mut w] = [pixels.start / block.pixels(), pixels.start / width % height, pixels.start % width];
    let mut place = 0;
    (0..pixels.len() * PLACES).map(move |_| {
        let row = [n, h * EDGE + place / EDGE, w * EDGE + place % EDGE];
        place += 1;
        if place == PLACES {
            place = 0;
            w += 1;
            if w == width {
                w = 0;
                h += 1;
            }
            if h == height {
                h = 0;
                n += 1;
            }
        }
        row
    })
}

/// Calls `each(place in the patches, place in x, length)` for every run of elements that lie together in both; padding is in
/// none of them.
#[inline(always)]
fn clipped_runs(g: &Geometry, rows: impl Iterator<Item = [usize; 3]>, mut each: impl FnMut(usize, usize, usize)) {
    let ([in_h, in_w], [pad_h, pad_w]) = (g.input, g.pads);
    let together = if g.dilation[1] == 1 { g.kernel[1] } else { 1 };
    let mut patch = 0;
    for [n, oh, ow] in rows {
        for kh in 0..g.kernel[0] {
            let h = (oh * g.stride[0] + kh * g.dilation[0]).wrapping_sub(pad_h);
            for kw in (0..g.kernel[1]).step_by(together) {
                let place = ow * g.stride[1] + kw * g.dilation[1];
                let first = pad_w.saturating_sub(place).min(together);
                let end = (in_w + pad_w).saturating_sub(place).min(together);
                if h < in_h && first < end {
                    let at = ((n * in_h + h) * in_w + place + first - pad_w) * g.channels;
                    each(patch + first * g.channels, at, (end - first) * g.channels);
                }
                patch += together * g.channels;
            }
        }
    }
}
