//! Softmax over the last axis, with the maximum subtracted so that no exponential overflows.

use super::{Cpu, LANES, Launch, Reference, Rules, Workgroups, kernel};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::kernels;
use crate::shape::{DType, TensorType};

/// `y[…, c] = exp(x[…, c]) / Σ exp(x[…, j])`. A row with a NaN becomes all NaN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Softmax;

/// `dx = y · (dy - Σ y · dy)` of operands `y`, which softmax gave, and `dy`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoftmaxGrad;

impl Graph {
    /// Softmax of `x` over its last axis, of the same shape: each row of it sums to 1.
    ///
    /// # Errors
    /// If `x` has no axis beside the batch, or is not of floats.
    pub fn softmax(&mut self, x: TensorId) -> Result<TensorId> {
        self.apply(Softmax, &[x])
    }
}

/// Invocations that share a row of this many columns: about eight columns each.
pub(super) fn sharers(columns: usize) -> usize {
    columns.div_ceil(8).next_power_of_two().min(LANES)
}

fn launch(kernel: super::Kernel, output: TensorType) -> Launch {
    let columns = output.shape.last();
    let rows = output.shape.inner_len() / columns;
    let (fixed, per_image) = if output.shape.is_batched() { (0, rows) } else { (rows, 0) };
    let constants = vec![
        ("ROWS", rows as f64),
        ("COLUMNS", columns as f64),
        ("BATCHED", f64::from(output.shape.is_batched())),
        ("SHARERS", sharers(columns) as f64),
    ];
    Launch { kernel, constants, workgroups: Workgroups { fixed, per_image, tile: LANES / sharers(columns), times: 1 } }
}

/// Softmax of one row, the reference.
pub(super) fn softmax_row(x: &[f64]) -> impl Iterator<Item = f64> + '_ {
    let most = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = x.iter().map(|v| (v - most).exp()).sum();
    x.iter().map(move |v| (v - most).exp() / sum)
}

impl Rules for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn arity(&self) -> usize {
        1
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let x = inputs[0];
        if x.dtype == DType::F32 && x.shape.inner().last().is_some_and(|&columns| columns > 0) {
            return Ok(x);
        }
        let columns = x.shape.inner().last().copied().unwrap_or(0);
        let problem = format!("expected rows of one float or more, got rows of {columns} in {x}");
        Err(Error::Shape { op: self.name(), problem, operands: vec![("x", x, "(…, C) f32")] })
    }

    fn backward(&self, graph: &mut Graph, _inputs: &[TensorId], y: TensorId, dy: TensorId) -> Result<Vec<Option<TensorId>>> {
        Ok(vec![Some(graph.apply(SoftmaxGrad, &[y, dy])?)])
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let x = &args.inputs[0];
        let columns = x.extents[x.extents.len() - 1];
        for (x, y) in x.data.chunks_exact(columns).zip(args.output.chunks_exact_mut(columns)) {
            y.iter_mut().zip(softmax_row(x)).for_each(|(y, value)| *y = value);
        }
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let x = args.inputs[0];
        kernels::softmax::softmax(x.f32(), x.ty.shape.last(), args.output);
        true
    }

    fn launch(&self, _inputs: &[TensorType], output: TensorType) -> Launch {
        launch(kernel!("softmax"), output)
    }

    fn domain(&self, _input: usize, _inputs: &[TensorType]) -> (f64, f64) {
        (-4.0, 4.0)
    }

    fn terms(&self, inputs: &[TensorType], _batch: usize) -> usize {
        inputs[0].shape.last()
    }

    // Maximum, difference, exp, sum, quotient.
    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        5 * inputs[0].shape.len(batch) as u64
    }
}

impl Rules for SoftmaxGrad {
    fn name(&self) -> &'static str {
        "softmax_grad"
    }

    fn arity(&self) -> usize {
        2
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let ty = super::arithmetic::same_floats(self.name(), ["y", "dy"], inputs)?;
        Softmax.infer(&[ty])
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        super::no_second_gradient(self.name())
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let [y, dy] = [&args.inputs[0], &args.inputs[1]];
        let columns = y.extents[y.extents.len() - 1];
        for (row, dx) in args.output.chunks_exact_mut(columns).enumerate() {
            let y = &y.data[row * columns..][..columns];
            let dy = &dy.data[row * columns..][..columns];
            let product: f64 = y.iter().zip(dy).map(|(y, dy)| y * dy).sum();
            for (c, dx) in dx.iter_mut().enumerate() {
                *dx = y[c] * (dy[c] - product);
            }
        }
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let [y, dy] = [args.inputs[0], args.inputs[1]];
        kernels::softmax::softmax_grad(y.f32(), dy.f32(), y.ty.shape.last(), args.output);
        true
    }

    fn launch(&self, _inputs: &[TensorType], output: TensorType) -> Launch {
        launch(kernel!("softmax_grad"), output)
    }

    fn terms(&self, inputs: &[TensorType], _batch: usize) -> usize {
        inputs[0].shape.last()
    }

    // Product, sum, difference, product.
    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        4 * inputs[0].shape.len(batch) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::checks;
    use crate::shape::Shape;

    #[test]
    fn gradient_is_that_of_finite_differences() {
        for columns in [1, 3, 10] {
            checks::gradient(Softmax, &[TensorType::f32(Shape::batched(&[2, columns]))], 3);
        }
    }

    #[test]
    fn large_logits_do_not_overflow_and_nan_fills_its_row_only() {
        let ty = TensorType::f32(Shape::batched(&[3]));
        let x = vec![1e30, 1e30, -1e30, 1.0, f64::NAN, 2.0, 5.0, 5.0, 5.0];
        for result in checks::implementations(Softmax, &[ty], 3, &[x]) {
            let y = &result[0];
            assert_eq!(y[..3], [0.5, 0.5, 0.0]);
            assert!(y[3..6].iter().all(|v| v.is_nan()), "{y:?}");
            assert!(y[6..].iter().all(|v| (v - 1.0 / 3.0).abs() < 1e-7), "{y:?}");
        }
    }

    #[test]
    fn what_has_no_rows_is_refused() {
        for ty in [Shape::batched(&[]), Shape::fixed(&[]), Shape::batched(&[4, 0])].map(TensorType::f32) {
            assert!(matches!(Softmax.infer(&[ty]), Err(Error::Shape { op: "softmax", .. })), "{ty}");
        }
        let error = Softmax.infer(&[TensorType::u32(Shape::batched(&[4]))]).unwrap_err().to_string();
        assert_eq!(
            error,
            "softmax: expected rows of one float or more, got rows of 4 in [N, 4] u32\n  x        [N, 4] u32               (…, C) f32"
        );
    }
}
