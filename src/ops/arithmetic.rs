//! Element-wise sum and product of two tensors of one shape.

use super::{Cpu, LANES, Launch, Reference, Rules, Workgroups, kernel, len_constants};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::kernels;
use crate::shape::{DType, TensorType};

/// `c = a + b`, element by element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Add;

/// `c = a · b`, element by element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mul;

impl Graph {
    /// `a + b`, of one shape.
    pub fn add(&mut self, a: TensorId, b: TensorId) -> Result<TensorId> {
        self.apply(Add, &[a, b])
    }

    /// `a · b` element by element, of one shape.
    pub fn mul(&mut self, a: TensorId, b: TensorId) -> Result<TensorId> {
        self.apply(Mul, &[a, b])
    }
}

/// The shape rule of operators on two float tensors of one shape.
pub(super) fn same_floats(op: &'static str, names: [&'static str; 2], inputs: &[TensorType]) -> Result<TensorType> {
    let [a, b] = [inputs[0], inputs[1]];
    if a == b && a.dtype == DType::F32 {
        return Ok(a);
    }
    let problem = if a.shape == b.shape {
        "expected floats".to_owned()
    } else {
        format!("{} has shape {}, {} {}", names[0], a.shape, names[1], b.shape)
    };
    Err(Error::Shape { op, problem, operands: vec![(names[0], a, "any axes, f32"), (names[1], b, "the same axes, f32")] })
}

fn launch(product: bool, output: TensorType) -> Launch {
    let mut constants = len_constants(output);
    constants.push(("PRODUCT", f64::from(product)));
    Launch { kernel: kernel!("arithmetic"), constants, workgroups: Workgroups::over(output, LANES) }
}

impl Rules for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn arity(&self) -> usize {
        2
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        same_floats(self.name(), ["a", "b"], inputs)
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, dc: TensorId) -> Result<Vec<Option<TensorId>>> {
        Ok(vec![Some(dc), Some(dc)])
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let [a, b] = [args.inputs[0].data, args.inputs[1].data];
        for (i, c) in args.output.iter_mut().enumerate() {
            *c = a[i] + b[i];
        }
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        kernels::elementwise::zip(args.inputs[0].f32(), args.inputs[1].f32(), args.output, |a, b| a + b);
        true
    }

    fn launch(&self, _inputs: &[TensorType], output: TensorType) -> Launch {
        launch(false, output)
    }
}

impl Rules for Mul {
    fn name(&self) -> &'static str {
        "mul"
    }

    fn arity(&self) -> usize {
        2
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        same_floats(self.name(), ["a", "b"], inputs)
    }

    // da = dc · b and db = dc · a.
    fn backward(&self, graph: &mut Graph, inputs: &[TensorId], _: TensorId, dc: TensorId) -> Result<Vec<Option<TensorId>>> {
        let da = graph.mul(dc, inputs[1])?;
        let db = graph.mul(dc, inputs[0])?;
        Ok(vec![Some(da), Some(db)])
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let [a, b] = [args.inputs[0].data, args.inputs[1].data];
        for (i, c) in args.output.iter_mut().enumerate() {
            *c = a[i] * b[i];
        }
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        kernels::elementwise::zip(args.inputs[0].f32(), args.inputs[1].f32(), args.output, |a, b| a * b);
        true
    }

    fn launch(&self, _inputs: &[TensorType], output: TensorType) -> Launch {
        launch(true, output)
    }
}
