//! The block's gradient for weight and bias: for each filter, the patches that had a maximum, each times its gradient.

use pulp::{Simd, WithSimd};

use super::terms::{Piece, Terms, add, cover, with_shape};
use super::{Dy, Layout, SCRATCH, Scratch, grown, passed};
use crate::kernels::{arch, tasks::share_both};
use crate::ops::conv2d::{Block, EDGE, PLACES};

/// Elements of x under the windows whose terms are collected together: half of what a first-level cache holds.
const PIXELS: usize = 4096;

/// dw `[slices, KH, KW, C, O]` and db `[slices, O]`: each slice the sum over its run of windows.
pub(crate) fn weight_grad(block: &Block, slices: usize, x: &[f32], dy: Dy<'_>, (dw, db): (&mut [f32], &mut [f32]), memory: &mut Vec<f32>) {
    let layout = Layout::new(block);
    let outputs = block.conv.outputs();
    let x = layout.stage(block, x, grown(memory, layout.staged(block, x)));
    let windows = dy.dy.len() / outputs;
    let slice = windows.div_ceil(slices);
    share_both(dw, db, [block.conv.depth() * outputs, outputs], |i, dw, db| {
        let [first, end] = [i * slice, (i + 1) * slice].map(|window| window.min(windows));
        let part = dy.part(first * outputs..end * outputs);
        SCRATCH.with_borrow_mut(|scratch| {
            arch().dispatch(Slice { layout: &layout, first, x, dy: part, outputs, dw, db, scratch });
        });
    });
}

/// One slice: the windows from number `first` of the batch on.
struct Slice<'a> {
    layout: &'a Layout,
    first: usize,
    x: &'a [f32],
    dy: Dy<'a>,
    outputs: usize,
    dw: &'a mut [f32],
    db: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl WithSimd for Slice<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { layout, first, x, dy, outputs, dw, db, scratch } = self;
        let vectors = layout.run.div_ceil(S::F32_LANES);
        let most = if S::REGISTER_COUNT >= 32 { 18 } else { 12 };
        let patch = layout.runs() * vectors * S::F32_LANES;
        let group = (PIXELS / (layout.step[1] * EDGE)).clamp(16, 64);
        let sums = grown(&mut scratch.sums, outputs * patch);
        let (starts, at) = grown(&mut scratch.at, 2 * group).split_at_mut(group);
        let by = grown(&mut scratch.by, group);
        let pieces = &mut scratch.pieces;
        cover(layout.runs(), vectors, most, pieces);
        sums.fill(0.0);
        db.fill(0.0);

        let windows = dy.dy.len() / outputs;
        for start in (0..windows).step_by(group) {
            let end = windows.min(start + group);
            let mut places_of = layout.windows_from(first + start);
            let base = places_of.next();
            let x = &x[base..];
            starts[0] = 0;
            for at in &mut starts[1..end - start] {
                *at = (places_of.next() - base) as u32;
            }
            let dy = dy.part(start * outputs..end * outputs);
            add_bias(dy, outputs, db);
            for (o, sums) in sums.chunks_exact_mut(patch).enumerate() {
                let terms = collect(layout, dy, [o, outputs], &starts[..end - start], at, by);
                for &piece in &*pieces {
                    with_shape!(piece.shape, add_piece::<S>(simd, piece, layout, vectors, terms, x, sums));
                }
            }
        }
        // What is behind the end of a run was summed and is left out.
        let padded_run = vectors * S::F32_LANES;
        for (k, row) in dw.chunks_exact_mut(outputs).enumerate() {
            let column = k / layout.run * padded_run + k % layout.run;
            for (dw, &sum) in row.iter_mut().zip(sums[column..].iter().step_by(patch)) {
                *dw = sum;
            }
        }
    }
}

/// Collects the terms of a filter: of some windows, those that had a maximum there and that ReLU let through. `dy` is of those
/// windows alone, and `windows` says where each is.
#[inline(always)]
fn collect<'a>(
    layout: &Layout,
    dy: Dy<'_>,
    [filter, outputs]: [usize; 2],
    windows: &[u32],
    at: &'a mut [u32],
    by: &'a mut [f32],
) -> Terms<'a> {
    let mut places = [0; PLACES];
    for p in 0..PLACES {
        places[p] = layout.places[p] as u32;
    }
    let rows = dy.y.chunks_exact(outputs).zip(dy.dy.chunks_exact(outputs)).zip(dy.place.chunks_exact(outputs));
    assert!(filter < outputs && windows.len() <= at.len() && windows.len() <= by.len(), "room for every window's term");
    let mut len = 0;
    for (window, ((y, dy), place)) in windows.iter().zip(rows) {
        // SAFETY: a row has `outputs` elements, and `len` grows by one a window at most: see the assertion.
        #[allow(unsafe_code, reason = "checks on each element would take as long as the rest")]
        unsafe {
            *at.get_unchecked_mut(len) = window + places[usize::from(place.get_unchecked(filter) & 3)];
            *by.get_unchecked_mut(len) = *dy.get_unchecked(filter);
            len += usize::from(passed(*y.get_unchecked(filter)));
        }
    }
    Terms { at: &at[..len], by: &by[..len] }
}

/// Adds the gradients of some windows to those of the bias.
#[inline(always)]
fn add_bias(dy: Dy<'_>, outputs: usize, db: &mut [f32]) {
    for (dy, y) in dy.dy.chunks_exact(outputs).zip(dy.y.chunks_exact(outputs)) {
        for ((db, &dy), &y) in db.iter_mut().zip(dy).zip(y) {
            *db += if passed(y) { dy } else { 0.0 };
        }
    }
}

/// Adds terms to a piece of one filter's sums.
#[inline(always)]
fn add_piece<S: Simd, const R: usize, const N: usize>(
    simd: S,
    piece: Piece,
    layout: &Layout,
    vectors: usize,
    terms: Terms<'_>,
    x: &[f32],
    sums: &mut [f32],
) {
    let (sums, _) = S::as_mut_simd_f32s(sums);
    let (mut rows, mut at, mut totals) = ([0; R], [0; R], [[simd.splat_f32s(0.0); N]; R]);
    for r in 0..R {
        rows[r] = layout.run_at(piece.run + r) + piece.vector * S::F32_LANES;
        at[r] = (piece.run + r) * vectors + piece.vector;
        totals[r].copy_from_slice(&sums[at[r]..at[r] + N]);
    }
    let totals = add::<S, R, N>(simd, terms, x, rows, totals);
    for r in 0..R {
        sums[at[r]..at[r] + N].copy_from_slice(&totals[r]);
    }
}
