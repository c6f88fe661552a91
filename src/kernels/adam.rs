//! Adam's step and the step's counters on the CPU.

use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::arch;
use super::tasks::in_pool;

/// Elements of a block: with its sums it stays in the first-level cache.
const BLOCK: usize = 2 * 1024;

/// Elements, those of the gradient's slices and of the parameter, below which handing blocks to other threads costs more than it
/// gains: some 20 µs of work.
const ALONE: usize = 32 * 1024;

/// Slices that are added up before their sum is added to the rest, which keeps the error of long sums small.
const RUN: usize = 64;

/// Changes a parameter and its moments, all of m and then all of v, by one step against the sum of the gradient's slices. `steps`
/// are 1 - β1 and 1 - β2, `scale` the corrected learning rate.
pub(crate) fn adam(param: &mut [f32], moments: &mut [f32], grad: &[f32], scale: f32, steps: [f32; 2], epsilon: f32) {
    let len = param.len();
    let (m, v) = moments.split_at_mut(len);
    let block = |i: usize, w: &mut [f32], m: &mut [f32], v: &mut [f32]| {
        let (first, count) = (i * BLOCK, w.len());
        if grad.len() == len {
            return update(w, m, v, &grad[first..][..count], scale, steps, epsilon);
        }
        let mut total = [0.0f32; BLOCK];
        let total = &mut total[..count];
        arch().dispatch(Slices { grad, first, len, total });
        update(w, m, v, total, scale, steps, epsilon);
    };
    if len + grad.len() <= ALONE || !in_pool() {
        let moments = m.chunks_mut(BLOCK).zip(v.chunks_mut(BLOCK));
        param.chunks_mut(BLOCK).zip(moments).enumerate().for_each(|(i, (w, (m, v)))| block(i, w, m, v));
    } else {
        let moments = m.par_chunks_mut(BLOCK).zip(v.par_chunks_mut(BLOCK));
        param.par_chunks_mut(BLOCK).zip(moments).enumerate().for_each(|(i, (w, (m, v)))| block(i, w, m, v));
    }
}

/// Adds up the slices, of `len` elements each, of a block that starts at `first`, in `total`, which is 0.
struct Slices<'a> {
    grad: &'a [f32],
    first: usize,
    len: usize,
    total: &'a mut [f32],
}

impl NullaryFnOnce for Slices<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { grad, first, len, total } = self;
        let (count, slices) = (total.len(), grad.len() / len);
        let slice = |slice: usize| &grad[slice * len + first..][..count];
        let mut run = [0.0f32; BLOCK];
        let run = &mut run[..count];
        for from in (0..slices).step_by(RUN) {
            run.copy_from_slice(slice(from));
            for i in from + 1..slices.min(from + RUN) {
                run.iter_mut().zip(slice(i)).for_each(|(sum, g)| *sum += g);
            }
            total.iter_mut().zip(&*run).for_each(|(sum, run)| *sum += run);
        }
    }
}

/// What is left of a moment that fades where its gradient has become 0: nothing, before it is subnormal. Subnormal moments make Adam
/// take ten times as long, and weights do not feel them.
fn normal(moment: f32) -> f32 {
    if moment.abs() < 1e-34 { 0.0 } else { moment }
}

/// The step of a block, in the vectors that every processor has: with wider ones its division and root are no faster.
fn update(w: &mut [f32], m: &mut [f32], v: &mut [f32], grad: &[f32], scale: f32, steps: [f32; 2], epsilon: f32) {
    for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(grad) {
        *m = normal(*m + (g - *m) * steps[0]);
        *v = normal(*v + (g * g - *v) * steps[1]);
        *w -= scale * *m / (v.sqrt() + epsilon);
    }
}

/// `u += (1 - β)(1 - u)` for both decays; the second, which is close to 1, as a compensated sum. Why is in `tick.wgsl`.
pub(crate) fn next_rate(rate: &mut [f32], steps: [f32; 2]) {
    let excess = rate[3];
    rate[1] += steps[0] * (1.0 - rate[1]);
    let before = rate[2];
    let step = steps[1] * (1.0 - before + excess) - excess;
    rate[2] = before + step;
    rate[3] = (rate[2] - before) - step;
}

/// Writes a row of the log, if it has that many, and counts a step and its images.
pub(crate) fn record(row: [f32; 2], clock: &mut [u32], log: &mut [f32], batch: usize) {
    let at = 2 * clock[0] as usize;
    if let Some(place) = log.get_mut(at..at + 2) {
        place.copy_from_slice(&row);
    }
    clock[0] = clock[0].wrapping_add(1);
    clock[1] = clock[1].wrapping_add(batch as u32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_that_fade_end_before_they_are_subnormal() {
        // A unit that died after one gradient: its weight, its moments, and 2,000 steps without another.
        let (mut w, mut moments) = ([1.0f32], [1e-3f32, 1e-30]);
        for _ in 0..2_000 {
            adam(&mut w, &mut moments, &[0.0], 1e-3, [0.1, 0.001], 1e-7);
            assert!(moments.iter().all(|moment| *moment == 0.0 || moment.is_normal()), "{moments:?}");
        }
        assert_eq!(moments[0], 0.0);
        // What is not about to fade is left alone, and a NaN stays one.
        assert_eq!(normal(-2e-34), -2e-34);
        assert!(normal(f32::NAN).is_nan());
    }
}
