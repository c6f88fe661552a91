//! All that is asked of logits in a training step, in one: the loss, its gradient, and the count of right answers.

use super::{check, domain, gradient, launch, mean_loss, not_a_scalar, right_answers, scalar};
use crate::error::Result;
use crate::graph::{Graph, TensorId};
use crate::kernels;
use crate::ops::{Cpu, Launch, Reference, Rules, Workgroups, kernel, no_second_gradient};
use crate::shape::TensorType;

/// The loss of [`SoftmaxCrossEntropy`](super::SoftmaxCrossEntropy), and, extra, the count of [`Accuracy`](super::Accuracy) and
/// dlogits `[N, C]` of [`SoftmaxCrossEntropyGrad`](super::SoftmaxCrossEntropyGrad), of operands `logits`, `labels`, `dloss`. Its kernel is
/// one workgroup: for few classes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossHead;

impl Rules for LossHead {
    fn name(&self) -> &'static str {
        "loss_head"
    }

    fn arity(&self) -> usize {
        3
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        check(self.name(), inputs, not_a_scalar(inputs[2]))?;
        Ok(scalar())
    }

    fn extra_outputs(&self, inputs: &[TensorType]) -> Vec<TensorType> {
        vec![scalar(), inputs[0]]
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        no_second_gradient(self.name()) // it comes into a graph after its gradient has
    }

    fn reference(&self, args: &mut Reference<'_>) {
        args.output[0] = mean_loss(args);
        args.extra[0][0] = right_answers(args);
        gradient(&args.inputs, args.batch, args.extra[1]);
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let [logits, labels, dloss] = [args.inputs[0], args.inputs[1], args.inputs[2]];
        let columns = logits.ty.shape.last();
        let [loss, correct] = kernels::softmax::loss_head(logits.f32(), labels.u32(), columns, dloss.f32()[0], args.extra[1]);
        args.output[0] = loss;
        args.extra[0][0] = correct;
        true
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        launch(kernel!("loss_head"), inputs[0], Workgroups::fixed(1))
    }

    fn domain(&self, input: usize, inputs: &[TensorType]) -> (f64, f64) {
        domain(input, inputs)
    }

    fn terms(&self, inputs: &[TensorType], batch: usize) -> usize {
        inputs[0].shape.last() + batch
    }

    // Maximum, difference, exp, sum, division, difference, product, comparison.
    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        8 * inputs[0].shape.len(batch) as u64
    }
}
