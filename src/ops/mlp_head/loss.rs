//! What the rows of a head come to: the mean loss, and the count of right answers.

use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::ops::loss::scalar;
use crate::ops::{Launch, Reference, Rules, View, Workgroups, kernel, no_second_gradient};
use crate::shape::{DType, TensorType};

/// The mean of the losses in the rows `[N, W]` of [`MlpHead`](super::MlpHead) and, extra, how many answers are right: the last two columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MlpHeadLoss;

/// The mean loss and the count of the right answers in these rows.
pub(super) fn found(rows: &View<'_>, batch: usize) -> [f64; 2] {
    let sum = |from_end: usize| -> f64 { rows.data.chunks_exact(rows.extents[1]).map(|row| row[row.len() - from_end]).sum() };
    [sum(2) / batch.max(1) as f64, sum(1)]
}

impl Rules for MlpHeadLoss {
    fn name(&self) -> &'static str {
        "mlp_head_loss"
    }

    fn arity(&self) -> usize {
        1
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let rows = inputs[0];
        match (rows.dtype, rows.shape.is_batched(), rows.shape.inner()) {
            (DType::F32, true, &[width]) if width >= 2 => Ok(scalar()),
            _ => {
                let problem = format!("expected a row of two numbers or more for each image, got {rows}");
                Err(Error::Shape { op: self.name(), problem, operands: vec![("rows", rows, "(N, W) f32")] })
            }
        }
    }

    fn extra_outputs(&self, _inputs: &[TensorType]) -> Vec<TensorType> {
        vec![scalar()]
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        no_second_gradient(self.name())
    }

    fn reference(&self, args: &mut Reference<'_>) {
        [args.output[0], args.extra[0][0]] = found(&args.inputs[0], args.batch);
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        let constants = vec![("WIDTH", inputs[0].shape.last() as f64)];
        Launch { kernel: kernel!("mlp_head_loss"), constants, workgroups: Workgroups::fixed(1) }
    }

    fn terms(&self, _inputs: &[TensorType], batch: usize) -> usize {
        batch
    }

    fn flops(&self, _inputs: &[TensorType], batch: usize) -> u64 {
        2 * batch as u64
    }

    // Two columns, and both results.
    fn bytes_moved(&self, _inputs: &[TensorType], batch: usize) -> u64 {
        8 * (batch as u64 + 1)
    }
}
