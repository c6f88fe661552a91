//! The gradients of a dense layer, all of them in one kernel.

use super::{TILE, extents};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::kernels;
use crate::ops::stored::stored;
use crate::ops::{Cpu, Launch, Reference, Rules, Workgroups, kernel, no_second_gradient};
use crate::shape::{DType, Shape, TensorType};

/// Gradients of a [`Dense`](super::Dense) layer: dw `[K, U]` and, extra, db `[U]` and dx `[N, K]`, of operands x `[N, K]`, y `[N, U]`, dy `[N, U]` and
/// w `[K, U]`. Without ReLU y is not read and may be any tensor of its type, such as dy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DenseGrad {
    /// Whether ReLU followed: then what it stopped, where y is 0, has no gradient.
    pub relu: bool,
    /// What dx is stored as.
    pub dx: DType,
}

impl DenseGrad {
    /// What ReLU lets through of dy.
    fn through(&self, args: &Reference<'_>) -> Vec<f64> {
        let [y, dy] = [args.inputs[1].data, args.inputs[2].data];
        dy.iter().zip(y).map(|(&dy, &y)| if self.relu && y <= 0.0 { 0.0 } else { dy }).collect()
    }
}

impl Rules for DenseGrad {
    fn name(&self) -> &'static str {
        "dense_grad"
    }

    fn arity(&self) -> usize {
        4
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let [x, y, dy, w] = [inputs[0], inputs[1], inputs[2], inputs[3]];
        let fits = extents(x, w).and_then(|[_, units]| {
            let wanted = Shape::batched(&[units]);
            if [y, dy].iter().all(|ty| ty.dtype.is_float() && ty.shape == wanted) {
                Ok(())
            } else {
                Err(format!("y is {y} and dy {dy}, expected {wanted}"))
            }
        });
        match fits {
            Ok(()) if self.dx.is_float() => Ok(w),
            Ok(()) => Err(Error::invalid("what dense_grad's dx is stored as", format!("{:?}", self.dx), "a float type")),
            Err(problem) => {
                let operands = vec![("x", x, "(N, K) f32"), ("y", y, "(N, U) f32"), ("dy", dy, "(N, U) f32"), ("w", w, "(K, U) f32")];
                Err(Error::Shape { op: self.name(), problem, operands })
            }
        }
    }

    fn extra_outputs(&self, inputs: &[TensorType]) -> Vec<TensorType> {
        vec![TensorType::f32(Shape::fixed(&[inputs[3].shape.last()])), TensorType { dtype: self.dx, ..inputs[0] }]
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        no_second_gradient(self.name())
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let g = self.through(args);
        let [x, w] = [&args.inputs[0], &args.inputs[3]];
        let [features, units, batch] = [w.extents[0], w.extents[1], args.batch];
        for (i, dw) in args.output.iter_mut().enumerate() {
            *dw = (0..batch).map(|n| x.data[n * features + i / units] * g[n * units + i % units]).sum();
        }
        for (u, db) in args.extra[0].iter_mut().enumerate() {
            *db = (0..batch).map(|n| g[n * units + u]).sum();
        }
        for (i, dx) in args.extra[1].iter_mut().enumerate() {
            let [n, k] = [i / features, i % features];
            *dx = (0..units).map(|u| g[n * units + u] * w.data[k * units + u]).sum();
        }
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        if args.inputs.iter().any(|input| input.ty.dtype == DType::F16) || self.dx == DType::F16 {
            return false;
        }
        let [x, y, dy, w] = [0, 1, 2, 3].map(|i| args.inputs[i].f32());
        let [db, dx] = &mut args.extra[..] else { unreachable!("dense_grad has two extra outputs") };
        let y = self.relu.then_some(y);
        let grads = kernels::dense::Gradients { dx, dw: args.output, db };
        kernels::dense::backward(x, w, kernels::dense::Dy { dy, y }, args.inputs[3].ty.shape.last(), grads, args.scratch);
        true
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        let [features, units] = [inputs[3].shape.inner()[0], inputs[3].shape.last()];
        let constants = vec![("FEATURES", features as f64), ("UNITS", units as f64), ("RELU", f64::from(self.relu))];
        // The tiles of dw, then those of dx: each has a row of them for every tile of features.
        let workgroups = Workgroups { fixed: units.next_multiple_of(TILE), per_image: 1, tile: TILE, times: features.div_ceil(TILE) };
        let aliases = [("X", inputs[0].dtype), ("Y", inputs[1].dtype), ("DY", inputs[2].dtype), ("DX", self.dx)];
        Launch { kernel: stored(kernel!("dense_grad"), &aliases), constants, workgroups }
    }

    fn terms(&self, inputs: &[TensorType], batch: usize) -> usize {
        batch.max(inputs[3].shape.last())
    }

    // dw and dx take as many as the layer, db one for each element of dy.
    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        (4 * batch * inputs[3].shape.inner_len() + inputs[2].shape.len(batch)) as u64
    }
}
