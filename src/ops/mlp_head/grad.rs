//! The products behind a head: gradients of both layers' weights and biases, and of what goes into the first.

use super::Extents;
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::ops::dense::TILE;
use crate::ops::stored::stored;
use crate::ops::{Launch, Reference, Rules, Workgroups, kernel, no_second_gradient};
use crate::shape::{DType, Shape, TensorType};

/// dw1 `[K, U]` and, extra, db1 `[U]`, dx `[N, K]`, dw2 `[U, C]` and db2 `[C]`, of x `[N, K]`, the rows `[N, 2U + C + 2]` of [`MlpHead`](super::MlpHead) and
/// w1 `[K, U]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MlpHeadGrad {
    /// What dx is stored as.
    pub dx: DType,
}

/// K, U and C, or what does not fit.
fn extents(x: TensorType, rows: TensorType, w1: TensorType) -> Result<Extents, String> {
    let batched = |ty: TensorType| ty.shape.is_batched() && ty.dtype.is_float();
    match (x.shape.inner(), rows.shape.inner(), w1.shape.inner()) {
        (&[k], &[width], &[features, units])
            if batched(x) && batched(rows) && !w1.shape.is_batched() && [rows, w1].iter().all(|ty| ty.dtype == DType::F32) =>
        {
            if k != features || k == 0 || units == 0 {
                return Err(format!("x has {k} features but w1 has {features} rows of {units}"));
            }
            let wanted = format!("2 · {units} hidden units, 1 class or more, and 2");
            let classes = width.checked_sub(2 * units + 2).filter(|&classes| classes > 0);
            let classes = classes.ok_or_else(|| format!("a row has {width} elements, expected {wanted}"))?;
            Ok(Extents { features, units, classes })
        }
        _ => Err(format!("expected two batches of rows and a matrix of floats, got {x}, {rows} and {w1}")),
    }
}

impl MlpHeadGrad {
    fn extents(inputs: &[TensorType]) -> Extents {
        extents(inputs[0], inputs[1], inputs[2]).expect("types that infer has accepted")
    }
}

impl Rules for MlpHeadGrad {
    fn name(&self) -> &'static str {
        "mlp_head_grad"
    }

    fn arity(&self) -> usize {
        3
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let [x, rows, w1] = [inputs[0], inputs[1], inputs[2]];
        match extents(x, rows, w1) {
            Ok(_) if self.dx.is_float() => Ok(w1),
            Ok(_) => Err(Error::invalid("what mlp_head_grad's dx is stored as", format!("{:?}", self.dx), "a float type")),
            Err(problem) => {
                let operands = vec![("x", x, "(N, K) f32"), ("rows", rows, "(N, 2U + C + 2) f32"), ("w1", w1, "(K, U) f32")];
                Err(Error::Shape { op: self.name(), problem, operands })
            }
        }
    }

    fn extra_outputs(&self, inputs: &[TensorType]) -> Vec<TensorType> {
        let Extents { units, classes, .. } = Self::extents(inputs);
        let fixed = |extents: &[usize]| TensorType::f32(Shape::fixed(extents));
        vec![fixed(&[units]), TensorType { dtype: self.dx, ..inputs[0] }, fixed(&[units, classes]), fixed(&[classes])]
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        no_second_gradient(self.name())
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let [x, rows, w1] = [0, 1, 2].map(|i| &args.inputs[i]);
        let [features, units, width] = [w1.extents[0], w1.extents[1], rows.extents[1]];
        let (classes, batch) = (width - 2 * units - 2, args.batch);
        let hidden = |n: usize, u: usize| rows.data[n * width + u];
        let dhidden = |n: usize, u: usize| rows.data[n * width + units + u];
        let dlogits = |n: usize, c: usize| rows.data[n * width + 2 * units + c];
        for (i, dw1) in args.output.iter_mut().enumerate() {
            *dw1 = (0..batch).map(|n| x.data[n * features + i / units] * dhidden(n, i % units)).sum();
        }
        let [db1, dx, dw2, db2] = &mut args.extra[..] else { unreachable!("mlp_head_grad has four extra outputs") };
        for (u, db1) in db1.iter_mut().enumerate() {
            *db1 = (0..batch).map(|n| dhidden(n, u)).sum();
        }
        for (i, dx) in dx.iter_mut().enumerate() {
            let [n, k] = [i / features, i % features];
            *dx = (0..units).map(|u| dhidden(n, u) * w1.data[k * units + u]).sum();
        }
        for (i, dw2) in dw2.iter_mut().enumerate() {
            *dw2 = (0..batch).map(|n| hidden(n, i / classes) * dlogits(n, i % classes)).sum();
        }
        for (c, db2) in db2.iter_mut().enumerate() {
            *db2 = (0..batch).map(|n| dlogits(n, c)).sum();
        }
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        let of = Self::extents(inputs);
        let constants = vec![("FEATURES", of.features as f64), ("UNITS", of.units as f64), ("CLASSES", of.classes as f64)];
        // Rows of tiles, each of as many as the features have: those of dw1, of dw2, whose last row is not full, and of dx.
        let [tiles_k, tiles_u, tiles_c] = [of.features, of.units, of.classes].map(|len| len.div_ceil(TILE));
        let fixed = (tiles_u + (tiles_u * tiles_c).div_ceil(tiles_k)) * TILE;
        let workgroups = Workgroups { fixed, per_image: 1, tile: TILE, times: tiles_k };
        Launch { kernel: stored(kernel!("mlp_head_grad"), &[("X", inputs[0].dtype), ("DX", self.dx)]), constants, workgroups }
    }

    fn terms(&self, inputs: &[TensorType], batch: usize) -> usize {
        batch.max(inputs[2].shape.last())
    }

    // dw1 and dx take as many as the first layer, dw2 as the second, the biases one for each gradient of a row.
    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        let Extents { features, units, classes } = Self::extents(inputs);
        (batch * (4 * features * units + 2 * units * classes + units + classes)) as u64
    }
}
