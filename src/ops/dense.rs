//! A dense layer in one kernel: product, bias, and ReLU if it has one.
//!
//! Fusion puts these into a plan (`plan/fuse/dense.rs`); a graph that is differentiated has the operators they stand for.

mod grad;

use super::stored::stored;
use super::{Cpu, Launch, Reference, Rules, Workgroups, kernel, no_second_gradient};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::kernels;
use crate::shape::{DType, Shape, TensorType};

pub use grad::DenseGrad;

/// Edge of the tile that one workgroup computes; `TILE` in the kernels.
pub(super) const TILE: usize = 32;

/// `y[n, u] = relu(Σ x[n, k] · w[k, u] + b[u])` of operands x `[N, K]`, w `[K, U]`, b `[U]`: `[N, U]`. x and y may each be f16: they are
/// stored so, and summed in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dense {
    /// Whether ReLU follows. A NaN passes it.
    pub relu: bool,
    /// What y is stored as.
    pub output: DType,
}

/// K and U, or what does not fit.
fn extents(x: TensorType, w: TensorType) -> Result<[usize; 2], String> {
    match (x.shape.is_batched(), x.shape.inner(), w.shape.is_batched(), w.shape.inner()) {
        (true, &[k], false, &[rows, units]) if k == rows && k > 0 && units > 0 && x.dtype.is_float() && w.dtype == DType::F32 => {
            Ok([k, units])
        }
        (true, &[k], false, &[rows, _]) if k != rows => Err(format!("x has {k} features but w has {rows} rows")),
        _ => Err(format!("expected a batch of rows and a matrix of floats, got {x} and {w}")),
    }
}

impl Rules for Dense {
    fn name(&self) -> &'static str {
        "dense"
    }

    fn arity(&self) -> usize {
        3
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let [x, w, b] = [inputs[0], inputs[1], inputs[2]];
        let units = extents(x, w).and_then(|[_, units]| {
            let bias = TensorType::f32(Shape::fixed(&[units]));
            if b == bias { Ok(units) } else { Err(format!("the bias is {b}, expected {bias}")) }
        });
        match units {
            Ok(units) if self.output.is_float() => Ok(TensorType { shape: Shape::batched(&[units]), dtype: self.output }),
            Ok(_) => Err(Error::invalid("what dense's output is stored as", format!("{:?}", self.output), "a float type")),
            Err(problem) => {
                let operands = vec![("x", x, "(N, K) f32"), ("w", w, "(K, U) f32"), ("b", b, "(U) f32")];
                Err(Error::Shape { op: self.name(), problem, operands })
            }
        }
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        no_second_gradient(self.name()) // it comes into a graph after its gradients have
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let [x, w, b] = [&args.inputs[0], &args.inputs[1], &args.inputs[2]];
        let [features, units] = [w.extents[0], w.extents[1]];
        for (i, y) in args.output.iter_mut().enumerate() {
            let [n, u] = [i / units, i % units];
            let sum: f64 = (0..features).map(|k| x.data[n * features + k] * w.data[k * units + u]).sum();
            let z = sum + b.data[u];
            *y = if self.relu && z < 0.0 { 0.0 } else { z };
        }
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        if [args.inputs[0].ty.dtype, self.output].contains(&DType::F16) {
            return false;
        }
        let [x, w, b] = [0, 1, 2].map(|i| args.inputs[i].f32());
        kernels::dense::forward(x, w, b, self.relu, args.output);
        true
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        let [features, units] = [inputs[1].shape.inner()[0], inputs[1].shape.last()];
        let constants = vec![("FEATURES", features as f64), ("UNITS", units as f64), ("RELU", f64::from(self.relu))];
        let workgroups = Workgroups { fixed: 0, per_image: 1, tile: TILE, times: units.div_ceil(TILE) };
        let kernel = stored(kernel!("dense"), &[("X", inputs[0].dtype), ("Y", self.output)]);
        Launch { kernel, constants, workgroups }
    }

    fn terms(&self, inputs: &[TensorType], _batch: usize) -> usize {
        inputs[0].shape.last() + 1
    }

    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        2 * (batch * inputs[1].shape.inner_len()) as u64
    }
}

#[cfg(test)]
mod tests;
