//! The end of a training step by a head: its losses go straight into the log.

use super::{MlpHeadLoss, loss};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::ops::loss::scalar;
use crate::ops::step::{self, BYTES};
use crate::ops::{Launch, Reference, Rules, Tick, Workgroups, kernel, no_second_gradient};
use crate::shape::TensorType;

/// [`MlpHeadLoss`] and the [`Tick`] that takes note of what it finds: of the rows `[N, W]` of [`MlpHead`](super::MlpHead), and `clock`, `log`
/// and `rate`, which are changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MlpHeadTick {
    /// The end of the step.
    pub tick: Tick,
}

/// The operands of the tick.
fn of_tick(inputs: &[TensorType]) -> [TensorType; 5] {
    [scalar(), scalar(), inputs[1], inputs[2], inputs[3]]
}

impl Rules for MlpHeadTick {
    fn name(&self) -> &'static str {
        "mlp_head_tick"
    }

    fn arity(&self) -> usize {
        4
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        MlpHeadLoss.infer(&inputs[..1]).map_err(|error| match error {
            Error::Shape { problem, operands, .. } => Error::Shape { op: self.name(), problem, operands },
            other => other,
        })?;
        step::check(self.name(), &of_tick(inputs))?;
        self.tick.infer(&of_tick(inputs))
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        no_second_gradient(self.name())
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let row = loss::found(&args.inputs[0], args.batch);
        let [clock, log, rate] = &mut args.updated[..] else { unreachable!("it updates three operands") };
        step::record(row, clock, log, args.batch);
        step::next_rate(rate, [self.tick.beta1, self.tick.beta2]);
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        let mut constants = self.tick.constants(&of_tick(inputs));
        constants.push(("WIDTH", inputs[0].shape.last() as f64));
        Launch { kernel: kernel!("mlp_head_tick"), constants, workgroups: Workgroups::fixed(1) }
    }

    fn updates(&self) -> &[usize] {
        &[1, 2, 3]
    }

    fn domain(&self, input: usize, inputs: &[TensorType]) -> (f64, f64) {
        if input == 0 { (-1.0, 1.0) } else { self.tick.domain(input + 1, &of_tick(inputs)) }
    }

    fn terms(&self, _inputs: &[TensorType], batch: usize) -> usize {
        batch.max(1)
    }

    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        2 * batch as u64 + self.tick.flops(&of_tick(inputs), batch)
    }

    // Two columns of the rows, and the rate, which is read and written.
    fn bytes_moved(&self, _inputs: &[TensorType], batch: usize) -> u64 {
        8 * batch as u64 + BYTES - 8 + 32
    }
}
