//! Addition of one number a channel.

use super::{Cpu, LANES, Launch, Reference, Rules, Variant, Workgroups, kernel, len_constants};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::kernels;
use crate::shape::{DType, Shape, TensorType};

/// `y[…, c] = x[…, c] + b[c]` of operands `x`, `b`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BiasAdd;

impl Graph {
    /// Adds `bias` `[C]` to every row of `x` `[…, C]`.
    pub fn bias_add(&mut self, x: TensorId, bias: TensorId) -> Result<TensorId> {
        self.apply(BiasAdd, &[x, bias])
    }
}

impl Rules for BiasAdd {
    fn name(&self) -> &'static str {
        "bias_add"
    }

    fn arity(&self) -> usize {
        2
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let [x, b] = [inputs[0], inputs[1]];
        let channels = x.shape.last();
        if x.dtype == DType::F32 && !x.shape.inner().is_empty() && b == TensorType::f32(Shape::fixed(&[channels])) {
            return Ok(x);
        }
        let problem = format!("x has {channels} channels, the bias has shape {}", b.shape);
        Err(Error::Shape { op: self.name(), problem, operands: vec![("x", x, "(…, C) f32"), ("bias", b, "(C) f32")] })
    }

    // dx = dy, and db sums dy over every axis but the last.
    fn backward(&self, graph: &mut Graph, inputs: &[TensorId], _: TensorId, dy: TensorId) -> Result<Vec<Option<TensorId>>> {
        let axes: Vec<usize> = (0..graph.shape(inputs[0]).rank() - 1).collect();
        let db = if axes.is_empty() { dy } else { graph.sum(dy, &axes)? };
        Ok(vec![Some(dy), Some(db)])
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let [x, b] = [args.inputs[0].data, args.inputs[1].data];
        for (i, y) in args.output.iter_mut().enumerate() {
            *y = x[i] + b[i % b.len()];
        }
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        kernels::elementwise::bias_add(args.inputs[0].f32(), args.inputs[1].f32(), args.output);
        true
    }

    fn launch(&self, inputs: &[TensorType], output: TensorType) -> Launch {
        let mut constants = len_constants(output);
        constants.push(("CHANNELS", inputs[1].shape.last() as f64));
        Launch { kernel: kernel!("bias_add"), constants, workgroups: Workgroups::over(output, LANES) }
    }

    fn variants(&self, inputs: &[TensorType], output: TensorType) -> Vec<Variant> {
        Variant::in_fours(kernel!("bias_add_quads"), self.launch(inputs, output), inputs[1].shape.last())
    }
}
