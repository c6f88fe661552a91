//! What training is judged by: softmax cross-entropy with integer labels, and the count of right answers.
//!
//! A label that is no class never reads outside a row: the loss and that row's gradient become NaN, and the row counts as wrong.

mod head;

use super::softmax::{sharers, softmax_row};
use super::{Cpu, LANES, Launch, Reference, Rules, View, Workgroups, kernel};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::kernels;
use crate::shape::{DType, Shape, TensorType};

pub use head::LossHead;

/// `1/N · Σ (log Σ exp(logits[n, j]) - logits[n, labels[n]])` of operands `logits` `[N, C]`, `labels` `[N]`: one number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoftmaxCrossEntropy;

/// `(softmax(logits) - one_hot(labels)) · dloss / N` of operands `logits`, `labels`, `dloss`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoftmaxCrossEntropyGrad;

/// How many rows of `logits` `[N, C]` have their first largest element at `labels[n]`: one number. A row with a NaN has none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Accuracy;

impl Graph {
    /// The mean over the batch of the cross-entropy of `logits` `[N, C]`, not yet through a softmax, and `labels` `[N]` u32: a
    /// tensor of one element, shape `[]`. 0 for an empty batch; NaN if a logit is NaN or a label is C or more.
    ///
    /// # Errors
    /// If the shapes are others.
    pub fn softmax_cross_entropy(&mut self, logits: TensorId, labels: TensorId) -> Result<TensorId> {
        self.apply(SoftmaxCrossEntropy, &[logits, labels])
    }

    /// How many rows of `logits` `[N, C]` have their largest element, the first of several, at `labels` `[N]` u32: a number of
    /// rows as one float, shape `[]`. A row with a NaN, or whose label is C or more, is wrong.
    ///
    /// # Errors
    /// If the shapes are others.
    pub fn correct(&mut self, logits: TensorId, labels: TensorId) -> Result<TensorId> {
        self.apply(Accuracy, &[logits, labels])
    }
}

/// The check that `logits` and `labels` fit; further operands are only shown.
fn check(op: &'static str, inputs: &[TensorType], problem: Option<String>) -> Result<()> {
    let [logits, labels] = [inputs[0], inputs[1]];
    let classes = logits.shape.inner();
    let problem = if logits.dtype != DType::F32 || !logits.shape.is_batched() || classes.len() != 1 || classes[0] == 0 {
        format!("expected one row of one logit or more for each image, got {logits}")
    } else if labels != TensorType::u32(Shape::batched(&[])) {
        format!("expected one integer label for each image, got {labels}")
    } else {
        match problem {
            Some(problem) => problem,
            None => return Ok(()),
        }
    };
    let names = [("logits", "(N, C) f32"), ("labels", "(N) u32"), ("dloss", "() f32")];
    let operands = names.iter().zip(inputs).map(|(&(name, axes), &ty)| (name, ty, axes)).collect();
    Err(Error::Shape { op, problem, operands })
}

fn launch(kernel: super::Kernel, logits: TensorType, workgroups: Workgroups) -> Launch {
    let columns = logits.shape.last();
    Launch { kernel, constants: vec![("COLUMNS", columns as f64), ("SHARERS", sharers(columns) as f64)], workgroups }
}

/// One number.
pub(super) fn scalar() -> TensorType {
    TensorType::f32(Shape::fixed(&[]))
}

/// What is wrong with the loss's gradient.
fn not_a_scalar(dloss: TensorType) -> Option<String> {
    (dloss != scalar()).then(|| format!("expected one number as the loss's gradient, got {dloss}"))
}

/// Integers are classes, floats logits of a network that has begun to learn.
fn domain(input: usize, inputs: &[TensorType]) -> (f64, f64) {
    match input {
        0 => (-4.0, 4.0),
        1 => (0.0, inputs[0].shape.last() as f64 - 1.0),
        _ => (0.5, 2.0),
    }
}

/// The reference of the loss.
fn mean_loss(args: &Reference<'_>) -> f64 {
    let [logits, labels] = [&args.inputs[0], &args.inputs[1]];
    let mut total = 0.0;
    for (row, &label) in logits.data.chunks_exact(logits.extents[1]).zip(labels.data) {
        let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|v| (v - most).exp()).sum();
        total += row.get(label as usize).map_or(f64::NAN, |target| sum.ln() + (most - target));
    }
    total / args.batch.max(1) as f64
}

/// The reference of the gradient, of operands logits, labels and dloss.
fn gradient(inputs: &[View<'_>], batch: usize, output: &mut [f64]) {
    let [logits, labels, dloss] = inputs else { unreachable!("the gradient has three operands") };
    let columns = logits.extents[1];
    let scale = dloss.data[0] / batch as f64;
    for (n, dlogits) in output.chunks_exact_mut(columns).enumerate() {
        let label = labels.data[n] as usize;
        for (c, (d, probability)) in dlogits.iter_mut().zip(softmax_row(&logits.data[n * columns..][..columns])).enumerate() {
            let target = f64::from(u8::from(c == label));
            *d = if label < columns { (probability - target) * scale } else { f64::NAN };
        }
    }
}

/// The reference of the count.
fn right_answers(args: &Reference<'_>) -> f64 {
    let [logits, labels] = [&args.inputs[0], &args.inputs[1]];
    let mut count = 0;
    for (row, &label) in logits.data.chunks_exact(logits.extents[1]).zip(labels.data) {
        let first_largest = (1..row.len()).fold(0, |best, c| if row[c] > row[best] { c } else { best });
        count += usize::from(first_largest == label as usize && !row.iter().any(|v| v.is_nan()));
    }
    count as f64
}

impl Rules for SoftmaxCrossEntropy {
    fn name(&self) -> &'static str {
        "softmax_cross_entropy"
    }

    fn arity(&self) -> usize {
        2
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        check(self.name(), inputs, None)?;
        Ok(scalar())
    }

    fn backward(&self, graph: &mut Graph, inputs: &[TensorId], _: TensorId, dloss: TensorId) -> Result<Vec<Option<TensorId>>> {
        let dlogits = graph.apply(SoftmaxCrossEntropyGrad, &[inputs[0], inputs[1], dloss])?;
        Ok(vec![Some(dlogits), None])
    }

    fn reference(&self, args: &mut Reference<'_>) {
        args.output[0] = mean_loss(args);
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let [logits, labels] = [args.inputs[0], args.inputs[1]];
        args.output[0] = kernels::softmax::cross_entropy(logits.f32(), labels.u32(), logits.ty.shape.last());
        true
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        launch(kernel!("softmax_cross_entropy"), inputs[0], Workgroups::fixed(1))
    }

    fn domain(&self, input: usize, inputs: &[TensorType]) -> (f64, f64) {
        domain(input, inputs)
    }

    fn terms(&self, inputs: &[TensorType], batch: usize) -> usize {
        inputs[0].shape.last() + batch
    }

    // Maximum, difference, exp, sum.
    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        4 * inputs[0].shape.len(batch) as u64
    }
}

impl Rules for SoftmaxCrossEntropyGrad {
    fn name(&self) -> &'static str {
        "softmax_cross_entropy_grad"
    }

    fn arity(&self) -> usize {
        3
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        check(self.name(), inputs, not_a_scalar(inputs[2]))?;
        Ok(inputs[0])
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        super::no_second_gradient(self.name())
    }

    fn reference(&self, args: &mut Reference<'_>) {
        gradient(&args.inputs, args.batch, args.output);
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let [logits, labels, dloss] = [args.inputs[0], args.inputs[1], args.inputs[2]];
        let columns = logits.ty.shape.last();
        kernels::softmax::cross_entropy_grad(logits.f32(), labels.u32(), columns, dloss.f32()[0], args.output);
        true
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        let tile = LANES / sharers(inputs[0].shape.last());
        launch(kernel!("softmax_cross_entropy_grad"), inputs[0], Workgroups { fixed: 0, per_image: 1, tile, times: 1 })
    }

    fn domain(&self, input: usize, inputs: &[TensorType]) -> (f64, f64) {
        domain(input, inputs)
    }

    fn terms(&self, inputs: &[TensorType], _batch: usize) -> usize {
        inputs[0].shape.last()
    }

    // Those of softmax, a difference, a product.
    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        7 * inputs[0].shape.len(batch) as u64
    }
}

impl Rules for Accuracy {
    fn name(&self) -> &'static str {
        "accuracy"
    }

    fn arity(&self) -> usize {
        2
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        check(self.name(), inputs, None)?;
        Ok(scalar())
    }

    // A count is flat between its jumps.
    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        Ok(vec![None, None])
    }

    fn reference(&self, args: &mut Reference<'_>) {
        args.output[0] = right_answers(args);
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let [logits, labels] = [args.inputs[0], args.inputs[1]];
        args.output[0] = kernels::softmax::correct(logits.f32(), labels.u32(), logits.ty.shape.last());
        true
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        launch(kernel!("accuracy"), inputs[0], Workgroups::fixed(1))
    }

    fn domain(&self, input: usize, inputs: &[TensorType]) -> (f64, f64) {
        domain(input, inputs)
    }

    // One comparison a logit.
    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        inputs[0].shape.len(batch) as u64
    }
}

#[cfg(test)]
mod tests;
