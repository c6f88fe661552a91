//! What training is judged by: softmax cross-entropy with integer labels, and the count of right answers.
//!
//! A label that is no class never reads outside a row: the loss and that row's gradient become NaN, and the row counts as wrong.

use super::softmax::{sharers, softmax_row};
use super::{Cpu, LANES, Launch, Reference, Rules, Workgroups, kernel};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::kernels;
use crate::shape::{DType, Shape, TensorType};

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
fn scalar() -> TensorType {
    TensorType::f32(Shape::fixed(&[]))
}

/// Integers are classes, floats logits of a network that has begun to learn.
fn domain(input: usize, inputs: &[TensorType]) -> (f64, f64) {
    match input {
        0 => (-4.0, 4.0),
        1 => (0.0, inputs[0].shape.last() as f64 - 1.0),
        _ => (0.5, 2.0),
    }
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
        let [logits, labels] = [&args.inputs[0], &args.inputs[1]];
        let mut total = 0.0;
        for (row, &label) in logits.data.chunks_exact(logits.extents[1]).zip(labels.data) {
            let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = row.iter().map(|v| (v - most).exp()).sum();
            total += row.get(label as usize).map_or(f64::NAN, |target| sum.ln() + (most - target));
        }
        args.output[0] = total / args.batch.max(1) as f64;
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
        let problem = (inputs[2] != scalar()).then(|| format!("expected one number as the loss's gradient, got {}", inputs[2]));
        check(self.name(), inputs, problem)?;
        Ok(inputs[0])
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        super::no_second_gradient(self.name())
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let [logits, labels] = [&args.inputs[0], &args.inputs[1]];
        let columns = logits.extents[1];
        let scale = args.inputs[2].data[0] / args.batch as f64;
        for (n, dlogits) in args.output.chunks_exact_mut(columns).enumerate() {
            let label = labels.data[n] as usize;
            for (c, (d, probability)) in dlogits.iter_mut().zip(softmax_row(&logits.data[n * columns..][..columns])).enumerate() {
                let target = f64::from(u8::from(c == label));
                *d = if label < columns { (probability - target) * scale } else { f64::NAN };
            }
        }
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
        let [logits, labels] = [&args.inputs[0], &args.inputs[1]];
        let mut count = 0;
        for (row, &label) in logits.data.chunks_exact(logits.extents[1]).zip(labels.data) {
            let first_largest = (1..row.len()).fold(0, |best, c| if row[c] > row[best] { c } else { best });
            count += usize::from(first_largest == label as usize && !row.iter().any(|v| v.is_nan()));
        }
        args.output[0] = count as f64;
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
mod tests {
    use super::*;
    use crate::ops::checks;

    fn types(columns: usize) -> [TensorType; 3] {
        [TensorType::f32(Shape::batched(&[columns])), TensorType::u32(Shape::batched(&[])), scalar()]
    }

    #[test]
    fn gradient_is_that_of_finite_differences() {
        for (columns, batch) in [(1, 2), (4, 1), (10, 3)] {
            checks::gradient(SoftmaxCrossEntropy, &types(columns)[..2], batch);
        }
    }

    #[test]
    fn uniform_logits_cost_the_logarithm_of_the_classes() {
        let types = types(10);
        for result in checks::implementations(SoftmaxCrossEntropy, &types[..2], 2, &[vec![3.0; 20], vec![0.0, 9.0]]) {
            assert!((result[0][0] - 10f64.ln()).abs() < 1e-6);
        }
        for result in checks::implementations(SoftmaxCrossEntropyGrad, &types, 2, &[vec![3.0; 20], vec![0.0, 9.0], vec![1.0]]) {
            let expected: Vec<f64> = (0..20).map(|i| if i == 0 || i == 19 { -0.45 } else { 0.05 }).collect();
            assert!(result[0].iter().zip(&expected).all(|(d, e)| (d - e).abs() < 1e-7), "{:?}", result[0]);
        }
    }

    #[test]
    fn large_logits_neither_overflow_nor_lose_the_loss() {
        let logits = vec![1000.0, 0.0, 0.0, -1000.0];
        for result in checks::implementations(SoftmaxCrossEntropy, &types(2)[..2], 2, &[logits, vec![1.0, 1.0]]) {
            assert_eq!(result[0][0], 1000.0);
        }
    }

    #[test]
    fn empty_batch_gives_zero() {
        let types = types(3);
        for result in checks::implementations(SoftmaxCrossEntropy, &types[..2], 0, &[vec![], vec![]]) {
            assert_eq!(result[0], [0.0]);
        }
        for result in checks::implementations(Accuracy, &types[..2], 0, &[vec![], vec![]]) {
            assert_eq!(result[0], [0.0]);
        }
    }

    #[test]
    fn label_that_is_no_class_and_nan_logit_show_in_the_loss() {
        let types = types(3);
        for (logits, labels) in [
            (vec![0.0; 6], vec![1.0, 3.0]),
            (vec![0.0; 6], vec![4294967295.0, 0.0]),
            (vec![0.0, f64::NAN, 1.0, 0.0, 0.0, 0.0], vec![0.0, 0.0]),
        ] {
            for result in checks::implementations(SoftmaxCrossEntropy, &types[..2], 2, &[logits.clone(), labels.clone()]) {
                assert!(result[0][0].is_nan(), "{labels:?}");
            }
            let bad = usize::from(labels[0] == 1.0);
            for result in checks::implementations(SoftmaxCrossEntropyGrad, &types, 2, &[logits.clone(), labels.clone(), vec![1.0]]) {
                let rows: Vec<bool> = result[0].chunks(3).map(|row| row.iter().all(|v| v.is_nan())).collect();
                assert_eq!(rows, [bad == 0, bad == 1], "{:?}", result[0]);
            }
        }
    }

    #[test]
    fn ties_go_to_the_first_and_nan_or_no_class_is_wrong() {
        let nan = f64::NAN;
        let cases = [
            ([2.0, 2.0, 1.0], 0.0, true),
            ([1.0, 2.0, 2.0], 1.0, true),
            ([0.0, 1.0, 2.0], 2.0, true),
            ([2.0, 2.0, 1.0], 1.0, false),
            ([0.0, nan, 2.0], 2.0, false),
            ([nan, 0.0, 0.0], 0.0, false),
            ([0.0, 0.0, 0.0], 3.0, false),
        ];
        for (logits, label, right) in cases {
            for result in checks::implementations(Accuracy, &types(3)[..2], 1, &[logits.to_vec(), vec![label]]) {
                assert_eq!(result[0], [f64::from(right)], "{logits:?}, label {label}");
            }
        }
        let logits = cases.iter().flat_map(|(logits, ..)| *logits).collect();
        let labels = cases.iter().map(|&(_, label, _)| label).collect();
        for result in checks::implementations(Accuracy, &types(3)[..2], 7, &[logits, labels]) {
            assert_eq!(result[0], [3.0]);
        }
    }

    #[test]
    fn operands_that_do_not_fit_are_shown_as_a_table() {
        let [logits, labels, _] = types(10);
        let error = SoftmaxCrossEntropy.infer(&[logits, logits]).unwrap_err().to_string();
        let expected = "softmax_cross_entropy: expected one integer label for each image, got [N, 10]\
            \n  logits   [N, 10]                  (N, C) f32\n  labels   [N, 10]                  (N) u32";
        assert_eq!(error, expected);
        assert!(Accuracy.infer(&[TensorType::f32(Shape::batched(&[0])), labels]).is_err());
        assert!(SoftmaxCrossEntropyGrad.infer(&[logits, labels, TensorType::f32(Shape::fixed(&[2]))]).is_err());
    }
}
