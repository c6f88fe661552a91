//! Adam's step and the step's counters on the CPU.

use rayon::prelude::*;

/// Elements of a block.
const BLOCK: usize = 8 * 1024;

/// Changes a parameter and its moments by one step. `steps` are 1 - β1 and 1 - β2, `scale` the corrected learning rate.
pub(crate) fn adam(param: &mut [f32], m: &mut [f32], v: &mut [f32], grad: &[f32], scale: f32, steps: [f32; 2], epsilon: f32) {
    let moments = m.par_chunks_mut(BLOCK).zip(v.par_chunks_mut(BLOCK));
    param.par_chunks_mut(BLOCK).zip(moments).zip(grad.par_chunks(BLOCK)).for_each(|((param, (m, v)), grad)| {
        for (((w, m), v), g) in param.iter_mut().zip(m).zip(v).zip(grad) {
            *m += (g - *m) * steps[0];
            *v += (g * g - *v) * steps[1];
            *w -= scale * *m / (v.sqrt() + epsilon);
        }
    });
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

/// Counts a step and its images.
pub(crate) fn advance(clock: &mut [u32], batch: usize) {
    clock[0] = clock[0].wrapping_add(1);
    clock[1] = clock[1].wrapping_add(batch as u32);
}
