//! Convolution with bias, ReLU and 2×2 max-pooling on the CPU, and its gradients, without a matrix of patches. Forward there are two
//! kernels: a direct one for any block, and [`winograd`], with fewer products, for those that it suits.
//!
//! A window of pooling sees four patches of x, its *places*. A patch is a few runs of elements that lie together in memory, so
//! kernels read them where they are. Padding is the one thing that is not there: then x is copied once, with zeros around it.
//!
//! The gradients use what pooling means: of a window's four places one alone had the maximum, so for each filter three quarters
//! of the convolution's gradient are zero, and where ReLU stopped all of it. Only what is left is multiplied.
//!
//! Blocks of work depend on shapes alone, and which kernel runs on those of one image: so an image's bits do not depend on its batch. An
//! element is the sum of its terms in one order: that of memory forward, whatever the processor; in the gradients it depends on the
//! width of its vectors.

#![allow(clippy::needless_range_loop, reason = "in loops over an index nothing is called that might not be compiled for the vectors")]

mod forward;
mod input_grad;
mod pool;
mod terms;
mod weight_grad;
mod winograd;

use std::cell::RefCell;

pub(crate) use forward::forward;
pub(crate) use input_grad::input_grad;
pub(crate) use weight_grad::weight_grad;

use super::tasks::share;
use crate::ops::conv2d::{Block, EDGE, PLACES};

/// The gradient of the convolution's output, in the form it is kept in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dy<'a> {
    /// Of the block's output.
    pub(crate) dy: &'a [f32],
    /// Where in its window each maximum was, or [`PLACES`] where ReLU lets nothing through.
    pub(crate) place: &'a [u8],
}

/// Where in memory a block's windows find their patches.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// Rows and columns of an image as the kernels see it.
    extents: [usize; 2],
    /// Elements of a pixel and of a row.
    pixel: usize,
    line: usize,
    /// Whether that is a copy of x with its padding, and not x itself.
    padded: bool,
    /// Windows of an image, down and across.
    windows: [usize; 2],
    /// Elements from a window to the one below and to the next.
    step: [usize; 2],
    /// Where the places of a window are.
    places: [usize; PLACES],
    /// Runs of a patch: how many lie under and beside each other, how far apart, and how long each is.
    runs: [usize; 2],
    apart: [usize; 2],
    run: usize,
}

impl Layout {
    fn new(block: &Block) -> Self {
        let g = &block.conv;
        let windows = block.output();
        // As far as the windows reach.
        let reach = |axis: usize| (windows[axis] * EDGE - 1) * g.stride[axis] + (g.kernel[axis] - 1) * g.dilation[axis] + 1;
        let needed = [reach(0), reach(1)];
        let padded = g.pads != [0, 0] || needed[0] > g.input[0] || needed[1] > g.input[1];
        let extents = if padded { needed } else { g.input };
        let pixel = g.inputs();
        let line = extents[1] * pixel;
        let (down, across) = (g.stride[0] * line, g.stride[1] * pixel);
        let together = g.dilation[1] == 1;
        Self {
            extents,
            pixel,
            line,
            padded,
            windows,
            step: [EDGE * down, EDGE * across],
            places: std::array::from_fn(|place| place / EDGE * down + place % EDGE * across),
            runs: [g.kernel[0], if together { 1 } else { g.kernel[1] }],
            apart: [g.dilation[0] * line, g.dilation[1] * pixel],
            run: if together { g.kernel[1] * pixel } else { pixel },
        }
    }

    /// Elements of an image as the kernels see it.
    fn image(&self) -> usize {
        self.extents[0] * self.line
    }

    /// Runs of a patch.
    fn runs(&self) -> usize {
        self.runs[0] * self.runs[1]
    }

    /// Where in a patch's memory a run begins.
    fn run_at(&self, run: usize) -> usize {
        run / self.runs[1] * self.apart[0] + run % self.runs[1] * self.apart[1]
    }

    /// Elements from the first of a window to behind its last.
    fn reach(&self) -> usize {
        self.places[PLACES - 1] + self.run_at(self.runs() - 1) + self.run
    }

    /// Where the windows from number `first` of the batch on are, one after the other, without end.
    #[inline(always)]
    fn windows_from(&self, first: usize) -> Windows<'_> {
        let [height, width] = self.windows;
        Windows { layout: self, next: [first / (height * width), first / width % height, first % width] }
    }

    /// Elements of the copy that [`Layout::stage`] makes of x.
    fn staged(&self, block: &Block, x: &[f32]) -> usize {
        if self.padded { x.len() / (block.conv.input[0] * block.conv.input[1] * self.pixel) * self.image() } else { 0 }
    }

    /// The images as the kernels see them: x, or a copy of it.
    fn stage<'a>(&self, block: &Block, x: &'a [f32], copies: &'a mut [f32]) -> &'a [f32] {
        if !self.padded {
            return x;
        }
        let image = block.conv.input[0] * block.conv.input[1] * self.pixel;
        share(copies, self.image(), |n, copy| {
            let x = &x[n * image..(n + 1) * image];
            copy.fill(0.0);
            self.overlap(block, |at, x_at, len| copy[at..at + len].copy_from_slice(&x[x_at..x_at + len]));
        });
        copies
    }

    /// Calls `each(place in the copy, place in x, length)` for the rows that an image and its padded copy share.
    fn overlap(&self, block: &Block, mut each: impl FnMut(usize, usize, usize)) {
        let g = &block.conv;
        let [rows, columns] = [0, 1].map(|axis| g.input[axis].min(self.extents[axis].saturating_sub(g.pads[axis])));
        for row in 0..rows {
            let at = (row + g.pads[0]) * self.line + g.pads[1] * self.pixel;
            each(at, row * g.input[1] * self.pixel, columns * self.pixel);
        }
    }
}

/// Goes through the windows of a batch. (A type, since closures are not compiled for the vectors of the kernels that call them.)
struct Windows<'a> {
    layout: &'a Layout,
    /// Image, row and column.
    next: [usize; 3],
}

impl Windows<'_> {
    /// Where the next window is.
    #[inline(always)]
    fn next(&mut self) -> usize {
        let [n, h, w] = &mut self.next;
        let at = *n * self.layout.image() + *h * self.layout.step[0] + *w * self.layout.step[1];
        *w += 1;
        if *w == self.layout.windows[1] {
            *w = 0;
            *h += 1;
        }
        if *h == self.layout.windows[0] {
            *h = 0;
            *n += 1;
        }
        at
    }
}

/// Whether ReLU let the maximum at this place through.
#[inline(always)]
fn passed(place: u8) -> bool {
    usize::from(place) < PLACES
}

/// The first `len` elements of memory that grows as it must; their content is what was left there.
fn grown<T: Clone + Default>(memory: &mut Vec<T>, len: usize) -> &mut [T] {
    if memory.len() < len {
        memory.resize(len, T::default());
    }
    &mut memory[..len]
}

/// [`grown`], from a whole cache line on, so that no vector of it lies in two.
fn aligned(memory: &mut Vec<f32>, len: usize) -> &mut [f32] {
    const LINE: usize = 64;
    let memory = grown(memory, len + LINE / size_of::<f32>());
    let skipped = memory.as_ptr().align_offset(LINE).min(LINE / size_of::<f32>());
    &mut memory[skipped..skipped + len]
}

/// Memory that each thread keeps from step to step.
#[derive(Default)]
struct Scratch {
    sums: Vec<f32>,
    by: Vec<f32>,
    at: Vec<u32>,
    pieces: Vec<terms::Piece>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

impl<'a> Dy<'a> {
    /// That of a range of elements.
    fn part(&self, elements: std::ops::Range<usize>) -> Self {
        Self { dy: &self.dy[elements.clone()], place: &self.place[elements] }
    }
}
