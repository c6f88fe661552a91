//! The block forward by Winograd's F(2×2, 3×3): 16 products for the 36 of a pooling window (Lavin and Gray 2015, arXiv 1509.09308).
//!
//! `Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A` for the 3×3 weight `g` and the 4×4 pixels `d` under a window. Summed over channels, each of the
//! 16 components is a matrix product, windows × channels × filters. `Y` are the window's four results, which go through bias, ReLU
//! and pooling in registers.
//!
//! What a sum consists of, and in which order, depends neither on the block its window is in nor on the width of vectors. A result
//! depends on the elements of its own patch alone, so NaNs are where they should be, though an infinity may become one; and where a
//! region is even, or even along one axis, results that should tie do.
//!
//! The gradients have no use for this: of the 36 products of a window they take 9 or none, fewer than 16.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::pool::{VECTORS, pool};
use super::{Layout, SCRATCH, aligned};
use crate::kernels::{
    arch,
    tasks::{share, share_both},
};
use crate::ops::conv2d::Block;

/// Pixels along an edge of what a window sees, and components of its transform.
const EDGE: usize = 4;
const COMPONENTS: usize = EDGE * EDGE;

/// Windows that are transformed together: so few that all of theirs stays in a cache, so many that the weight is read seldom.
const BLOCK: usize = 16;

/// Multiply-adds of a task, about.
const TASK: usize = 2 << 20;

/// The component in which the bias is added: it counts once in each of the four results.
const BIASED: usize = 5;

/// Whether a block is of the right form, and has the channels and filters that transforming pays for: a transformed element is used
/// once for each filter, and a result is transformed back once for all channels. 16 fill a vector; fewer are left to
/// the direct kernel.
pub(super) fn suits(block: &Block) -> bool {
    let g = &block.conv;
    [g.kernel, g.stride, g.dilation] == [[3, 3], [1, 1], [1, 1]] && g.channels >= 16 && g.outputs() >= 16
}

/// What [`super::forward()`] computes, of a block that [`suits`].
pub(super) fn forward(block: &Block, x: &[f32], [w, b]: [&[f32]; 2], y: &mut [f32], places: &mut [u8], memory: &mut Vec<f32>) {
    let layout = Layout::new(block);
    let (channels, outputs) = (block.conv.channels, block.conv.outputs());
    let (w, x) = arch().dispatch(Prepare { block, layout: &layout, w, x, once: y.len() / outputs <= BLOCK, memory });
    let windows = (TASK / (COMPONENTS * channels * outputs)).next_multiple_of(BLOCK).max(BLOCK);
    share_both(y, places, [windows * outputs; 2], |i, y, places| {
        SCRATCH.with_borrow_mut(|scratch| {
            let memory = &mut scratch.sums;
            arch().dispatch(Run { layout: &layout, first: i * windows, channels, x, w, b, y, places, memory });
        });
    });
}

/// The weight: as it is, or transformed.
#[derive(Clone, Copy)]
enum Weight<'a> {
    /// `[3, 3, C, O]`. Used for one block alone, it is transformed where it is used, in pieces that never leave the cache.
    Plain(&'a [f32]),
    /// `[panels, 16, C, filters of a panel]`, with zeros where a last panel is not full.
    Transformed(&'a [f32]),
}

/// Elements from one component of a transformed weight to the next: their lines would all have one place in a cache, were there not
/// a line more.
#[inline(always)]
fn apart<S: Simd>(channels: usize) -> usize {
    (channels * VECTORS + 1) * S::F32_LANES
}

/// Transforms the weight, unless it is used `once`, and stages the images.
struct Prepare<'a> {
    block: &'a Block,
    layout: &'a Layout,
    w: &'a [f32],
    x: &'a [f32],
    once: bool,
    memory: &'a mut Vec<f32>,
}

impl<'a> WithSimd for Prepare<'a> {
    type Output = (Weight<'a>, &'a [f32]);

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Self::Output {
        let Self { block, layout, w, x, once, memory } = self;
        let (channels, outputs) = (block.conv.channels, block.conv.outputs());
        let lanes = VECTORS * S::F32_LANES;
        let panel = COMPONENTS * apart::<S>(channels);
        let transformed = if once { 0 } else { outputs.div_ceil(lanes) * panel };
        let (taps, copies) = aligned(memory, transformed + layout.staged(block, x)).split_at_mut(transformed);
        let x = layout.stage(block, x, copies);
        if once {
            return (Weight::Plain(w), x);
        }
        share(taps, panel, |i, taps| arch().dispatch(Panel { w, outputs, first: i * lanes, channels, taps }));
        (Weight::Transformed(taps), x)
    }
}

/// Transforms the weights of a panel.
struct Panel<'a> {
    w: &'a [f32],
    outputs: usize,
    first: usize,
    channels: usize,
    taps: &'a mut [f32],
}

impl WithSimd for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { w, outputs, first, channels, taps } = self;
        transform_weight(simd, w, [channels, outputs], first, 0..channels, taps);
    }
}

/// The transform `G g Gᵀ` of the weights of some channels and of a panel's filters, from number `first` on.
#[inline(always)]
fn transform_weight<S: Simd>(simd: S, w: &[f32], [channels, outputs]: [usize; 2], first: usize, some: Range<usize>, taps: &mut [f32]) {
    let half = simd.splat_f32s(0.5);
    let apart = apart::<S>(some.len()) / S::F32_LANES;
    let (taps, _) = S::as_mut_simd_f32s(taps);
    for c in some.clone() {
        for v in 0..VECTORS {
            let from = (first + v * S::F32_LANES).min(outputs);
            let filters = S::F32_LANES.min(outputs - from);
            macro_rules! tap {
                ($tap:literal) => {{
                    let w = &w[($tap * channels + c) * outputs + from..][..filters];
                    S::as_simd_f32s(w).0.first().copied().unwrap_or_else(|| simd.partial_load_f32s(w))
                }};
            }
            // G = [1 0 0; ½ ½ ½; ½ -½ ½; 0 0 1].
            macro_rules! transform {
                ($g0:expr, $g1:expr, $g2:expr) => {{
                    let (g0, g1, g2) = ($g0, $g1, $g2);
                    let sum = simd.add_f32s(g0, g2);
                    let (plus, minus) = (simd.add_f32s(sum, g1), simd.sub_f32s(sum, g1));
                    [g0, simd.mul_f32s(half, plus), simd.mul_f32s(half, minus), g2]
                }};
            }
            let left = transform!(tap!(0), tap!(3), tap!(6));
            let middle = transform!(tap!(1), tap!(4), tap!(7));
            let right = transform!(tap!(2), tap!(5), tap!(8));
            let taps = &mut taps[(c - some.start) * VECTORS + v..][..(COMPONENTS - 1) * apart + 1];
            macro_rules! store {
                ($($i:literal)*) => { $(
                    let [w0, w1, w2, w3] = transform!(left[$i], middle[$i], right[$i]);
                    taps[$i * EDGE * apart] = w0;
                    taps[($i * EDGE + 1) * apart] = w1;
                    taps[($i * EDGE + 2) * apart] = w2;
                    taps[($i * EDGE + 3) * apart] = w3;
                )* };
            }
            store!(0 1 2 3);
        }
    }
}

/// A run of windows, from number `first` of the batch on.
struct Run<'a> {
    layout: &'a Layout,
    first: usize,
    channels: usize,
    x: &'a [f32],
    w: Weight<'a>,
    b: &'a [f32],
    y: &'a mut [f32],
    places: &'a mut [u8],
    memory: &'a mut Vec<f32>,
}

impl WithSimd for Run<'_> {
    type Output = ();

    /// A tile has as many sums as leave registers for an element and the weight.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT >= 32 { self.blocks::<S, 8>(simd) } else { self.blocks::<S, 4>(simd) }
    }
}

impl Run<'_> {
    #[inline(always)]
    fn blocks<S: Simd, const TILE: usize>(self, simd: S) {
        let Self { layout, first, channels, x, w, b, y, places, memory } = self;
        let outputs = b.len();
        let lanes = VECTORS * S::F32_LANES;
        let of_d = BLOCK * channels.next_multiple_of(S::F32_LANES);
        let piece = if let Weight::Plain(_) = w { S::F32_LANES.min(channels) } else { channels };
        let memory = aligned(memory, COMPONENTS * (of_d + BLOCK * lanes + apart::<S>(piece)));
        let (d, memory) = memory.split_at_mut(COMPONENTS * of_d);
        let (m, transformed) = memory.split_at_mut(COMPONENTS * BLOCK * lanes);
        let count = y.len() / outputs;
        let mut windows = layout.windows_from(first);
        for start in (0..count).step_by(BLOCK) {
            let here = BLOCK.min(count - start);
            for i in 0..here {
                transform(simd, layout, &x[windows.next()..], channels, [i, of_d], d);
            }
            for o in (0..outputs).step_by(lanes) {
                let filters = lanes.min(outputs - o);
                for c in (0..channels).step_by(piece) {
                    let some = c..channels.min(c + piece);
                    let taps = match w {
                        Weight::Plain(w) => {
                            transform_weight(simd, w, [channels, outputs], o, some.clone(), transformed);
                            &*transformed
                        }
                        Weight::Transformed(w) => &w[o / lanes * COMPONENTS * apart::<S>(channels)..],
                    };
                    for component in 0..COMPONENTS {
                        let d = &d[component * of_d + c * BLOCK..(component + 1) * of_d];
                        let taps = &taps[component * apart::<S>(some.len())..][..some.len() * lanes];
                        let m = &mut m[component * BLOCK * lanes..][..BLOCK * lanes];
                        let bias = if component == BIASED { &b[o..o + filters] } else { &[] };
                        let start = if c == 0 { Some(vectors(simd, bias)) } else { None };
                        for i in (0..here).step_by(TILE) {
                            if here - i > TILE / 2 {
                                multiply::<S, TILE>(simd, d, i, taps, start, m);
                            } else {
                                multiply::<S, 4>(simd, d, i, taps, start, m);
                            }
                        }
                    }
                }
                for i in 0..here {
                    let at = (start + i) * outputs + o;
                    let results = inverse(simd, &m[i * lanes..]);
                    pool(simd, results, &mut y[at..at + filters], &mut places[at..at + filters]);
                }
            }
        }
    }
}

/// The bias of a panel's filters, and zero where there is none.
#[inline(always)]
fn vectors<S: Simd>(simd: S, bias: &[f32]) -> [S::f32s; VECTORS] {
    let (first, second) = bias.split_at(bias.len().min(S::F32_LANES));
    [simd.partial_load_f32s(first), simd.partial_load_f32s(second)]
}

/// The transform `Bᵀ d B` of what a window at the beginning of x sees, its components `of_d` elements apart. A component is
/// `[vectors of channels, BLOCK, lanes]`, so that the windows of a tile are where the compiler can reckon.
#[inline(always)]
fn transform<S: Simd>(simd: S, layout: &Layout, x: &[f32], channels: usize, [window, of_d]: [usize; 2], d: &mut [f32]) {
    assert!(layout.reach() <= x.len(), "a window lies outside its image");
    assert!(
        window < BLOCK && BLOCK * channels.next_multiple_of(S::F32_LANES) <= of_d && COMPONENTS * of_d <= d.len(),
        "a block is too short"
    );
    // Bᵀ = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1].
    macro_rules! transform {
        ($d0:expr, $d1:expr, $d2:expr, $d3:expr) => {{
            let (d0, d1, d2, d3) = ($d0, $d1, $d2, $d3);
            [simd.sub_f32s(d0, d2), simd.add_f32s(d1, d2), simd.sub_f32s(d2, d1), simd.sub_f32s(d1, d3)]
        }};
    }
    for c in (0..channels).step_by(S::F32_LANES) {
        let whole = c + S::F32_LANES <= channels;
        macro_rules! pixel {
            ($h:literal, $w:literal) => {{
                let at = $h * layout.line + $w * layout.pixel + c;
                if whole {
                    // SAFETY: a window's last pixel ends where its reach does, and that is inside x by the first assertion.
                    #[allow(unsafe_code, reason = "checked for the whole window")]
                    unsafe {
                        x.as_ptr().add(at).cast::<S::f32s>().read_unaligned()
                    }
                } else {
                    simd.partial_load_f32s(&x[at..at + channels - c])
                }
            }};
        }
        let t0 = transform!(pixel!(0, 0), pixel!(1, 0), pixel!(2, 0), pixel!(3, 0));
        let t1 = transform!(pixel!(0, 1), pixel!(1, 1), pixel!(2, 1), pixel!(3, 1));
        let t2 = transform!(pixel!(0, 2), pixel!(1, 2), pixel!(2, 2), pixel!(3, 2));
        let t3 = transform!(pixel!(0, 3), pixel!(1, 3), pixel!(2, 3), pixel!(3, 3));
        macro_rules! store {
            ($($i:literal)*) => { $({
                let values = transform!(t0[$i], t1[$i], t2[$i], t3[$i]);
                store!($i, values, 0 1 2 3);
            })* };
            ($i:literal, $values:ident, $($j:literal)*) => { $({
                let at = ($i * EDGE + $j) * of_d + c * BLOCK + window * S::F32_LANES;
                // SAFETY: c is a multiple of the lanes, so this vector is inside a component, and by the second assertion that is in d.
                #[allow(unsafe_code, reason = "checked for all components")]
                unsafe {
                    d.as_mut_ptr().add(at).cast::<S::f32s>().write_unaligned($values[$j]);
                }
            })* };
        }
        store!(0 1 2 3);
    }
}

/// One component of a tile: the products of its windows, from number `first` of the block on, and a panel's filters, over the
/// channels that taps has; added to `start`, or to what m has.
#[inline(always)]
fn multiply<S: Simd, const TILE: usize>(simd: S, d: &[f32], first: usize, taps: &[f32], start: Option<[S::f32s; VECTORS]>, m: &mut [f32]) {
    let lanes = S::F32_LANES;
    let channels = taps.len() / (VECTORS * lanes);
    assert!(first + TILE <= BLOCK && channels.div_ceil(lanes) * BLOCK * lanes <= d.len(), "a block is too short");
    let m = &mut S::as_mut_simd_f32s(m).0[first * VECTORS..][..TILE * VECTORS];
    let mut sums = [start.unwrap_or([simd.splat_f32s(0.0); VECTORS]); TILE];
    // Indices are literals: sums that a loop indexes are kept in memory.
    macro_rules! each {
        ($do:ident) => { each!($do: 0 1 2 3 4 5 6 7) };
        ($do:ident: $($i:literal)*) => { $(
            if $i < TILE {
                $do!($i);
            }
        )* };
    }
    macro_rules! load {
        ($i:literal) => {
            sums[$i] = [m[$i * VECTORS], m[$i * VECTORS + 1]]
        };
    }
    macro_rules! store {
        ($i:literal) => {
            [m[$i * VECTORS], m[$i * VECTORS + 1]] = sums[$i]
        };
    }
    if start.is_none() {
        each!(load);
    }
    let mut w_at = taps.as_ptr();
    for from in (0..channels).step_by(lanes) {
        let mut d_at = d[from * BLOCK + first * lanes..].as_ptr();
        for _ in from..channels.min(from + lanes) {
            // SAFETY: there are a panel's lanes for each channel, and by the assertion the windows' elements of it.
            #[allow(unsafe_code, reason = "bounds checks in the innermost loop would cost half its speed")]
            unsafe {
                let w = w_at.cast::<[S::f32s; VECTORS]>().read_unaligned();
                macro_rules! multiply {
                    ($i:literal) => {
                        let value = simd.splat_f32s(*d_at.add($i * lanes));
                        sums[$i][0] = simd.mul_add_f32s(value, w[0], sums[$i][0]);
                        sums[$i][1] = simd.mul_add_f32s(value, w[1], sums[$i][1]);
                    };
                }
                each!(multiply);
            }
            w_at = w_at.wrapping_add(VECTORS * lanes);
            d_at = d_at.wrapping_add(1);
        }
    }
    each!(store);
}

/// The inverse `Aᵀ m A` for the window at the beginning of m: the results at its places.
#[inline(always)]
fn inverse<S: Simd>(simd: S, m: &[f32]) -> [[S::f32s; VECTORS]; EDGE] {
    let m = &S::as_simd_f32s(m).0[..((COMPONENTS - 1) * BLOCK + 1) * VECTORS];
    // Aᵀ = [1 1 1 0; 0 1 -1 -1].
    macro_rules! inverse {
        ($m0:expr, $m1:expr, $m2:expr, $m3:expr) => {{
            let (m0, m1, m2, m3) = ($m0, $m1, $m2, $m3);
            [simd.add_f32s(simd.add_f32s(m0, m1), m2), simd.sub_f32s(simd.sub_f32s(m1, m2), m3)]
        }};
    }
    macro_rules! component {
        ($v:literal, $i:literal, $j:literal) => {
            m[($i * EDGE + $j) * BLOCK * VECTORS + $v]
        };
    }
    macro_rules! row {
        ($v:literal, $i:literal) => {
            inverse!(component!($v, $i, 0), component!($v, $i, 1), component!($v, $i, 2), component!($v, $i, 3))
        };
    }
    macro_rules! results {
        ($v:literal) => {{
            let rows = [row!($v, 0), row!($v, 1), row!($v, 2), row!($v, 3)];
            let left = inverse!(rows[0][0], rows[1][0], rows[2][0], rows[3][0]);
            let right = inverse!(rows[0][1], rows[1][1], rows[2][1], rows[3][1]);
            [left[0], right[0], left[1], right[1]]
        }};
    }
    let (first, second) = (results!(0), results!(1));
    [[first[0], second[0]], [first[1], second[1]], [first[2], second[2]], [first[3], second[3]]]
}
