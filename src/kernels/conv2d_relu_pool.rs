//! Convolution with bias, ReLU and 2×2 max-pooling on the CPU, and its gradients: the pixels go through the cache once.
//!
//! Work is cut into runs of output pixels (whole images, where gradients of windows overlap). For a run, patches are gathered,
//! multiplied, and the product goes through bias, ReLU and pooling while it is in the second-level cache. Rows of the patches are
//! ordered so that the places of a pooling window are neighbours: row = output pixel · 4 + place.

use std::cell::RefCell;
use std::ops::Range;

use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use super::gemm::{Matrix, product};
use super::patches::{SLACK, add_patches, gather};
use crate::ops::conv2d::{Block, PLACES};

/// Elements of a run's patches (1 MiB) and rows it has, about: large enough that the weight is packed seldom.
const PATCHES: usize = 256 * 1024;
const ROWS: usize = 1024;

/// The gradient of the convolution's output, in the form it is kept in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dy<'a> {
    /// Of the block's output.
    pub(crate) dy: &'a [f32],
    /// That output: 0 where ReLU lets nothing through.
    pub(crate) y: &'a [f32],
    /// Where in its window each maximum was.
    pub(crate) place: &'a [u8],
}

#[derive(Default)]
struct Scratch {
    patches: Vec<f32>,
    rows: Vec<f32>,
}

thread_local! {
    /// Memory that each thread keeps from step to step.
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

/// Calls `f` with memory for so many elements of patches and of rows; its content is what was left there.
fn scratch<R>(patches: usize, rows: usize, f: impl FnOnce(&mut [f32], &mut [f32]) -> R) -> R {
    let grown = |memory: &mut Vec<f32>, len: usize| {
        if memory.len() < len {
            memory.resize(len, 0.0);
        }
    };
    SCRATCH.with_borrow_mut(|scratch| {
        grown(&mut scratch.patches, patches + SLACK);
        grown(&mut scratch.rows, rows);
        f(&mut scratch.patches[..patches + SLACK], &mut scratch.rows[..rows])
    })
}

/// Output pixels of a run: a function of the shape alone.
fn run_of(block: &Block) -> usize {
    ((PATCHES / block.conv.depth()).min(ROWS) / PLACES).max(16)
}

/// `y = pool(relu(conv(x, w) + b))`, and the place of each maximum.
pub(crate) fn forward(block: &Block, x: &[f32], w: &[f32], b: &[f32], y: &mut [f32], places: &mut [u8]) {
    let run = run_of(block) * block.conv.outputs();
    let runs = y.par_chunks_mut(run).zip(places.par_chunks_mut(run)).enumerate();
    runs.for_each(|(i, (y, places))| forward_run(block, i * run, x, w, b, y, places));
}

fn forward_run(block: &Block, first: usize, x: &[f32], w: &[f32], b: &[f32], y: &mut [f32], places: &mut [u8]) {
    let (g, outputs) = (&block.conv, block.conv.outputs());
    let pixels = first / outputs..(first + y.len()) / outputs;
    let rows = pixels.len() * PLACES;
    scratch(rows * g.depth(), rows * outputs, |patches, product_| {
        gather(block, pixels, x, patches);
        let patches = Matrix::row_major(patches, [rows, g.depth()]);
        product(patches, Matrix::row_major(w, [g.depth(), outputs]), product_, outputs, false);
        Arch::new().dispatch(BiasReluPool { product: product_, b, y, places });
    });
}

/// What a block's ReLU does; a NaN stays one.
#[inline(always)]
fn relu(z: f32) -> f32 {
    if z < 0.0 { 0.0 } else { z }
}

/// Whether `v` is larger than `best`, a NaN being larger than any number.
#[inline(always)]
#[allow(clippy::neg_cmp_op_on_partial_ord, reason = "the negation is what lets a NaN through")]
fn beats(v: f32, best: f32) -> bool {
    !(v <= best) & !best.is_nan()
}

/// Bias, ReLU and pooling of the product's rows.
struct BiasReluPool<'a> {
    product: &'a [f32],
    b: &'a [f32],
    y: &'a mut [f32],
    places: &'a mut [u8],
}

impl NullaryFnOnce for BiasReluPool<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let outputs = self.b.len();
        let pixels = self.y.chunks_exact_mut(outputs).zip(self.places.chunks_exact_mut(outputs));
        for ((y, places), z) in pixels.zip(self.product.chunks_exact(PLACES * outputs)) {
            let [z0, z1, z2, z3] = [0, 1, 2, 3].map(|place| &z[place * outputs..][..outputs]);
            let (y, places, b) = (&mut y[..outputs], &mut places[..outputs], &self.b[..outputs]);
            for o in 0..outputs {
                // Bias and ReLU first: what ties after them is a tie.
                let [v0, v1, v2, v3] = [z0[o], z1[o], z2[o], z3[o]].map(|z| relu(z + b[o]));
                let mut best = v0;
                let mut place = 0u32;
                for (v, here) in [(v1, 1), (v2, 2), (v3, 3)] {
                    let better = beats(v, best);
                    best = if better { v } else { best };
                    place = if better { here } else { place };
                }
                y[o] = best;
                places[o] = place as u8;
            }
        }
    }
}

/// Writes the gradient of the convolution's output for some pixels of the block's output: a row a place. Adds the rows to `db`, if
/// it has elements.
struct Unpool<'a> {
    dy: Dy<'a>,
    outputs: usize,
    rows: &'a mut [f32],
    db: &'a mut [f32],
}

impl NullaryFnOnce for Unpool<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let (Dy { dy, y, place }, outputs) = (self.dy, self.outputs);
        let pixels = dy.chunks_exact(outputs).zip(y.chunks_exact(outputs)).zip(place.chunks_exact(outputs));
        for (rows, ((dy, y), place)) in self.rows.chunks_exact_mut(PLACES * outputs).zip(pixels) {
            for (here, row) in rows.chunks_exact_mut(outputs).enumerate() {
                let (dy, y, place, row) = (&dy[..outputs], &y[..outputs], &place[..outputs], &mut row[..outputs]);
                for o in 0..outputs {
                    let stopped = (u32::from(place[o]) != here as u32) | (y[o] <= 0.0);
                    row[o] = if stopped { 0.0 } else { dy[o] };
                }
            }
            for ((sum, dy), y) in self.db.iter_mut().zip(dy).zip(y) {
                *sum += if *y <= 0.0 { 0.0 } else { *dy };
            }
        }
    }
}

impl<'a> Dy<'a> {
    /// That of a range of elements.
    fn part(&self, elements: Range<usize>) -> Self {
        Self { dy: &self.dy[elements.clone()], y: &self.y[elements.clone()], place: &self.place[elements] }
    }

    /// The gradient of the convolution's output for a range of pixels, into `rows`; its sum is added to `db`.
    fn unpool(&self, outputs: usize, pixels: &Range<usize>, rows: &'a mut [f32], db: &'a mut [f32]) {
        let dy = self.part(pixels.start * outputs..pixels.end * outputs);
        Arch::new().dispatch(Unpool { dy, outputs, rows, db });
    }
}

/// dx, in runs of whole images: the gradient of the patches, added where they came from.
pub(crate) fn input_grad(block: &Block, dy: Dy<'_>, w: &[f32], dx: &mut [f32]) {
    let (g, pixels) = (&block.conv, block.pixels());
    let image = g.input[0] * g.input[1] * g.inputs();
    let run = run_of(block);
    // Small images go together, so that the weight is packed seldom.
    let images = run.div_ceil(pixels);
    dx.par_chunks_mut(images * image).enumerate().for_each(|(i, dx)| {
        dx.fill(0.0);
        let all = i * images * pixels..(i * images + dx.len() / image) * pixels;
        for first in all.clone().step_by(run) {
            input_grad_run(block, dy, w, first..all.end.min(first + run), all.start / pixels, dx);
        }
    });
}

fn input_grad_run(block: &Block, dy: Dy<'_>, w: &[f32], pixels: Range<usize>, first_image: usize, dx: &mut [f32]) {
    let (g, outputs) = (&block.conv, block.conv.outputs());
    let rows = pixels.len() * PLACES;
    scratch(rows * g.depth(), rows * outputs, |patches, gradient| {
        dy.unpool(outputs, &pixels, gradient, &mut []);
        let w = Matrix::row_major(w, [g.depth(), outputs]).transposed();
        product(Matrix::row_major(gradient, [rows, outputs]), w, patches, g.depth(), false);
        add_patches(block, pixels, first_image, patches, dx);
    });
}

/// dw `[slices, KH, KW, C, O]` and db `[slices, O]`: each slice the sum over its run of output pixels.
pub(crate) fn weight_grad(block: &Block, slices: usize, x: &[f32], dy: Dy<'_>, dw: &mut [f32], db: &mut [f32]) {
    let (g, outputs) = (&block.conv, block.conv.outputs());
    let pixels = dy.dy.len() / outputs;
    let slice = pixels.div_ceil(slices);
    let run = run_of(block);
    dw.par_chunks_mut(g.depth() * outputs).zip(db.par_chunks_mut(outputs)).enumerate().for_each(|(i, (dw, db))| {
        let all = (i * slice).min(pixels)..((i + 1) * slice).min(pixels);
        db.fill(0.0);
        if all.is_empty() {
            dw.fill(0.0);
        }
        for first in all.clone().step_by(run) {
            let part = first..all.end.min(first + run);
            let rows = part.len() * PLACES;
            scratch(rows * g.depth(), rows * outputs, |patches, gradient| {
                dy.unpool(outputs, &part, gradient, db);
                gather(block, part, x, patches);
                let patches = Matrix::row_major(patches, [rows, g.depth()]).transposed();
                product(patches, Matrix::row_major(gradient, [rows, outputs]), dw, outputs, first > all.start);
            });
        }
    });
}
