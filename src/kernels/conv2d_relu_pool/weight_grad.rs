//! The block's gradient for weight and bias: for each filter, the patches that had a maximum, each times its gradient.

use pulp::{NullaryFnOnce, Simd, WithSimd};

use super::terms::{Piece, Terms, add, cover, each_sum, with_shape};
use super::{Dy, Layout, SCRATCH, Scratch, grown, passed};
use crate::kernels::{
    arch,
    tasks::{share, share_both},
};
use crate::ops::conv2d::{Block, EDGE, PLACES};

/// Elements of x under the windows whose terms are collected together: half of what a first-level cache holds.
const PIXELS: usize = 4096;

/// Parts into which the windows are cut, so that there is work for the threads of a processor. Each part's sums are memory to write
/// and to add up, so a part has so many windows at least, and all together have so many sums at most.
const PARTS: usize = 16;
const WINDOWS: usize = 64;
const SUMS: usize = 4 << 20;

/// Filters of a task.
const FILTERS: usize = 32;

/// Edges of a tile that is turned at once.
const TILE: usize = 16;

/// dw `[slices, KH, KW, C, O]` and db `[slices, O]`: each slice the sum over its run of windows.
pub(crate) fn weight_grad(block: &Block, slices: usize, x: &[f32], dy: Dy<'_>, (dw, db): (&mut [f32], &mut [f32]), memory: &mut Vec<f32>) {
    let layout = Layout::new(block);
    let outputs = block.conv.outputs();
    let windows = dy.dy.len() / outputs;
    let slice = windows.div_ceil(slices);
    let most = (PARTS / slices).min(SUMS / (slices * outputs * block.conv.depth()));
    let parts = most.min(slice.div_ceil(WINDOWS)).max(1);
    let part = slice.div_ceil(parts);
    let group = if outputs.is_multiple_of(FILTERS) { FILTERS } else { outputs };
    // Of a patch, each run of taps begins at a whole vector.
    let run = arch().dispatch(Padded(layout.run));
    let patch = layout.runs() * run;

    let sums = slices * parts * outputs;
    let (sums, copies) = grown(memory, sums * (patch + 1) + layout.staged(block, x)).split_at_mut(sums * (patch + 1));
    let (sums, biases) = sums.split_at_mut(slices * parts * outputs * patch);
    let x = layout.stage(block, x, copies);
    share_both(sums, biases, [group * patch, group], |i, sums, bias| {
        let (i, first_filter) = (i * group / outputs, i * group % outputs);
        let end = windows.min((i / parts + 1) * slice);
        let [first, end] = [0, 1].map(|after| (i / parts * slice + (i % parts + after) * part).min(end));
        let dy = dy.part(first * outputs..end * outputs);
        SCRATCH.with_borrow_mut(|scratch| {
            arch().dispatch(Part { layout: &layout, first, x, dy, filters: [first_filter, outputs], sums, bias, scratch });
        });
    });

    let (sums, biases) = (&*sums, &*biases);
    for (slice, db) in db.chunks_exact_mut(outputs).enumerate() {
        db.fill(0.0);
        for bias in biases[slice * parts * outputs..][..parts * outputs].chunks_exact(outputs) {
            db.iter_mut().zip(bias).for_each(|(db, bias)| *db += bias);
        }
    }
    let taps = block.conv.kernel[0] * block.conv.kernel[1];
    share(dw, layout.pixel * outputs, |i, dw| {
        let k = i % taps * layout.pixel;
        let sums = &sums[i / taps * parts * outputs * patch..][..parts * outputs * patch];
        arch().dispatch(Turned { sums, column: k / layout.run * run + k % layout.run, patch, outputs, dw });
    });
}

/// A length, and as many elements more as fill its last vector.
struct Padded(usize);

impl WithSimd for Padded {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        self.0.next_multiple_of(S::F32_LANES)
    }
}

/// Some filters' sums over the windows from number `first` of the batch on.
struct Part<'a> {
    layout: &'a Layout,
    first: usize,
    x: &'a [f32],
    /// Of those windows, and all filters.
    dy: Dy<'a>,
    /// The number of the first filter, and of all.
    filters: [usize; 2],
    /// `[filters, runs, padded run]`.
    sums: &'a mut [f32],
    bias: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl WithSimd for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { layout, first, x, dy, filters: [first_filter, outputs], sums, bias, scratch } = self;
        let vectors = layout.run.div_ceil(S::F32_LANES);
        let most = if S::REGISTER_COUNT >= 32 { 18 } else { 12 };
        let patch = layout.runs() * vectors * S::F32_LANES;
        let group = (PIXELS / (layout.step[1] * EDGE)).clamp(16, 64);
        let (starts, at) = grown(&mut scratch.at, 2 * group).split_at_mut(group);
        let by = grown(&mut scratch.by, group);
        let pieces = &mut scratch.pieces;
        cover(layout.runs(), vectors, most, pieces);
        sums.fill(0.0);
        bias.fill(0.0);

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
            add_bias(dy, outputs, first_filter, bias);
            for (o, sums) in sums.chunks_exact_mut(patch).enumerate() {
                let terms = collect(layout, dy, [first_filter + o, outputs], &starts[..end - start], at, by);
                for &piece in &*pieces {
                    with_shape!(piece.shape, add_piece::<S>(simd, piece, layout, vectors, terms, x, sums));
                }
            }
        }
    }
}

/// Adds up the parts of a slice for one tap, `[parts, O, patch]` of which its channels begin at `column`, and turns their sum to
/// dw `[C, O]`.
struct Turned<'a> {
    sums: &'a [f32],
    column: usize,
    patch: usize,
    outputs: usize,
    dw: &'a mut [f32],
}

impl NullaryFnOnce for Turned<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { sums, column, patch, outputs, dw } = self;
        for (c, dw) in dw.chunks_mut(TILE * outputs).enumerate() {
            let channels = dw.len() / outputs;
            for o in (0..outputs).step_by(TILE) {
                let filters = TILE.min(outputs - o);
                let mut tile = [[0.0; TILE]; TILE];
                for part in sums.chunks_exact(outputs * patch) {
                    for (tile, sums) in tile.iter_mut().zip(part[o * patch..].chunks_exact(patch)).take(filters) {
                        let sums = &sums[column + c * TILE..];
                        if channels == TILE {
                            tile.iter_mut().zip(&sums[..TILE]).for_each(|(tile, sum)| *tile += sum);
                        } else {
                            tile.iter_mut().zip(&sums[..channels]).for_each(|(tile, sum)| *tile += sum);
                        }
                    }
                }
                for (i, dw) in dw.chunks_exact_mut(outputs).enumerate() {
                    if filters == TILE {
                        dw[o..o + TILE].iter_mut().zip(&tile).for_each(|(dw, tile)| *dw = tile[i]);
                    } else {
                        dw[o..].iter_mut().zip(&tile).for_each(|(dw, tile)| *dw = tile[i]);
                    }
                }
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
    assert!(filter < outputs && windows.len() <= at.len() && windows.len() <= by.len(), "room for every window's term");
    assert!(windows.len() * outputs <= dy.dy.len().min(dy.place.len()), "a row for every window");
    let mut len = 0;
    for (i, window) in windows.iter().enumerate() {
        // SAFETY: a row has `outputs` elements, and `len` grows by one a window at most: see the assertions.
        #[allow(unsafe_code, reason = "checks on each element would take as long as the rest")]
        unsafe {
            let place = *dy.place.get_unchecked(i * outputs + filter);
            *at.get_unchecked_mut(len) = window + places[usize::from(place & 3)];
            *by.get_unchecked_mut(len) = *dy.dy.get_unchecked(i * outputs + filter);
            len += usize::from(passed(place));
        }
    }
    Terms { at: &at[..len], by: &by[..len] }
}

/// Adds the gradients of some windows to those of the bias of some filters.
#[inline(always)]
fn add_bias(dy: Dy<'_>, outputs: usize, first: usize, bias: &mut [f32]) {
    let len = bias.len();
    for row in (0..dy.dy.len()).step_by(outputs) {
        let (dy, place) = (&dy.dy[row + first..][..len], &dy.place[row + first..][..len]);
        for i in 0..len {
            bias[i] += if passed(place[i]) { dy[i] } else { 0.0 };
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
    }
    macro_rules! load {
        ($r:literal, $n:literal) => {
            totals[$r][$n] = sums[at[$r] + $n]
        };
    }
    each_sum!(R, N, load);
    totals = add::<S, R, N>(simd, terms, x, rows, totals);
    macro_rules! store {
        ($r:literal, $n:literal) => {
            sums[at[$r] + $n] = totals[$r][$n]
        };
    }
    each_sum!(R, N, store);
}
