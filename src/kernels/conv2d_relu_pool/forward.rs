//! The block forward, directly: a tile of windows × filters is summed in registers, and goes through ReLU and pooling there.

use pulp::{Simd, WithSimd};

use super::pool::{VECTORS, pool};
use super::{Layout, SCRATCH, grown, winograd};
use crate::kernels::{arch, tasks::share_both};
use crate::ops::conv2d::{Block, PLACES};

/// Multiply-adds of a task, about: some 30 µs.
const TASK: usize = 4 << 20;

/// `y = pool(relu(conv(x, w) + b))`, and the place of each maximum.
pub(crate) fn forward(block: &Block, x: &[f32], [w, b]: [&[f32]; 2], y: &mut [f32], places: &mut [u8], memory: &mut Vec<f32>) {
    if winograd::suits(block) {
        return winograd::forward(block, x, [w, b], y, places, memory);
    }
    let layout = Layout::new(block);
    let outputs = block.conv.outputs();
    let x = layout.stage(block, x, grown(memory, layout.staged(block, x)));
    let windows = TASK.div_ceil(PLACES * block.conv.depth() * outputs).max(4);
    share_both(y, places, [windows * outputs; 2], |i, y, places| {
        arch().dispatch(Run { layout: &layout, first: i * windows, x, w, b, y, places });
    });
}

/// A run of windows, from number `first` of the batch on.
struct Run<'a> {
    layout: &'a Layout,
    first: usize,
    x: &'a [f32],
    w: &'a [f32],
    b: &'a [f32],
    y: &'a mut [f32],
    places: &'a mut [u8],
}

impl WithSimd for Run<'_> {
    type Output = ();

    /// A tile has as many sums as leave registers for the patches' elements and the weight.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT >= 32 { self.tiles::<S, 2>(simd) } else { self.tiles::<S, 1>(simd) }
    }
}

impl Run<'_> {
    /// Panel after panel, each over all windows, so that its weights stay in a cache.
    #[inline(always)]
    fn tiles<S: Simd, const WINDOWS: usize>(mut self, simd: S) {
        let outputs = self.b.len();
        let lanes = VECTORS * S::F32_LANES;
        for o in (0..outputs).step_by(lanes) {
            let filters = lanes.min(outputs - o);
            if filters == lanes {
                let panel = Panel { taps: &self.w[o..], stride: outputs, bias: &self.b[o..o + lanes] };
                self.panel::<S, WINDOWS>(simd, panel, [o, filters]);
                continue;
            }
            // The last filters, where they fill no panel, are copied to one with zeros beside them.
            let mut memory = SCRATCH.with_borrow_mut(|scratch| std::mem::take(&mut scratch.sums));
            let (bias, taps) = grown(&mut memory, lanes + self.w.len() / outputs * lanes).split_at_mut(lanes);
            bias.fill(0.0);
            bias[..filters].copy_from_slice(&self.b[o..]);
            for (taps, w) in taps.chunks_exact_mut(lanes).zip(self.w.chunks_exact(outputs)) {
                taps.fill(0.0);
                taps[..filters].copy_from_slice(&w[o..]);
            }
            self.panel::<S, WINDOWS>(simd, Panel { taps, stride: lanes, bias }, [o, filters]);
            SCRATCH.with_borrow_mut(|scratch| scratch.sums = memory);
        }
    }

    /// One panel: some filters from number `o` on.
    #[inline(always)]
    fn panel<S: Simd, const WINDOWS: usize>(&mut self, simd: S, panel: Panel<'_>, [o, filters]: [usize; 2]) {
        let outputs = self.b.len();
        let (bias, _) = S::as_simd_f32s(panel.bias);
        let bias = [bias[0], bias[1]];
        let mut places_of = self.layout.windows_from(self.first);
        let count = self.y.len() / outputs;
        for first in (0..count).step_by(WINDOWS) {
            let here = WINDOWS.min(count - first);
            // Where too few are left, the first stands in for the others.
            let mut at = [places_of.next(); WINDOWS];
            for at in &mut at[1..here] {
                *at = places_of.next();
            }
            let sums = sums::<S, WINDOWS>(simd, self.layout, self.x, at, panel, bias);
            // Indices are literals: sums that a loop indexes are kept in memory.
            macro_rules! finish {
                ($($i:literal)*) => { $(
                    if $i < WINDOWS && $i < here {
                        let from = (first + $i) * outputs + o;
                        let to = from + filters;
                        pool(simd, sums[$i], &mut self.y[from..to], &mut self.places[from..to]);
                    }
                )* };
            }
            finish!(0 1);
        }
    }
}

/// The weights of some filters: tap after tap, `stride` elements apart, and their biases.
#[derive(Clone, Copy)]
struct Panel<'a> {
    taps: &'a [f32],
    stride: usize,
    bias: &'a [f32],
}

/// The convolution with its bias at the places of some windows, for a panel of filters.
#[inline(always)]
fn sums<S: Simd, const WINDOWS: usize>(
    simd: S,
    layout: &Layout,
    x: &[f32],
    at: [usize; WINDOWS],
    panel: Panel<'_>,
    bias: [S::f32s; VECTORS],
) -> [[[S::f32s; VECTORS]; PLACES]; WINDOWS] {
    for at in at {
        assert!(at + layout.reach() <= x.len(), "a window lies outside its image");
    }
    let last = (layout.runs() * layout.run - 1) * panel.stride;
    assert!(last + VECTORS * S::F32_LANES <= panel.taps.len(), "a panel is too short");
    let mut sums = [[bias; PLACES]; WINDOWS];
    let mut taps = panel.taps.as_ptr();
    for run in 0..layout.runs() {
        let run_at = layout.run_at(run);
        let mut places = layout.places;
        for place in &mut places {
            *place += run_at;
        }
        for j in 0..layout.run {
            // SAFETY: `taps` goes `stride` on for each tap, and by the second assertion a panel's lanes are there at the last; a
            // window's elements end before its reach, and by the first assertion that is inside x.
            #[allow(unsafe_code, reason = "bounds checks in the innermost loop would cost half its speed")]
            unsafe {
                let w = taps.cast::<[S::f32s; VECTORS]>().read_unaligned();
                // Indices are literals, as above.
                macro_rules! multiply {
                    ($($i:literal: $($p:literal)*;)*) => { $($(
                        if $i < WINDOWS {
                            let value = simd.splat_f32s(*x.get_unchecked(at[$i] + (places[$p] + j)));
                            sums[$i][$p][0] = simd.mul_add_f32s(value, w[0], sums[$i][$p][0]);
                            sums[$i][$p][1] = simd.mul_add_f32s(value, w[1], sums[$i][$p][1]);
                        }
                    )*)* };
                }
                multiply!(0: 0 1 2 3; 1: 0 1 2 3;);
            }
            taps = taps.wrapping_add(panel.stride);
        }
    }
    sums
}
