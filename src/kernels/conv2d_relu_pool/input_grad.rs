//! The block's gradient for its images: at each place that had maxima, the weights of those filters, each times its gradient.

use pulp::{Simd, WithSimd};

use super::terms::{Piece, Terms, add, cover, each_sum, with_shape};
use super::{Dy, Layout, SCRATCH, Scratch, grown, passed};
use crate::kernels::{arch, tasks::share};
use crate::ops::conv2d::{Block, PLACES};

/// Windows whose terms are collected together.
const GROUP: usize = 64;

/// Elements of the weight that a first-level cache holds beside the rest.
const CACHED: usize = 8192;

/// dx of the gradient of the block's output and w.
pub(crate) fn input_grad(block: &Block, dy: Dy<'_>, w: &[f32], dx: &mut [f32], memory: &mut Vec<f32>) {
    let layout = Layout::new(block);
    let outputs = block.conv.outputs();
    let w = arch().dispatch(Turn { layout: &layout, w, outputs, memory });
    let image = block.conv.input[0] * block.conv.input[1] * layout.pixel;
    let windows = block.pixels() * outputs;
    let task = |n: usize, dx: &mut [f32]| {
        let dy = dy.part(n * windows..(n + 1) * windows);
        SCRATCH.with_borrow_mut(|scratch| {
            if !layout.padded {
                dx.fill(0.0);
                arch().dispatch(Image { layout: &layout, dy, outputs, w, dx, scratch });
                return;
            }
            let mut padded = std::mem::take(&mut scratch.sums);
            let copy = grown(&mut padded, layout.image());
            copy.fill(0.0);
            arch().dispatch(Image { layout: &layout, dy, outputs, w, dx: copy, scratch });
            dx.fill(0.0);
            layout.overlap(block, |at, dx_at, len| dx[dx_at..dx_at + len].copy_from_slice(&copy[at..at + len]));
            scratch.sums = padded;
        });
    };
    share(dx, image, task);
}

/// Turns the weight `[KH, KW, C, O]` so that a filter's taps lie together, each run of them from a whole vector on.
struct Turn<'a> {
    layout: &'a Layout,
    w: &'a [f32],
    outputs: usize,
    memory: &'a mut Vec<f32>,
}

impl<'a> WithSimd for Turn<'a> {
    type Output = &'a [f32];

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> &'a [f32] {
        let Self { layout, w, outputs, memory } = self;
        let run = layout.run.next_multiple_of(S::F32_LANES);
        let patch = layout.runs() * run;
        let turned = grown(memory, outputs * patch);
        turned.fill(0.0);
        share(turned, 16 * patch, |i, turned| {
            for (k, row) in w.chunks_exact(outputs).enumerate() {
                let column = k / layout.run * run + k % layout.run;
                turned[column..].iter_mut().step_by(patch).zip(&row[16 * i..]).for_each(|(turned, &w)| *turned = w);
            }
        });
        turned
    }
}

/// One image.
struct Image<'a> {
    layout: &'a Layout,
    dy: Dy<'a>,
    outputs: usize,
    /// Turned.
    w: &'a [f32],
    dx: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl WithSimd for Image<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { layout, dy, outputs, w, dx, scratch } = self;
        let lanes = S::F32_LANES;
        let vectors = layout.run.div_ceil(lanes);
        let patch = layout.runs() * vectors * lanes;
        // All runs at once only if their part of the weight stays in the cache.
        let most = if S::REGISTER_COUNT >= 32 { 18 } else { 12 };
        let most = if outputs * 3 * lanes * vectors.min(6) <= CACHED { most } else { most.min(CACHED / (outputs * lanes)).clamp(1, 6) };
        let (at, by) = (grown(&mut scratch.at, GROUP * outputs), grown(&mut scratch.by, GROUP * outputs));
        let pieces = &mut scratch.pieces;
        cover(layout.runs(), vectors, most, pieces);
        let windows = dy.dy.len() / outputs;
        for start in (0..windows).step_by(GROUP) {
            let end = windows.min(start + GROUP);
            let mut ends = [[0; PLACES]; GROUP];
            let mut filled = 0;
            for window in start..end {
                let dy = dy.part(window * outputs..(window + 1) * outputs);
                let mut next = starts(dy, filled);
                for o in 0..outputs {
                    let place = usize::from(dy.place[o]);
                    if passed(dy.place[o]) {
                        at[next[place]] = (o * patch) as u32;
                        by[next[place]] = dy.dy[o];
                        next[place] += 1;
                    }
                }
                ends[window - start] = next;
                filled = next[PLACES - 1];
            }
            for &piece in &*pieces {
                let (mut from, mut places_of) = (0, layout.windows_from(start));
                for ends in &ends[..end - start] {
                    let window_at = places_of.next();
                    for (place, &to) in layout.places.iter().zip(ends) {
                        if from < to {
                            let terms = Terms { at: &at[from..to], by: &by[from..to] };
                            with_shape!(piece.shape, add_piece::<S>(simd, piece, layout, vectors, terms, w, &mut dx[window_at + place..]));
                            from = to;
                        }
                    }
                }
            }
        }
    }
}

/// Where the terms of each place begin, if those of a window begin at `from`.
#[inline(always)]
fn starts(dy: Dy<'_>, from: usize) -> [usize; PLACES] {
    let mut counts = [0u32; PLACES];
    for (here, count) in counts.iter_mut().enumerate() {
        for &place in dy.place {
            *count += u32::from(place == here as u8);
        }
    }
    let mut starts = [from; PLACES];
    for place in 1..PLACES {
        starts[place] = starts[place - 1] + counts[place - 1] as usize;
    }
    starts
}

/// Adds a piece of a patch's gradient to where the patch is.
#[inline(always)]
fn add_piece<S: Simd, const R: usize, const N: usize>(
    simd: S,
    piece: Piece,
    layout: &Layout,
    vectors: usize,
    terms: Terms<'_>,
    w: &[f32],
    dx: &mut [f32],
) {
    let lanes = S::F32_LANES;
    let mut rows = [0; R];
    for r in 0..R {
        rows[r] = ((piece.run + r) * vectors + piece.vector) * lanes;
    }
    let sums = add::<S, R, N>(simd, terms, w, rows, [[simd.splat_f32s(0.0); N]; R]);
    let len = (layout.run - piece.vector * lanes).min(N * lanes);
    macro_rules! add_to {
        ($r:literal, $n:literal) => {
            let at = layout.run_at(piece.run + $r) + piece.vector * lanes;
            add_vector(simd, sums[$r][$n], &mut dx[at + ($n * lanes).min(len)..at + (($n + 1) * lanes).min(len)]);
        };
    }
    each_sum!(R, N, add_to);
}

/// Adds a vector to as many elements as there are.
#[inline(always)]
fn add_vector<S: Simd>(simd: S, value: S::f32s, to: &mut [f32]) {
    match S::as_mut_simd_f32s(to) {
        ([whole], _) => *whole = simd.add_f32s(*whole, value),
        (_, part) => {
            let before = simd.partial_load_f32s(part);
            simd.partial_store_f32s(part, simd.add_f32s(before, value));
        }
    }
}
