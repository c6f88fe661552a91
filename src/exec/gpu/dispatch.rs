//! A step as it is recorded: its pipeline, its bindings, and its workgroups at a batch.

use super::pipeline::{Pipeline, Writable};
use crate::ops::Workgroups;
use crate::plan::Step;

/// Workgroups a dispatch may have in one direction, on every adapter.
pub(super) const MAX_WORKGROUPS: usize = 65_535;

/// What a step of a loaded plan comes to: one call, or one for each of its parts.
pub(super) struct Dispatch(pub(super) Vec<Call>);

/// One call of a kernel.
pub(super) struct Call {
    pub(super) pipeline: Pipeline,
    pub(super) bindings: wgpu::BindGroup,
    pub(super) workgroups: Workgroups,
}

impl Dispatch {
    /// Records it into a pass; nothing where the batch leaves nothing to do.
    pub(super) fn record(&self, pass: &mut wgpu::ComputePass<'_>, batch: usize) {
        for Call { pipeline, bindings, workgroups } in &self.0 {
            let (x, y) = fold(workgroups.count(batch));
            if x == 0 {
                continue;
            }
            pass.set_pipeline(&pipeline.compute);
            pass.set_bind_group(0, bindings, &[]);
            pass.set_immediates(0, &(batch as u32).to_le_bytes());
            pass.dispatch_workgroups(x, y, 1);
        }
    }
}

/// Which of a step's bindings its kernel may write.
pub(super) fn writable(step: &Step) -> Writable {
    let updates = step.op.rules().updates();
    let inputs = step.bindings().into_iter().map(|operands| updates.contains(&operands.start));
    inputs.chain(step.outputs().map(|_| true)).collect()
}

/// A count of workgroups as two extents, neither above the limit, their product at least the count.
fn fold(count: usize) -> (u32, u32) {
    let y = count.div_ceil(MAX_WORKGROUPS).max(1);
    (count.div_ceil(y) as u32, y as u32)
}

#[cfg(test)]
mod tests {
    use super::fold;

    #[test]
    fn folded_workgroups_cover_the_count_within_the_limit() {
        for count in [0, 1, 65_535, 65_536, 131_070, 131_071, 1_000_003] {
            let (x, y) = fold(count);
            assert!(x <= 65_535 && y <= 65_535 && x as usize * y as usize >= count, "{count} became {x} x {y}");
        }
    }
}
